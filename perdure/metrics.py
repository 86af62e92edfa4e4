"""Metrics of whole arrays, computed once; numpy only, so reports need no torch.

Shares lie in [0, 1], never per cent. Sums are taken in float64. Calibration errors and temperatures
are in `reliability`, ranks in `ranking`, barriers in `barriers`, intervals of means in `intervals`;
they have their names here too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .barriers import accuracy_barrier as accuracy_barrier
from .barriers import barriers as barriers
from .barriers import loss_barrier as loss_barrier
from .errors import DataError
from .intervals import bootstrap_interval as bootstrap_interval
from .intervals import paired_bootstrap as paired_bootstrap
from .ranking import recall_at_k as recall_at_k
from .reliability import Booleans as Booleans
from .reliability import Floats as Floats
from .reliability import Labels as Labels
from .reliability import Reliability as Reliability
from .reliability import brier as brier
from .reliability import ece as ece
from .reliability import ece_batchmean as ece_batchmean
from .reliability import ece_from_confidence as ece_from_confidence
from .reliability import fit_temperature as fit_temperature
from .reliability import nll as nll
from .reliability import nll_rows as nll_rows
from .reliability import reliability_bins as reliability_bins
from .reliability import require_pair, require_rows
from .reliability import softmax as softmax


def top1(logits: Floats, labels: Labels) -> float:
    """Return the share of rows whose largest logit is the label's; the first of equals counts.

    Args:
        logits: (N, C).
        labels: (N,), in [0, C).

    Raises:
        DataError: If shapes do not fit, there are no rows, or a label is out of range.
    """
    require_rows(logits, labels)
    return float(np.mean(logits.argmax(axis=1) == labels))


def macro_f1(logits: Floats, labels: Labels) -> float:
    """Return the mean F1 over the classes that occur as label or prediction.

    Args:
        logits: (N, C).
        labels: (N,), in [0, C).

    Raises:
        DataError: As `top1`.
    """
    require_rows(logits, labels)
    return macro_f1_from_predictions(logits.argmax(axis=1), labels)


def macro_f1_from_predictions(predictions: Labels, labels: Labels) -> float:
    """Return the mean F1 over the classes that occur in either argument, both (N,).

    Raises:
        DataError: If shapes differ or there are no rows.
    """
    require_pair(predictions, labels)
    classes = int(max(predictions.max(), labels.max())) + 1
    hits = np.bincount(labels[predictions == labels], minlength=classes)
    # Precision and recall share their numerator: F1 = 2 hits / (predicted + true).
    total = np.bincount(predictions, minlength=classes) + np.bincount(labels, minlength=classes)
    seen = total > 0
    return float(np.mean(2.0 * hits[seen] / total[seen]))


def macro_f1_interval(
    predictions: Labels,
    labels: Labels,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of `macro_f1_from_predictions`, (low, high).

    Images are drawn with replacement. How often each pair of label and prediction is drawn is
    multinomial, so the cost does not grow with the number of images.

    Args:
        predictions: (N,).
        labels: (N,).
        level: Probability that the interval covers, in (0, 1).
        seed: Of the resampling.
        resamples: Number of bootstrap samples.

    Raises:
        DataError: As `macro_f1_from_predictions`.
    """
    require_pair(predictions, labels)
    pairs, counts = np.unique(np.stack([labels, predictions]), axis=1, return_counts=True)
    classes = int(pairs.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), resamples)
    values = []
    for weights in drawn.astype(np.float64):
        true, guessed = (np.bincount(side, weights, classes) for side in pairs)
        hit = pairs[0] == pairs[1]
        right = np.bincount(pairs[0][hit], weights[hit], classes)
        seen = true + guessed > 0
        values.append(np.mean(2.0 * right[seen] / (true + guessed)[seen]))
    low, high = np.quantile(values, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def group_accuracies(correct: Booleans, groups: Labels, names: Sequence[str]) -> dict[str, float]:
    """Return the accuracy of every group that has images, in the order of `names`.

    The smallest value is the worst-group accuracy.

    Args:
        correct: Whether each image is right, (N,).
        groups: (N,), index into `names`; negative for images of no group.
        names: Of the groups.

    Raises:
        DataError: If shapes differ or no image has a group.

    Source: Koh et al. 2021 (WILDS), arXiv 2012.07421, section 4.
    """
    require_pair(correct, groups)
    found = {
        name: float(np.mean(correct[groups == place]))
        for place, name in enumerate(names)
        if (groups == place).any()
    }
    if not found:
        raise DataError("no image belongs to a group, so there is no worst one.")
    return found


def real_accuracy(
    predictions: Labels, accepted: Sequence[Sequence[int]]
) -> tuple[float, int] | None:
    """Return the share of predictions that people accept, and of how many images.

    Images for which nothing is accepted are left out; None if that leaves none.

    Source: Beyer et al. 2020, arXiv 2006.07159, section 3.
    """
    hits = [int(guess) in own for guess, own in zip(predictions, accepted, strict=True) if len(own)]
    return (float(np.mean(hits)), len(hits)) if hits else None


def vqa_agreement(agreeing: Labels) -> Floats:
    """Return the soft accuracy of answers, min(agreeing / 3, 1), (N,).

    The plain formula over all ten people, without the official program's average over leaving
    each of them out.

    Args:
        agreeing: How many of the ten people who were asked gave the answer, (N,).

    Source: Antol et al. 2015, arXiv 1505.00468, section 3 (VQA).
    """
    shares: Floats = np.minimum(agreeing.astype(np.float64) / 3.0, 1.0)
    return shares


def harmonic_mean(a: float, b: float) -> float:
    """Return 2ab / (a + b) of two numbers >= 0, such as base and novel accuracy; 0 if both are."""
    return 2.0 * a * b / (a + b) if a + b > 0 else 0.0


def harmonic_of_means(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the harmonic mean of two averages, as published base-to-novel tables do.

    Args:
        first: One number >= 0 per run or data set, such as base accuracies, (R,).
        second: The same runs' other number, such as novel accuracies, (R,).

    Raises:
        DataError: If lengths differ or there is nothing to average.

    Source: Zhou et al. 2022 (CoCoOp), arXiv 2203.05557, table 1: the row of averages.
    """
    require_pair(np.asarray(first), np.asarray(second))
    return harmonic_mean(float(np.mean(first)), float(np.mean(second)))


def mean_of_harmonics(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the average of every pair's own harmonic mean; at most `harmonic_of_means`.

    Args:
        first: As in `harmonic_of_means`.
        second: As in `harmonic_of_means`.

    Raises:
        DataError: As `harmonic_of_means`.
    """
    require_pair(np.asarray(first), np.asarray(second))
    return float(np.mean([harmonic_mean(a, b) for a, b in zip(first, second, strict=True)]))


def harmonic_interval(
    first: Sequence[Booleans],
    second: Sequence[Booleans],
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Return the bootstrap interval of the harmonic mean of two accuracies, (low, high).

    Images are drawn with replacement within each set. How many of a draw are right is binomial, so
    the cost does not grow with the number of images.

    Args:
        first: Sets whose accuracies are averaged, such as those of base classes: correct or not, a
            value per image, (N,).
        second: Likewise, such as those of novel classes.
        level: Probability that the interval covers, in (0, 1).
        seed: Of the resampling.
        resamples: Number of bootstrap samples.

    Raises:
        DataError: If there is no set, or one without images.
    """
    if not all((first, second)) or any(len(right) == 0 for right in (*first, *second)):
        raise DataError("each of the two accuracies needs at least one set with images.")
    rng = np.random.default_rng(seed)
    drawn = [
        np.mean(
            [rng.binomial(len(right), right.mean(), resamples) / len(right) for right in sets],
            axis=0,
        )
        for sets in (first, second)
    ]
    means = [harmonic_mean(float(a), float(b)) for a, b in zip(*drawn, strict=True)]
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)
