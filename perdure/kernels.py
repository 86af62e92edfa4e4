"""Kernels of weighted averages: how much of every step an average holds. NumPy, no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def beta_shares(beta: float, total: int, every: int = 1, released: bool = False) -> Floats:
    """Return the shares of an average with a symmetric Beta(beta, beta) kernel over a whole run.

    The start of the run counts: after update k the average holds the start with mass alpha_0 and
    the weights of each update j with alpha_j, divided by their sum. beta = 1 is the plain mean,
    beta = 0.5 (arcsine) stresses both ends of the run.

    Args:
        beta: Shape, > 0.
        total: Optimiser steps of the whole run; the kernel must know the horizon in advance.
        every: Optimiser steps between updates; update k happens after step min(k * every, total).
        released: Use the number of the update as kernel time, as the authors' code does. With
            `every` > 1 that never reaches the right half of the kernel.

    Returns:
        Share in [0, 1] of the newest weights in update k = 1, 2, ..., (ceil(total / every),); with
        `released` (total,), of which a run with `every` > 1 takes only the first.

    Raises:
        ValueError: If an argument is out of range.

    Source: TRACER (Asadollahzadeh et al. 2026, arXiv 2605.29380), definition 3.3.
    """
    require_positive("beta", beta)
    require_positive("total", total)
    require_positive("every", every)
    updates = total if released else -(-total // every)
    steps = np.arange(updates + 1) * (1 if released else every)
    time = (np.minimum(steps, total) + 0.5) / (total + 1)
    # Scaled to 1 at the centre: only ratios matter, and the Beta function would cancel.
    return kernel_shares((4.0 * time * (1.0 - time)) ** (beta - 1.0))


def kernel_shares(kernel: ArrayLike) -> Floats:
    """Return the shares of the running average with given masses of the start and each update.

    Args:
        kernel: alpha_0, alpha_1, ..., (T + 1,), each >= 0; only ratios matter.

    Returns:
        omega_k = alpha_k / (alpha_0 + ... + alpha_k) for k = 1 to T, (T,).

    Source: TRACER (Asadollahzadeh et al. 2026, arXiv 2605.29380), definition 3.3.
    """
    alpha = np.asarray(kernel, dtype=np.float64)
    mass = np.cumsum(alpha)
    # Very large beta underflows at the start, where the next update then takes all the mass.
    shares: Floats = np.divide(alpha, mass, out=np.ones_like(alpha), where=mass > 0)[1:]
    return shares


def kernel_mass(shares: ArrayLike) -> Floats:
    """Return what the average finally holds of the start and of each update.

    Args:
        shares: Share of the newest weights in update 1, 2, ..., T, each in [0, 1], (T,).

    Returns:
        Masses in [0, 1] that sum to 1, (T + 1,); the first is that of the start, omega_{0|T}.

    Source: TRACER (Asadollahzadeh et al. 2026, arXiv 2605.29380), definition 3.3, unrolled.
    """
    omega = np.asarray(shares, dtype=np.float64)
    left: Floats = np.append(np.cumprod(1.0 - omega[::-1])[::-1], 1.0)  # by all later updates
    left[1:] *= omega
    return left


def require_positive(name: str, value: float) -> None:
    """Refuse a number that is not above 0.

    Raises:
        ValueError: If it is 0, negative or not a number.
    """
    if not value > 0:
        raise ValueError(f"{name} is {value}; it must be greater than 0.")
