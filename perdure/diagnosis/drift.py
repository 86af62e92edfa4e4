"""How the answers of a model changed on the same images: calibration, classes, single images.

NumPy only. Shares lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from ..comparison import Difference, paired_shares, wilson_interval
from ..metrics import Floats, Labels

SMALL = 5
"""Classes with fewer images are not named as forgotten"""


@dataclass(frozen=True)
class Calibration:
    """How sure a model is on some images, and how right."""

    accuracy: float
    confidence: float
    """Mean of the largest class probability"""
    ece: float
    """15 equal-width bins"""
    nll: float
    """In nats"""
    temperature: float | None
    """What would divide the logits best on these very images, to describe them; None where all of
    them are right, or wrong, and none is best"""


@dataclass(frozen=True)
class Change:
    """A model before and after, on the images of one set."""

    n: int
    before: Calibration
    after: Calibration
    accuracy: Difference
    """After minus before, 95 % interval over images"""
    confidence: Difference
    """The same of the mean confidence"""


@dataclass(frozen=True)
class Flips:
    """Images on which the answer changed sides."""

    n: int
    lost: NDArray[np.int64]
    """Positions of images that were right and are wrong, most surely wrong first"""
    gained: NDArray[np.int64]
    """Positions of images that were wrong and are right, most surely right first"""

    def interval(self, found: NDArray[np.int64]) -> tuple[float, float]:
        """Return the 95 % interval of a number of flips, as a share of all images."""
        return wilson_interval(len(found), self.n)


@dataclass(frozen=True)
class Forgotten:
    """A class, before and after."""

    name: str
    n: int
    before: float
    after: float
    change: Difference
    """After minus before, paired by image, 95 %"""
    taken_for: str | None
    """The most frequent wrong answer afterwards"""
    taken: int
    """How often"""


def calibration(logits: Floats, labels: Labels) -> Calibration:
    """Return how sure a model is, and how right.

    Args:
        logits: (N, C).
        labels: (N,), in [0, C).

    Raises:
        DataError: As `metrics.top1`.
    """
    accuracy = metrics.top1(logits, labels)
    return Calibration(
        accuracy,
        float(metrics.softmax(logits).max(axis=1).mean(dtype=np.float64)),
        metrics.ece(logits, labels),
        metrics.nll(logits, labels),
        metrics.fit_temperature(logits, labels) if 0 < accuracy < 1 else None,
    )


def change(before: Floats, after: Floats, labels: Labels) -> Change:
    """Return how accuracy and calibration changed.

    Args:
        before: Logits of the pre-trained model, (N, C).
        after: Those of the fine-tuned one, on the same images.
        labels: (N,), in [0, C).

    Raises:
        DataError: As `metrics.top1`.
    """
    right = [logits.argmax(axis=1) == labels for logits in (after, before)]
    sure = [metrics.softmax(logits).max(axis=1) for logits in (after, before)]
    return Change(
        len(labels),
        calibration(before, labels),
        calibration(after, labels),
        Difference(*metrics.paired_bootstrap(right[0], right[1])),
        Difference(*metrics.paired_bootstrap(sure[0], sure[1])),
    )


def flips(before: Floats, after: Floats, labels: Labels) -> Flips:
    """Return the images whose answer changed sides.

    Args:
        before: As in `change`.
        after: As in `change`.
        labels: (N,).
    """
    was, now = (logits.argmax(axis=1) == labels for logits in (before, after))
    sure = metrics.softmax(after).max(axis=1)
    order = np.argsort(-sure, kind="stable")
    lost, gained = (order[found[order]] for found in (was & ~now, ~was & now))
    return Flips(len(labels), lost.astype(np.int64), gained.astype(np.int64))


def forgotten(
    before: Sequence[Labels],
    after: Sequence[Labels],
    labels: Sequence[Labels],
    names: Sequence[str],
) -> list[Forgotten]:
    """Return every class that has images, those whose accuracy fell most first.

    Of equal falls the class with more images stands first. A long list has large falls by chance:
    the intervals are those of classes that are looked at one at a time.

    Args:
        before: Predictions (N,) on one or more sets of images of the same classes.
        after: The same, afterwards.
        labels: The same sets' labels.
        names: Of the classes.
    """
    was, now, truth = (np.concatenate(parts) for parts in (before, after, labels))
    found = []
    for label in np.unique(truth):
        mine = truth == label
        right, still = was[mine] == label, now[mine] == label
        wrong = np.bincount(now[mine][~still], minlength=len(names))
        common = int(wrong.argmax()) if wrong.any() else None
        counts = (
            int((right & still).sum()),
            int((right & ~still).sum()),
            int((~right & still).sum()),
            int((~right & ~still).sum()),
        )
        found.append(
            Forgotten(
                names[label],
                int(mine.sum()),
                float(right.mean()),
                float(still.mean()),
                paired_shares(*counts),
                None if common is None else names[common],
                0 if common is None else int(wrong[common]),
            )
        )
    return sorted(found, key=lambda one: (one.change.value, -one.n, one.name))


def worst(found: Sequence[Forgotten], count: int) -> list[Forgotten]:
    """Return the first classes of a list that lost something, of those with `SMALL` images."""
    return [one for one in found if one.change.value < 0 and one.n >= SMALL][:count]
