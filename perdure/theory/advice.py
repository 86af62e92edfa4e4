"""Which beta and strength for a run of T steps: the bias and the gap that a choice leaves."""

from __future__ import annotations

from math import log
from typing import NamedTuple

import numpy as np

from .arrays import number
from .horizon import start_mass
from .teachers import round_errors, wma_shares

PUBLISHED_STEPS = 25_030
"""Of TRACER's ImageNet runs with ViT-B/16: 10 epochs of 2,503 steps"""

PUBLISHED_BETA, PUBLISHED_STRENGTH = 0.5, 0.9
"""Of the same runs"""

STRENGTHS = (0.3, 0.5, 0.9, 1.5, 3.0)
"""For which advice is given, beside the one asked for"""

_BETAS = np.arange(1, 61) / 20  # to 3; finer steps would claim more than the model knows


class Operation(NamedTuple):
    """What a teacher leaves at the end of a run, one exact solve per update of the teacher."""

    beta: float
    strength: float
    steps: int
    every: int
    start_mass: float
    """Mass of the pre-trained weights in the teacher, in [0, 1]"""
    bias: float
    """Student's distance from the task's solution, relative to that of the start"""
    gap: float
    """Between student and teacher, in the same unit; strength times gap pulls at the student"""


class Advice(NamedTuple):
    """The beta that leaves a wanted bias."""

    target: float
    """Bias that was wanted"""
    choice: Operation
    others: tuple[Operation, ...]
    """The same bias by other strengths, weakest first"""

    @property
    def reached(self) -> bool:
        """Whether the choice leaves the wanted bias, up to a fifth."""
        return self.reaches(self.choice)

    @property
    def best(self) -> Operation:
        """The choice, or where it misses the wanted bias the nearest strength that leaves it.

        Where no strength does, the one of all that comes nearest.
        """
        if self.reached:
            return self.choice
        hits = [one for one in self.others if self.reaches(one)]
        if hits:
            return min(hits, key=lambda one: abs(log(one.strength / self.choice.strength)))
        return min((self.choice, *self.others), key=lambda one: abs(log(one.bias / self.target)))

    def reaches(self, one: Operation) -> bool:
        """Whether `one` leaves the wanted bias, up to a fifth."""
        return abs(log(one.bias / self.target)) < log(1.2)


def operate(
    beta: float, strength: float, steps: int, every: int = 1, released: bool = False
) -> Operation:
    """Predict what TRACER's teacher leaves after a run.

    Args:
        beta: Of the kernel, > 0.
        strength: s >= 0 of distillation.
        steps: Optimiser steps of the run.
        every: Steps between updates of the teacher.
        released: Kernel time as in the authors' code, see `wma_shares`.

    Raises:
        ValueError: If an argument is out of range.

    Source: derived from TRACER (arXiv 2605.29380), theorem C.8.
    """
    shares = wma_shares(beta, steps, every, released)
    errors = round_errors(strength, shares)
    bias, gap = float(errors.student_error[-1]), float(errors.gap[-1])
    return Operation(beta, strength, steps, every, start_mass(shares), bias, gap)


def advise(
    steps: int,
    *,
    bias: float | None = None,
    strength: float = PUBLISHED_STRENGTH,
    every: int = 1,
) -> Advice:
    """Choose beta so that a run of any length leaves a wanted bias.

    The model knows one trade-off: bias (what the task does not get) is strength times gap (what
    keeps pulling towards the past). It cannot say how much of it is good. That comes from the
    published runs: by default the bias wanted is the one that their beta of 0.5 and strength of 0.9
    leave after 25,030 steps, 0.023. That the same bias is good at another length is an assumption.

    Args:
        steps: Optimiser steps of the run.
        bias: Wanted, in (0, 1), relative to the error of the start; None for the published one.
        strength: Of distillation, > 0.
        every: Steps between updates of the teacher.

    Returns:
        The nearest beta of 0.05, 0.10, ..., 3.00, and the same for other strengths. With a given
        strength no bias above s / (1 + s), the one of a teacher that stays, can be had.

    Raises:
        ValueError: If an argument is out of range.

    Source: derived.
    """
    if bias is None:
        bias = operate(PUBLISHED_BETA, PUBLISHED_STRENGTH, PUBLISHED_STEPS).bias
    if not 0.0 < bias < 1.0:
        raise ValueError(f"bias is {bias}; it must lie between 0 and 1, the error of the start.")
    if number("strength", strength) == 0:
        raise ValueError("strength is 0; then nothing is distilled and no teacher is needed.")
    others = [one for one in STRENGTHS if one != strength]
    return Advice(
        bias,
        _nearest(steps, bias, strength, every),
        tuple(_nearest(steps, bias, one, every) for one in others),
    )


def _nearest(steps: int, bias: float, strength: float, every: int) -> Operation:
    """Find the beta of the grid with the nearest bias; the bias falls as beta grows."""
    low, high = 0, len(_BETAS) - 1
    ends = {at: operate(float(_BETAS[at]), strength, steps, every) for at in (low, high)}
    while high - low > 1:
        middle = (low + high) // 2
        ends[middle] = operate(float(_BETAS[middle]), strength, steps, every)
        low, high = (middle, high) if ends[middle].bias > bias else (low, middle)
    return min((ends[low], ends[high]), key=lambda one: abs(log(one.bias / bias)))
