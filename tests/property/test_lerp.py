"""Interpolation of weights: ends, symmetry, idempotence, straightness."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from perdure.weights import distance, lerp, mean

SHARES = st.floats(0.0, 1.0)
SEEDS = st.integers(0, 2**31)


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (3, 2), "b": (4,), "scale": ()}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def close(a, b):
    return all(torch.allclose(a[name], b[name], rtol=1e-12, atol=1e-12) for name in a | b)


@given(SEEDS)
def test_ends_are_exact(seed):
    a, b = draw(seed), draw(seed + 1)
    assert all(torch.equal(lerp(a, b, 0.0)[name], a[name]) for name in a)
    assert all(torch.equal(lerp(a, b, 1.0)[name], b[name]) for name in a)


@given(SEEDS, SHARES)
def test_same_ends_stay(seed, t):
    a = draw(seed)
    assert all(torch.equal(lerp(a, a, t)[name], a[name]) for name in a)


@given(SEEDS, SHARES)
def test_symmetry(seed, t):
    a, b = draw(seed), draw(seed + 1)
    assert close(lerp(a, b, t), lerp(b, a, 1.0 - t))


@given(SEEDS, SHARES, SHARES)
def test_points_lie_on_one_line(seed, s, t):
    a, b = draw(seed), draw(seed + 1)
    assert close(lerp(a, lerp(a, b, s), t), lerp(a, b, s * t))


@given(SEEDS, SHARES)
def test_distance_grows_with_the_square(seed, t):
    a, b = draw(seed), draw(seed + 1)
    found, full = distance(a, lerp(a, b, t), "sum"), distance(a, b, "sum")
    assert torch.isclose(found, t * t * full, rtol=1e-9, atol=1e-12)


@given(SEEDS, SHARES)
def test_mean_of_two_is_interpolation(seed, t):
    a, b = draw(seed), draw(seed + 1)
    assert close(mean([a, b], [1.0 - t, t]), lerp(a, b, t))


@given(SEEDS, st.permutations(range(4)))
def test_mean_is_order_free(seed, order):
    members = [draw(seed + i) for i in range(4)]
    assert close(mean(members), mean([members[i] for i in order]))
