"""R-Adapter: linear adapters in both towers, averaged while they train and dialled afterwards."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from ..batch import Batch, Step
from ..collective import first_row
from ..learner import Learner, train_only
from ..method import Context, Count, NonNegative
from ..objective import Contrastive, Distillation, Distiller, objective
from ..predictor import Predictor
from ..surgery.residual import Residual, adapters, drop_clock
from ..teacher import Teacher, after_steps
from ..weights import Mix

_REMAINS = 0.01
"""Share of the untrained start above which an average deserves a warning"""


@dataclass(frozen=True, kw_only=True)
class RAdapter(Contrastive):
    """Three ensembles of one model with itself: dropped adapters, averaged ones, weakened ones.

    Everything else stays as pre-trained, and folded weights cost no more than those.

    Source: Kim et al. 2024, arXiv 2408.05749; the trainable gate is in the authors' code only.
    """

    name: ClassVar[str] = "radapter"
    paper: ClassVar[str] = "https://arxiv.org/abs/2408.05749"

    contrastive: Literal["info_nce", "mpm_nce", "mpm_sigmoid"] = "mpm_nce"
    """All rows of the same label as positives; one positive per row; or all of them for models
    that were pre-trained with the pairwise sigmoid loss, such as SigLIP"""
    margin: Annotated[float, Field(ge=-2, le=2)] = 0.05
    """Added to the cosine of negatives; above 0 makes them harder"""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Probability spread evenly over negatives; over all rows of the batch with info_nce"""
    rank_image: Count | None = None
    """Of the image tower's adapters, below its width; null for full matrices"""
    rank_text: Count | None = None
    """Of the text tower's adapters, below its width; null for full matrices"""
    gate: float | None = 0.1
    """Where the trainable factor of each adapter starts; null for no factor"""
    bias: bool = False
    """Whether adapters also shift their output; the paper's do not"""
    towers: tuple[Literal["image", "text"], ...] = ("image", "text")
    """Which towers get adapters"""
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Which blocks of each tower get adapters, from 0; null for all"""
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Probability that an adapter is left out of a training step"""
    drop_mode: Literal["module", "sample", "token"] = "module"
    """Left out together: all of an adapter, single rows of a batch, or single positions of all
    rows, as the authors' code does"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Share the average of the adapters keeps per step; 0 delivers the adapters themselves"""
    average_every: Count = 1
    """Optimiser steps between updates of the average, which then keeps as much as in all of them"""
    alpha: NonNegative = 0.5
    """Strength of the adapters in what the run delivers; training is at 1. It can be changed
    later, without training"""
    teacher: Distillation | None = None
    """Distillation as in tracer, with the same keys; null for none"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Attach adapters, which alone train, and start their average; folds earlier ones.

        Raises:
            SurgeryError: If the towers have no place for such adapters.
            TaskError: If the loss or the teacher needs what the model or the task lacks.
        """
        student = student.plain()
        student.drop_head()
        self.check(student)
        surgery = Residual(
            rank_image=self.rank_image, rank_text=self.rank_text, gate=self.gate, bias=self.bias,
            towers=self.towers, blocks=self.blocks, drop=self.drop, drop_mode=self.drop_mode,
        )  # fmt: skip
        student.attach(surgery, context.seed)
        train_only(student)
        for parameter in student.added().values():
            parameter.requires_grad_(True)
        total = context.total_steps
        average = None
        if self.momentum:
            remains = self.momentum**total
            if remains > _REMAINS:
                warnings.warn(
                    f"the average keeps {remains:.2g} of the untrained adapters: momentum "
                    f"{self.momentum} over {total} steps. A momentum of "
                    f"{_REMAINS ** (1 / total):.3g} keeps {_REMAINS}.",
                    stacklevel=2,
                )
            average = Teacher(student, self.mix(total), after_steps(self.average_every, total))
        distiller = self.teacher.distiller(student, context) if self.teacher else None
        return RAdapterLearner(student, self, context.seed, average, distiller)

    def mix(self, total: int) -> Mix:
        """Return the share of the live adapters in update k of the average.

        What is left of the start after every update is `momentum` to the power of the steps so
        far, also where updates are rarer than steps and where the last comes early.
        """
        every = self.average_every

        def share(k: int) -> float:
            steps = min(k * every, total) - (k - 1) * every
            return float(1.0 - self.momentum**steps)

        return share


class RAdapterLearner(Learner):
    """A frozen model with adapters that train, and the average of these.

    Args:
        student: With adapters, which alone require gradients.
        method: The hyper-parameters.
        seed: Of the run, on which dropping depends.
        average: Of the adapters; None to deliver the live ones.
        distiller: None where nothing is distilled.
    """

    def __init__(
        self,
        student: Predictor,
        method: RAdapter,
        seed: int,
        average: Teacher | None,
        distiller: Distiller | None,
    ) -> None:
        super().__init__(student)
        self.method = method
        self.seed = seed
        self.average = average
        self.distiller = distiller

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`."""
        by_row = self.method.drop > 0 and self.method.drop_mode == "sample"
        row = first_row(batch.labels) if by_row else 0
        drop_clock(self.student.clip, self.seed, step, row)
        terms, stats = objective(self.student, batch, step, self.method, self.distiller)
        gates = [adapter.gate for adapter in adapters(self.student.clip).values()]
        known = [gate.detach().float() for gate in gates if gate is not None]
        if known:
            stats = {**stats, "gate": torch.stack(known).mean()}
        return Step(terms, stats)

    def after_step(self, step: int) -> None:
        """Move the average, and the teacher if there is one, towards the adapters."""
        if self.average is not None:
            self.average.after_step(self.student, step)
        if self.distiller is not None:
            self.distiller.teacher.after_step(self.student, step)

    def restart(self) -> None:
        """Begin the average of the adapters, and the teacher's, anew at the adapters."""
        if self.average is not None:
            self.average.restart(self.student)
        if self.distiller is not None:
            self.distiller.teacher.restart(self.student)

    def export(self) -> Predictor:
        """Return an independent copy with the averaged adapters at the strength to be delivered."""
        predictor = super().export()
        if self.average is not None:
            self.average.write_to(predictor)
        predictor.set_alpha(self.method.alpha)
        return predictor

    def train(self, mode: bool = True) -> RAdapterLearner:
        """Set the mode; what is frozen stays in evaluation mode, with its batch statistics."""
        super().train(mode)
        self.student.clip.eval()
        for adapter in adapters(self.student.clip).values():
            adapter.train(mode)
        return self
