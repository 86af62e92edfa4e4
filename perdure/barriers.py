"""Barriers: how far a loss rises above the straight line between two models. NumPy, no torch."""

from __future__ import annotations

import numpy as np

from .errors import DataError
from .reliability import Floats


def loss_barrier(losses: Floats, positions: Floats | None = None) -> float:
    """Return how far a loss rises above the straight line between its values at both ends.

    max over t of L(t) - ((1 - t) L(0) + t L(1)), never below 0 because the ends are among the
    points; 0 for every convex curve.

    Args:
        losses: Along a path, (P,).
        positions: Ascending from 0 to 1, (P,); evenly spaced by default.

    Raises:
        DataError: If there are fewer than two points, or positions do not fit.

    Source: Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis",
        arXiv 1912.05671, in the form of Entezari et al. 2022, arXiv 2110.06296, equation 1.
    """
    return float(barriers(losses[None], positions)[0])


def accuracy_barrier(accuracies: Floats, positions: Floats | None = None) -> float:
    """Return how far an accuracy falls below the straight line between its values at both ends.

    max over t of ((1 - t) A(0) + t A(1)) - A(t).

    Args:
        accuracies: Along a path, (P,).
        positions: As in `loss_barrier`.

    Raises:
        DataError: As `loss_barrier`.
    """
    return loss_barrier(-accuracies, positions)


def barriers(losses: Floats, positions: Floats | None = None) -> Floats:
    """Return the loss barrier of many curves at once, (R,) of (R, P); see `loss_barrier`.

    Raises:
        DataError: As `loss_barrier`.
    """
    points = losses.shape[-1] if losses.ndim == 2 else 0
    t = np.linspace(0.0, 1.0, max(points, 2)) if positions is None else positions
    fits = t.shape == (points,) and points >= 2 and t[0] == 0.0 and t[-1] == 1.0
    if not fits or (np.diff(t) <= 0).any():
        raise DataError(
            f"a curve has {points} points and positions {np.asarray(t).tolist()}; a barrier needs "
            "two or more points, at positions that ascend from 0 to 1."
        )
    exact = losses.astype(np.float64)
    line = (1.0 - t) * exact[:, :1] + t * exact[:, -1:]
    rise: Floats = (exact - line).max(axis=1)
    return np.maximum(rise, 0.0)
