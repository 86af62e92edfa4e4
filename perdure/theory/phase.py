"""The same predictions for many choices at once: what the pictures of `perdure theory` show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..kernels import require_positive
from .arrays import Floats, number, vector
from .horizon import start_mass
from .solutions import fine_tune, l2_sp, self_distill, weight_decay
from .teachers import ema_shares, round_errors, wma_shares

BETAS = (0.2, 0.5, 1.0, 1.5)
"""Kernels that pictures and tables show; 0.5 is the published choice, 1 the plain mean"""

DECAYS = (0.9, 0.99, 0.999)
"""Shares that an EMA keeps per update, beside them"""


class Phase(NamedTuple):
    """What every pair of beta and strength leaves at the end of a run, as in `Operation`."""

    betas: Floats
    """(b,)"""
    strengths: Floats
    """(s,)"""
    steps: int
    every: int
    start_mass: Floats
    """Mass of the pre-trained weights in the teacher, in [0, 1], (b,)"""
    bias: Floats
    """(b, s)"""
    gap: Floats
    """(b, s)"""


class Teacher(NamedTuple):
    """A teacher by name, with its share in every update."""

    name: str
    kind: str
    """static, wma or ema"""
    value: float | None
    """Beta of a WMA, decay of an EMA"""
    shares: Floats
    """omega_t in [0, 1], one per update, (U,)"""


class Horizon(NamedTuple):
    """How the bias that remains falls with the length of a run."""

    lengths: Floats
    """Optimiser steps, (n,)"""
    bias: Mapping[str, Floats]
    """Name of a teacher to the student's error at the end of each run, (n,)"""


def phase(betas: ArrayLike, strengths: ArrayLike, steps: int, every: int = 1) -> Phase:
    """Predict bias and gap at the end of a run for all pairs of beta and strength.

    Entry (i, j) is that of `operate(betas[i], strengths[j], steps, every)`.

    Args:
        betas: Of the kernel, each > 0, (b,).
        strengths: s >= 0 of distillation, (s,).
        steps: Optimiser steps of the run.
        every: Steps between updates of the teacher.

    Raises:
        DataError: If a list is empty or a strength is negative.
        ValueError: If another argument is out of range.

    Source: derived from TRACER (arXiv 2605.29380), theorem C.8.
    """
    beta, strength = vector("betas", betas), vector("strengths", strengths, 0.0)
    masses = np.empty(len(beta))
    before, last = np.empty((len(beta), len(strength))), np.empty((len(beta), 1))
    for row, one in enumerate(beta):
        shares = wma_shares(float(one), steps, every)
        masses[row], last[row] = start_mass(shares), shares[-1]
        for column, s in enumerate(strength):
            before[row, column] = np.prod(1.0 - shares[:-1] / (1.0 + s))
    kept = before / (1.0 + strength)
    return Phase(beta, strength, steps, every, masses, strength * kept, (1.0 - last) * kept)


def line_up(
    steps: int,
    every: int = 1,
    betas: Sequence[float] = BETAS,
    decays: Sequence[float] = DECAYS,
) -> tuple[Teacher, ...]:
    """Return the teachers that are compared: the start itself, WMAs, EMAs.

    Args:
        steps: Optimiser steps of the run.
        every: Steps between updates, of all of them alike.
        betas: Of the WMAs' kernels, > 0.
        decays: Of the EMAs, in [0, 1].

    Raises:
        ValueError: If an argument is out of range.
    """
    require_positive("steps", steps)
    require_positive("every", every)
    updates = -(-steps // every)
    found = [Teacher("static", "static", None, np.zeros(updates))]
    found += [Teacher(f"WMA beta {b:g}", "wma", b, wma_shares(b, steps, every)) for b in betas]
    found += [Teacher(f"EMA {d:g}", "ema", d, ema_shares(d, updates)) for d in decays]
    return tuple(found)


def horizon(
    strength: float,
    lengths: ArrayLike,
    every: int = 1,
    betas: Sequence[float] = BETAS,
    decays: Sequence[float] = DECAYS,
) -> Horizon:
    """Predict the bias at the end of runs of several lengths.

    A WMA's falls about like T^(-beta / (1 + s)), see `error_bounds`; an EMA's exponentially.

    Args:
        strength: s >= 0 of distillation.
        lengths: Optimiser steps of each run, >= 1, (n,); rounded.
        every: Steps between updates of the teacher.
        betas: Of the WMAs' kernels, > 0.
        decays: Of the EMAs, in [0, 1].

    Raises:
        DataError: If a length is below 1.
        ValueError: If another argument is out of range.

    Source: derived from TRACER (arXiv 2605.29380), theorem C.8.
    """
    steps = np.rint(vector("lengths", lengths, 1.0))
    bias: dict[str, list[float]] = {}
    for one in steps:
        for teacher in line_up(int(one), every, betas, decays):
            last = round_errors(strength, teacher.shares).student_error[-1]
            bias.setdefault(teacher.name, []).append(float(last))
    return Horizon(steps, {name: np.array(values) for name, values in bias.items()})


def kept_of_start(curvatures: ArrayLike, strength: float) -> dict[str, Floats]:
    """Return what every regulariser keeps of the pre-trained weights, direction by direction.

    All limits are linear in W0, so this is the factor of W0 u_k in W u_k, found by carrying each of
    them out on features with these directions. What is not W0 in a task direction is W*, but for
    weight decay, which puts nothing in the place of what it takes.

    Args:
        curvatures: c_k = sigma_k^2 >= 0 of the features; 0 is a direction outside of the task.
        strength: s of each regulariser, > 0.

    Returns:
        Name to shares in [0, 1], (k,): fine-tuning, static self-distillation, l2-sp, weight decay.

    Raises:
        DataError: If a curvature is negative.
        ValueError: If `strength` is not above 0.

    Source: TRACER (arXiv 2605.29380), theorem 3.2; weight decay is derived. The paper says that
    L2-SP changes what lies outside of the task; here, as in its own solution, it does not.
    """
    curvature = vector("curvatures", curvatures, 0.0)
    require_positive("strength", number("strength", strength))
    X_I = np.diag(np.sqrt(curvature))
    Y = np.ones((1, len(curvature)))
    ends = [
        {
            "fine-tuning": fine_tune(Y, X_I, W0),
            "static self-distillation": self_distill(Y, X_I, W0, strength),
            "L2-SP": l2_sp(Y, X_I, W0, strength),
            "weight decay": weight_decay(Y, X_I, strength),
        }
        for W0 in (np.zeros_like(Y), np.ones_like(Y))
    ]
    return {name: (ends[1][name] - ends[0][name])[0] for name in ends[0]}
