"""Distillation from a teacher that averages the run: what TRACER adds to a contrastive loss.

One config and one module, so that every contrastive method can take the same teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from .batch import Batch, Pairs
from .collective import gather_pairs
from .errors import TaskError
from .losses import (
    Comparison,
    class_kl,
    cross_kl,
    feature_distill,
    interactive_nce,
    relational_kl,
    similarity,
)
from .method import Context, Count, NonNegative, Positive, Share
from .predictor import Predictor
from .statistics import teacher_stats
from .teacher import Number, Teacher, after_steps, from_first_step
from .weights import Mix, beta_wma, warmup_ema


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """A teacher and the weight of each term that pulls the student towards it.

    The values are those of TRACER's published ViT-B/16 runs.

    Source: TRACER (Asadollahzadeh et al. 2026, arXiv 2605.29380), and the authors' code for what
    the paper leaves open: the weights of the terms, the halves in them, no distillation at step 1.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

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
    stats: bool = False
    """Whether to log how sure, how right and how far apart teacher and student are"""
    stats_every: Count = 10
    """Optimiser steps between two computations of them; logged where the log has a line"""

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

    def average(self, total: int) -> tuple[Mix | None, Number]:
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

    def distiller(
        self, student: Predictor, context: Context, always: bool = False
    ) -> Distiller | None:
        """Make the teacher from the student's trainable weights as they are now.

        Args:
            student: Its trainable parameters are already chosen.
            context: The run.
            always: Whether there is a teacher even where nothing is distilled from it.

        Returns:
            None where nobody needs a teacher.

        Raises:
            TaskError: If class predictions are to be distilled without class names.
        """
        prompts = None
        if "class" in self.weights:
            if not context.classes:
                raise TaskError(
                    f"class_weight is {self.class_weight}, but the task has no class names; "
                    "set it to 0."
                )
            prompts = student.prompts(context.classes, context.templates)
        if not self.weights and not always:
            return None
        mix, number = self.average(context.total_steps)
        teacher = Teacher(student, mix, number, bf16=self.teacher_precision == "bf16")
        return Distiller(self, context.total_steps, teacher, prompts)


class Distiller(nn.Module):
    """A teacher at work: its embeddings of a batch, and up to five ways to stay near them.

    Args:
        spec: Weights of the terms.
        total_steps: Of the whole run.
        teacher: What the student is to stay near.
        prompts: Token ids (C, T, L) of the classes; None without class-level distillation.
    """

    prompts: Tensor | None

    def __init__(
        self, spec: Distillation, total_steps: int, teacher: Teacher, prompts: Tensor | None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.total_steps = total_steps
        self.teacher = teacher
        self.register_buffer("prompts", prompts, persistent=False)

    def distils(self, step: int) -> bool:
        """Whether there is anything to distil at optimiser step `step`; the first distils not."""
        return bool(self.spec.weights) and step > 1

    def tokens(self, tokens: Tensor, step: int) -> Tensor:
        """Append this step's prompt of every class to tokens (B, L) where they are distilled.

        Returns:
            (B, L), or (B + C, L') with class-level distillation.
        """
        if self.prompts is None or not self.distils(step):
            return tokens
        prompts = self.prompts[:, (step - 1) % self.prompts.shape[1]]
        length = max(tokens.shape[1], prompts.shape[1])
        padded = [functional.pad(ids, (0, length - ids.shape[1])) for ids in (tokens, prompts)]
        return torch.cat(padded)

    def forward(
        self, student: Predictor, found: Pairs, batch: Batch, step: int
    ) -> tuple[Comparison, dict[str, Tensor]]:
        """Compare a student with the teacher on one batch.

        Args:
            student: The model that `found` comes from; its weights are replaced for the teacher.
            found: Its pairs of this process, texts of `tokens`.
            batch: This process's batch.
            step: Number of the optimiser step.

        Returns:
            The comparison on the global batch, for other terms to share, and the weighted terms:
            zeros at the first step, which distils nothing.
        """
        rows, weights = len(batch.tokens), self.spec.weights
        own, own_classes = split(found, rows)
        both = Comparison(own)
        terms = {name: own.scale.new_zeros(()) for name in weights}
        if self.distils(step):
            tokens = self.tokens(batch.tokens, step)
            target, target_classes = split(self.teacher.embed(student, batch.images, tokens), rows)
            both = Comparison(own, target)
            terms = {
                name: term(own, target, both) for name, term in _PAIRWISE.items() if name in weights
            }
            if "class" in weights:
                terms["class"] = class_kl(
                    similarity(own._replace(text=own_classes)),
                    similarity(target._replace(text=target_classes)),
                )
        strength = self.spec.strength_at(step, self.total_steps)
        return both, {name: strength * weights[name] * term for name, term in terms.items()}

    def statistics(self, both: Comparison, step: int) -> dict[str, Tensor]:
        """Return what is to be logged of a comparison; nothing unless it is asked for."""
        due = self.spec.stats and step % self.spec.stats_every == 0
        return teacher_stats(both) if due and both.teacher is not None else {}


def split(pairs: Pairs, rows: int) -> tuple[Pairs, Tensor]:
    """Part the batch's own pairs, of all processes, from appended texts that have no image."""
    own = gather_pairs(pairs._replace(text=pairs.text[:rows]))
    return own, pairs.text[rows:]


def _feature(student: Pairs, teacher: Pairs, shared: Comparison) -> Tensor:
    return feature_distill(student, teacher)


_PAIRWISE: dict[str, Callable[[Pairs, Pairs, Comparison], Tensor]] = {
    "feature": _feature,
    "relational": relational_kl,
    "interactive": interactive_nce,
    "cross": cross_kl,
}
"""Terms that compare the embeddings of the batch; the weight of each is `<name>_weight`."""
