"""Classifier fine-tuning: cross-entropy on the image tower and a head that starts zero-shot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..batch import Batch, Step
from ..collective import gather, gather_labels
from ..errors import TaskError
from ..learner import Learner, train_only
from ..method import Context, NonNegative
from ..predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class Ft:
    """Fine-tuning (FT) of image tower and head, or linear probing (LP) of the head alone.

    LP-FT is a chain of two runs: LP, then FT with `model.init` set to the first run.

    Source: Wortsman et al. 2022, arXiv 2109.01903 (the zero-shot start); Kumar et al. 2022, arXiv
    2202.10054 (LP-FT). The latter starts LP from random weights; here it starts zero-shot too.
    """

    name: ClassVar[str] = "ft"
    paper: ClassVar[str] = "https://arxiv.org/abs/2109.01903"

    train: Literal["all", "head"] = "all"
    """What moves: image tower and head, or the head only"""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability spread evenly over all classes"""
    head_decay: NonNegative = 0.0
    """Times half the squared length of the head's weight; pulls it to zero, as in a regularised
    logistic regression"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Put a zero-shot head on the student, unless it already has one for these classes."""
        student = student.plain()
        head = ensure_head(student, context)
        parts = (head,) if self.train == "head" else (student.clip.visual, head)
        train_only(student, *parts)
        return FtLearner(student, self)


class FtLearner(Learner):
    """Cross-entropy, with an optional pull of the head to zero.

    Args:
        student: With a head; its trainable parameters are already chosen.
        method: The hyper-parameters.
    """

    def __init__(self, student: Predictor, method: Ft) -> None:
        super().__init__(student)
        self.method = method

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`."""
        terms = {"cross_entropy": cross_entropy(self.student, batch, self.method.smoothing)}
        if self.method.head_decay:
            assert self.student.head is not None
            length = self.student.head.weight.square().sum()
            terms["head_decay"] = 0.5 * self.method.head_decay * length
        return Step(terms, {})

    def train(self, mode: bool = True) -> FtLearner:
        """Set the mode; a frozen tower stays in evaluation mode, with its batch statistics."""
        super().train(mode)
        if self.method.train == "head":
            self.student.clip.eval()
        return self


def ensure_head(student: Predictor, context: Context) -> nn.Module:
    """Give the student a zero-shot head for the task's classes, unless it has one for them.

    Returns:
        The head.

    Raises:
        TaskError: If the task has no class names.
    """
    if not context.classes:
        raise TaskError(
            "this method trains a classifier, but the task has no class names; use a "
            "classification data set, or a contrastive method such as flyp."
        )
    if student.head is None or student.classes != context.classes:
        student.set_head(context.classes, context.templates)
    assert student.head is not None
    return student.head


def cross_entropy(student: Predictor, batch: Batch, smoothing: float) -> Tensor:
    """Return the cross-entropy of the head over the global batch, shape ()."""
    logits = student.head_logits(gather(student.encode_image(batch.images)))
    labels = gather_labels(batch.labels)
    return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
