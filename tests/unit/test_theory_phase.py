"""Many predictions at once: grids, horizons, directions, and the published runs together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import theory
from perdure.errors import DataError
from perdure.theory.published import BETA, EVERY, SPREAD, STRENGTH

FEW = settings(max_examples=25, deadline=None)


@FEW
@given(
    st.floats(0.05, 3.0), st.floats(0.0, 20.0), st.integers(1, 60), st.integers(1, 7)
)  # fmt: skip
def test_a_grid_is_one_operation_per_entry(beta, strength, steps, every):
    grid = theory.phase([beta, 1.0], [strength, 0.9], steps, every)
    for row, b in enumerate((beta, 1.0)):
        for column, s in enumerate((strength, 0.9)):
            one = theory.operate(b, s, steps, every)
            assert grid.bias[row, column] == pytest.approx(one.bias, rel=1e-9)
            assert grid.gap[row, column] == pytest.approx(one.gap, rel=1e-9)
            assert grid.start_mass[row] == pytest.approx(one.start_mass, rel=1e-9)


@FEW
@given(st.floats(0.05, 3.0), st.floats(0.01, 20.0), st.integers(2, 80))
def test_bias_and_gap_are_one_number_and_fall_as_beta_grows(beta, strength, steps):
    grid = theory.phase([beta, beta + 0.2], [strength], steps)
    last = [theory.wma_shares(one, steps)[-1] for one in (beta, beta + 0.2)]
    np.testing.assert_allclose(strength * grid.gap[:, 0], (1 - np.array(last)) * grid.bias[:, 0])
    assert grid.bias[1, 0] < grid.bias[0, 0] <= strength / (1 + strength)
    # A static teacher leaves bias and gap that sum to the error of the start; a moving one less.
    assert (grid.bias + grid.gap < 1.0).all()


def test_a_grid_is_what_simulated_rounds_leave():
    rng = np.random.default_rng(0)
    X_I, W0, Y = rng.normal(size=(5, 3)), rng.normal(size=(2, 5)), rng.normal(size=(2, 3))
    grid = theory.phase([0.5], [0.9], 40, 4)
    run = theory.teacher_recursion(Y, X_I, W0, 0.9, theory.wma_shares(0.5, 40, 4))
    assert grid.bias[0, 0] == pytest.approx(run.student_error[-1])
    assert grid.gap[0, 0] == pytest.approx(run.gap[-1])


def test_the_line_up_holds_one_share_per_update():
    found = theory.line_up(50, 7, betas=(0.5,), decays=(0.9,))
    assert [(one.name, one.kind, one.value) for one in found] == [
        ("static", "static", None), ("WMA beta 0.5", "wma", 0.5), ("EMA 0.9", "ema", 0.9),
    ]  # fmt: skip
    assert {len(one.shares) for one in found} == {8}
    assert not found[0].shares.any()
    np.testing.assert_array_equal(found[1].shares, theory.wma_shares(0.5, 50, 7))


def test_over_lengths_an_ema_falls_exponentially_and_a_wma_like_a_power():
    lengths = [250, 500, 1000, 2000]
    found = theory.horizon(0.9, lengths, betas=(0.5,), decays=(0.99,)).bias
    left = 1 - 0.01 / 1.9
    np.testing.assert_allclose(
        found["EMA 0.99"], [0.9 / 1.9 * left ** (one - 1) for one in lengths], rtol=1e-9
    )
    slopes = np.diff(np.log(found["WMA beta 0.5"])) / np.log(2)
    assert np.all(np.diff(slopes) > 0)  # from below towards the power of long runs
    assert -0.5 / 1.9 - 0.01 < slopes[-1] < -0.5 / 1.9
    np.testing.assert_allclose(found["static"], 0.9 / 1.9)


@FEW
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.floats(0.01, 20.0))
def test_what_is_kept_is_the_closed_form_of_every_direction(curvatures, strength):
    found = theory.kept_of_start([0.0, *curvatures], strength)
    ones, c = np.ones(len(curvatures)), np.array(curvatures)
    for name, outside, inside in (
        ("fine-tuning", 1.0, 0 * ones),
        ("static self-distillation", 1.0, strength / (1 + strength) * ones),
        ("L2-SP", 1.0, strength / (c + strength)),
        ("weight decay", 0.0, 0 * ones),
    ):
        np.testing.assert_allclose(found[name], [outside, *inside], atol=1e-9)


def test_wrong_ranges_are_refused():
    with pytest.raises(DataError, match="strengths"):
        theory.phase([0.5], [-1.0], 10)
    with pytest.raises(ValueError, match="beta"):
        theory.phase([0.0], [1.0], 10)
    with pytest.raises(ValueError, match="every"):
        theory.line_up(10, 0)
    with pytest.raises(DataError, match="lengths"):
        theory.horizon(0.9, [0])
    with pytest.raises(ValueError, match="strength"):
        theory.kept_of_start([1.0], 0.0)


def test_a_strength_that_cannot_leave_the_bias_gives_way_to_one_that_can():
    advice = theory.advise(10)
    assert not advice.reached
    assert advice.best in advice.others
    assert advice.reaches(advice.best)
    # 0.5 and 0.3 can; 0.5 is nearer to 0.9.
    assert [advice.reaches(one) for one in advice.others] == [True, True, False, False]
    assert advice.best.strength == 0.5
    long = theory.advise(2000)
    assert long.best is long.choice
    none = theory.advise(1)
    assert not any(map(none.reaches, (none.choice, *none.others)))
    assert none.best.strength == 0.3


def test_the_published_tables_share_one_run_that_counts_once():
    found = {(one.table, one.column): one for one in theory.compare_published()}
    assert len(found) == 13
    together = found["all", "ID accuracy"]
    assert len(together.labels) == len(BETA) + len(STRENGTH) + len(EVERY) - 1 == 28
    assert len(set(together.labels)) == 28
    assert together.pairs == 28 * 27 // 2
    low, high = together.rho_range
    assert low <= together.rho <= high


def test_leaving_out_the_only_misfit_restores_the_order():
    one = theory.compare_published()[0]._replace(
        labels=("a", "b", "c", "d"),
        predicted=np.array([1.0, 2.0, 3.0, 4.0]),
        published=np.array([2.0, 3.0, 4.0, 1.0]),
        expected=1,
    )
    assert one.rho == pytest.approx(-0.2)
    assert one.rho_range == pytest.approx((-0.5, 1.0))
    assert [(pair.first, pair.second) for pair in one.differences] == [
        ("c", "d"), ("b", "d"), ("a", "d"),
    ]  # fmt: skip


def test_the_plateau_holds_all_runs_near_the_best():
    found = theory.plateau()
    rows = [(bias, row[2]) for bias, row in published_runs()]
    assert found.best == max(ood for _, ood in rows)
    assert found.margin == pytest.approx(2 * 2**0.5 * SPREAD["OOD accuracy"])
    good = [bias for bias, ood in rows if ood >= found.best - found.margin]
    assert (found.low, found.high) == (min(good), max(good))
    assert found.low < theory.advise(25_030).target < found.high


def published_runs():
    knobs = (("beta", BETA), ("strength", STRENGTH), ("every", EVERY))
    for knob, rows in knobs:
        for row in rows:
            given_values = {"beta": 0.5, "strength": 0.9, "every": 1} | {knob: row[0]}
            given_values["every"] = int(given_values["every"])
            yield theory.operate(steps=25_030, released=True, **given_values).bias, row
