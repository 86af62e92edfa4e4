"""Sampling: fixed numbers, because a resumed run of another version must see the same data."""

import numpy as np
import pytest

from perdure.data import sampling
from perdure.errors import DataError

ORDER = [5, 0, 1, 4, 2, 6, 3, 7]
DRAWS = [0, 45, 51]


def test_order_is_pinned():
    assert sampling.order(0, 0, 8).tolist() == ORDER
    assert sampling.draw_rng(3, 1, 7).integers(100, size=3).tolist() == DRAWS


def test_order_depends_on_seed_and_epoch_and_cannot_be_spoiled():
    first = sampling.order(0, 0, 100)
    assert not np.array_equal(first, sampling.order(0, 1, 100))
    assert not np.array_equal(first, sampling.order(1, 0, 100))
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 3


def test_an_epoch_ends_with_a_short_batch():
    assert sampling.steps_per_epoch(10, 4) == 3
    sizes = [len(sampling.batch_indices(10, 4, step, seed=0)) for step in range(1, 7)]
    assert sizes == [4, 4, 2, 4, 4, 2]
    assert sampling.place(10, 4, 3) == (0, 8)
    assert sampling.place(10, 4, 4) == (1, 0)


def test_draws_differ_between_examples_epochs_seeds_and_from_the_order():
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    draws = {tuple(sampling.draw_rng(*key).integers(1 << 30, size=2)) for key in keys}
    assert len(draws) == 4


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(DataError, match="0 examples"):
        sampling.steps_per_epoch(0, 4)


def test_world_may_be_larger_than_the_last_batch():
    parts = [sampling.shard(np.arange(2), rank, 3) for rank in range(3)]
    assert [len(part) for part in parts] == [1, 1, 0]
