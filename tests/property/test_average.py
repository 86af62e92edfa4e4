"""Moving averages: the recursion equals the closed form it stands for."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from perdure.weights import Snapshot, beta_wma, ema, warmup_ema

TOTALS = st.integers(1, 40)
BETAS = st.floats(0.05, 5.0)
SEEDS = st.integers(0, 2**31)


def average(path, mix, updates):
    """Fold rows 1 to `updates` of `path` into row 0."""
    snapshot = Snapshot({"w": torch.from_numpy(path[0])})
    for k in range(1, updates + 1):
        snapshot.mix_({"w": torch.from_numpy(path[k])}, mix(k))
    return snapshot.values()["w"].numpy()


def walk(seed, rows):
    return np.random.default_rng(seed).normal(size=(rows, 3))


def masses(mix, updates):
    """Return the mass of the start and of each update in the final average."""
    shares = np.array([1.0] + [mix(k) for k in range(1, updates + 1)])
    kept = np.append(np.cumprod(1.0 - shares[:0:-1])[::-1], 1.0)
    return shares * kept


@given(TOTALS, BETAS, st.integers(1, 12), SEEDS)
def test_wma_is_the_weighted_mean_of_its_kernel(total, beta, every, seed):
    updates = -(-total // every)
    time = (np.minimum(np.arange(updates + 1) * every, total) + 0.5) / (total + 1)
    alpha = (time * (1 - time)) ** (beta - 1)
    path = walk(seed, updates + 1)
    found = average(path, beta_wma(beta, total, every), updates)
    np.testing.assert_allclose(found, alpha @ path / alpha.sum(), rtol=1e-9, atol=1e-9)


@given(TOTALS, SEEDS)
def test_beta_one_is_the_plain_mean(total, seed):
    path = walk(seed, total + 1)
    found = average(path, beta_wma(1.0, total), total)
    np.testing.assert_allclose(found, path.mean(axis=0), rtol=1e-9, atol=1e-12)


@given(TOTALS, BETAS)
def test_start_and_end_weigh_the_same(total, beta):
    mass = masses(beta_wma(beta, total), total)
    np.testing.assert_allclose(mass, mass[::-1], rtol=1e-8)
    np.testing.assert_allclose(mass.sum(), 1.0, rtol=1e-12)


@given(TOTALS, BETAS, st.integers(1, 12), st.booleans())
def test_shares_are_shares(total, beta, every, released):
    mix = beta_wma(beta, total, every, released)
    assert all(0.0 < mix(k) <= 1.0 for k in range(1, -(-total // every) + 1))


@given(st.floats(0.0, 1.0), st.integers(0, 20), SEEDS)
def test_ema_closed_form(decay, updates, seed):
    path = walk(seed, updates + 1)
    mass = (1.0 - decay) * decay ** np.arange(updates, -1.0, -1.0)
    mass[0] = decay**updates
    found = average(path, ema(decay), updates)
    np.testing.assert_allclose(found, mass @ path, rtol=1e-9, atol=1e-9)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(0, 30), st.integers(1, 8))
def test_warmup_is_monotone_and_arrives(start, end, warmup, every):
    shares = [warmup_ema(start, end, warmup, every)(k) for k in range(1, 40)]
    steps = np.diff(shares) * np.sign(start - end)
    assert (steps >= -1e-12).all()
    assert shares[-1] == 1.0 - end
    if warmup > 0:
        assert shares[0] == 1.0 - start


@given(SEEDS, st.floats(0.0, 1.0))
def test_an_average_of_equal_weights_stays(seed, share):
    row = walk(seed, 1)[0]
    snapshot = Snapshot({"w": torch.from_numpy(row)})
    snapshot.mix_({"w": torch.from_numpy(row)}, share)
    np.testing.assert_array_equal(snapshot.values()["w"].numpy(), row)
