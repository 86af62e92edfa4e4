"""TRACER: contrastive fine-tuning, distilled from a weighted average of the whole run so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..batch import Batch, Step
from ..learner import Learner, Tower, train_towers
from ..method import Context, NonNegative
from ..objective import Contrastive, Distillation, Distiller, objective
from ..predictor import Predictor
from .carot import projection_terms


@dataclass(frozen=True, kw_only=True)
class Tracer(Distillation, Contrastive):
    """Persistent regularisation from a weighted moving average (WMA) of the weights.

    The values are those of the published ViT-B/16 runs, without their penalty on the projections.

    Source: Asadollahzadeh et al. 2026, arXiv 2605.29380, and the authors' code for what the paper
    leaves open: the weights of the terms, the halves in them, and no distillation at step 1.
    """

    name: ClassVar[str] = "tracer"
    paper: ClassVar[str] = "https://arxiv.org/abs/2605.29380"

    cross_norm_weight: NonNegative = 0.0
    """Of the norm of the product of the towers' projections, as in CaRot; not distillation"""
    orthogonality_weight: NonNegative = 0.0
    """Of the distance of the visual projection's Gram matrix from identity; not distillation"""
    towers: tuple[Tower, ...] = ("image", "text")
    """Which towers train; the scale trains with either"""
    serve: Literal["student", "teacher"] = "student"
    """Which of the two the run delivers; the paper evaluates the student"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Let the towers train and make the teacher from the start.

        Raises:
            TaskError: If no tower is named, class predictions are to be distilled without class
                names, or a projection is to be regularised, or a bias to be used, that the model
                lacks.
        """
        student = student.plain()
        student.drop_head()
        self.check(student)
        train_towers(student, self.towers)
        # Fails now, not at the first step, if there is no such projection.
        projection_terms(student, self.cross_norm_weight, self.orthogonality_weight)
        distiller = self.distiller(student, context, always=self.serve == "teacher")
        return TracerLearner(student, self, distiller)


class TracerLearner(Learner):
    """The contrastive loss, the distillation terms, and penalties on the projections.

    Args:
        student: Its trainable parameters are already chosen.
        method: The hyper-parameters.
        distiller: None where nobody needs a teacher.
    """

    def __init__(self, student: Predictor, method: Tracer, distiller: Distiller | None) -> None:
        super().__init__(student)
        self.method = method
        self.distiller = distiller

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`; the first distils nothing."""
        method = self.method
        terms, stats = objective(self.student, batch, step, method, self.distiller)
        penalties = projection_terms(
            self.student, method.cross_norm_weight, method.orthogonality_weight
        )
        return Step(terms | penalties, stats)

    def after_step(self, step: int) -> None:
        """Move the teacher towards the student."""
        if self.distiller is not None:
            self.distiller.teacher.after_step(self.student, step)

    def restart(self) -> None:
        """Begin the teacher's average anew at the student."""
        if self.distiller is not None:
            self.distiller.teacher.restart(self.student)

    def export(self) -> Predictor:
        """Return an independent copy of the student, or of it with the teacher's weights."""
        predictor = super().export()
        if self.method.serve == "teacher":
            assert self.distiller is not None
            self.distiller.teacher.write_to(predictor)
        return predictor
