"""How far to move from a zero-shot model to a fine-tuned one: rules on curves and predictions.

Pure functions of arrays. Rules on weights are in `weights`; `select` carries both out on runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LATE = 0.75
"""An alpha from here on says that a curve has not stopped rising"""


def standard_errors(shares: Floats) -> Floats:
    """Return the standard errors of the mean of each row, (A,), of what N images add, (A, N).

    Of rights and wrongs, 1 and 0, it is the binomial one.
    """
    errors: Floats = shares.std(axis=-1) / np.sqrt(shares.shape[-1])
    return errors


def paired_errors(shares: Floats, against: int | None = None) -> Floats:
    """Return the standard error of each row's mean difference to one row, which itself has 0.

    All rows saw the same images, so what makes an image hard for all of them cancels.

    Args:
        shares: What each image adds to the measure, such as 1 where it was right, (A, N), one row
            per alpha; N >= 2.
        against: Index of the one row; None for that of the highest mean.
    """
    gaps = shares[int(shares.mean(axis=1).argmax()) if against is None else against] - shares
    errors: Floats = gaps.std(axis=1, ddof=1) / np.sqrt(shares.shape[1])
    return errors


def one_standard_error(
    alphas: Sequence[float],
    values: Sequence[float],
    errors: Sequence[float] | float,
    gains: Sequence[float] | float | None = None,
) -> float:
    """Return the smallest alpha that is no more than one standard error below the best.

    Beyond the plateau of a curve a larger alpha buys nothing and leaves the zero-shot weights
    further behind. Never below the smallest alpha that is more than one standard error above
    alpha = 0, if there is one.

    Args:
        alphas: Ascending from 0.
        values: What is to be high, one per alpha.
        errors: Standard errors: one, or one per alpha, of its distance to the best.
        gains: The same of the distance to alpha = 0; None for `errors`.

    Source: the rule of Breiman et al. 1984, "Classification and regression trees", section 3.4.3,
        with alpha in the place of the size of the tree.
    """
    curve, widths = np.asarray(values, dtype=np.float64), np.broadcast_to(errors, len(values))
    within = int(np.argmax(curve >= curve.max() - widths - 1e-12))
    better = np.flatnonzero(curve > curve[0] + np.asarray(errors if gains is None else gains))
    return float(alphas[max(within, int(better[0])) if better.size else within])


def best(alphas: Sequence[float], values: Sequence[float]) -> float:
    """Return the alpha with the highest value, the smallest of equals."""
    return float(alphas[int(np.argmax(values))])


def still_rises(
    alphas: Sequence[float], values: Sequence[float], errors: Sequence[float] | float, chosen: float
) -> bool:
    """Return whether a curve gives no reason to stop: `chosen` is late and nothing falls after it.

    Such a curve knows only what fine-tuning improves. "Falls" means by more than one standard
    error below the highest value before.
    """
    curve, widths = np.asarray(values, dtype=np.float64), np.broadcast_to(errors, len(values))
    falls = bool((curve < np.maximum.accumulate(curve) - widths - 1e-12).any())
    return chosen >= LATE and not falls


def harmonic_error(a: float, b: float, error_a: float, error_b: float) -> float:
    """Return the standard error of 2ab / (a + b) of two independent shares, by linearisation."""
    if a + b == 0:
        return 0.0
    return float(2.0 / (a + b) ** 2 * np.hypot(b * b * error_a, a * a * error_b))


def entropies(logits: NDArray[np.float32]) -> Floats:
    """Return the entropy of the softmax of each row, (N,), in nats."""
    exact = logits.astype(np.float64)
    shifted = exact - exact.max(axis=1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    found: Floats = -(np.exp(log) * log).sum(axis=1)
    return found


def entropy_shares(zero_shot: Floats, tuned: Floats) -> Floats:
    """Return each sample's alpha from the entropies of the two ends: the surer end weighs more.

    Source: Oh et al. 2024, "DaWin", arXiv 2410.03782.
    """
    # e^-b / (e^-a + e^-b), without the exponential of a large number.
    shares: Floats = 1.0 / (1.0 + np.exp(np.clip(tuned - zero_shot, -700, 700)))
    return shares


def centres(values: Floats, count: int) -> Floats:
    """Return at most `count` centres of numbers, ascending: k-means from the quantiles on.

    The published method fits a mixture of Beta distributions; both cut the same line.

    Args:
        values: (N,), N >= 1.
        count: >= 1.
    """
    found = np.unique(np.quantile(values, (np.arange(count) + 0.5) / count))
    for _ in range(100):
        own = nearest_centre(values, found)
        moved = np.array([values[own == index].mean() for index in np.unique(own)])
        if len(moved) == len(found) and np.allclose(moved, found, rtol=0, atol=1e-9):
            break
        found = moved
    return found


def nearest_centre(values: Floats, among: Floats) -> NDArray[np.int64]:
    """Return the index of the centre nearest to each value, (N,), the lower of equals."""
    found: NDArray[np.int64] = np.abs(values[:, None] - among[None, :]).argmin(axis=1)
    return found
