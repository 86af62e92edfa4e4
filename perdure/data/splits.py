"""What a suite is: evaluation sets with roles. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

Role = Literal["id", "ood", "base", "novel", "base_ood", "novel_ood", "target"]
"""What a split tells: the task itself, shifted data, trained classes, classes never trained on,
shifted data of either, another task than the one trained on"""

Task = Literal[
    "classify",
    "retrieve",
    "answer",
    "segment",
]


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
    templates: str | None = None
    """Data set whose prompts make the classifier; None for the suite's"""


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
        for split in meaning["splits"]:  # absent is what it was before splits could have their own
            if split["templates"] is None:
                del split["templates"]
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]
