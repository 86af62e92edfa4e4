"""Suites: named evaluation sets that are reported together, each with a role. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from ..errors import DataError, nearest

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
    )
}
"""Every known suite by name."""


def suite(name: str) -> Suite:
    """Return a suite by name.

    Raises:
        DataError: If there is none; names the nearest.
    """
    if name not in SUITES:
        known = ", ".join(SUITES)
        raise DataError(
            f"there is no suite {name!r}. Known: {known}. {nearest(name, SUITES)}".rstrip()
        )
    return SUITES[name]
