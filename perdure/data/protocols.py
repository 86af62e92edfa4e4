"""Published divisions of data sets: few-shot subsets, base and novel classes. No torch.

Pure functions of labels. They draw from Python's `random`, because the published subsets were, and
another generator would make other ones.

Source: Zhou et al. 2022 (CoOp), arXiv 2109.01134, section 4.1; Zhou et al. 2022 (CoCoOp), arXiv
2203.05557, section 4.1; the order of draws is that of their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

Indices = NDArray[np.int64]

VALIDATION_SHOTS = 4
"""More images per class are not drawn for validation, whatever the number of shots"""


class FewShot(NamedTuple):
    """Which images of a data set are used."""

    train: Indices
    """(N,), class after class in the order in which classes first appear"""
    val: Indices
    """(M,), likewise, into the validation split"""


class Halves(NamedTuple):
    """The labels of a data set, divided."""

    base: Indices
    """(ceil(C / 2),), ascending: trained on"""
    novel: Indices
    """(floor(C / 2),), ascending: held out"""


def sample(labels: Sequence[int] | Indices, shots: int, stream: Random) -> Indices:
    """Draw images of every class, (N,): all of a class that has fewer.

    Args:
        labels: Of all images, (A,).
        shots: Images per class, at least 1.
        stream: Where the draws come from; classes draw in the order of their first appearance.

    Raises:
        DataError: If `shots` is not positive.
    """
    if shots < 1:
        raise DataError(f"shots is {shots}; it must be 1 or more images per class.")
    drawn: list[int] = []
    for members in _by_class(labels).values():
        drawn += stream.sample(members, shots) if len(members) >= shots else members
    return np.array(drawn, dtype=np.int64)


def few_shot(
    train: Sequence[int] | Indices, val: Sequence[int] | Indices, shots: int, seed: int
) -> FewShot:
    """Draw the few-shot subsets of a seed, before classes are divided.

    Base and novel runs of a seed therefore share one subset.

    Args:
        train: Labels of the training split, (A,).
        val: Labels of the validation split, (B,); may be empty.
        shots: Training images per class; validation takes as many, but at most 4, from the same
            stream of random numbers, after training.
        seed: Of that stream; published tables average seeds 1, 2 and 3.

    Raises:
        DataError: If `shots` is not positive.
    """
    stream = Random(seed)
    first = sample(train, shots, stream)
    return FewShot(first, sample(val, min(shots, VALIDATION_SHOTS), stream))


def halves(labels: Sequence[int] | Indices) -> Halves:
    """Divide the labels that occur: the first half, rounded up, in ascending order is base.

    Raises:
        DataError: If fewer than two labels occur, so that one half would be empty.
    """
    found = np.unique(np.asarray(labels, dtype=np.int64))
    if len(found) < 2:
        raise DataError(
            f"{len(found)} classes cannot be divided in base and novel ones; 2 or more are needed."
        )
    middle = (len(found) + 1) // 2
    return Halves(found[:middle], found[middle:])


def restrict(labels: Sequence[int] | Indices, kept: Indices) -> tuple[Indices, Indices]:
    """Return which images have one of some labels, (N,), and their labels counted within these.

    Args:
        labels: Of all images, (A,).
        kept: Ascending labels, (C,); the first becomes 0.
    """
    whole = np.asarray(labels, dtype=np.int64)
    indices = np.flatnonzero(np.isin(whole, kept))
    return indices, np.searchsorted(kept, whole[indices])


def split_trainval(
    labels: Sequence[int] | Indices, seed: int, share: float = 0.2
) -> tuple[Indices, Indices]:
    """Divide a training set that has no validation split, (train, val), class by class.

    For data sets whose published division is not at hand. Results on such a division compare with
    no published ones.

    Args:
        labels: Of all images, (A,).
        seed: Of the order within each class.
        share: Of each class that becomes validation, rounded; in (0, 1).

    Raises:
        DataError: If a class is too small to give an image to each side.
    """
    stream = Random(seed)
    train: list[int] = []
    val: list[int] = []
    for label, members in _by_class(labels).items():
        count = round(share * len(members))
        if not 0 < count < len(members):
            raise DataError(
                f"class {label} has {len(members)} images, of which a share of {share} is {count}: "
                "one side would be empty. Merge or drop such classes, or name a validation split."
            )
        stream.shuffle(members)
        val += members[:count]
        train += members[count:]
    return np.array(train, dtype=np.int64), np.array(val, dtype=np.int64)


def _by_class(labels: Sequence[int] | Indices) -> dict[int, list[int]]:
    """Return the images of every label, labels in the order of their first appearance."""
    members: dict[int, list[int]] = {}
    for index, label in enumerate(np.asarray(labels, dtype=np.int64).tolist()):
        members.setdefault(label, []).append(index)
    return members
