"""Readers of files that people bring: an answer or an error of ours, never anything else."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import zoo
from perdure.building import read_weights
from perdure.documents import override, parse_yaml
from perdure.errors import PerdureError, RecipeError, RunError, WeightsError
from perdure.predictor import Predictor
from perdure.recipe import Recipe, load_recipe, parse_recipe, plain
from perdure.records import document, read
from perdure.run import Run
from perdure.states import Cursor, load_state, save_state

MANY = settings(max_examples=150)

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.dates()
    | st.binary(max_size=4)
    | st.sampled_from(["tracer", "ft", "emojishift", "perdure-tiny", "adamw", "cpu", "best"])
)
WORDS = "model data method optim validate run seed base name init lr steps epochs batch_size "
WORDS += "splits device betas templates root"
keys: st.SearchStrategy[Any] = (
    st.sampled_from(WORDS.split()) | st.text(max_size=6) | st.integers() | st.none()
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=20,
)
tables: st.SearchStrategy[dict[Any, Any]] = st.dictionaries(keys, trees, max_size=6)
GOOD = plain(load_recipe("emojishift/tracer"))


def paths(tree: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [prefix] if prefix else []
    if isinstance(tree, dict):
        for key, value in tree.items():
            found += paths(value, (*prefix, key))
    return found


def replaced(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    return {**tree, path[0]: replaced(tree[path[0]], path[1:], value)}


def recipe_or_error(make: Callable[[], Recipe]) -> None:
    with suppress(RecipeError):
        recipe = make()
        assert isinstance(recipe, Recipe)
        assert isinstance(plain(recipe), dict)


@MANY
@given(tables)
def test_any_table_is_a_recipe_or_an_error(table: dict[Any, Any]) -> None:
    recipe_or_error(lambda: parse_recipe(table))


@MANY
@given(st.sampled_from(paths(GOOD)), trees)
def test_a_recipe_with_any_value_replaced_is_a_recipe_or_an_error(
    path: tuple[str, ...], value: Any
) -> None:
    recipe_or_error(lambda: parse_recipe(replaced(GOOD, path, value)))


@MANY
@given(st.text(max_size=200) | st.text(alphabet="abz:-[]{}&*!?|>'\"%@#,01. \n\t", max_size=200))
def test_any_text_is_a_recipe_or_an_error(text: str) -> None:
    recipe_or_error(lambda: parse_recipe(parse_yaml(text, "text")))


@MANY
@given(st.lists(st.text(max_size=30) | st.text(alphabet="a.=[]{}:&*! 1", max_size=20), max_size=3))
def test_any_override_is_a_recipe_or_an_error(assignments: list[str]) -> None:
    recipe_or_error(lambda: parse_recipe(override(GOOD, assignments)))


@pytest.mark.parametrize(
    "text",
    [
        "? [a, b]\n: 1\n",
        "? {a: b}\n: 1\n",
        "&a [*a]",
        "a: &a [*a]\n",
        "optim: &a\n  lr: *a\n",
        "method: &m\n  name: tracer\n  strength: *m\n",
        "<<: 3\n",
        "a: !!python/object/apply:os.system ['true']\n",
        "a: 2026-13-45\n",
        "a: 0x\n",
        "a: 1__\n",
        "seed: 1" + "0" * 5000,
        "[" * 3000,
        "a: !!int x",
        "a: !!binary '*'",
        "a: !!timestamp x",
        "a: !!float ''",
        "\x00",
        "a: \ud800",
        "",
    ],
    ids=repr,
)
def test_odd_yaml_is_a_recipe_or_an_error(text: str) -> None:
    recipe_or_error(lambda: parse_recipe(parse_yaml(text, "text")))


@given(content=st.binary(max_size=200))
def test_a_recipe_file_of_any_bytes_is_a_recipe_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.mktemp("bytes") / "mine.yaml"
    file.write_bytes(content)
    recipe_or_error(lambda: load_recipe(file))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with one good file, or directory, of each kind."""
    place = tmp_path_factory.mktemp("place")
    clip = zoo.random_clip()
    clip.set_head(["taco", "tiger"], ["a {}"])
    clip.save(place / "predictor")
    clip.export_open_clip(place / "model")
    small = {"weight": torch.randn(3, 2), "bias": torch.zeros(2)}
    torch.save(small, place / "plain.pt")
    torch.save(small, place / "legacy.pt", _use_new_zipfile_serialization=False)
    save_state(place, Cursor(step=1), *trained())
    return place


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return layer, optimizer


def damage(content: bytes, cut: float, at: float, junk: bytes) -> bytes:
    """Cut a file short, or write junk over a part of it."""
    content = content[: int(len(content) * cut)]
    start = int(len(content) * at)
    return content[:start] + junk + content[start + len(junk) :]


shares = st.floats(0, 1)
ends = st.just(1.0) | shares
starts = st.just(0.0) | shares.map(lambda share: share**8)
junk = st.binary(max_size=12)


def attempt(read: Callable[[], Any], *allowed: type[PerdureError]) -> None:
    with suppress(*allowed):
        read()


def with_damage(file: Path, content: bytes, read: Callable[[], Any]) -> None:
    """Read while `file` holds something else."""
    good = file.read_bytes()
    file.write_bytes(content)
    try:
        attempt(read, WeightsError, RunError)
    finally:
        file.write_bytes(good)


def test_whole_files_are_read(place: Path) -> None:
    go_on(place)
    assert Predictor.load(place / "predictor").classes == ("taco", "tiger")
    assert zoo.load(str(place / "model")).source.name == str(place / "model")
    for name in ("plain.pt", "legacy.pt", "model/open_clip_model.safetensors"):
        assert read_weights(place / name)


@MANY
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".pt", ".safetensors", ".bin"]))
def test_weights_of_any_bytes_are_refused(place: Path, content: bytes, suffix: str) -> None:
    file = place / f"any{suffix}"
    file.write_bytes(content)
    attempt(lambda: read_weights(file), WeightsError)


@MANY
@given(
    name=st.sampled_from(["plain.pt", "legacy.pt", "model/open_clip_model.safetensors"]),
    cut=ends,
    at=starts,
    junk=junk,
)
def test_damaged_weights_are_read_or_refused(
    place: Path, name: str, cut: float, at: float, junk: bytes
) -> None:
    file = place / name
    with_damage(file, damage(file.read_bytes(), cut, at, junk), lambda: read_weights(file))


@MANY
@given(
    name=st.sampled_from(["predictor.json", "predictor.safetensors"]),
    cut=ends,
    at=starts,
    junk=junk,
)
def test_a_damaged_predictor_is_loaded_or_refused(
    place: Path, name: str, cut: float, at: float, junk: bytes
) -> None:
    file = place / "predictor" / name
    content = damage(file.read_bytes(), cut, at, junk)
    with_damage(file, content, lambda: Predictor.load(place / "predictor"))


small_leaves = st.none() | st.booleans() | st.integers(-3, 40) | st.text(max_size=5)
small_trees = (
    small_leaves
    | st.lists(small_leaves, max_size=3)
    | st.dictionaries(st.text(max_size=3), small_leaves, max_size=2)
)


def json_paths(file: Path) -> list[tuple[str, ...]]:
    return paths(json.loads(file.read_text()))


@MANY
@given(data=st.data(), name=st.sampled_from(["predictor", "model"]))
def test_a_changed_description_is_loaded_or_refused(
    place: Path, data: st.DataObject, name: str
) -> None:
    known = {"predictor": "predictor.json", "model": "open_clip_config.json"}
    file = place / name / known[name]
    path = data.draw(st.sampled_from(json_paths(file)))
    record = replaced(json.loads(file.read_text()), path, data.draw(small_trees))
    with_damage(file, json.dumps(record).encode(), lambda: zoo.load(str(place / name)))


@MANY
@given(
    name=st.sampled_from(["cursor.json", "optimizer.safetensors", "learner.safetensors"]),
    cut=ends,
    at=starts,
    junk=junk,
)
def test_a_damaged_state_is_loaded_or_refused(
    place: Path, name: str, cut: float, at: float, junk: bytes
) -> None:
    file = place / "step_00000001" / name
    content = damage(file.read_bytes(), cut, at, junk)
    with_damage(file, content, lambda: go_on(place))


@MANY
@given(data=st.data())
def test_a_changed_cursor_is_loaded_or_refused(place: Path, data: st.DataObject) -> None:
    file = place / "step_00000001" / "cursor.json"
    record = json.loads(file.read_text())
    path = data.draw(st.sampled_from(paths(record)))
    record = replaced(record, path, data.draw(small_trees))
    with_damage(file, json.dumps(record).encode(), lambda: go_on(place))


def go_on(place: Path) -> None:
    """Load a state and use it."""
    layer, optimizer = trained()
    cursor = load_state(place / "step_00000001", layer, optimizer)
    assert cursor.step + 1 > 0
    assert cursor.seconds + 1.0 is not None
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()


class Hostile:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.pth", "w.ckpt", "w.safetensors", "noext"])
@pytest.mark.parametrize("form", ["zip", "legacy", "raw"])
def test_no_pickle_is_executed(tmp_path: Path, name: str, form: str) -> None:
    mark, file = tmp_path / "mark", tmp_path / name
    content = {"state_dict": {"weight": torch.zeros(2)}, "extra": Hostile(mark)}
    if form == "raw":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError):
        read_weights(file)
    with pytest.raises(WeightsError):
        zoo.load("ViT-B-32", str(file))
    for disguise in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        folder = tmp_path / f"model-{disguise}"
        zoo.random_clip().export_open_clip(folder)
        (folder / "open_clip_model.safetensors").unlink()
        (folder / disguise).write_bytes(file.read_bytes())
        with pytest.raises(WeightsError):
            zoo.load(f"local-dir:{folder}")
    assert not mark.exists()


def test_no_pickle_is_executed_from_a_run(place: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    bad = pickle.dumps(Hostile(mark))
    for file in (
        place / "step_00000001" / "learner.safetensors",
        place / "step_00000001" / "optimizer.safetensors",
        place / "step_00000001" / "cursor.json",
    ):
        with_damage(file, bad, lambda: go_on(place))
    file = place / "predictor" / "predictor.safetensors"
    with_damage(file, bad, lambda: Predictor.load(place / "predictor"))
    run = write_scores(tmp_path / "run")
    np.savez(
        run / "scores" / "s.outcomes.npz",
        **{"id/prediction": np.array([Hostile(mark)], dtype=object), "id/label": np.zeros(1)},
    )
    with pytest.raises(RunError):
        read(run).correct()
    assert not mark.exists()


def write_scores(run: Path) -> Path:
    (run / "scores").mkdir(parents=True)
    (run / "recipe.yaml").write_text("method: {name: ft}\nseed: 0\n")
    entry = {"task": "classify", "role": "id", "accuracy": 0.5, "ece": 0.1, "n": 3}
    scores = {"format": 1, "suite": "s", "definition": "abc", "splits": {"id": entry}}
    (run / "scores" / "s.json").write_text(json.dumps(scores))
    (run / "status.json").write_text("{}")
    return run


@MANY
@given(
    name=st.sampled_from(["recipe.yaml", "status.json", "scores/s.json", "log.jsonl"]),
    content=st.binary(max_size=60) | small_trees.map(lambda tree: json.dumps(tree).encode()),
)
def test_a_damaged_run_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    run = write_scores(tmp_path_factory.mktemp("runs") / "run")
    (run / name).write_bytes(content)
    attempt(lambda: read(run), RunError, RecipeError)
    attempt(lambda: document(run), RunError, RecipeError)
    attempt(lambda: Run(run).recipe(), RunError, RecipeError)
    attempt(lambda: Run(run).cut_log(3), RunError, RecipeError)
