"""Suites: named evaluation sets that are reported together, each with a role. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import DataError, nearest
from . import shifts, uses
from .damaged import DAMAGED, damaged_suite
from .datasets import DATASETS
from .dividing import SHIFTED
from .found import OWN, Found, find_found, tested
from .hf_datasets import HF
from .shard_index import WDS
from .shifts import TASK_SUITES
from .splits import Role as Role
from .splits import Split as Split
from .splits import Suite as Suite
from .splits import Task as Task
from .transfer import B2N, base_to_novel

SCENES: tuple[tuple[str, Role], ...] = (("id", "id"), ("rendition", "ood"), ("sketch", "ood"))
"""Splits of drawn scenes, and their roles"""


def _emojishift(name: str, role: Role, split: str | None = None, classes: str = "all") -> Split:
    return Split(name=name, role=role, dataset="emojishift", split=split or name, classes=classes)


def _divided(name: str, which: str) -> Suite:
    """Trained and held-out classes, in the trained artist's drawings and in those of others."""
    base, novel = f"base{which}", f"novel{which}"
    return Suite(
        name=name,
        summary=f"embedded: 40 classes trained on (data.classes={base}), 40 held out; shifted too",
        splits=(
            _emojishift("base", "base", "id", base),
            _emojishift("novel", "novel", "id", novel),
            _emojishift("base_rendition", "base_ood", "rendition", base),
            _emojishift("novel_rendition", "novel_ood", "rendition", novel),
        ),
        templates="emojishift",
    )


def _divided_val(name: str, which: str) -> Suite:
    """For choosing: no image and no held-out class of the suite that is reported.

    The concepts of `val_shift` belong to neither half and are drawn by other artists, so they stand
    in for held-out classes.
    """
    base = f"base{which}"
    return Suite(
        name=name,
        summary=f"embedded: for choosing with data.classes={base}; no held-out class is looked at",
        splits=(
            _emojishift("base", "base", "val", base),
            _emojishift("val_shift", "novel", "val_shift"),
        ),
        templates="emojishift",
    )


SUITES: dict[str, Suite] = {
    entry.name: entry
    for entry in (
        Suite(
            name="emojishift",
            summary="embedded: 80 classes of one artist, and five shifts of them",
            splits=(
                _emojishift("id", "id"),
                _emojishift("v2", "ood"),
                _emojishift("rendition", "ood"),
                _emojishift("sketch", "ood"),
                _emojishift("hard", "ood"),
                _emojishift("corrupt", "ood"),
            ),
            templates="emojishift",
        ),
        Suite(
            name="emojishift-val",
            summary="embedded: for choosing hyper-parameters; shares no image with emojishift",
            splits=(_emojishift("val", "id"), _emojishift("val_shift", "ood")),
            templates="emojishift",
        ),
        _divided("emojishift-b2n", ""),
        _divided("emojishift-b2n-2", "-2"),
        _divided_val("emojishift-b2n-val", ""),
        _divided_val("emojishift-b2n-val-2", "-2"),
        *uses.EMBEDDED,
        Suite(
            name="emojishift-segmentation",
            summary="embedded: scenes of four things, labelled pixel by pixel under true masks",
            splits=tuple(
                Split(name=name, role=role, task="segment", dataset="emojishift", split=name)
                for name, role in SCENES
            ),
            templates="emojishift",
        ),
        Suite(
            name=B2N,
            summary=f"halves of the classes of any data set: name it, as in {B2N}-own",
            splits=(),  # those of the data set
            templates="emojishift",
        ),
        Suite(
            name=DAMAGED,
            summary=f"images damaged in 15 ways and 5 degrees: name a suite, as in {DAMAGED}-own",
            splits=(),  # those of the suite
            templates="emojishift",
        ),
        Suite(
            name="own",
            summary="your pictures at --data: test (or val), and every ood_NAME beside it",
            splits=(),  # those that are found
            templates="own",
        ),
        Suite(
            name=HF,
            summary="a data set of Hugging Face at --data: test (or val), and every ood_NAME",
            splits=(),  # those that are found
            templates=HF,
        ),
        Suite(
            name=WDS,
            summary="labelled shards (tar files) at --data: test (or val), and every ood_NAME",
            splits=(),  # those that are found
            templates=WDS,
        ),
        *(
            Suite(name=name, summary=summary, splits=(), templates="openai-80")
            for name, summary in (
                shifts.SUMMARIES | uses.SUMMARIES
            ).items()  # their splits depend on the root
        ),
    )
}
"""Every known suite by name."""


def suite(name: str, root: Path | None = None) -> Suite:
    """Return a suite by name.

    Args:
        name: One of `SUITES`.
        root: Where the data are, on which the splits of "own", "hf" and "wds" depend.

    Raises:
        DataError: If there is none (names the nearest), or own data are missing or malformed.
    """
    if name.startswith(f"{DAMAGED}-"):
        return damaged_suite(suite(name.removeprefix(f"{DAMAGED}-"), root))
    if name.startswith(f"{B2N}-"):
        return _halves_of(name.removeprefix(f"{B2N}-"), root)
    if name.startswith(f"{uses.FORGETTING}-"):
        return uses.forgetting(root, name.removeprefix(f"{uses.FORGETTING}-"))
    if name == DAMAGED:
        raise DataError(
            f"suite {DAMAGED} needs the name of the suite whose images are damaged, as in "
            f"{DAMAGED}-own or {DAMAGED}-emojishift."
        )
    if name == B2N:
        raise DataError(
            f"suite {B2N} needs the name of the data set whose classes are halved, as in "
            f"{B2N}-own; for the embedded world use emojishift-b2n."
        )
    if name not in SUITES:
        known = ", ".join(SUITES)
        raise DataError(
            f"there is no suite {name!r}. Known: {known}. {nearest(name, SUITES)}".rstrip()
        )
    makers = shifts.MAKERS | uses.MAKERS
    if name in makers:
        return makers[name](root)
    return _own(SUITES[name], root) if name in _FOUND else SUITES[name]


def for_choosing(suite: Suite) -> bool:
    """Return whether choices may be made on a suite, because none of its splits is a test set."""
    return all(split.split.startswith("val") for split in suite.splits)


def of_task(dataset: str, classes: str = "all") -> str | None:
    """Return the suite that scores a task on images that nothing is chosen on; None without one.

    Args:
        dataset: Trained on.
        classes: Part of it.
    """
    if dataset in _FOUND and classes == "all":
        return dataset
    if dataset in TASK_SUITES and classes == "all":
        return TASK_SUITES[dataset]
    for entry in SUITES.values():
        for split in entry.splits:
            trained = (split.dataset, split.classes) == (dataset, classes)
            if trained and split.role in ("id", "base") and split.split != "val":
                return entry.name
    return f"{B2N}-{dataset}" if classes == "base" and dataset in DATASETS else None


def _own(empty: Suite, root: Path | None) -> Suite:
    """Return the suite of what is found under a root."""
    found, inside = _test_of(empty.name, root)
    if found.captioned(inside):
        raise DataError(
            f"{root} has captions, no labels, so there are no classes to score; suite "
            f"{empty.name} needs labels. Suite retrieval scores captions."
        )
    shifted = [name for name in found.splits if name.startswith(SHIFTED)]
    return replace(
        empty,
        splits=(
            Split(name="id", role="id", dataset=empty.name, split=inside),
            *(
                Split(name=name.removeprefix(SHIFTED), role="ood", dataset=empty.name, split=name)
                for name in shifted
            ),
        ),
        version=found.version((inside, *shifted)),
    )


def _halves_of(dataset: str, root: Path | None) -> Suite:
    """Return the suite of halves of a data set that is known by name."""
    if dataset not in DATASETS:
        raise DataError(
            f"suite {B2N}-{dataset} would halve the classes of {dataset!r}, but there is no such "
            f"data set. Known: {', '.join(DATASETS)}. {nearest(dataset, DATASETS)}".rstrip()
        )
    if dataset == "emojishift":
        raise DataError(f"the halves of emojishift are suite emojishift-b2n, not {B2N}-emojishift.")
    if dataset not in _FOUND:
        return base_to_novel(dataset)
    found, inside = _test_of(dataset, root)
    return base_to_novel(dataset, inside, found.version((inside,)))


def _test_of(name: str, root: Path | None) -> tuple[Found, str]:
    """Return what is found under a root, and the split that is scored."""
    if root is None:
        raise DataError(
            f"suite {name} is made of what is found under a directory, and none is named; add "
            f"--data ROOT with {_FOUND[name]}, as in data.root of recipes."
        )
    found = find_found(root, name)
    more = f" Add {root / 'test'}/<class>/*.jpg or a table test.csv." if name == OWN else ""
    return found, tested(found, root, more)


_FOUND = {
    OWN: "train/, test/, ood_*/ folders or tables",
    HF: "what save_to_disk wrote, or Parquet files",
    WDS: "folders test/, ood_*/ of *.tar files",
}
"""Data sets whose splits are whatever is found, and what is looked for; each is a suite as well"""
