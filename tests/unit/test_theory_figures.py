"""What the pictures of the theory draw is what the theory computes."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from perdure import theory
from perdure.theory import published as tables
from perdure.theory_figures import MARKED, PICTURES, draw
from perdure.theory_report import Setting


def setting(steps: int, every: int = 1) -> Setting:
    advice = theory.advise(steps, every=every)
    return Setting(advice, advice.best)


def filled(name: str, of: Setting) -> Figure:
    figure = Figure()
    PICTURES[name][0](figure, of)
    return figure


def lines(figure: Figure, panel: int = 0) -> dict[str, np.ndarray]:
    """Return the labelled lines of a panel as points, (N, 2)."""
    return {str(line.get_label()): line.get_xydata() for line in figure.axes[panel].lines}


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def test_teachers_draws_both_recursions_against_optimiser_steps():
    of = setting(60, 4)
    figure = filled("teachers", of)
    exact, gradual = lines(figure), figure.axes[1].lines
    names = [one.name for one in theory.line_up(60, 4, of.betas)]
    assert list(exact) == names
    move = min(2 * np.log(100) / 15, 1 / (1 + of.strength))
    for one, line in zip(theory.line_up(60, 4, of.betas), gradual, strict=True):
        found = exact[one.name]
        np.testing.assert_array_equal(found[:, 0], np.arange(4, 61, 4))
        np.testing.assert_array_equal(found[:, 1], theory.round_errors(of.strength, one.shares).gap)
        errors = theory.step_errors(1.0, move, of.strength, one.shares)
        np.testing.assert_array_equal(line.get_ydata(), errors.gap)


def test_an_ema_is_below_a_wma_at_the_end_and_above_it_at_the_start():
    found = lines(filled("teachers", setting(2000)))
    ema, wma = found["EMA 0.9"][:, 1], found["WMA beta 0.5"][:, 1]
    assert ema[0] > wma[0]
    assert ema[-1] < 1e-10 < wma[-1]
    # Of a long run some points are drawn, the first and the last among them, where they belong.
    gap = theory.round_errors(0.9, theory.wma_shares(0.5, 2000)).gap
    steps = found["WMA beta 0.5"][:, 0].astype(int)
    assert (steps[0], steps[-1]) == (1, 2000)
    assert len(steps) <= 1000
    np.testing.assert_array_equal(wma, gap[steps - 1])


def test_phase_has_a_panel_per_horizon_and_a_line_per_beta():
    of = setting(2000)
    figure = filled("phase", of)
    assert [axes.get_title() for axes in figure.axes] == ["20 steps", "200 steps", "2,000 steps"]
    drawn = [line.get_xydata() for line in figure.axes[2].lines]
    for beta in theory.BETAS:
        points = [theory.operate(beta, strength, 2000) for strength in MARKED]
        wanted = np.array([(one.bias, one.gap) for one in points])
        assert any(one.shape == wanted.shape and np.allclose(one, wanted) for one in drawn), beta
    assert any(np.allclose(one, [[of.best.bias, of.best.gap]]) for one in drawn if len(one) == 1)


def test_horizon_meets_the_wanted_bias_at_the_length_of_the_run():
    of = setting(1000)
    found = lines(filled("horizon", of))
    curve = found[f"WMA beta {of.best.beta:g}"]
    at = np.exp(np.interp(np.log(1000), *np.log(curve.T)))
    assert at == pytest.approx(of.best.bias, rel=0.02)
    assert found["static"][:, 1] == pytest.approx(0.9 / 1.9)


def test_kept_shows_that_l2_sp_keeps_what_lies_outside_and_weight_decay_does_not():
    figure = filled("kept", setting(100))
    (axes,) = figure.axes
    single = [line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    # Fine-tuning, self-distillation, L2-SP, weight decay, the moving teacher.
    assert single == pytest.approx([1.0, 1.0, 1.0, 0.0, 1.0])


def test_choice_marks_the_recommendation_and_the_bias_wanted():
    of = setting(300)
    figure = filled("choice", of)
    found = lines(figure)
    label = f"recommended: beta {of.best.beta:g}, strength {of.best.strength:g}"
    np.testing.assert_allclose(found[label], [[of.best.beta, of.best.strength]])
    # The thick contour is where a run of 300 steps leaves the bias that is wanted.
    contours = [one for one in figure.axes[0].collections if hasattr(one, "levels")]
    wanted = next(one for one in contours if list(one.levels) == [of.target])
    corners = np.concatenate([path.vertices for path in wanted.get_paths()])[::5]
    assert len(corners) > 3
    for beta, strength in corners:
        assert theory.operate(beta, strength, 300).bias == pytest.approx(of.target, rel=0.1)


def test_published_draws_every_row_of_the_tables():
    figure = filled("published", setting(10))
    for panel, column in ((0, 1), (1, 2), (2, 3)):
        drawn = lines(figure, panel)
        for name, rows in (
            ("beta", tables.BETA), ("strength", tables.STRENGTH), ("update interval", tables.EVERY),
        ):  # fmt: skip
            found = drawn[f"{name} varied, n = {len(rows)}"][:, 1]
            assert found.tolist() == [row[column] for row in rows]
    values = np.concatenate([points[:, 1] for points in lines(figure, 3).values()])
    assert sorted(values) == sorted(tables.DIVERGENCE.values())
    assert "rank correlation -0.96 (n = 28)" in words(figure)


@pytest.mark.parametrize("size", [(1, 1), (50, 20)])
def test_runs_of_any_length_have_all_pictures(size):
    for name in PICTURES:
        figure = filled(name, setting(*size))
        assert figure.axes
        assert all(axes.get_xlabel() or axes.get_ylabel() for axes in figure.axes)


def test_pictures_are_png_and_leave_global_state_alone(monkeypatch):
    monkeypatch.setitem(PICTURES, "kept", (PICTURES["kept"][0], (3.0, 2.0)))
    for name in ("phase", "teachers", "horizon", "choice", "published"):
        monkeypatch.delitem(PICTURES, name)
    before = dict(mpl.rcParams)
    ((name, content),) = draw(setting(20))
    assert name == "kept.png"
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert dict(mpl.rcParams) == before
