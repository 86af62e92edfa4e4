"""Curves are read between neighbours only; paired intervals see the same images for both."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.comparison import (
    Curve,
    Point,
    above_curve,
    at_equal_id,
    over_seeds,
    paired_difference,
    paired_harmonic_difference,
)

LINE = Curve("flyp", 0, (Point(0.0, 0.5, 0.4), Point(0.5, 0.7, 0.5), Point(1.0, 0.8, 0.3)))


@pytest.mark.parametrize(
    ("id_accuracy", "expected"), [(0.5, 0.4), (0.6, 0.45), (0.7, 0.5), (0.75, 0.4), (0.8, 0.3)]
)
def test_curve_is_linear_between_neighbours(id_accuracy: float, expected: float) -> None:
    assert LINE.ood_at(id_accuracy) == pytest.approx(expected)


@pytest.mark.parametrize("id_accuracy", [0.49, 0.81])
def test_curve_is_never_extrapolated(id_accuracy: float) -> None:
    assert LINE.ood_at(id_accuracy) is None


def test_curve_that_turns_back_is_read_at_its_first_passage() -> None:
    points = (Point(0.0, 0.5, 0.4), Point(0.5, 0.8, 0.6), Point(1.0, 0.6, 0.0))
    assert Curve("ft", 0, points).ood_at(0.65) == pytest.approx(0.5)


def test_flat_segment_and_single_point_can_be_read_at_their_own_accuracy() -> None:
    flat = Curve("ft", 0, (Point(0.0, 0.5, 0.4), Point(1.0, 0.5, 0.3)))
    assert flat.ood_at(0.5) == 0.4
    assert Curve("ft", 0, (Point(0.0, 0.5, 0.4),)).ood_at(0.5) == 0.4
    assert Curve("ft", 0, ()).ood_at(0.5) is None


def test_missing_seeds_are_counted_not_guessed() -> None:
    low = Curve("flyp", 1, (Point(0.0, 0.5, 0.4), Point(1.0, 0.6, 0.5)))
    reading = at_equal_id([LINE, low], 0.75)
    assert (reading.mean, reading.sd, reading.n, reading.of) == (pytest.approx(0.4), None, 1, 2)
    assert at_equal_id([low], 0.75).mean is None


def test_spread_is_the_sample_standard_deviation() -> None:
    reading = over_seeds([0.1, 0.2, 0.6])
    assert reading.sd == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))


def test_gap_to_a_rival_uses_the_curve_of_the_same_seed() -> None:
    other = Curve("flyp", 1, (Point(0.0, 0.5, 0.1), Point(1.0, 0.9, 0.1)))
    own = {0: Point(1.0, 0.6, 0.5), 1: Point(1.0, 0.6, 0.5)}
    gaps = above_curve(own, [LINE, other])
    assert gaps.mean == pytest.approx(((0.5 - 0.45) + (0.5 - 0.1)) / 2)


def test_paired_interval_of_a_model_with_itself_is_zero() -> None:
    right = {"id": np.array([1.0, 0.0, 1.0])}
    assert paired_difference(right, right) == (0.0, 0.0, 0.0)


def test_paired_interval_matches_the_closed_form_on_many_images() -> None:
    generator = np.random.default_rng(0)
    first = (generator.random(20_000) < 0.7).astype(float)
    second = np.where(generator.random(20_000) < 0.1, 1 - first, first)
    found = paired_difference({"id": first}, {"id": second})
    error = (first - second).std() / np.sqrt(20_000)
    assert found.value == pytest.approx((first - second).mean())
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.1 * error)


def test_sets_weigh_the_same_whatever_their_size() -> None:
    first = {"small": np.ones(4), "large": np.zeros(400)}
    second = {"small": np.zeros(4), "large": np.zeros(400)}
    assert paired_difference(first, second).value == pytest.approx(0.5)


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same sets"):
        paired_difference({"id": np.ones(3)}, {"id": np.ones(4)})


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60),
    st.integers(0, 5),
)
def test_interval_is_mirrored_when_the_models_swap(
    outcomes: list[tuple[bool, bool]], seed: int
) -> None:
    first, second = (np.array(column, dtype=float) for column in zip(*outcomes, strict=True))
    there = paired_difference({"id": first}, {"id": second}, draws=500, seed=seed)
    assert -1 <= there.low <= there.high <= 1
    assert there.value == pytest.approx(first.mean() - second.mean())
    back = paired_difference({"id": second}, {"id": first}, draws=500, seed=seed)
    assert back.value == pytest.approx(-there.value)


def test_harmonic_difference_has_its_value_and_the_interval_of_the_delta_method() -> None:
    generator = np.random.default_rng(0)
    shares = {"base": (0.8, 0.75), "novel": (0.5, 0.6)}
    models = [
        [
            {name: (generator.random(20_000) < pair[one]).astype(float)}
            for name, pair in shares.items()
        ]
        for one in (0, 1)
    ]
    found = paired_harmonic_difference(*models)
    means, variance = [], 0.0
    for half in models:
        base, novel = (next(iter(sets.values())).mean() for sets in half)
        means.append(2 * base * novel / (base + novel))
        for one, other in ((base, novel), (novel, base)):
            slope = 2 * other**2 / (one + other) ** 2
            variance += slope**2 * one * (1 - one) / 20_000
    assert found.value == pytest.approx(means[0] - means[1])
    assert found.high - found.low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.05)
    assert found.low < found.value < found.high
    same = paired_harmonic_difference(models[0], models[0])
    assert same == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="same sets"):
        paired_harmonic_difference([{"a": np.ones(2)}] * 2, [{"b": np.ones(2)}] * 2)
