"""The rules behind `docs/results.md`."""

import json

import numpy as np
import pytest

from benchmarks import experiments, pages
from benchmarks.experiments import PLANS, Chooser, settings_of, smallest_within_one_error
from benchmarks.results_page import intervals
from perdure import load_recipe


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        ({1: 0.80, 2: 0.85, 4: 0.855, 8: 0.856}, 2),
        ({1: 0.856, 2: 0.85, 4: 0.84, 8: 0.70}, 1),
        ({1: 0.50, 2: 0.60, 4: 0.70, 8: 0.80}, 8),
    ],
)
def test_the_smallest_rate_within_one_standard_error_is_chosen(accuracy, expected):
    assert smallest_within_one_error(list(accuracy), accuracy.__getitem__) == expected


def test_rates_double_and_every_plan_has_a_recipe():
    for name, plan in PLANS.items():
        ratios = np.diff(np.log2(plan.rates))
        assert np.allclose(ratios, 1)
        recipe = load_recipe(f"emojishift/{name}", settings_of(name, 1e-3, "seed-0", 7, (), None))
        assert (recipe.seed, recipe.optim.lr) == (7, 1e-3)


def test_a_further_knob_is_chosen_by_both_validation_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    chooser = Chooser()

    def put(tag, val, far):
        folder = tmp_path / "choices" / "l2sp" / tag / "scores"
        folder.mkdir(parents=True)
        splits = {"val": {"accuracy": val}, "val_shift": {"accuracy": far}}
        (folder / "emojishift-val.json").write_text(json.dumps({"splits": splits}))

    plan = PLANS["l2sp"]
    for index, rate in enumerate(plan.rates):
        put(f"{rate:g}", 0.80 + 0.05 * (index == 1), 0.4)
    best = plan.rates[1]
    for index, value in enumerate(plan.values[1:]):
        put(f"{best:g}-{value:g}", 0.84, 0.42 + 0.01 * index)
    choice = chooser.choose("l2sp")
    assert (choice.rate, choice.value) == (best, plan.values[-1])


def test_bootstrap_intervals_cover_the_binomial_spread():
    right = (np.arange(400) % 4 == 0).astype(float)
    found = intervals(lambda w: [float(w["id"] @ right), None], {"id": 400})
    assert found[1] is None
    value, low, high = found[0]
    assert value == pytest.approx(0.25)
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert (0.25 - low, high - 0.25) == (pytest.approx(half, rel=0.15),) * 2


def test_generated_parts_are_found_and_renewed(monkeypatch):
    monkeypatch.setitem(pages.PARTS, "methods", lambda: "NEW")
    text = "a\n<!-- generated: methods -->\nold\nlines\n<!-- end -->\nb"
    renewed = "a\n<!-- generated: methods -->\nNEW\n<!-- end -->\nb"
    assert pages.renew(text) == renewed == pages.renew(renewed)
