"""Suites: named evaluation sets that are reported together, each with a role. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import DataError, nearest
from .layout import SHIFTED, find_own, fingerprint

Role = Literal["id", "ood", "base", "novel"]
"""What a split tells: the task itself, shifted data, trained classes, classes never trained on"""

Task = Literal["classify"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """One evaluation set."""

    name: str
    """In tables and score files"""
    role: Role
    task: Task = "classify"
    dataset: str
    """As in `perdure.data.datasets.DATASETS`"""
    split: str
    """As the data set calls it"""
    classes: str = "all"
    """"all", or the name of a part that the data set defines, such as "base" """
    columns: tuple[tuple[int, ...], ...] | None = None
    """Per class, the classifier's columns whose maximum is its logit; None for one each"""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Named splits that are reported together."""

    name: str
    summary: str
    """One line for listings"""
    splits: tuple[Split, ...]
    templates: str
    """Data set whose prompts make the classifier"""
    version: int = 1
    """Of the images, where perdure makes them itself; scores of two versions do not compare"""

    @property
    def definition(self) -> str:
        """Short hash of everything that decides what is measured; scores carry it."""
        meaning = {key: value for key, value in asdict(self).items() if key != "summary"}
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]


def _emojishift(name: str, role: Role, split: str | None = None, classes: str = "all") -> Split:
    return Split(name=name, role=role, dataset="emojishift", split=split or name, classes=classes)


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
        Suite(
            name="emojishift-b2n",
            summary="embedded: 40 classes trained on (data.classes=base) and 40 held out",
            splits=(
                _emojishift("base", "base", "id", "base"),
                _emojishift("novel", "novel", "id", "novel"),
            ),
            templates="emojishift",
        ),
        Suite(
            name="own",
            summary="your pictures at --data: test (or val), and every ood_NAME beside it",
            splits=(),  # those that are found
            templates="own",
        ),
    )
}
"""Every known suite by name."""


def suite(name: str, root: Path | None = None) -> Suite:
    """Return a suite by name.

    Args:
        name: One of `SUITES`.
        root: Where the data are, on which the splits of "own" depend.

    Raises:
        DataError: If there is none (names the nearest), or own data are missing or malformed.
    """
    if name not in SUITES:
        known = ", ".join(SUITES)
        raise DataError(
            f"there is no suite {name!r}. Known: {known}. {nearest(name, SUITES)}".rstrip()
        )
    return _own(SUITES[name], root) if name == "own" else SUITES[name]


def _own(empty: Suite, root: Path | None) -> Suite:
    """Return the suite of what is found under a root."""
    if root is None:
        raise DataError(
            "suite own is made of what is found under a directory, and none is named; add "
            "--data ROOT with train/, test/, ood_*/ folders or tables, as in data.root of recipes."
        )
    own = find_own(root)
    inside = next((name for name in ("test", "val") if name in own.splits), None)
    if inside is None:
        raise DataError(
            f"{root} has neither split test nor val to evaluate on; found: "
            f"{', '.join(own.splits)}. Add {root / 'test'}/<class>/*.jpg or a table test.csv."
        )
    if own.captioned:
        raise DataError(
            f"{root} has captions, no labels, so there are no classes to score; contrastive "
            "methods train on captions, but suite own needs a column of labels."
        )
    shifted = [name for name in own.splits if name.startswith(SHIFTED)]
    return replace(
        empty,
        splits=(
            Split(name="id", role="id", dataset="own", split=inside),
            *(
                Split(name=name.removeprefix(SHIFTED), role="ood", dataset="own", split=name)
                for name in shifted
            ),
        ),
        version=fingerprint(own, (inside, *shifted)),
    )
