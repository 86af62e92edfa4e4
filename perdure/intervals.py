"""Intervals of means by the bootstrap, also of examples that depend on each other. NumPy alone."""

from __future__ import annotations

import numpy as np

from .errors import DataError
from .reliability import Booleans, Floats, Labels, require_pair

_DRAWS = 1 << 16
"""Draws of a bootstrap at a time"""


def bootstrap_interval(
    values: Floats | Booleans,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 1000,
    *,
    of: Labels | None = None,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values`, (low, high).

    Args:
        values: One number per example, such as correct or not, (N,).
        level: Probability that the interval covers, in (0, 1).
        seed: Of the resampling; equal seeds give equal intervals.
        resamples: Number of bootstrap samples.
        of: Which picture each example is about, (N,), where several may be about one; these are no
            independent examples, so pictures are drawn, each with all of its examples.

    Raises:
        DataError: If there are no values, or `of` has another shape.

    Source: Efron and Tibshirani 1993, chapter 13; Davison and Hinkley 1997, section 3.8, of groups.
    """
    if values.ndim != 1 or len(values) == 0 or (of is not None and of.shape != values.shape):
        beside = "" if of is None else f" and their pictures {of.shape}"
        raise DataError(f"values have shape {values.shape}{beside}; expected (N,) with N >= 1.")
    exact = values.astype(np.float64)
    if of is not None and len(np.unique(of)) < len(of):
        return _interval_of_groups(exact, of, level, seed, resamples)
    rng = np.random.default_rng(seed)
    # Many resamples at a time, in as little memory as one of a large test set; the draws and the
    # order of every sum are those of one at a time.
    rows, n = max(1, _DRAWS // len(exact)), len(exact)
    sizes = [min(rows, resamples - done) for done in range(0, resamples, rows)]
    means = [exact[rng.integers(0, n, (size, n))].mean(axis=1) for size in sizes]
    low, high = np.quantile(np.concatenate(means), [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def _interval_of_groups(
    values: Floats, of: Labels, level: float, seed: int, resamples: int
) -> tuple[float, float]:
    """Return the interval of a mean where whole groups of values are drawn."""
    _, places, sizes = np.unique(of, return_inverse=True, return_counts=True)
    sums = np.bincount(places, weights=values)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        drawn = rng.integers(0, len(sums), len(sums))
        means.append(sums[drawn].sum() / sizes[drawn].sum())
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def paired_bootstrap(
    a: Floats | Booleans,
    b: Floats | Booleans,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 1000,
) -> tuple[float, float, float]:
    """Return mean(a) - mean(b) and its bootstrap interval, (difference, low, high).

    Examples are resampled in pairs, so what makes an example hard for both cancels.

    Args:
        a: One number per example, (N,).
        b: The same examples in the same order, (N,).
        level: Probability that the interval covers, in (0, 1).
        seed: Of the resampling.
        resamples: Number of bootstrap samples.

    Raises:
        DataError: If shapes differ or there are no values.
    """
    require_pair(a, b)
    gap = a.astype(np.float64) - b.astype(np.float64)
    return float(gap.mean()), *bootstrap_interval(gap, level, seed, resamples)
