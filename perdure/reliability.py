"""Calibration: how well probabilities fit what happens. Numpy only, like `metrics`.

Also what all metrics of classifiers need: probabilities, and checks of shapes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Booleans = NDArray[np.bool_]


class Reliability(NamedTuple):
    """Equal-width confidence bins, for reliability diagrams; each array has one entry per bin."""

    confidence: NDArray[np.float64]
    """Mean confidence, nan where the bin is empty"""
    accuracy: NDArray[np.float64]
    """Share of correct predictions, nan where the bin is empty"""
    size: NDArray[np.int64]
    """Number of predictions in the bin"""


def softmax(logits: Floats) -> Floats:
    """Return probabilities of each row, in the type of `logits` but float32 at least, (N, C)."""
    shifted = _wide(logits) - _wide(logits).max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    result: Floats = weights / weights.sum(axis=1, keepdims=True)
    return result


def ece(logits: Floats, labels: Labels, bins: int = 15) -> float:
    """Return the expected calibration error of the softmax over the whole set, in [0, 1].

    Args:
        logits: (N, C); float32 at least, since coarser logits blur the confidences.
        labels: (N,), in [0, C).
        bins: Equal-width bins of the largest probability; see `ece_from_confidence`.

    Raises:
        DataError: As `top1`.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3.
    """
    require_rows(logits, labels)
    return ece_from_confidence(softmax(logits).max(axis=1), logits.argmax(axis=1) == labels, bins)


def ece_from_confidence(confidence: Floats, correct: Booleans, bins: int = 15) -> float:
    """Return sum over bins of (share of rows) * |accuracy - mean confidence|, in [0, 1].

    Bins are closed on the left and a confidence of exactly 1 has one of its own; edges and
    confidences are compared in float32. Both as in torchmetrics, on which published tables rest.

    Args:
        confidence: Probability of the prediction, in [0, 1], (N,).
        correct: Whether the prediction is right, (N,).
        bins: Equal-width bins of [0, 1).

    Raises:
        DataError: If shapes differ, there are no rows, or a confidence is outside [0, 1].
    """
    bin_of = _bins(confidence, correct, bins)
    gap = np.bincount(bin_of, correct.astype(np.float64) - confidence.astype(np.float64))
    return float(np.abs(gap).sum() / len(correct))


def ece_batchmean(logits: Floats, labels: Labels, batch_size: int, bins: int = 10) -> float:
    """Return the mean, weighted by size, of the calibration errors of consecutive batches.

    Only to compare with published tables that were computed so: the value grows as the batches
    shrink, also for a perfectly calibrated model, and depends on the order of the data.

    Args:
        logits: (N, C), in the order of evaluation.
        labels: (N,), in [0, C).
        batch_size: Rows per batch, >= 1; the last batch may be smaller.
        bins: As `ece`.

    Raises:
        DataError: As `top1`.
    """
    require_rows(logits, labels)
    total = 0.0
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        total += ece(logits[part], labels[part], bins) * len(labels[part])
    return total / len(labels)


def reliability_bins(confidence: Floats, correct: Booleans, bins: int = 15) -> Reliability:
    """Return what a reliability diagram draws: `bins` bins, the last of which includes 1.

    Args:
        confidence: Probability of the prediction, in [0, 1], (N,).
        correct: Whether the prediction is right, (N,).
        bins: Equal-width bins of [0, 1].

    Raises:
        DataError: As `ece_from_confidence`.
    """
    bin_of = np.minimum(_bins(confidence, correct, bins), bins - 1)
    size = np.bincount(bin_of, minlength=bins)
    some = np.where(size > 0, size, np.nan)
    return Reliability(
        np.bincount(bin_of, confidence.astype(np.float64), bins) / some,
        np.bincount(bin_of, correct.astype(np.float64), bins) / some,
        size.astype(np.int64),
    )


def nll(logits: Floats, labels: Labels) -> float:
    """Return the mean negative log-likelihood of the labels, in nats.

    Args:
        logits: (N, C).
        labels: (N,), in [0, C).

    Raises:
        DataError: As `top1`.
    """
    return float(np.mean(nll_rows(logits, labels)))


def nll_rows(logits: Floats, labels: Labels) -> Floats:
    """Return the negative log-likelihood of every label, in nats, float64 (N,).

    Raises:
        DataError: As `top1`.
    """
    require_rows(logits, labels)
    exact = logits.astype(np.float64)
    shifted = exact - exact.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(labels)), labels]
    rows: Floats = np.log(np.exp(shifted).sum(axis=1)) - chosen
    return rows


def brier(logits: Floats, labels: Labels) -> float:
    """Return the mean squared distance of probabilities from the one-hot label, in [0, 2].

    Args:
        logits: (N, C).
        labels: (N,), in [0, C).

    Raises:
        DataError: As `top1`.

    Source: Brier 1950, summed over classes.
    """
    require_rows(logits, labels)
    gap = softmax(logits)
    gap[np.arange(len(labels)), labels] -= 1.0
    return float(np.mean(np.einsum("nc,nc->n", gap, gap, dtype=np.float64)))


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """Return the temperature in [0.01, 100] whose logits / temperature have the lowest NLL.

    Fit it on validation data, never on what is reported.

    Args:
        logits: (N, C).
        labels: (N,), in [0, C).

    Raises:
        DataError: As `top1`.

    Source: Guo et al. 2017, arXiv 1706.04599, section 4.2.
    """
    require_rows(logits, labels)
    # NLL is convex in the inverse temperature: Newton's method inside a shrinking bracket, which
    # is halved instead wherever Newton's steps leave it or do not shrink (flat tails).
    low, high, inverse, step = 0.01, 100.0, 1.0, np.inf
    for _ in range(100):
        slope, curvature = _temperature_slope(logits, labels, inverse)
        if slope == 0.0:
            break
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        proposal = inverse - slope / curvature if curvature > 0 else low
        if not low < proposal < high or abs(proposal - inverse) > 0.5 * step:
            proposal = float(np.sqrt(low * high))
        step, inverse = abs(proposal - inverse), proposal
        if step <= 1e-12 * inverse:
            break
    return 1.0 / inverse


def require_rows(logits: Floats, labels: Labels) -> None:
    """Refuse logits that are not (N, C) or labels that are not (N,) in [0, C); N, C >= 1.

    Raises:
        DataError: With the shapes or values found.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.size == 0:
        raise DataError(
            f"logits have shape {logits.shape} and labels {labels.shape}; "
            "expected (N, C) and (N,) with N >= 1 and C >= 1."
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise DataError(
            f"labels span {labels.min()} to {labels.max()}; "
            f"they must lie in 0 to {logits.shape[1] - 1}, the columns of the logits."
        )


def require_pair(a: NDArray[Any], b: NDArray[Any]) -> None:
    """Refuse two arrays that are not both (N,) with N >= 1.

    Raises:
        DataError: With the shapes found.
    """
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise DataError(f"shapes {a.shape} and {b.shape}; expected (N,) twice with N >= 1.")


def _bins(confidence: Floats, correct: Booleans, bins: int) -> NDArray[np.intp]:
    require_pair(confidence, correct)
    if not (confidence.min() >= 0.0 and confidence.max() <= 1.0 + 1e-6):
        raise DataError(
            f"confidences span {confidence.min()} to {confidence.max()}; they must lie in [0, 1]."
        )
    edges = np.linspace(0.0, 1.0, bins + 1, dtype=np.float32)
    # Index `bins` is the bin of exactly 1 (or a rounding error above).
    return np.searchsorted(edges, confidence.astype(np.float32), side="right") - 1


def _temperature_slope(logits: Floats, labels: Labels, inverse: float) -> tuple[float, float]:
    """First and second derivative of the NLL with respect to the inverse temperature."""
    exact = logits.astype(np.float64)
    probabilities = softmax(exact * inverse)
    expected = np.einsum("nc,nc->n", probabilities, exact)
    spread = np.einsum("nc,nc->n", probabilities, (exact - expected[:, None]) ** 2)
    slope = expected - exact[np.arange(len(labels)), labels]
    return float(slope.mean()), float(spread.mean())


def _wide(logits: Floats) -> Floats:
    return logits.astype(np.promote_types(logits.dtype, np.float32), copy=False)
