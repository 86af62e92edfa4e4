"""Sampling: every example once per epoch, whatever sizes and processes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from perdure.data import sampling

SIZES = st.integers(1, 200)
SEEDS = st.integers(0, 2**32 - 1)


@given(n=SIZES, batch_size=SIZES, epoch=st.integers(0, 5), seed=SEEDS)
def test_an_epoch_shows_every_example_once(n, batch_size, epoch, seed):
    per_epoch = sampling.steps_per_epoch(n, batch_size)
    numbers = range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1)
    batches = [sampling.batch_indices(n, batch_size, step, seed) for step in numbers]
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(sampling.place(n, batch_size, step).epoch == epoch for step in numbers)


@given(n=st.integers(0, 100), world_size=st.integers(1, 9))
def test_shards_join_to_the_whole_and_are_even(n, world_size):
    parts = [sampling.shard(np.arange(n), rank, world_size) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(parts), np.arange(n))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(n=SIZES, batch_size=SIZES, step=st.integers(1, 500), seed=SEEDS)
def test_a_step_is_a_pure_function_of_its_number(n, batch_size, step, seed):
    first = sampling.batch_indices(n, batch_size, step, seed).copy()
    sampling.batch_indices(n, batch_size, step + 3, seed + 1)
    sampling.order.cache_clear()
    assert np.array_equal(first, sampling.batch_indices(n, batch_size, step, seed))
