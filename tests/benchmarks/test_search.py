"""The rules behind the search of a combined recipe and the study of R-Adapter."""

import pytest

from benchmarks.adapter_page import RULES, page
from benchmarks.adapter_study import between, ensembles, losses
from benchmarks.search import CANDIDATES, job, read_off
from perdure import load_recipe
from perdure.grids import cells


def test_a_line_is_read_where_it_last_crosses_and_never_beyond_its_ends():
    line = [(0.6, 0.5), (0.8, 0.6), (0.7, 0.4), (0.9, 0.2)]
    assert read_off(line, 0.85) == pytest.approx(0.25)
    assert read_off(line, 0.75) == pytest.approx(0.35)
    assert read_off(line, 0.65) == pytest.approx(0.525)
    assert read_off(line, 0.95) is None
    assert read_off(line, 0.5) is None


def test_every_candidate_is_a_recipe_and_a_run_of_its_own():
    recipes = [
        load_recipe(f"emojishift/{one.recipe}", one.settings) for one in map(job, CANDIDATES)
    ]
    assert len({job(name).out for name in CANDIDATES}) == len(CANDIDATES)
    assert len(set(map(repr, recipes))) == len(CANDIDATES)
    assert {recipe.seed for recipe in recipes} == {0}


def test_the_study_varies_one_thing_at_a_time_around_the_recipe():
    assert len(cells(ensembles())) == 8
    first = cells(losses())[0]
    assert (first.assignments, first.alpha) == ((), 1.0)


def test_accuracies_between_two_alphas_lie_on_the_chord():
    points = {0.0: (0.6, 0.6), 0.5: (0.8, 0.5), 1.0: (0.9, 0.3)}
    assert between(points, 0.25) == pytest.approx((0.7, 0.55))
    assert between(points, 1.0) == pytest.approx((0.9, 0.3))


def test_the_page_tells_regret_in_points():
    entry = {"alpha": 0.5, "id": 0.8, "ood": 0.5, "best": 0.6, "middle": 0.7, "seconds": 3.0}
    rules = {str(seed): dict.fromkeys(RULES, entry) for seed in (0, 1)}
    text = page({"ensembles": "# title\n\ntable 1", "losses": "table 2"}, rules)
    line = next(one for one in text.splitlines() if one.startswith("| fixed 0.5"))
    assert [part.strip() for part in line.split("|")[2:8]] == [
        "0.5, 0.5", "80.0 ± 0.0", "50.0 ± 0.0", "+10.0 ± 0.0", "+5.0 ± 0.0", "3",
    ]  # fmt: skip
    assert "# title" not in text
