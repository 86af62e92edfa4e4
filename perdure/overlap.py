"""How well label maps agree: confusion of pixels, and what is computed from it. NumPy only.

Counts are exact integers and are added over a whole set before any ratio is taken; no score is
averaged over images. Shares lie in [0, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

Counts = NDArray[np.int64]
LabelMap = NDArray[np.int64]

_DRAWS = 50
"""Bootstrap samples summed at a time"""


class Overlap(NamedTuple):
    """Pixels per class, of one image, a set, or a stack of either, each (..., C)."""

    hit: Counts
    """Both say the class"""
    truth: Counts
    """The truth says it"""
    predicted: Counts
    """The prediction says it, where the truth is known"""


def confusion(prediction: LabelMap, truth: LabelMap, classes: int) -> Counts:
    """Count pixels by prediction (rows) and truth (columns), (C + 1, C + 1).

    Args:
        prediction: In [0, C]; C where nothing was predicted, which misses the truth and is no
            false alarm of any class.
        truth: Of the same shape, in [-1, C); -1 where it is unknown, which counts in the last
            column and in no metric.
        classes: Number of classes, C.

    Raises:
        DataError: If shapes differ or a value is out of range.
    """
    if prediction.shape != truth.shape:
        raise DataError(
            f"the prediction has {_shape(prediction)} pixels and the truth {_shape(truth)}; they "
            "must be of one size."
        )
    if prediction.size and not 0 <= prediction.min() <= prediction.max() <= classes:
        raise DataError(
            f"predictions go from {prediction.min()} to {prediction.max()}; allowed is 0 to "
            f"{classes}, which is nothing."
        )
    if truth.size and not -1 <= truth.min() <= truth.max() < classes:
        raise DataError(
            f"true labels go from {truth.min()} to {truth.max()}; allowed is -1 (unknown) to "
            f"{classes - 1}."
        )
    columns = np.where(truth < 0, classes, truth)
    pairs = prediction.astype(np.int64) * (classes + 1) + columns
    counted = np.bincount(pairs.ravel(), minlength=(classes + 1) ** 2)
    return counted.reshape(classes + 1, classes + 1).astype(np.int64)


def overlap(matrix: Counts) -> Overlap:
    """Return what a confusion matrix (C + 1, C + 1) says of every class, each (C,)."""
    known = matrix[:, :-1]
    return Overlap(known.diagonal().copy(), known.sum(axis=0), known[:-1].sum(axis=1))


def iou(counts: Overlap) -> NDArray[np.float64]:
    """Return intersection over union per class, (..., C); NaN where a class is in neither map."""
    union = counts.truth + counts.predicted - counts.hit
    unknown = np.full(union.shape, np.nan)
    return np.asarray(np.divide(counts.hit, union, out=unknown, where=union > 0))


def miou(counts: Overlap, *, of_truth: bool = False) -> float:
    """Return the mean intersection over union over the classes that occur; NaN if none does.

    Args:
        counts: Of a whole set, each (C,).
        of_truth: Whether only classes in the truth count. By default those that are only
            predicted count too, as 0, which is the convention of published tables (detectron2).

    Source: Everingham et al. 2015, "The Pascal Visual Object Classes Challenge: A Retrospective",
    section 3.3.
    """
    per_class = iou(counts)
    chosen = counts.truth > 0 if of_truth else counts.truth + counts.predicted > 0
    return float(per_class[chosen].mean()) if chosen.any() else float("nan")


def overlap_scores(counts: Overlap) -> dict[str, float]:
    """Return every metric of a whole set by its key in score files.

    `miou` and `miou_truth` as in `miou`; `fwiou` weighs classes by their true pixels;
    `class_accuracy` is the mean share of a class's true pixels that were found;
    `pixel_accuracy` is that share over all pixels.

    Args:
        counts: Each (C,).

    Raises:
        DataError: If no pixel has a known label.

    Source: Long et al. 2015, arXiv 1411.4038, section 5.
    """
    known = counts.truth > 0
    if not known.any():
        raise DataError("no pixel has a known label, so nothing can be scored.")
    truth, hit = counts.truth[known].astype(np.float64), counts.hit[known]
    return {
        "miou": miou(counts),
        "miou_truth": miou(counts, of_truth=True),
        "fwiou": float(iou(counts)[known] @ truth / truth.sum()),
        "class_accuracy": float(np.mean(hit / truth)),
        "pixel_accuracy": float(hit.sum() / truth.sum()),
    }


def miou_interval(
    counts: Overlap, level: float = 0.95, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of `miou` over images, (low, high).

    Images are drawn with replacement; the counts of those drawn are added, and the mean is taken
    over the classes that occur among them. Memory does not grow with the number of samples.

    Args:
        counts: Of every image, each (N, C).
        level: Probability that the interval covers, in (0, 1).
        seed: Of the resampling; equal seeds give equal intervals.
        resamples: Number of bootstrap samples.

    Raises:
        DataError: If there are no images.
    """
    found = drawn_mious(counts, np.random.default_rng(seed), resamples)
    low, high = np.quantile(found, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def drawn_mious(
    counts: Overlap, rng: np.random.Generator, resamples: int = 1000
) -> NDArray[np.float64]:
    """Return the `miou` of so many sets of images drawn with replacement, (resamples,).

    Of equally seeded generators and numbers of images the draws are the same, so that what two
    models have labelled can be compared draw by draw.

    Args:
        counts: As in `miou_interval`.
        rng: Draws the images.
        resamples: Number of bootstrap samples.

    Raises:
        DataError: If there are no images.
    """
    number = len(counts.truth)
    if not number:
        raise DataError("there are no images, so no interval can be given.")
    occurs = (counts.truth + counts.predicted).any(axis=0)
    # In float64 sums are exact, and matrix products fast.
    flat = np.concatenate([rows[:, occurs] for rows in counts], axis=1).astype(np.float64)
    found: list[float] = []
    while len(found) < resamples:
        size = min(_DRAWS, resamples - len(found))
        drawn = rng.integers(0, number, (size, number))
        times = np.stack([np.bincount(row, minlength=number) for row in drawn])
        hit, truth, predicted = (times @ flat).reshape(size, 3, -1).swapaxes(0, 1)
        union = truth + predicted - hit
        share = np.divide(hit, union, out=np.zeros_like(hit), where=union > 0)
        occurring = np.maximum((union > 0).sum(axis=1), 1)
        found += (share.sum(axis=1) / occurring).tolist()
    return np.array(found)


def sparse(counts: Overlap) -> NDArray[np.int32]:
    """Return the counts of images that are not 0, (K, 5): image, class, hit, truth, predicted.

    Args:
        counts: Of every image, each (N, C).
    """
    image, label = np.nonzero(counts.truth + counts.predicted)
    columns = [image, label, *(rows[image, label] for rows in counts)]
    return np.stack(columns, axis=1).astype(np.int32)


def dense(rows: NDArray[np.int32], images: int) -> Overlap:
    """Return what `sparse` has kept, each (N, C') of the classes that occur in any image.

    Args:
        rows: (K, 5).
        images: N.

    Raises:
        DataError: If they are of other images.
    """
    fits = rows.ndim == 2 and rows.shape[1] == 5
    if not fits or (len(rows) and not 0 <= rows[:, 0].min() <= rows[:, 0].max() < images):
        raise DataError(f"counts of pixels of shape {rows.shape} are not of {images} images.")
    labels, place = np.unique(rows[:, 1], return_inverse=True)
    found = np.zeros((3, images, len(labels)), dtype=np.int64)
    found[:, rows[:, 0], place] = rows[:, 2:].T
    return Overlap(*found)


def _shape(array: LabelMap) -> str:
    return " x ".join(map(str, array.shape))
