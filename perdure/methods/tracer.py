"""TRACER: contrastive fine-tuning, distilled from a weighted average of the whole run so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..batch import Batch, Pairs, Step
from ..collective import gather_pairs
from ..errors import TaskError
from ..learner import Learner, train_only
from ..losses import (
    Comparison,
    class_kl,
    cross_kl,
    feature_distill,
    info_nce,
    interactive_nce,
    relational_kl,
    similarity,
)
from ..method import Context, Count, NonNegative, Positive, Share
from ..predictor import Predictor
from ..teacher import Number, Teacher, after_steps, from_first_step
from ..weights import Mix, beta_wma, warmup_ema
from .carot import projection_terms


@dataclass(frozen=True, kw_only=True)
class Tracer:
    """Persistent regularisation from a weighted moving average (WMA) of the weights.

    The values are those of the published ViT-B/16 runs, without their penalty on the projections.

    Source: Asadollahzadeh et al. 2026, arXiv 2605.29380, and the authors' code for what the paper
    leaves open: the weights of the terms, the halves in them, and no distillation at step 1.
    """

    name: ClassVar[str] = "tracer"
    paper: ClassVar[str] = "https://arxiv.org/abs/2605.29380"

    strength: NonNegative = 0.9
    """Of all distillation together, the paper's lambda"""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the strength falls over the run; the published runs keep it constant"""
    feature_weight: NonNegative = 3.906
    """Of the squared distance of embeddings, summed over D; the code takes the mean over D = 512
    with weight 2000"""
    relational_weight: NonNegative = 1.0
    """Of the divergence of in-batch similarities"""
    interactive_weight: NonNegative = 1.0
    """Of the contrastive loss of student anchors against teacher keys"""
    cross_weight: NonNegative = 1.0
    """Of the divergence of student-to-teacher similarities"""
    class_weight: NonNegative = 0.0
    """Of the divergence of class predictions, over all classes in one template per step; not in
    the paper, and embeds every class name in every step"""
    cross_norm_weight: NonNegative = 0.0
    """Of the norm of the product of the towers' projections, as in CaRot; not distillation"""
    orthogonality_weight: NonNegative = 0.0
    """Of the distance of the visual projection's Gram matrix from identity; not distillation"""
    teacher: Literal["wma", "ema", "uniform", "static"] = "wma"
    """Beta-weighted mean of the run, exponential mean, plain mean, or the start itself"""
    beta: Positive = 0.5
    """Shape of the WMA's kernel Beta(beta, beta); 1 is the plain mean"""
    decay_start: Share = 0.05
    """Share an EMA teacher keeps in its first update"""
    decay_end: Share = 0.9
    """Share an EMA teacher keeps after the warm-up"""
    decay_warmup: Share = 0.2
    """Part of the run in which the EMA's share rises, linearly"""
    teacher_every: Count = 1
    """Optimiser steps between updates of the teacher"""
    released: bool = False
    """Count updates instead of steps as kernel time, as the authors' code does; differs only where
    `teacher_every` is above 1, and then misses the right half of the kernel"""
    teacher_precision: Literal["run", "bf16"] = "run"
    """Of the teacher's embeddings: that of the run, or bfloat16, which is faster where the run is
    fp32 and the processor has bfloat16; losses and averages stay fp32"""
    serve: Literal["student", "teacher"] = "student"
    """Which of the two the run delivers; the paper evaluates the student"""
    stats: bool = False
    """Whether to log how far teacher and student are apart; costs little, but not nothing"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Let both towers train and make the teacher from the start.

        Raises:
            TaskError: If class predictions are to be distilled without class names, or a
                projection is to be regularised that the model does not have.
        """
        student.drop_head()
        train_only(student, student.clip)
        # Fails now, not at the first step, if there is no such projection.
        projection_terms(student, self.cross_norm_weight, self.orthogonality_weight)
        prompts = None
        if "class" in self.weights:
            if not context.classes:
                raise TaskError(
                    f"class_weight is {self.class_weight}, but the task has no class names; "
                    "set it to 0."
                )
            prompts = student.prompts(context.classes, context.templates)
        teacher = None
        if self.weights or self.serve == "teacher":
            mix, number = self._average(context.total_steps)
            teacher = Teacher(student, mix, number, bf16=self.teacher_precision == "bf16")
        return TracerLearner(student, self, context.total_steps, teacher, prompts)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every distillation term that is switched on."""
        names = (*_PAIRWISE, "class") if self.strength else ()
        weights = {name: float(getattr(self, f"{name}_weight")) for name in names}
        return {name: weight for name, weight in weights.items() if weight}

    def strength_at(self, step: int, total: int) -> float:
        """Return the strength at optimiser step `step` of `total`: full at the first step."""
        progress = (step - 1) / total
        if self.schedule == "linear":
            return self.strength * (1 - progress)
        if self.schedule == "cosine":
            return self.strength * 0.5 * (1 + math.cos(math.pi * progress))
        return self.strength

    def _average(self, total: int) -> tuple[Mix | None, Number]:
        """Return the share of each update of the teacher, and when it happens."""
        every = self.teacher_every
        if self.teacher == "static":
            return None, after_steps(every, total)
        if self.teacher == "ema":
            warmup = self.decay_warmup * total
            mix = warmup_ema(self.decay_start, self.decay_end, warmup, every)
            return mix, from_first_step(every)
        beta = 1.0 if self.teacher == "uniform" else self.beta
        number = from_first_step(every, last=total) if self.released else after_steps(every, total)
        return beta_wma(beta, total, every, self.released), number


class TracerLearner(Learner):
    """The contrastive loss and up to five ways to stay near the teacher.

    Args:
        student: Its trainable parameters are already chosen.
        method: The hyper-parameters.
        total_steps: Of the whole run.
        teacher: None where nobody needs one.
        prompts: Token ids (C, T, L) of the classes; None without class-level distillation.
    """

    prompts: Tensor | None

    def __init__(
        self,
        student: Predictor,
        method: Tracer,
        total_steps: int,
        teacher: Teacher | None,
        prompts: Tensor | None,
    ) -> None:
        super().__init__(student)
        self.method = method
        self.total_steps = total_steps
        self.teacher = teacher
        self.register_buffer("prompts", prompts, persistent=False)

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`; the first distils nothing."""
        method, rows = self.method, len(batch.tokens)
        distils = bool(method.weights) and step > 1
        tokens = self._with_prompts(batch.tokens, step) if distils else batch.tokens
        student, student_classes = _split(self.student(batch.images, tokens), rows)
        both = Comparison(student)
        found = {name: student.scale.new_zeros(()) for name in method.weights}
        if distils:
            assert self.teacher is not None
            target = self.teacher.embed(self.student, batch.images, tokens)
            teacher, teacher_classes = _split(target, rows)
            both = Comparison(student, teacher)
            found = {
                name: term(student, teacher, both)
                for name, term in _PAIRWISE.items()
                if name in method.weights
            }
            if "class" in method.weights:
                found["class"] = class_kl(
                    similarity(student._replace(text=student_classes)),
                    similarity(teacher._replace(text=teacher_classes)),
                )
        strength = method.strength_at(step, self.total_steps)
        terms = {"contrastive": info_nce(student, shared=both)}
        terms |= {name: strength * method.weights[name] * term for name, term in found.items()}
        terms |= projection_terms(
            self.student, method.cross_norm_weight, method.orthogonality_weight
        )
        stats = {"scale": student.scale.detach()}
        if method.stats and distils:
            stats |= teacher_stats(both)
        return Step(terms, stats)

    def after_step(self, step: int) -> None:
        """Move the teacher towards the student."""
        if self.teacher is not None:
            self.teacher.after_step(self.student, step)

    def export(self) -> Predictor:
        """Return an independent copy of the student, or of it with the teacher's weights."""
        predictor = super().export()
        if self.method.serve == "teacher":
            assert self.teacher is not None
            self.teacher.write_to(predictor)
        return predictor

    def _with_prompts(self, tokens: Tensor, step: int) -> Tensor:
        """Append this step's prompt of every class to tokens (B, L), (B + C, L)."""
        if self.prompts is None:
            return tokens
        prompts = self.prompts[:, (step - 1) % self.prompts.shape[1]]
        length = max(tokens.shape[1], prompts.shape[1])
        padded = [functional.pad(ids, (0, length - ids.shape[1])) for ids in (tokens, prompts)]
        return torch.cat(padded)


@torch.no_grad()
def teacher_stats(both: Comparison) -> dict[str, Tensor]:
    """Return how far a student and its teacher are apart in the batch, means of both directions.

    `teacher_agreement` is the share of rows with the same nearest partner, `teacher_divergence`
    the relational divergence, and the two confidences are mean largest probabilities.
    """
    assert both.teacher is not None
    student, teacher = both.student_log, both.teacher_log
    same = [
        a.argmax(dim=d) == b.argmax(dim=d) for a, b, d in zip(student, teacher, (1, 0), strict=True)
    ]
    stats = {
        "teacher_agreement": torch.cat(same).float().mean(),
        "teacher_divergence": relational_kl(both.student, both.teacher, both).detach(),
    }
    for name, (rows, columns) in {"teacher": teacher, "student": student}.items():
        largest = torch.cat([rows.amax(dim=1), columns.amax(dim=0)])
        stats[f"{name}_confidence"] = largest.exp().mean()
    return stats


def _feature(student: Pairs, teacher: Pairs, shared: Comparison) -> Tensor:
    return feature_distill(student, teacher)


_PAIRWISE: dict[str, Callable[[Pairs, Pairs, Comparison], Tensor]] = {
    "feature": _feature,
    "relational": relational_kl,
    "interactive": interactive_nce,
    "cross": cross_kl,
}
"""Terms that compare the embeddings of the batch; the weight of each is `<name>_weight`."""


def _split(pairs: Pairs, rows: int) -> tuple[Pairs, Tensor]:
    """Part the batch's own pairs, of all processes, from appended texts that have no image."""
    own = gather_pairs(pairs._replace(text=pairs.text[:rows]))
    return own, pairs.text[rows:]
