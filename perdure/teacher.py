"""A moving average of the student as its teacher: the part that CaRot and TRACER share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .batch import Pairs
from .learner import evaluating
from .predictor import Predictor
from .weights import Mix, Snapshot, run_at, trainable

Number = Callable[[int], int | None]
"""Optimiser step, counting from 1, to the number of the update that follows it, if one does."""


class Teacher(nn.Module):
    """An average, in float32, of the weights that a student trains, run in their place.

    Everything else is the student's own: frozen weights are not stored twice, and the running
    statistics of batch normalisation follow the student, so that teacher and student differ in
    their weights alone. The scale is averaged in log space, like every other parameter.

    Args:
        student: Its weights are the start; it is not kept.
        mix: Share of the student in update k; None for a teacher that stays at the start.
        number: When update k happens.
        bf16: Whether it embeds in bfloat16 whatever the student does. No gradient flows through
            it, so only the targets get coarser.
    """

    def __init__(
        self, student: Predictor, mix: Mix | None, number: Number, bf16: bool = False
    ) -> None:
        super().__init__()
        self.average = Snapshot(trainable(student))
        self._mix = mix
        self._number = number
        self._bf16 = bf16

    @torch.no_grad()
    def embed(self, student: Predictor, images: Tensor, tokens: Tensor) -> Pairs:
        """Embed with the teacher's weights, in evaluation mode and without gradient."""
        half = torch.autocast(images.device.type, torch.bfloat16) if self._bf16 else nullcontext()
        with evaluating(student), half:
            pairs: Pairs = run_at(student, self.average.values(), images, tokens)
        return pairs

    def after_step(self, student: Predictor, step: int) -> None:
        """Move towards the student if an update follows optimiser step `step`."""
        k = self._number(step)
        if self._mix is not None and k is not None:
            self.average.mix_(trainable(student), self._mix(k))

    def restart(self, student: Predictor) -> None:
        """Begin again at the student's weights; a teacher that never moves stays where it is."""
        if self._mix is not None:
            self.average.mix_(trainable(student), 1.0)

    @torch.no_grad()
    def write_to(self, predictor: Predictor) -> None:
        """Give a copy of the student the teacher's weights."""
        parameters = dict(predictor.named_parameters())
        for name, value in self.average.values().items():
            parameters[name].copy_(value)


def after_steps(every: int, total: int) -> Number:
    """Update after steps `every`, 2 `every`, ... and after the last one."""

    def number(step: int) -> int | None:
        due = step % every == 0 or step == total
        return -(-step // every) if due else None

    return number


def from_first_step(every: int, last: int | None = None) -> Number:
    """Update after steps 1, 1 + `every`, 1 + 2 `every`, ... and, where given, after step `last`.

    With steps counted from 0 this is t mod `every` = 0, the rule of the authors' codes.
    """

    def number(step: int) -> int | None:
        done, rest = divmod(step - 1, every)
        if rest == 0:
            return done + 1
        return done + 2 if step == last else None

    return number
