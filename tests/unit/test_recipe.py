"""Recipes: every fault at once, overrides, bases, and YAML there and back."""

import subprocess
import sys
from dataclasses import replace

import pytest

from perdure import documents
from perdure.errors import RecipeError
from perdure.optim_spec import OptimSpec
from perdure.recipe import (
    differences,
    dump_recipe,
    load_recipe,
    parse_recipe,
)

MINIMAL = """
model: {name: perdure-tiny}
data: {name: emojishift}
method: {name: flyp}
optim: {lr: 1e-3, batch_size: 64, epochs: 10}
"""


def write(path, text=MINIMAL):
    path.write_text(text)
    return path


def fault(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


@pytest.fixture
def minimal(tmp_path):
    return write(tmp_path / "recipe.yaml")


def test_exponents_that_yaml_reads_as_text_are_numbers(minimal):
    recipe = load_recipe(minimal, ("optim.lr=3e-5",))
    assert recipe.optim.lr == 3e-5


def test_overrides_apply_in_order_and_reach_parts_the_file_does_not_have(minimal):
    recipe = load_recipe(
        minimal,
        ("seed=1", "seed=2", "run.workers=3", "method={name: tracer, beta: .7}", "data.shots=4"),
    )
    assert (recipe.seed, recipe.run.workers, recipe.data.shots) == (2, 3, 4)
    assert (recipe.method.name, recipe.method.beta) == ("tracer", 0.7)


def test_all_faults_are_listed_at_once_with_dotted_keys_and_nearest_names(tmp_path):
    text = """
model: {name: 3}
data: {name: emojishift, augment: flipshift, shots: 0}
method: {name: tracer, strenght: 1, beta: x}
optim: {lr: -1, batchsize: 64, epochs: 10, betas: [.9]}
validate: {select: best}
run: {device: gpu}
sede: 1
"""
    message = fault(write(tmp_path / "bad.yaml", text))
    for part in (
        "bad.yaml has 12 faults:",
        "model.name: 3 is not allowed",
        "data.augment: 'flipshift' is not allowed",
        "did you mean 'flip-shift'?",
        "data.shots: 0 is not allowed",
        "method.strenght: tracer has no such key; did you mean 'strength'?",
        "method.beta: ",
        "optim.lr: -1 is not allowed; input should be greater than 0",
        "optim.batchsize: unknown key; did you mean 'batch_size'?",
        "optim.batch_size: missing",
        "optim.betas.1: missing",
        "validate: select is 'best', which needs splits",
        "run.device: 'gpu' is not allowed",
        "sede: unknown key; did you mean 'seed'?",
    ):
        assert part in message, message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.steps=5", "optim: give either epochs or steps"),
        ("optim.epochs=null", "optim: give either epochs or steps"),
        ("optim=3", "optim: 3 is not allowed"),
        ("method=flyp", "method: 'flyp' is not a table"),
        ("method={name: flip}", "method.name: no method 'flip'; did you mean 'flyp'?"),
        ("method=null", "method: None is not a table"),
        ("seed=-1", "seed: -1 is not allowed"),
        ("optim.lr=.nan", "optim.lr: nan is not allowed"),
        ("data.templates=3", "data.templates: 3 is not allowed"),
        ("optim.lr", "'optim.lr' is not an override"),
        ("=3", "'=3' is not an override"),
        ("a..b=3", "'a..b=3' is not an override"),
        ("seed=[1", "'seed=[1': the value is not valid YAML"),
    ],
)
def test_bad_overrides_are_named(minimal, override, expected):
    assert expected in fault(minimal, override)


def test_warmup_is_a_share_or_a_number_of_steps():
    spec = OptimSpec(lr=1, batch_size=2, epochs=10, warmup=0.05)
    assert spec.total_steps(20) == 200
    assert spec.warmup_length(200) == 10
    assert OptimSpec(lr=1, batch_size=2, steps=7, warmup_steps=500).warmup_length(7) == 500
    assert OptimSpec(lr=1, batch_size=2, steps=7).total_steps(20) == 7
    with pytest.raises(ValueError, match="not both"):
        OptimSpec(lr=1, batch_size=2, steps=7, warmup=0.1, warmup_steps=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2]", "holds list, but a recipe is a table"),
        ("", "holds NoneType"),
        ("a: [", "is not valid YAML"),
        ("seed: 1\nseed: 2", "the key 'seed' stands twice"),
        ("optim: {lr: 1, lr: 2}", "the key 'lr' stands twice"),
        ("a: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("[" * 5000, "is not valid YAML"),
    ],
)
def test_what_is_no_table_is_a_recipe_error(tmp_path, text, expected):
    assert expected in fault(write(tmp_path / "bad.yaml", text))


def test_binary_file_is_a_recipe_error(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"\x00\xff\xfe")
    assert "cannot read the recipe" in fault(tmp_path / "bad.yaml")


def test_unknown_recipe_names_the_nearest_shipped_one(monkeypatch, tmp_path):
    (tmp_path / "emojishift").mkdir()
    write(tmp_path / "emojishift" / "tracer.yaml", "# TRACER on EmojiShift\n" + MINIMAL)
    monkeypatch.setattr(documents, "RECIPES", tmp_path)
    assert "did you mean 'emojishift/tracer'?" in fault("emojishift/trace")
    assert "did you mean 'tracer'?" in fault("tracr")
    assert documents.list_recipes() == [("emojishift/tracer", "TRACER on EmojiShift")]
    assert load_recipe("emojishift/tracer").method.name == "flyp"


def test_base_is_found_beside_the_file_and_the_nearer_file_wins(tmp_path):
    write(tmp_path / "base.yaml", MINIMAL + "run: {workers: 2, threads: 1}")
    child = write(tmp_path / "child.yaml", "base: base.yaml\nrun: {workers: 0}\nseed: 3")
    recipe = load_recipe(child)
    assert (recipe.seed, recipe.run.workers, recipe.run.threads) == (3, 0, 1)


def test_a_method_of_another_name_inherits_no_options(tmp_path):
    write(tmp_path / "base.yaml", MINIMAL + "seed: 1")
    text = "base: base.yaml\nmethod: {name: tracer, beta: .7}"
    middle = write(tmp_path / "middle.yaml", text)
    assert load_recipe(middle).method.beta == 0.7
    child = write(tmp_path / "child.yaml", "base: middle.yaml\nmethod: {name: ft}")
    assert load_recipe(child).method.name == "ft"
    same = write(tmp_path / "same.yaml", "base: middle.yaml\nmethod: {strength: .5}")
    assert (load_recipe(same).method.beta, load_recipe(same).method.strength) == (0.7, 0.5)


def test_bases_in_a_circle_end_in_an_error(tmp_path):
    write(tmp_path / "b.yaml", "base: a.yaml")
    assert "in a row" in fault(write(tmp_path / "a.yaml", "base: b.yaml"))
    assert "base is 3" in fault(write(tmp_path / "c.yaml", "base: 3"))


def test_dumped_recipe_has_all_defaults_and_parses_to_an_equal_one(minimal, tmp_path):
    templates = "data.templates=['a {}', 'the {}']"
    changes = ("model.init=runs/lp", templates, "validate.splits=[val]")
    for recipe in (load_recipe(minimal), load_recipe(minimal, changes)):
        text = dump_recipe(recipe)
        assert "log_every: 10" in text
        assert load_recipe(write(tmp_path / "again.yaml", text)) == recipe


def test_differences_name_every_key_that_changes_the_result(minimal):
    old = load_recipe(minimal)
    assert differences(old, old) == []
    how = ("run.device=cpu", "run.workers=2", "run.keep=true", "run.save_every=7")
    assert differences(old, load_recipe(minimal, how)) == []
    changes = ("optim.lr=2e-3", "run.precision=bf16", "method={name: ft}")
    found = differences(old, load_recipe(minimal, changes))
    assert "optim.lr: 0.001 -> 0.002" in found
    assert "run.precision: 'fp32' -> 'bf16'" in found
    assert "method.name: 'flyp' -> 'ft'" in found


def test_parsing_in_python_needs_no_file():
    table = {
        "model": {"name": "perdure-tiny"},
        "data": {"name": "emojishift"},
        "method": {"name": "flyp"},
        "optim": {"lr": 1e-3, "batch_size": 64, "steps": 3},
    }
    recipe = parse_recipe(table)
    assert replace(recipe, seed=4) == parse_recipe(table | {"seed": 4})
    assert "method" in table


def test_listing_and_reading_names_imports_no_torch():
    code = (
        "import sys; from perdure.recipe import load_recipe; from perdure import documents; "
        "documents.list_recipes(); from perdure.data import suites, datasets; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
