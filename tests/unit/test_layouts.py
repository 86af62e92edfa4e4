"""Every reader in every layout: a step of training and an evaluation."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perdure import training
from perdure.data.compact import compact
from perdure.data.coop import SETS
from perdure.data.datasets import open_dataset, texts_of
from perdure.data.suites import suite
from perdure.evaluation import evaluate
from perdure.recipe import load_recipe
from perdure.run import Run
from perdure.zoo import random_clip
from tests import layouts
from tests.copies import CASES, HEADERS, Case, prompts, thousand

ROOM = {"text_cfg": {"context_length": 64}}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "random"
    random_clip(0, **ROOM).export_open_clip(path)
    return f"local-dir:{path}"


def step(model: str, name: str, root: Path, out: Path, *more: str, recipe: str = "own/flyp") -> Run:
    """Train one step on a data set, with any recipe."""
    changes = (
        f"model.name={model}",
        "model.weights=null",
        f"data.name={name}",
        f"data.root={root}",
        "data.templates=photo",
        "optim.epochs=null",
        "optim.steps=1",
        "optim.batch_size=4",
        "run.precision=fp32",
        "validate.splits=[]",
        "validate.select=last",
    )
    run = training.train(load_recipe(recipe, (*changes, *more)), out)
    assert np.isfinite([row["loss"] for row in run.log_rows() if "loss" in row]).all()
    return run


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_small_copy_trains_a_step_and_is_scored(case: Case, model: str, tmp_path: Path) -> None:
    root = case.write(tmp_path / "data")
    run = step(model, case.name, root, tmp_path / "run")
    scores = evaluate(run, case.suite, root=root)
    assert tuple(entry["n"] for entry in scores.splits.values()) == case.n
    for entry in scores.splits.values():
        value = entry[entry["metric"] if entry["task"] == "retrieve" else "accuracy"]
        assert 0 <= value <= 1
    if root.suffix:
        assert set(scores["id"]["groups"]) == {"day", "night"}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_table_of_prompts_trains_as_it_is_and_made_small(
    kind: str, model: str, tmp_path: Path
) -> None:
    root = prompts(tmp_path / "data", kind)
    assert step(model, "own", root, tmp_path / "whole").finished
    small = tmp_path / "small"
    for split in ("train", "test"):
        assert compact(root / f"{split}.csv", small / f"{split}.csv").rows == 8
    if (root / "classes.txt").exists():
        shutil.copy(root / "classes.txt", small)
    run = step(model, "own", small, tmp_path / "run")
    assert evaluate(run, "own", root=small)["id"]["n"] == 4


PLACES = (
    (
        ("imagenet/train", "imagenet/val_in_folder"),
        {
            "imagenet-v2": "imagenetv2-matched-frequency-format-val",
            "imagenet-r": "imagenet-r",
            "imagenet-a": "imagenet-a",
            "imagenet-sketch": "sketch",
            "objectnet": "objectnet-1.0",
            "imagenet-c": "imagenet-c/fog/3",
        },
    ),
    (
        ("ILSVRC2012/train", "ILSVRC2012/val_dirs"),
        {
            "imagenet-v2": "imagenetv2/imagenetv2-matched-frequency-format-val",
            "imagenet-r": "imagenet-rendition/imagenet-r",
            "imagenet-a": "imagenet-adversarial/imagenet-a",
            "imagenet-sketch": "imagenet-sketch/images",
            "objectnet": "objectnet",
            "imagenet-c": "imagenet-c/weather/fog/3",
        },
    ),
    (
        ("imagenet/images/train", "imagenet/images/val"),
        {
            "imagenet-v2": "ImageNetV2-matched-frequency",
            "imagenet-r": "imagenet-r",
            "imagenet-a": "imagenet-a",
            "imagenet-sketch": "imagenet-sketch/sketch",
            "objectnet": "objectnet/objectnet-1.0",
            "imagenet-c": "ImageNet-C/fog/3",
        },
    ),
    (
        ("train", "val"),
        {
            "imagenet-v2": "synsets",
            "imagenet-r": "imagenet-r",
            "imagenet-a": "imagenet-a",
            "imagenet-sketch": "imagenet-sketch",
            "objectnet": "ObjectNet",
            "imagenet-c": "ImageNet-C/weather/fog/3",
        },
    ),
)
"""Where people have ImageNet, and its shifts beside it; "synsets" is V2 in the other folders"""


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return folders of synsets and of numbers, which the layouts below are links to."""
    return thousand(tmp_path_factory.mktemp("store"))


def link(root: Path, place: str, target: Path) -> None:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).symlink_to(target)


@pytest.fixture(scope="session", params=PLACES, ids=lambda places: places[0][0])
def imagenet(
    request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    inside, shifted = request.param
    for place in inside:
        link(root, place, store / "synsets")
    sources = {"imagenet-v2": "numbers", "imagenet-r": "r", "imagenet-a": "a"}
    for name, place in shifted.items():
        if place == "synsets":
            link(root, "imagenetv2/ImageNetV2-matched-frequency", store / "synsets")
        elif name == "objectnet":
            layouts.objectnet(root, place)
        else:
            link(root, place, store / sources.get(name, "synsets"))
    return root


def test_imagenet_and_its_shifts_train_a_step_and_are_scored(
    imagenet: Path, model: str, tmp_path: Path
) -> None:
    run = step(model, "imagenet", imagenet, tmp_path / "run", recipe="imagenet/ft")
    scores = evaluate(run, "imagenet-shift", root=imagenet, limit=4)
    assert {name: entry["n"] for name, entry in scores.splits.items()} == {
        "id": 4, "v2": 4, "r": 4, "a": 4, "sketch": 4, "objectnet": 2,
    }  # fmt: skip
    assert "real_accuracy" in scores["id"]
    whole = suite("imagenet-c", imagenet)
    some = replace(whole, splits=tuple(one for one in whole.splits if one.name in ("id", "fog-3")))
    assert evaluate(run, some, root=imagenet, limit=4)["fog-3"]["n"] == 4


@pytest.mark.parametrize("name", ["imagenet-v2", "imagenet-r", "imagenet-sketch", "objectnet"])
def test_a_shift_can_be_trained_on(name: str, store: Path, model: str, tmp_path: Path) -> None:
    if name == "objectnet":
        layouts.objectnet(tmp_path)
    else:
        kind, place = {
            "imagenet-v2": ("numbers", "imagenetv2-threshold0.7-format-val"),
            "imagenet-r": ("r", "imagenet-r"),
            "imagenet-sketch": ("synsets", "sketch"),
        }[name]
        link(tmp_path, place, store / kind)
    split = "threshold0.7" if name == "imagenet-v2" else "test"
    assert step(model, name, tmp_path, tmp_path / "run", f"data.split={split}").finished


def test_a_model_of_imagenet_is_scored_on_all_of_coop(
    store: Path, model: str, tmp_path: Path
) -> None:
    for name in SETS:
        layouts.coop(tmp_path, name)
    for place in ("imagenet/images/train", "imagenet/images/val"):
        link(tmp_path, place, store / "synsets")
    run = step(model, "imagenet", tmp_path, tmp_path / "run", recipe="imagenet/ft")
    scores = evaluate(run, "cross-dataset", root=tmp_path, limit=2)
    assert list(scores.splits) == ["imagenet", *SETS]
    assert {entry["n"] for entry in scores.splits.values()} == {2}


def test_damaged_pictures_keep_their_captions(tmp_path: Path) -> None:
    root = layouts.coco(tmp_path, "karpathy")
    whole, damaged = (open_dataset("coco", split, root) for split in ("train", "train@fog-3"))
    assert texts_of(damaged).tolist() == texts_of(whole).tolist() == list(range(12))
