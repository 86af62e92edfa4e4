"""Moving averages in numbers: what share every update gets, what it finally holds. No torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

Mix = Callable[[int], float]
"""Number k >= 1 of the update to the share, in [0, 1], that the new weights get in it."""


def ema(decay: float) -> Mix:
    """Exponential average: share 1 - decay at every update.

    Args:
        decay: In [0, 1]; 0 copies the new weights, 1 never moves.

    Raises:
        ValueError: If `decay` is out of range.
    """
    _require_share("decay", decay)
    return lambda _: 1.0 - decay


def warmup_ema(start: float, end: float, warmup_steps: float, every: int = 1) -> Mix:
    """Exponential average whose decay rises linearly from `start` to `end`, then stays.

    Args:
        start: Decay of the first update, in [0, 1].
        end: Decay once `warmup_steps` optimiser steps are finished, in [0, 1].
        warmup_steps: Optimiser steps; 0 for none.
        every: Optimiser steps between updates; update k takes the decay of step (k - 1) * every,
            counting from 0, so the first one follows the first step of the run.

    Raises:
        ValueError: If an argument is out of range.

    Source: CaRot (Oh et al. 2024, arXiv 2311.01723): 0.05 to 0.9 over a fifth of the steps.
    """
    _require_share("start", start)
    _require_share("end", end)
    require_positive("every", every)

    def share(k: int) -> float:
        step = (k - 1) * every
        if step >= warmup_steps:
            return 1.0 - end
        return 1.0 - (start + (end - start) * step / warmup_steps)

    return share


def beta_wma(beta: float, total: int, every: int = 1, released: bool = False) -> Mix:
    """Weighted average with a symmetric Beta(beta, beta) kernel over the whole run, start included.

    Args:
        beta: Shape, > 0: 1 is the plain mean, 0.5 (arcsine) stresses both ends; see `beta_shares`.
        total: Optimiser steps of the whole run, which the kernel must know in advance.
        every: Optimiser steps between updates.
        released: Use the number of the update as kernel time, as the authors' code does.

    Returns:
        The share of update k = 1, 2, ...; it raises ValueError for a k beyond the horizon.

    Raises:
        ValueError: If an argument is out of range.

    Source: TRACER (Asadollahzadeh et al. 2026, arXiv 2605.29380), definition 3.3.
    """
    shares = beta_shares(beta, total, every, released)
    updates = len(shares)

    def share(k: int) -> float:
        if not 1 <= k <= updates:
            raise ValueError(
                f"update {k} is outside this average of 1 to {updates} updates; build it with the "
                "number of optimiser steps that the run really takes."
            )
        return float(shares[k - 1])

    return share


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


def _require_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}; it must lie in [0, 1].")
