"""Tasks: what is asked of a model on a split of a suite, and how the answers are scored.

A task is a module with one function `open_exam`. An exam knows how many images it looks at and
judges one predictor with several settings of its weights, decoding every image once. What it says
is the same for all tasks, so that files, tables, reports and paired intervals need to know none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.splits import Split, Suite
from ..data.splits import Task as Task
from ..errors import DataError

if TYPE_CHECKING:
    from ..prediction import How, Moves
    from ..predictor import Predictor


class Outcomes(NamedTuple):
    """What is kept per example, for paired comparisons and reliability diagrams.

    An example is an image, a query or a region; it is answered rightly where both numbers agree.
    """

    label: NDArray[np.int64]
    """(N,)"""
    prediction: NDArray[np.int64]
    """(N,)"""
    confidence: NDArray[np.float32]
    """(N,), of the prediction; a class probability where the task has classes"""
    rank: NDArray[np.int64] | None = None
    """(N,), place of the best right answer, from 0, where a gallery was ranked"""
    pixels: NDArray[np.int32] | None = None
    """What `overlap.sparse` keeps of the label maps of a split; None where no pixel is labelled"""

    def arrays(self) -> dict[str, Any]:
        """Return what there is, by its name in files."""
        return {name: rows for name, rows in self._asdict().items() if rows is not None}

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is right, (N,)."""
        right: NDArray[np.bool_] = self.label == self.prediction
        return right


class Judged(NamedTuple):
    """What one exam found out about one setting of the weights."""

    entry: dict[str, Any]
    """Of the score file: `role`, `task`, `n`, `metric` (the name of the main one), that metric and
    its `interval` of 95 %, and whatever else the task measures"""
    outcomes: Outcomes


class Exam(Protocol):
    """An opened split, ready to be judged on."""

    @property
    def images(self) -> int:
        """Return how many images one judgement looks at, for progress bars."""
        ...

    def judge(
        self,
        predictor: Predictor,
        moves: Moves,
        how: How,
        temperatures: Mapping[float, float],
    ) -> Mapping[float, Mapping[str, Judged]]:
        """Return, per position, what was found by the name it has in score files.

        Args:
            predictor: Its weights are moved in place.
            moves: Positions and how to get there.
            how: Device, batch size and whom to tell about finished images.
            temperatures: Fitted per position, where that was asked for; tasks without classes
                ignore them.

        Raises:
            WeightsError: If the model gives what is not finite.
        """
        ...


class Entry(NamedTuple):
    """One task in the table."""

    module: str
    """Has `open_exam(split, suite, how, inside)`; imported when it is used"""
    counted: str
    """What `n` counts"""
    columns: Mapping[str, str]
    """Header of a printed column to the key of an entry, after the main metric and its interval;
    columns that no entry has are left out"""
    ways: bool = False
    """Whether it heeds how pictures are decoded, and the precision"""


TASKS: dict[Task, Entry] = {
    "classify": Entry(
        "perdure.tasks.classify",
        "images",
        {"macro-F1": "macro_f1", "worst group": "worst_group_accuracy", "ECE": "ece", "NLL": "nll"},
        ways=True,
    ),
    "retrieve": Entry(
        "perdure.tasks.retrieve",
        "queries",
        {"R@5": "recall_at_5", "R@10": "recall_at_10", "R@1 in folds": "fold_recall_at_1"},
        ways=True,
    ),
    "answer": Entry(
        "perdure.tasks.answer", "questions", {"by people": "vqa_accuracy", "chance": "chance"}
    ),
    "segment": Entry(
        "perdure.tasks.segment", "images", {"pixels": "pixel_accuracy", "masks": "mask_accuracy"}
    ),
}
"""Every task by its name in suites."""

UNSCALED = ("nll", "brier")
"""Keys of entries that are no shares, and are not printed in per cent"""


def open_exams(suite: Suite, how: How) -> list[tuple[Split, Exam]]:
    """Open every split of a suite, before minutes of computing.

    Raises:
        DataError: If data are missing.
    """
    inside: tuple[str, ...] = ()
    found: list[tuple[Split, Exam]] = []
    for split in suite.splits:
        entry = TASKS[split.task]
        if not entry.ways and (how.transform, how.precision) != ("exact", "fp32"):
            raise DataError(
                f"split {split.name} asks to {split.task}, which is scored from exact pixels in "
                "fp32 alone; leave --transform and --precision away."
            )
        exam = import_module(entry.module).open_exam(split, suite, how, inside)
        if split.role == "id":
            inside = getattr(exam, "classes", ())
        found.append((split, exam))
    return found


def short_hash(texts: Sequence[str]) -> str:
    """Return what stands in score files for names or prompts, in their order."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]
