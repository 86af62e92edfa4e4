"""Every shipped recipe loads, says what it is for, and survives being dumped and loaded."""

import pytest

from perdure.documents import RECIPES, list_recipes
from perdure.method import METHODS
from perdure.recipe import dump_recipe, load_recipe

NAMES = [name for name, _ in list_recipes()]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipe_loads_and_dumps_to_itself(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert load_recipe(str(RECIPES / f"{name}.yaml")) == recipe


@pytest.mark.parametrize(("name", "header"), list_recipes())
def test_shipped_recipe_says_what_it_is(name, header):
    assert 10 < len(header) <= 100, header
    assert (RECIPES / f"{name}.yaml").read_text().startswith("# ")


def test_every_method_has_an_embedded_recipe_of_its_name():
    assert {f"emojishift/{name}" for name in METHODS} <= set(NAMES)
    assert all(load_recipe(f"emojishift/{name}").method.name == name for name in METHODS)


def test_no_recipe_chooses_on_data_that_results_are_reported_on():
    for name in NAMES:
        assert set(load_recipe(name).validate.splits) <= {"val", "val_shift"}, name
