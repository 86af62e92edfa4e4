"""The objective of contrastive methods: one contrastive term, and distillation where there is any.

A method takes the fields of `Contrastive` as its own, holds a `Distiller` or none, and calls
`objective` from `forward`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from .batch import Batch, Step
from .collective import gather_labels, gather_pairs
from .distillation import Distillation, Distiller
from .errors import TaskError
from .losses import Comparison, info_nce, mpm_nce, mpm_sigmoid
from .predictor import Predictor

__all__ = ["Contrastive", "Distillation", "Distiller", "contrast", "objective"]


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Which contrastive loss, and its margin and smoothing; a part of a method's own fields."""

    contrastive: Literal["info_nce", "mpm_nce", "mpm_sigmoid"] = "info_nce"
    """One positive per row; all rows of the same label as positives; or the same for models that
    were pre-trained with the pairwise sigmoid loss, such as SigLIP"""
    margin: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Added to the cosine of negatives; above 0 makes them harder"""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability spread evenly over all rows of the batch (info_nce), or over negatives alone"""

    def check(self, student: Predictor) -> None:
        """Refuse a model that lacks what the loss needs, before anything is trained.

        Raises:
            TaskError: If the sigmoid loss meets a model without its bias.
        """
        if self.contrastive == "mpm_sigmoid" and _bias(student) is None:
            raise TaskError(
                f"contrastive is 'mpm_sigmoid', but {student.source.name} has no logit_bias: it "
                "was not pre-trained with a sigmoid loss; use 'mpm_nce'."
            )


def contrast(method: Contrastive, student: Predictor, both: Comparison, labels: Tensor) -> Tensor:
    """Return the contrastive term, shape ().

    Args:
        method: The loss and its settings.
        student: The model, for the bias of the sigmoid loss.
        both: Holds the pairs of all processes.
        labels: (B,), those of this process; gathered here where the loss needs them.
    """
    pairs, margin, smoothing = both.student, method.margin, method.smoothing
    if method.contrastive == "info_nce":
        return info_nce(pairs, smoothing, both, margin=margin)
    labels = gather_labels(labels)
    if method.contrastive == "mpm_nce":
        return mpm_nce(pairs, labels, margin, smoothing, both)
    bias = _bias(student)
    assert bias is not None
    return mpm_sigmoid(pairs, labels, bias, margin, smoothing, both)


def objective(
    student: Predictor,
    batch: Batch,
    step: int,
    method: Contrastive,
    distiller: Distiller | None = None,
) -> Step:
    """Compute the contrastive term and those of the distiller at optimiser step `step`.

    All terms are those of the global batch and share their matrices.

    Args:
        student: Embeds the batch, with gradient.
        batch: This process's batch.
        step: Counts from 1.
        method: The contrastive loss.
        distiller: None where nothing is distilled.
    """
    if distiller is None:
        both = Comparison(gather_pairs(student(batch.images, batch.tokens)))
        distilled, stats = {}, {}
    else:
        found = student(batch.images, distiller.tokens(batch.tokens, step))
        both, distilled = distiller(student, found, batch, step)
        stats = distiller.statistics(both, step)
    terms = {"contrastive": contrast(method, student, both, batch.labels)}
    return Step(terms | distilled, {"scale": both.student.scale.detach()} | stats)


def _bias(student: Predictor) -> Tensor | None:
    """Return the bias of the pairwise sigmoid loss that a model was pre-trained with, if any."""
    bias: Tensor | None = getattr(student.clip, "logit_bias", None)
    return bias
