"""LoRA: low-rank updates of the towers' linear maps, trained with a contrastive loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..batch import Batch, Step
from ..distillation import Distillation, Distiller
from ..learner import Learner, train_only
from ..method import Context, Count, NonNegative, Positive
from ..objective import Contrastive, objective
from ..predictor import Predictor
from ..surgery.low_rank import TARGETS, LowRank, Target
from ..surgery.sites import Tower


@dataclass(frozen=True, kw_only=True)
class Lora(Contrastive):
    """Low-rank updates B A of frozen weights, the only thing that trains.

    Attention and MLP of every block by default; the paper adapts attention of language models
    alone. There is no dropout, and scale is 1 where others write lora_alpha / r.

    Source: Hu et al. 2022, arXiv 2106.09685.
    """

    name: ClassVar[str] = "lora"
    paper: ClassVar[str] = "https://arxiv.org/abs/2106.09685"

    rank: Count = 4
    """Of every update; it trains rank * (in + out) numbers per linear map"""
    scale: Positive = 1.0
    """Fixed factor of every update; the peft library calls it lora_alpha / r"""
    targets: tuple[Target, ...] = TARGETS
    """Which maps: in_proj (queries, keys and values), out_proj, mlp_in, mlp_out"""
    towers: tuple[Tower, ...] = ("image", "text")
    """Which towers get updates; one that gets none is left in evaluation mode"""
    blocks: tuple[int, ...] | None = None
    """Which blocks of each tower, from 0; null for all"""
    alpha: NonNegative = 1.0
    """Strength of the updates in what the run delivers; training is always at 1"""
    teacher: Distillation | None = None
    """What to distil, with the keys of tracer; the teacher averages the factors of the updates"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Add the updates and let them alone train; earlier added modules are folded.

        Raises:
            SurgeryError: If the model has no place for an update.
            TaskError: If the loss or the teacher needs what the model or the task lacks.
        """
        student = student.plain()
        student.drop_head()
        self.check(student)
        surgery = LowRank(self.rank, self.scale, self.targets, self.towers, self.blocks)
        student.attach(surgery, context.seed)
        train_only(student)
        for parameter in student.added().values():
            parameter.requires_grad_(True)
        distiller = None if self.teacher is None else self.teacher.distiller(student, context)
        return LoraLearner(student, self, distiller)


class LoraLearner(Learner):
    """A contrastive loss and, where there is a teacher, what is distilled from it.

    Args:
        student: Its updates are attached and alone trainable.
        method: The hyper-parameters.
        distiller: None where nothing is distilled.
    """

    def __init__(self, student: Predictor, method: Lora, distiller: Distiller | None) -> None:
        super().__init__(student)
        self.method = method
        self.distiller = distiller

    def train(self, mode: bool = True) -> LoraLearner:
        """Change the mode; an image tower without updates keeps its batch statistics."""
        super().train(mode)
        if "image" not in self.method.towers:
            self.student.clip.visual.eval()
        return self

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`."""
        return objective(self.student, batch, step, self.method, self.distiller)

    def after_step(self, step: int) -> None:
        """Move the teacher towards the student."""
        if self.distiller is not None:
            self.distiller.teacher.after_step(self.student, step)

    def restart(self) -> None:
        """Begin the teacher's average anew at the student."""
        if self.distiller is not None:
            self.distiller.teacher.restart(self.student)

    def export(self) -> Predictor:
        """Return an independent copy whose updates have the strength to be delivered."""
        predictor = super().export()
        predictor.set_alpha(self.method.alpha)
        return predictor
