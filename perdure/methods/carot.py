"""CaRot: contrastive fine-tuning with an EMA teacher and a near-orthogonal visual projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..batch import Batch, Step
from ..collective import gather_pairs
from ..learner import Learner, train_only
from ..losses import Comparison, cross_norm, info_nce, logit_distill, orthogonality
from ..method import Context, Count, NonNegative, Share
from ..predictor import Predictor
from ..teacher import Teacher, from_first_step
from ..towers import text_projection, visual_projection
from ..weights import warmup_ema


@dataclass(frozen=True, kw_only=True)
class Carot:
    """Calibrated robust fine-tuning.

    Source: Oh et al. 2024, arXiv 2311.01723; the values are those of all its experiments. The
    teacher's update rule and the norm of the projections' product are in the authors' code only.
    """

    name: ClassVar[str] = "carot"
    paper: ClassVar[str] = "https://arxiv.org/abs/2311.01723"

    distill_weight: NonNegative = 1.5
    """Of the cross-entropy with the teacher's in-batch probabilities; 0 drops the teacher"""
    orthogonality_weight: NonNegative = 0.2
    """Of the distance of the visual projection's Gram matrix from identity"""
    cross_norm_weight: NonNegative = 0.05
    """Of the norm of the product of the towers' projections"""
    decay_start: Share = 0.05
    """Share the teacher keeps in its first update"""
    decay_end: Share = 0.9
    """Share the teacher keeps after the warm-up"""
    decay_warmup: Share = 0.2
    """Part of the run in which the share rises, linearly"""
    every: Count = 500
    """Optimiser steps between updates of the teacher; the first follows the first step"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Let both towers train and make the teacher from the start.

        Raises:
            TaskError: If a projection is to be regularised that the model does not have.
        """
        student = student.plain()
        student.drop_head()
        train_only(student, student.clip)
        # Fails now, not at the first step, if there is no such projection.
        projection_terms(student, self.cross_norm_weight, self.orthogonality_weight)
        teacher = None
        if self.distill_weight:
            warmup = self.decay_warmup * context.total_steps
            mix = warmup_ema(self.decay_start, self.decay_end, warmup, self.every)
            teacher = Teacher(student, mix, from_first_step(self.every))
        return CarotLearner(student, self, teacher)


class CarotLearner(Learner):
    """The contrastive loss, distillation from the teacher, and two penalties on the projections.

    Args:
        student: Its trainable parameters are already chosen.
        method: The hyper-parameters.
        teacher: None where nothing is distilled.
    """

    def __init__(self, student: Predictor, method: Carot, teacher: Teacher | None) -> None:
        super().__init__(student)
        self.method = method
        self.teacher = teacher

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`; the first distils nothing."""
        method = self.method
        pairs = gather_pairs(self.student(batch.images, batch.tokens))
        both = Comparison(pairs)
        if self.teacher is not None and step > 1:
            target = self.teacher.embed(self.student, batch.images, batch.tokens)
            both = Comparison(pairs, gather_pairs(target))
        terms = {"contrastive": info_nce(pairs, shared=both)}
        if both.teacher is not None:
            found = logit_distill(pairs, both.teacher, shared=both)
            terms["distill"] = method.distill_weight * found
        elif self.teacher is not None:
            terms["distill"] = pairs.scale.new_zeros(())
        terms |= projection_terms(
            self.student, method.cross_norm_weight, method.orthogonality_weight
        )
        return Step(terms, {"scale": pairs.scale.detach()})

    def after_step(self, step: int) -> None:
        """Move the teacher towards the student, every so many steps."""
        if self.teacher is not None:
            self.teacher.after_step(self.student, step)

    def restart(self) -> None:
        """Begin the teacher's average anew at the student."""
        if self.teacher is not None:
            self.teacher.restart(self.student)


def projection_terms(student: Predictor, cross: float, orthogonal: float) -> dict[str, Tensor]:
    """Return the weighted penalties on the towers' projections; a weight of 0 drops its term.

    Raises:
        TaskError: If a projection is needed that the model does not have.
    """
    terms = {}
    if cross:
        visual, text = visual_projection(student.clip), text_projection(student.clip)
        terms["cross_norm"] = cross * cross_norm(visual, text)
    if orthogonal:
        terms["orthogonality"] = orthogonal * orthogonality(visual_projection(student.clip))
    return terms
