"""The table `guard` of a recipe: a floor under a metric, and what happens below it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from .data.damaged import DAMAGED
from .data.suites import SUITES, Suite
from .data.transfer import B2N
from .data.uses import FORGETTING
from .errors import nearest

WORDS: Mapping[str, tuple[str, ...]] = {
    "id": ("id",),
    "ood": ("ood",),
    "art": ("ood",),
    "without_objectnet": ("ood",),
    "base": ("base",),
    "novel": ("novel",),
    "base_ood": ("base_ood",),
    "novel_ood": ("novel_ood",),
    "target": ("target",),
    "harmonic": ("base", "novel"),
    "harmonic_ood": ("base_ood", "novel_ood"),
    "ece_id": ("id",),
    "ece_ood": ("ood",),
}
"""What a suite comes to (`perdure.reporting`), and the roles its splits must have for it"""

WITHOUT = {"art": "corrupt", "without_objectnet": "objectnet"}
"""Means over all shifted sets but this one, which exist where it does; `ood` of the others"""

OF_SPLITS = (
    *("accuracy", "macro_f1", "worst_group_accuracy", "real_accuracy"),
    *("ece", "ece10", "nll", "brier"),
)
"""What can be read of one split, as in "sketch.accuracy" """

_UNBOUNDED = ("nll", "brier")

_MORE_SUITES = tuple(f"{name}-" for name in (DAMAGED, B2N, FORGETTING))
"""Beginnings of names of suites that are made of others, or leave one out"""


@dataclass(frozen=True, kw_only=True)
class GuardSpec:
    """How far training may forget: a metric of a suite that must not fall below a floor."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    suite: str
    """Looked at during training, so that scores on its images are no test scores any more; take
    one for choosing, such as emojishift-val"""
    metric: str
    """A word of `perdure report`, such as "ood", or one split's, such as "val_shift.accuracy" """
    floor: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The least value that is good, .55 for 55 %; of ece, nll and brier the largest"""
    drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Instead of `floor`: by how much it may be worse than the pre-trained model, .03 for three
    points"""
    action: Literal["stop", "rollback"] = "stop"
    """Below the floor: end with the last good weights, or go back to them and on from there with a
    lower learning rate"""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """On all learning rates, at every rollback"""
    times: Annotated[int, Field(ge=1)] = 3
    """Rollbacks before the run is stopped"""
    every: Annotated[int, Field(ge=0)] = 0
    """Optimiser steps between two looks where `validate` has no splits, 0 for the end of each
    epoch; with splits the guard looks whenever they are validated on"""
    limit: Annotated[int, Field(ge=1)] | None = None
    """At most so many images per split; None for all"""
    root: Path | None = None
    """Where the suite's files are; None for `data.root`"""

    def __post_init__(self) -> None:
        """Refuse what can never be measured, or never be met."""
        if (self.floor is None) == (self.drop is None):
            raise ValueError("give either floor (such as 0.55) or drop (such as 0.03)")
        key, value = ("floor", self.floor) if self.drop is None else ("drop", self.drop)
        assert value is not None
        if is_share(self.metric) and not 0 <= value <= 1:
            raise ValueError(
                f"{key} is {value:g}, but {self.metric} is a share between 0 and 1; write "
                f"{value / 100:g} for {value:g} %"
            )
        known = SUITES.get(self.suite)
        # Which splits the others have depends on what is found under their root.
        if known is not None and known.splits:
            require_in(self.metric, known)
        elif known is None and not self.suite.startswith(_MORE_SUITES):
            hint = nearest(self.suite, SUITES)
            raise ValueError(f"there is no suite {self.suite!r}; {hint or 'perdure list suites'}")


def less_is_better(metric: str) -> bool:
    """Return whether the metric counts errors, so that the floor is a ceiling."""
    name = metric.rpartition(".")[2]
    return name in ("ece", "ece10", "ece_id", "ece_ood", *_UNBOUNDED)


def is_share(metric: str) -> bool:
    """Return whether the metric is known to be a share of images."""
    name = metric.rpartition(".")[2]
    return name in (*WORDS, *OF_SPLITS) and name not in _UNBOUNDED


def splits_of(metric: str, suite: Suite) -> list[str]:
    """Return the names of the splits that a metric is made of."""
    split, dot, _ = metric.rpartition(".")
    if dot:
        return [split]
    if metric not in WORDS:  # the main metric of another task than classification
        return [one.name for one in suite.splits if one.task != "classify"]
    roles, without = WORDS[metric], WITHOUT.get(metric)
    return [one.name for one in suite.splits if one.role in roles and one.name != without]


def words_of(suite: Suite) -> list[str]:
    """Return the words that a suite comes to."""
    ours = [one for one in suite.splits if one.task == "classify"]
    names, roles = {one.name for one in ours}, {one.role for one in ours}
    return [
        word
        for word, needed in WORDS.items()
        if roles.issuperset(needed) and WITHOUT.get(word) in (None, *names)
    ]


def require_in(metric: str, suite: Suite) -> None:
    """Refuse a metric that a suite does not have; those of other tasks are seen when measured.

    Raises:
        ValueError: Names what it has.
    """
    if not all(one.task == "classify" for one in suite.splits):
        return
    names, words = [one.name for one in suite.splits], words_of(suite)
    split, dot, name = metric.rpartition(".")
    if dot and split not in names:
        hint = nearest(split, names)
        raise ValueError(
            f"metric is {metric!r}, but suite {suite.name} has no split {split!r}; "
            f"{hint + ' ' if hint else ''}its splits: {', '.join(names)}"
        )
    if dot and name not in OF_SPLITS:
        hint = nearest(name, OF_SPLITS)
        raise ValueError(
            f"metric is {metric!r}; {hint + ' ' if hint else ''}after the split and a dot comes "
            f"one of {', '.join(OF_SPLITS)}"
        )
    if not dot and metric not in words:
        hint = nearest(metric, words)
        raise ValueError(
            f"metric is {metric!r}, which suite {suite.name} does not have; "
            f"{hint + ' ' if hint else ''}its words: {', '.join(words)}; or one split's, as in "
            f"{names[0]}.accuracy"
        )
