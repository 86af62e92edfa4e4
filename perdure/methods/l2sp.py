"""L2-SP: fine-tune a classifier while holding every weight near where it started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..batch import Batch, Step
from ..learner import Learner, train_only
from ..method import Context, NonNegative
from ..predictor import Predictor
from ..weights import Snapshot, distance, trainable
from .ft import cross_entropy, ensure_head


@dataclass(frozen=True, kw_only=True)
class L2sp:
    """Cross-entropy plus the squared distance of image tower and head to their start.

    The head starts as the zero-shot classifier, so it has a start to return to as well. Weight
    decay of the optimiser still pulls to zero; set it to 0 for L2-SP alone.

    Source: Li et al. 2018, arXiv 1802.01483.
    """

    name: ClassVar[str] = "l2sp"
    paper: ClassVar[str] = "https://arxiv.org/abs/1802.01483"

    strength: NonNegative = 0.01
    """Times half the squared distance, summed over all weights that train"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Put a zero-shot head on the student and remember where it starts."""
        student = student.plain()
        train_only(student, student.clip.visual, ensure_head(student, context))
        return L2spLearner(student, self)


class L2spLearner(Learner):
    """Cross-entropy and the distance to a snapshot of the start.

    Args:
        student: With a head; its trainable parameters are already chosen.
        method: The hyper-parameters.
    """

    def __init__(self, student: Predictor, method: L2sp) -> None:
        super().__init__(student)
        self.method = method
        self.start = Snapshot(trainable(student))

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`."""
        terms = {"cross_entropy": cross_entropy(self.student, batch, smoothing=0.0)}
        if self.method.strength:
            gap = distance(trainable(self.student), self.start.values(), "sum")
            terms["l2sp"] = 0.5 * self.method.strength * gap
        return Step(terms, {})
