"""What a finite run leaves: bounds of bias and gap, and the mass of the pre-trained weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DataError
from ..kernels import kernel_mass
from .arrays import Floats, number, vector


class Bounds(NamedTuple):
    """An interval that holds a number."""

    lower: float
    upper: float


def start_mass(shares: ArrayLike) -> float:
    """Return what the teacher finally holds of the pre-trained weights, omega_{0|T} in [0, 1].

    With a Beta kernel every step it falls like T^-beta.

    Args:
        shares: omega_t in [0, 1], (T,).

    Raises:
        DataError: If a share is out of range.

    Source: TRACER (arXiv 2605.29380), definition 3.3; the power of T is derived.
    """
    return float(np.prod(1.0 - vector("shares", shares, 0.0, 1.0)))


def mass_centre(shares: ArrayLike) -> float:
    """Return the mean round that the final teacher holds, as a share of all rounds, in [0, 1].

    0.5 for every symmetric kernel over a whole run; near 1 for an EMA.

    Args:
        shares: omega_t in [0, 1], (T,).

    Raises:
        DataError: If a share is out of range.

    Source: derived.
    """
    mass = kernel_mass(vector("shares", shares, 0.0, 1.0))
    return float(mass @ np.linspace(0.0, 1.0, len(mass)))


def error_bounds(strength: float, shares: ArrayLike) -> Bounds:
    """Bound the teacher's error after the last round, relative to that of the start.

    Between omega_{0|T}^(1 / (1 + s)) and exp(-sum of shares / (1 + s)); at s = 0 the lower one is
    met. With a Beta kernel the error therefore falls about like T^(-beta / (1 + s)): very slowly
    for beta 0.5 and strength 0.9, T^-0.26.

    Args:
        strength: s >= 0 of distillation.
        shares: omega_t in [0, 1], (T,).

    Raises:
        DataError: If a share is out of range.
        ValueError: If `strength` is negative.

    Source: derived, by Bernoulli's inequality from theorem C.8 of TRACER (arXiv 2605.29380).
    """
    omega = vector("shares", shares, 0.0, 1.0)
    kept = 1.0 / (1.0 + number("strength", strength))
    return Bounds(start_mass(omega) ** kept, float(np.exp(-kept * omega.sum())))


def path_gap(amounts: ArrayLike, shares: ArrayLike) -> float:
    """Return the final gap of student and teacher on a path W_t = W_0 + a_t U.

    | sum over t of mass_t (a_T - a_t) |, in units of the length of U.

    Args:
        amounts: a_0 to a_T, (T + 1,).
        shares: omega_t in [0, 1], (T,).

    Raises:
        DataError: If the shapes do not fit or a share is out of range.

    Source: TRACER (arXiv 2605.29380), theorem C.6.
    """
    a, omega = _path(amounts, shares)
    return abs(float(kernel_mass(omega) @ (a[-1] - a)))


def persistence_bound(
    amounts: ArrayLike, shares: ArrayLike, curvature: float = 1.0, remainder: float = 0.0
) -> float:
    """Return what gap, or distillation gradient, a finite run keeps at least.

    curvature omega_{0|T} |a_T - a_0| - remainder. It holds on paths along one direction that never
    turn back, and says nothing about others. It is loose, since it counts the mass of the start
    alone: 0.3 % for beta 0.5 and 25,030 steps. With T it goes to zero.

    Args:
        amounts: a_0 to a_T, never falling or never rising, (T + 1,).
        shares: omega_t in [0, 1], (T,).
        curvature: mu >= 0 for a bound of the gradient's length, if distillation pulls with at least
            mu times the gap along the path; 1 for the gap itself.
        remainder: Length of what the linear form of the gradient leaves out, >= 0.

    Raises:
        DataError: If the shapes do not fit, a share is out of range, or the path turns back.
        ValueError: If `curvature` or `remainder` is negative.

    Source: TRACER (arXiv 2605.29380), theorem C.6.
    """
    a, omega = _path(amounts, shares)
    steps = np.diff(a)
    if steps.min() < 0 < steps.max():
        raise DataError("the path turns back; the bound holds only for amounts that never do.")
    kept = start_mass(omega) * abs(float(a[-1] - a[0]))
    return number("curvature", curvature) * kept - number("remainder", remainder)


def _path(amounts: ArrayLike, shares: ArrayLike) -> tuple[Floats, Floats]:
    a, omega = vector("amounts", amounts), vector("shares", shares, 0.0, 1.0)
    if len(a) != len(omega) + 1:
        raise DataError(
            f"{len(a)} amounts do not fit {len(omega)} shares; give one amount more than shares: "
            "that of the start."
        )
    return a, omega
