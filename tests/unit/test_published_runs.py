"""Published recipes take a step on copies of their data sets, and what they made is scored."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perdure import training
from perdure.data import imagenet_names
from perdure.data.datasets import Part, group_names_of, open_dataset, rows_of
from perdure.data.suites import suite
from perdure.documents import list_recipes
from perdure.errors import DataError
from perdure.evaluation import evaluate
from perdure.prediction import How, open_validation
from perdure.recipe import load_recipe
from perdure.run import Run
from perdure.zoo import random_clip
from tests import copies, layouts, pixels

Roots = Callable[[str], Path]
RECIPES = [name for name, _ in list_recipes() if not name.startswith("emojishift/")]
"""All that need files; those of the embedded world take their step in the tests of recipes"""

PLACES = {"ovseg": "regions", "own": "own"}
"""Folder of the copies whose files are the root itself, by group of recipes"""

ROOM = {"text_cfg": {"context_length": 64}}
"""The tiny vocabulary spells most of ImageNet's names letter by letter"""


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with small copies of every data set that recipes and suites name."""
    path = tmp_path_factory.mktemp("data")
    layouts.objectnet(layouts.v2(layouts.imagenet(path)))
    layouts.part(layouts.part(path, "r", "imagenet-r"), "a", "imagenet-a")
    layouts.class_folders(path / "sketch", imagenet_names.synsets())
    for name in ("oxford_pets", "dtd"):
        layouts.coop(path, name)
    layouts.iwildcam(path)
    layouts.fmow(path)
    layouts.coco(path, "karpathy")
    layouts.flickr(path, "lines")
    pixels.regions(path / PLACES["ovseg"])
    copies.folders(path / PLACES["own"])
    pixels.names_of(pixels.write(path, "pas20"), "pas20")
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "random"
    random_clip(0, **ROOM).export_open_clip(path)
    return f"local-dir:{path}"


def changes(model: str, root: Path) -> tuple[str, ...]:
    """Return what makes any published recipe a run of one step on a small copy."""
    return (
        f"model.name={model}",
        "model.weights=null",
        "model.init=null",
        f"data.root={root}",
        "data.templates=photo",
        "optim.epochs=null",
        "optim.steps=1",
        "optim.batch_size=4",
        "optim.warmup_epochs=0",
        "optim.warmup_steps=0",
        "optim.schedule=constant",
        "run.precision=fp32",
    )


def published(name: str, model: str, root: Path, place: Path) -> Run:
    """Carry out a published recipe, and before it the one whose run it repairs."""
    group, _, kind = name.partition("/")
    more: tuple[str, ...] = ()
    root /= PLACES.get(group, "")
    if kind.startswith("mergetune"):
        init = load_recipe(name).model.init
        assert init is not None
        if not (place / init.name).exists():
            published(f"{group}/{init.name}", model, root, place)
        more = (f"model.init={place / init.name}",)
    if "promptkd" in kind:
        whose = "method.host" if more else "method"
        more = (*more, f"{whose}.teacher=perdure-tiny")
    settings = (*changes(model, root), *more)
    if group == "own":  # which warm up for a share of the steps
        settings = tuple(one for one in settings if "warmup_steps" not in one)
    return training.train(load_recipe(name, settings), place / kind)


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_recipe_takes_a_step_on_a_copy_of_its_data(
    name: str, model: str, root: Path, tmp_path: Path
) -> None:
    run = published(name, model, root, tmp_path)
    assert run.finished
    assert run.status()["step"] == 1
    loss = [row["loss"] for row in run.log_rows() if "loss" in row]
    assert np.isfinite(loss).all()
    shutil.rmtree(tmp_path)


def test_what_was_tuned_on_regions_is_scored_on_labelled_pixels(
    model: str, root: Path, tmp_path: Path
) -> None:
    run = published("ovseg/radapter", model, root, tmp_path)
    scores = evaluate(run, "segmentation", root=root)
    assert list(scores.splits) == ["pas20"]
    assert (scores["pas20"]["n"], scores["pas20"]["masks"]) == (2, 4)
    assert scores["pas20"]["pixel_accuracy"] == pytest.approx(scores["pas20"]["mask_accuracy"])
    assert run.recipe().method.alpha == 0.4  # the strength that is published for segmentation


@pytest.fixture(scope="session")
def shifted(model: str, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return FT of ImageNet, whose head has 1,000 rows."""
    recipe = load_recipe("imagenet/ft", changes(model, root))
    return training.train(recipe, tmp_path_factory.mktemp("runs") / "ft")


def test_a_head_of_a_thousand_classes_is_scored_on_every_shift(shifted: Run, root: Path) -> None:
    scores = evaluate(shifted, "imagenet-shift", root=root)
    assert {entry["classifier"] for entry in scores.splits.values()} == {"head"}
    assert [entry["n"] for entry in scores.splits.values()] == [1000, 1000, 200, 200, 1000, 2]
    words = scores.summary()
    ood = [entry["accuracy"] for entry in scores.splits.values() if entry["role"] == "ood"]
    assert words["ood"]["value"] == pytest.approx(np.mean(ood))
    assert words["without_objectnet"]["value"] == pytest.approx(np.mean(ood[:4]))
    assert scores["id"]["real_n"] == sum(map(bool, imagenet_names.real_labels()[:1000]))
    assert 0 <= scores["id"]["real_accuracy"] <= 1


@pytest.mark.parametrize(
    ("name", "metric"),
    [("wilds-iwildcam", "macro_f1"), ("wilds-fmow", "worst_group_accuracy")],
)
def test_wilds_suites_say_what_is_published(name: str, metric: str, root: Path) -> None:
    scores = evaluate(random_clip(0, **ROOM), name, root=root)
    assert [entry["role"] for entry in scores.splits.values()] == ["id", "ood"]
    for entry in scores.splits.values():
        assert 0 <= entry[metric] <= 1
    if "fmow" in name:
        entry = scores["ood"]
        assert set(entry["groups"]) == {"Europe", "Africa"}  # and one picture in no region
        assert entry["worst_group_accuracy"] == min(entry["groups"].values())
        assert entry["groups"][entry["worst_group"]] == entry["worst_group_accuracy"]


def test_choices_are_made_on_no_picture_that_is_reported(root: Path) -> None:
    how = How(root=root)
    unit = open_validation(suite("wilds-iwildcam", root), how)
    assert [unit.dataset.name, len(unit.dataset)] == ["iwildcam", 3]
    with pytest.raises(DataError, match="has no labelled pictures on which nothing is reported"):
        open_validation(suite("imagenet-shift", root), how)


def test_a_part_of_a_data_set_keeps_its_groups(root: Path) -> None:
    whole = open_dataset("fmow", "test", root)
    part = Part(whole, np.array([2, 0]))
    assert rows_of(part, "groups").tolist() == [-1, 3]
    assert group_names_of(part)[3] == "Europe"
    test = open_dataset("imagenet", "test", root)
    assert rows_of(Part(test, np.array([5])), "accepted") == (imagenet_names.real_labels()[5],)
    assert rows_of(open_dataset("emojishift", "id"), "groups") is None


def test_base_and_novel_classes_of_a_small_set_are_scored(root: Path) -> None:
    scores = evaluate(random_clip(0, **ROOM), "base-to-novel-oxford_pets", root=root)
    assert [entry["n"] for entry in scores.splits.values()] == [4, 4]
    assert "harmonic" in scores.summary()
