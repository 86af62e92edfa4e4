"""Classifier fine-tuning: cross-entropy on the image tower and a head that starts zero-shot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..batch import Batch, Step
from ..classifying import ClassifierLearner
from ..collective import gather, gather_labels
from ..errors import TaskError
from ..learner import Learner, train_only
from ..method import Context, NonNegative
from ..predictor import Predictor
from ..towers import score


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
        return HeadLearner(student, self) if self.train == "head" else FtLearner(student, self)


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
        loss = cross_entropy(self.student, batch, self.method.smoothing)
        return Step({"cross_entropy": loss} | head_decay(self.student, self.method), {})


class HeadLearner(ClassifierLearner):
    """The same for a head alone, on fixed features: its rows are weights and, last, their bias.

    Args:
        student: With a head, which alone trains.
        method: The hyper-parameters.
    """

    cosine: ClassVar[bool] = False
    term: ClassVar[str] = "cross_entropy"

    def __init__(self, student: Predictor, method: Ft) -> None:
        super().__init__(student)
        self.method = method

    def rows(self) -> Tensor:
        """Return weights and bias of every class, (C, D + 1)."""
        head = self.student.head
        assert head is not None
        return torch.cat([head.weight, head.bias[:, None]], dim=1)

    def logits(self, features: Tensor, rows: Tensor) -> Tensor:
        """Score unit rows (B, D) with heads (..., C, D + 1), (..., B, C), in float32."""
        weight, bias = rows[..., :-1], rows[..., -1]
        if rows.ndim == 2:
            return score(features, weight, bias)
        with torch.autocast(features.device.type, enabled=False):
            scores: Tensor = features @ weight.to(features).transpose(-1, -2) + bias[..., None, :]
        return scores

    def task_loss(self, features: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the smoothed cross-entropy of every head, (...,) for rows (..., C, D + 1)."""
        scores, smoothing = self.logits(features, rows), self.method.smoothing
        if rows.ndim == 2:
            return functional.cross_entropy(scores, targets, label_smoothing=smoothing)
        flat = scores.flatten(end_dim=-3).transpose(1, 2)
        losses = functional.cross_entropy(
            flat, targets.expand(len(flat), -1), label_smoothing=smoothing, reduction="none"
        )
        return losses.mean(dim=1).reshape(scores.shape[:-2])

    def anchors(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the pull of the weights to zero, where there is one."""
        return head_decay(self.student, self.method)

    def train(self, mode: bool = True) -> HeadLearner:
        """Set the mode; the frozen tower stays in evaluation mode, with its batch statistics."""
        super().train(mode)
        self.student.clip.eval()
        return self


def head_decay(student: Predictor, method: Ft) -> dict[str, Tensor]:
    """Return the weighted pull of a head to zero by its name; nothing where it is off."""
    if not method.head_decay:
        return {}
    assert student.head is not None
    return {"head_decay": 0.5 * method.head_decay * student.head.weight.square().sum()}


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
