"""A run that is diagnosed on its way trains the same bits, says the same again, and compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from perdure.data.datasets import Dataset, open_dataset
from perdure.errors import RecipeError
from perdure.recipe import Recipe, differences, dump_recipe, load_recipe, parse_recipe
from perdure.records import document, identity
from perdure.run import Run
from perdure.training import train
from perdure.zoo import random_clip


class Crash(Exception):
    """Nothing of ours handles it."""


def crash(tick: Any, _total: int) -> None:
    if tick.step == 4:
        raise Crash


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    random_clip().save(path / "tiny")
    return path / "tiny"


@pytest.fixture(scope="module")
def few() -> tuple[str, Dataset]:
    """Return 80 images that stand for `val`, whose 800 take long to draw."""
    return "val", open_dataset("emojishift", "train", seed=1, shots=1)


def recipe(name: str, clip: Path, *changes: str) -> Recipe:
    shorter = (
        f"model.name={clip}", "data.shots=1", "optim.batch_size=16", "optim.epochs=null",
        "optim.steps=5", "run.save_every=3", "run.log_every=2", "run.device=cpu",
        "optim.schedule=cosine", "optim.warmup_epochs=0",
    )  # fmt: skip
    return load_recipe(f"emojishift/{name}", (*shorter, *changes))


def rows(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the lines of the log that are diagnoses, and the others without times."""
    found = run.log_rows()
    return (
        [row for row in found if "diagnosis" in row],
        [
            {key: value for key, value in row.items() if key != "seconds"}
            for row in found
            if "diagnosis" not in row
        ],
    )


@pytest.mark.parametrize("name", ["ft", "tracer", "lora"])
def test_a_diagnosed_run_has_the_same_bits_and_resumes(
    clip: Path,
    tmp_path: Path,
    name: str,
    few: tuple[str, Dataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("perdure.diagnosis.watching._held_out", lambda data, seed: few)
    watched = recipe(name, clip, "diagnose={every: 2, images: 12}")
    plain = train(recipe(name, clip), tmp_path / "plain")
    whole = train(watched, tmp_path / "whole")
    with pytest.raises(Crash):  # after the state of step 3 and the diagnosis of step 4
        train(watched, tmp_path / "parts", progress=crash)
    parts = train(watched, tmp_path / "parts", resume=True)
    first = load_file(plain.path / "predictor" / "predictor.safetensors")
    for other in (whole, parts):
        found = load_file(other.path / "predictor" / "predictor.safetensors")
        assert all(torch.equal(tensor, found[key]) for key, tensor in first.items())
        assert rows(other)[1] == rows(plain)[1]
    looks = rows(whole)[0]
    assert rows(parts)[0] == looks
    assert [look["step"] for look in looks] == [2, 4, 5]
    said = looks[-1]["diagnosis"]
    assert (said["split"], said["n"], said["energy"]) == ("val", 12, 0.99)
    assert said["update"]["image block 1"]["norm"] > 0
    assert 0 < said["update"]["image block 1"]["inside"] <= 1
    assert said["similarity"]["image embedding"]["n"] == 12
    assert 0 < said["similarity"]["image embedding"]["cka"] <= 1 + 1e-9
    assert said["calibration"]["start"]["nll"] != said["calibration"]["now"]["nll"]
    assert said["calibration"]["start"] == looks[0]["diagnosis"]["calibration"]["start"]


def test_what_learned_contexts_leave_out(clip: Path, tmp_path: Path) -> None:
    run = train(recipe("coop", clip, "diagnose={every: 5, images: 8}"), tmp_path / "coop")
    (look,) = rows(run)[0]
    assert look["diagnosis"]["update"] == {}
    places = look["diagnosis"]["similarity"]
    assert not [place for place in places if place.startswith("text")]
    assert places["image embedding"]["cosine"] == pytest.approx(1)
    assert look["diagnosis"]["split"] == "val"  # although the run is not validated


def test_a_recipe_without_it_is_what_it_was(clip: Path, tmp_path: Path) -> None:
    plain = recipe("ft", clip)
    watched = recipe("ft", clip, "diagnose.every=50")
    assert "diagnose" not in dump_recipe(plain)
    assert differences(plain, watched) == []
    written = tmp_path / "recipe.yaml"
    written.write_text(dump_recipe(watched))
    assert load_recipe(written) == watched
    assert load_recipe(written, ("diagnose=null",)) == plain
    keys = []
    for one in (plain, watched):
        written.write_text(dump_recipe(one))
        keys.append(identity(document(tmp_path)))
    assert keys[0] == keys[1]
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"diagnose": {"evry": 3, "images": 1, "energy": 2}})
    for part in (
        "diagnose.evry: unknown key; did you mean 'every'?",
        "diagnose.every: missing",
        "diagnose.images: 1 is not allowed; input should be greater than or equal to 2",
        "diagnose.energy: 2 is not allowed",
    ):
        assert part in str(caught.value)
