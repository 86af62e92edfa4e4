"""Compare fairly: differences paired by image, and curves read at equal ID accuracy. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .metrics import harmonic_mean
from .overlap import Overlap, drawn_mious, miou


class Point(NamedTuple):
    """One model on a trade-off curve; accuracies are shares in [0, 1]."""

    position: float
    """Where on the curve: the interpolation share alpha in [0, 1], or a learning rate"""
    id: float
    """In-distribution accuracy"""
    ood: float
    """Unweighted mean accuracy over the shifted sets"""


@dataclass(frozen=True)
class Curve:
    """The trade-off of one method and one seed, in the order of its knob.

    Only neighbours in that order are joined by a line.
    """

    method: str
    seed: int | None
    points: tuple[Point, ...]

    def ood_at(self, id_accuracy: float) -> float | None:
        """Return OOD accuracy where the curve first reaches an ID accuracy, or None.

        Reads linearly between neighbours and never extrapolates. A curve that passes the ID
        accuracy more than once is read at the first passage, nearest to the start of the knob.

        Args:
            id_accuracy: Share in [0, 1].
        """
        # A single point is its own neighbour: it can be read at its own accuracy.
        for left, right in zip(self.points, self.points[1:] or self.points, strict=False):
            if min(left.id, right.id) <= id_accuracy <= max(left.id, right.id):
                if left.id == right.id:
                    return left.ood
                share = (id_accuracy - left.id) / (right.id - left.id)
                return left.ood + share * (right.ood - left.ood)
        return None


class Reading(NamedTuple):
    """A quantity over the seeds that have it; `n` of 0 means that none has (not available)."""

    mean: float | None
    sd: float | None
    """Sample standard deviation (n - 1); None below two seeds"""
    n: int
    of: int
    """Seeds asked"""


class Difference(NamedTuple):
    """First minus second, with the interval of a paired bootstrap over images."""

    value: float
    low: float
    high: float


def wilson_interval(count: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the score interval of a share `count` / `n`, (low, high), each in [0, 1].

    Unlike a bootstrap it says something where nothing, or everything, was found.

    Args:
        count: Found, 0 to `n`.
        n: Looked at, at least 1.
        z: Normal quantile; 95 % by default.

    Raises:
        ValueError: If the numbers do not fit.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"{count} of {n} is no share; expected 0 <= count <= n and n >= 1.")
    share, wide = count / n, z * z / n
    middle = (share + wide / 2) / (1 + wide)
    half = z / (1 + wide) * math.sqrt(share * (1 - share) / n + wide / (4 * n))
    # At the ends these are exact, but for rounding.
    low = 0.0 if count == 0 else max(0.0, middle - half)
    return low, 1.0 if count == n else min(1.0, middle + half)


def paired_shares(
    both: int, first: int, second: int, neither: int, z: float = 1.959964
) -> Difference:
    """Return the difference of two shares of the same n examples, second minus first.

    Args:
        both: Examples found both times.
        first: The first time only.
        second: The second time only.
        neither: Never.
        z: Normal quantile; 95 % by default.

    Raises:
        ValueError: If there are no examples.

    Source: Newcombe 1998, "Improved confidence intervals for the difference between binomial
        proportions based on paired data", method 10.
    """
    n = both + first + second + neither
    before, after = both + first, both + second
    one, other = (wilson_interval(count, n, z) for count in (before, after))
    p, q = before / n, after / n
    product = before * (n - before) * after * (n - after)
    excess = both * neither - first * second
    if product == 0:
        phi = 0.0
    else:  # positive correlations are corrected for continuity
        phi = (max(excess - n / 2, 0.0) if excess > 0 else excess) / math.sqrt(product)
    down, up = q - other[0], one[1] - p
    low = math.sqrt(max(0.0, down**2 - 2 * phi * down * up + up**2))
    down, up = p - one[0], other[1] - q
    high = math.sqrt(max(0.0, up**2 - 2 * phi * down * up + down**2))
    return Difference(q - p, q - p - low, q - p + high)


def over_seeds(values: Sequence[float | None]) -> Reading:
    """Return mean, sample standard deviation and number of the values that exist."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if known.size == 0:
        return Reading(None, None, 0, len(values))
    spread = float(known.std(ddof=1)) if known.size > 1 else None
    return Reading(float(known.mean()), spread, int(known.size), len(values))


def at_equal_id(curves: Sequence[Curve], id_accuracy: float) -> Reading:
    """Read the curve of every seed at one ID accuracy and average the OOD accuracies.

    Args:
        curves: One method, one curve per seed.
        id_accuracy: Share in [0, 1]; seeds that do not reach it are counted as missing.
    """
    return over_seeds([curve.ood_at(id_accuracy) for curve in curves])


def above_curve(own: Mapping[int | None, Point], rival: Sequence[Curve]) -> Reading:
    """Return how far models lie above a rival's curve at their own ID accuracy, seed by seed.

    Args:
        own: Seed to the model's point.
        rival: The rival's curves; a seed is compared with the rival's curve of the same seed, and
            with the mean over all rival curves where the rival has no such seed.
    """
    gaps: list[float | None] = []
    for seed, point in own.items():
        same = [curve for curve in rival if curve.seed == seed] or list(rival)
        line = at_equal_id(same, point.id).mean
        gaps.append(None if line is None else point.ood - line)
    return over_seeds(gaps)


def paired_difference(
    first: Mapping[str, NDArray[np.float64]],
    second: Mapping[str, NDArray[np.float64]],
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Bootstrap the difference of two models' accuracy over the same images.

    Images are drawn with replacement within each set, both models see the same draw, and the sets
    are averaged with equal weight. The interval covers the choice of test images, not of seeds.

    Args:
        first: Set name to one value per image, (N,): share of the model's seeds that were right.
        second: The same sets and images for the other model.
        level: Probability of the interval, in (0, 1).
        draws: Bootstrap samples.
        seed: Seed of the draws.

    Returns:
        First minus second, and the percentile interval.

    Raises:
        ValueError: If sets or lengths differ.
    """
    if first.keys() != second.keys() or any(
        first[name].shape != second[name].shape for name in first
    ):
        raise ValueError("both models need the same sets and images")
    generator = np.random.default_rng(seed)
    value = 0.0
    sampled = np.zeros(draws)
    for name in sorted(first):
        gap = np.asarray(first[name], dtype=np.float64) - second[name]
        # A per-image difference takes few distinct values, so drawing how often each value occurs
        # is the same bootstrap as drawing images, at a cost that does not grow with N.
        levels, counts = np.unique(gap, return_counts=True)
        picks = generator.multinomial(gap.size, counts / gap.size, size=draws)
        value += float(gap.mean()) / len(first)
        sampled += (picks @ levels) / gap.size / len(first)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(sampled, [tail, 1.0 - tail])
    return Difference(value, float(low), float(high))


def paired_overlap_difference(
    first: Mapping[str, Sequence[Overlap]],
    second: Mapping[str, Sequence[Overlap]],
    *,
    level: float = 0.95,
    draws: int = 1_000,
    seed: int = 0,
) -> Difference:
    """Bootstrap the difference of two models' mean intersection over union on the same images.

    Drawn as in `paired_difference`; of every draw the counts are added before any ratio is taken.

    Args:
        first: Set name to the counts of every image, each (N, C), one per seed of the model, whose
            values are averaged.
        second: The same sets and images for the other model.
        level: As in `paired_difference`.
        draws: As in `paired_difference`.
        seed: As in `paired_difference`.

    Returns:
        First minus second, and the percentile interval.

    Raises:
        ValueError: If sets or numbers of images differ.
    """
    sizes = [
        {name: {len(one.truth) for one in seeds} for name, seeds in sets.items()}
        for sets in (first, second)
    ]
    if sizes[0] != sizes[1] or any(len(number) != 1 for number in sizes[0].values()):
        raise ValueError("both models need the same sets and images")
    value = 0.0
    sampled = np.zeros(draws)
    for number, name in enumerate(sorted(first)):
        for sign, seeds in ((1.0, first[name]), (-1.0, second[name])):
            for counts in seeds:
                share = sign / len(seeds) / len(first)
                value += share * miou(Overlap(*(rows.sum(axis=0) for rows in counts)))
                generator = np.random.default_rng((seed, number))
                sampled += share * drawn_mious(counts, generator, draws)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(sampled, [tail, 1.0 - tail])
    return Difference(value, float(low), float(high))


def paired_harmonic_difference(
    first: Sequence[Mapping[str, NDArray[np.float64]]],
    second: Sequence[Mapping[str, NDArray[np.float64]]],
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Bootstrap the difference of two models' harmonic mean of two accuracies.

    Drawn as in `paired_difference`: images are paired between models, the two accuracies are of
    different images and so are drawn independently.

    Args:
        first: Two groups of sets, such as those of base and of novel classes; of each, set name to
            one value per image, (N,). Sets of a group are averaged.
        second: The same for the other model.
        level: As in `paired_difference`.
        draws: As in `paired_difference`.
        seed: As in `paired_difference`.

    Returns:
        First minus second, and the percentile interval.

    Raises:
        ValueError: If sets or lengths differ.
    """
    generator = np.random.default_rng(seed)
    values = np.zeros((2, 2))
    sampled = np.zeros((2, 2, draws))
    for half, (ours, theirs) in enumerate(zip(first, second, strict=True)):
        if ours.keys() != theirs.keys():
            raise ValueError("both models need the same sets and images")
        for name in sorted(ours):
            both = np.stack([ours[name], theirs[name]], axis=1)
            levels, counts = np.unique(both, axis=0, return_counts=True)
            picks = generator.multinomial(len(both), counts / len(both), size=draws)
            values[:, half] += both.mean(axis=0) / len(ours)
            sampled[:, half] += (picks @ levels).T / len(both) / len(ours)
    means = [harmonic_mean(*pair) for pair in values.tolist()]
    total = sampled.sum(axis=1)
    drawn = np.divide(2 * sampled.prod(axis=1), total, out=np.zeros_like(total), where=total > 0)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn[0] - drawn[1], [tail, 1.0 - tail])
    return Difference(means[0] - means[1], float(low), float(high))
