"""FLYP: fine-tune like you pre-train, with the contrastive loss on class captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..batch import Batch, Step
from ..collective import gather_pairs
from ..learner import Learner, train_only
from ..losses import info_nce
from ..method import Context
from ..predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class Flyp:
    """Contrastive fine-tuning of both towers and the scale; same-class pairs are negatives.

    Source: Goyal et al. 2023, arXiv 2212.00638.
    """

    name: ClassVar[str] = "flyp"
    paper: ClassVar[str] = "https://arxiv.org/abs/2212.00638"

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability spread evenly over all rows of the batch"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Let both towers train; the text tower makes the classifier, so a head is dropped."""
        student.drop_head()
        train_only(student, student.clip)
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
        pairs = gather_pairs(self.student(batch.images, batch.tokens))
        terms = {"contrastive": info_nce(pairs, self.method.smoothing)}
        return Step(terms, {"scale": pairs.scale.detach()})
