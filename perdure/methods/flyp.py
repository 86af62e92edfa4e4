"""FLYP: fine-tune like you pre-train, with the contrastive loss on class captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..batch import Batch, Step
from ..learner import Learner, Tower, train_towers
from ..method import Context
from ..objective import Contrastive, objective
from ..predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class Flyp(Contrastive):
    """Contrastive fine-tuning of both towers and the scale; same-class pairs are negatives.

    Other contrastive losses than that of the source may take its place.

    Source: Goyal et al. 2023, arXiv 2212.00638.
    """

    name: ClassVar[str] = "flyp"
    paper: ClassVar[str] = "https://arxiv.org/abs/2212.00638"

    towers: tuple[Tower, ...] = ("image", "text")
    """Which towers train; the scale trains with either"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Let the towers train; the text tower makes the classifier, so a head is dropped.

        Raises:
            TaskError: If no tower is named, or a bias is to be used that the model lacks.
        """
        student = student.plain()
        student.drop_head()
        self.check(student)
        train_towers(student, self.towers)
        return FlypLearner(student, self)


class FlypLearner(Learner):
    """The contrastive loss over the global batch.

    Args:
        student: Its trainable parameters are already chosen.
        method: The hyper-parameters.
    """

    def __init__(self, student: Predictor, method: Flyp) -> None:
        super().__init__(student)
        self.method = method

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss term of optimiser step `step`."""
        return objective(self.student, batch, step, self.method)
