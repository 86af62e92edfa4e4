"""Every shipped recipe of the embedded benchmark resumes bit by bit, at any step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from perdure.documents import list_recipes
from perdure.recipe import Recipe, load_recipe
from perdure.run import Run
from perdure.training import train
from perdure.zoo import random_clip

RECIPES = [name for name, _ in list_recipes() if name.startswith("emojishift/")]
STEPS = 6


class Kill(Exception):
    """Nothing of ours handles it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a tiny model, for the runs that others start from too."""
    place = tmp_path_factory.mktemp("resume")
    random_clip().save(place / "clip")
    return place


def shortened(name: str, place: Path, *changes: str) -> Recipe:
    """Return a recipe as it is shipped, but on a tiny model and over six steps."""
    recipe = load_recipe(name)
    by_epochs = recipe.optim.schedule == "cosine-epochs"  # of two steps each, for 40 images
    shorter = (
        f"model.name={place / 'clip'}",
        "data.shots=1",
        "optim.batch_size=32",  # of 80 images, so that a step is in the next epoch
        f"optim.epochs={STEPS // 2 if by_epochs else 'null'}",
        f"optim.steps={'null' if by_epochs else STEPS}",
        "run.save_every=2",
        "run.log_every=1",
        "run.device=cpu",
    )
    first = recipe.model.init
    start = () if first is None else (f"model.init={place / first.name}",)
    if first is not None and not (place / first.name).exists():
        train(shortened(f"emojishift/{first.name}", place), place / first.name)
    method = getattr(recipe.method, "host", recipe.method)
    if method.name == "promptkd":  # its teacher is a run of its own
        if not (place / "lp").exists():
            train(shortened("emojishift/lp", place), place / "lp")
        key = "method.teacher" if method is recipe.method else "method.host.teacher"
        start = (*start, f"{key}={place / 'lp'}")
    return load_recipe(name, (*shorter, *start, *changes))


def killed_at(step: int) -> Any:
    def progress(tick: Any, total: int) -> None:
        if tick.step == step:
            raise Kill

    return progress


def result(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "predictor" / "predictor.safetensors")


@pytest.mark.parametrize(
    ("name", "workers"), [*((name, 0) for name in RECIPES), ("emojishift/carot", 2)]
)
def test_a_shipped_recipe_resumes_bit_by_bit(
    place: Path, tmp_path: Path, name: str, workers: int
) -> None:
    whole = train(shortened(name, place), tmp_path / "whole")
    parts = shortened(name, place, f"run.workers={workers}")
    for step in (3, 6):  # after the states of steps 2 and 4
        with pytest.raises(Kill):
            train(parts, tmp_path / "parts", resume=True, progress=killed_at(step))
    said: list[str] = []
    resumed = train(parts, tmp_path / "parts", resume=True, say=said.append)
    assert f"Resumed after step 4 of {STEPS}." in said
    expected, found = result(whole), result(resumed)
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_all_methods_have_a_shipped_recipe() -> None:
    from perdure.method import METHODS

    assert set(METHODS) == {load_recipe(name).method.name for name in RECIPES}
