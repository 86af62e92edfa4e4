"""Suites of the published transfer protocols, made from names of data sets. Imports no torch.

They need nothing but splits: whatever data set is registered with a `test` split can take part.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DataError
from .splits import Split, Suite

B2N = "base-to-novel"
"""Suite of any data set with a test split: this, a hyphen and the data set's name"""


def base_to_novel(dataset: str, split: str = "test", version: int = 1) -> Suite:
    """Return the suite of trained and held-out classes of a data set.

    Train with `data.classes: base`, and `data.sampling: coop` for the published subsets.

    Args:
        dataset: As in `perdure.data.datasets.DATASETS`.
        split: Scored, once with the names of the first half of the classes, once with the others.
        version: Of the images.

    Source: Zhou et al. 2022 (CoCoOp), arXiv 2203.05557, section 4.1.
    """
    return Suite(
        name=f"{B2N}-{dataset}",
        summary=f"{dataset}: the half of the classes trained on, and the half held out",
        splits=tuple(
            Split(name=half, role=half, dataset=dataset, split=split, classes=half)
            for half in ("base", "novel")
        ),
        templates=dataset,
        version=version,
    )


def cross_dataset(
    name: str, source: str, targets: Sequence[str], *, summary: str = "", split: str = "test"
) -> Suite:
    """Return the suite of one source task and the other tasks a model is used for unchanged.

    Every target is scored on all its classes with its own prompts; the word `target` in reports is
    the unweighted mean over targets.

    Args:
        name: Of the suite.
        source: Data set trained on.
        targets: Data sets never trained on.
        summary: For listings.
        split: Scored, of every data set.

    Raises:
        DataError: If there is no target, or one stands twice or is the source.

    Source: Zhou et al. 2022 (CoCoOp), arXiv 2203.05557, section 4.2.
    """
    _require_distinct(name, source, targets)
    return Suite(
        name=name,
        summary=summary or f"{source}, and unchanged on {len(targets)} other tasks",
        splits=(
            Split(name=source, role="id", dataset=source, split=split),
            *(
                Split(name=each, role="target", dataset=each, split=split, templates=each)
                for each in targets
            ),
        ),
        templates=source,
    )


def domain_shift(
    name: str, source: str, shifted: Sequence[str], *, summary: str = "", split: str = "test"
) -> Suite:
    """Return the suite of one task and data sets of the same classes, or some of them, shifted.

    A shifted set is scored among its own classes alone, with the prompts of the source; the word
    `ood` in reports is the unweighted mean over shifted sets.

    Args:
        name: Of the suite.
        source: Data set trained on.
        shifted: Data sets of shifted images.
        summary: For listings.
        split: Scored, of every data set.

    Raises:
        DataError: If there is no shifted set, or one stands twice or is the source.

    Source: Zhou et al. 2022 (CoOp), arXiv 2109.01134, section 4.2.
    """
    _require_distinct(name, source, shifted)
    return Suite(
        name=name,
        summary=summary or f"{source}, and {len(shifted)} shifts of it",
        splits=(
            Split(name=source, role="id", dataset=source, split=split),
            *(Split(name=each, role="ood", dataset=each, split=split) for each in shifted),
        ),
        templates=source,
    )


def _require_distinct(name: str, source: str, others: Sequence[str]) -> None:
    if not others or len({source, *others}) < 1 + len(others):
        raise DataError(
            f"suite {name} scores {source} and {', '.join(others) or 'nothing else'}; name at "
            "least one other data set, each once."
        )
