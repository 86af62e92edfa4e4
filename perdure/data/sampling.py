"""Which examples make up a batch: pure functions of (seed, epoch, index), with nothing to save.

A run can therefore resume at any step, with any number of workers or processes, and see the same
data in the same order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

_ORDER, _DRAW = 1, 2
"""Names of the random streams, so that order and augmentation never share numbers."""


class Place(NamedTuple):
    """Where an optimiser step stands in the data."""

    epoch: int
    """Counting from 0"""
    first: int
    """Position of its first example in the epoch's order"""


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return the number of batches that show each of `n` examples once; the last may be short.

    Raises:
        DataError: If there are no examples.
    """
    if n < 1:
        raise DataError("the training set has 0 examples, at least 1 is needed; check its split.")
    return -(-n // batch_size)


def place(n: int, batch_size: int, step: int) -> Place:
    """Return where optimiser step `step`, counting from 1, begins."""
    epoch, batch = divmod(step - 1, steps_per_epoch(n, batch_size))
    return Place(epoch, batch * batch_size)


@lru_cache(maxsize=2)  # every step of an epoch asks for the same order
def order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return the order of `n` examples in an epoch, a read-only permutation (n,)."""
    permutation = np.random.default_rng((_ORDER, seed, epoch)).permutation(n)
    permutation.flags.writeable = False
    return permutation


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Return the examples of one optimiser step, (B,) or fewer at the end of an epoch.

    Args:
        n: Number of examples.
        batch_size: Examples per step over all processes.
        step: Optimiser step, counting from 1.
        seed: Of the run.

    Raises:
        DataError: If there are no examples.
    """
    epoch, first = place(n, batch_size, step)
    return order(seed, epoch, n)[first : first + batch_size]


def shard(indices: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """Return the contiguous part of a batch or data set that one process works on.

    Joining the parts in the order of ranks gives `indices` again; lengths differ by at most 1.
    """
    return np.array_split(indices, world_size)[rank]


def draw_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the source of all random choices about one example in one epoch.

    Caption template and augmentation are drawn from it, whoever loads the example.
    """
    return np.random.default_rng((_DRAW, seed, epoch, index))
