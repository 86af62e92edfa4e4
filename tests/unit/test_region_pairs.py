"""Pairs of region and noun: what is cut out, what counts as the same noun, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from perdure.data.datasets import open_dataset, templates_for
from perdure.data.region_pairs import MEAN, SIDE
from perdure.data.scenes import LEARNT, open_scenes
from perdure.data.suites import of_task
from perdure.errors import DataError
from perdure.recipe import load_recipe
from perdure.regions import blank_outside, stretch
from perdure.training import train
from perdure.zoo import random_clip

SIZE = (20, 30)


@pytest.fixture
def root(tmp_path):
    """Three regions of one picture in the three forms; two have the same noun."""
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    numbers = np.zeros(SIZE, np.uint8)
    numbers[5:15, 5:20] = 3
    numbers[16:, 25:] = 4
    Image.fromarray(numbers).save(tmp_path / "numbers.png")
    before = 20 * 5 + 5  # down the columns
    runs = [before, 10] + [10, 10] * 14 + [20 * 10 + 5]
    rows = [
        {"image": "a.png", "noun": "Big  Dog", "mask": "numbers.png", "instance": 3},
        {"image": "a.png", "noun": "cat", "box": [2, 3, 12, 18]},
        {"image": "a.png", "noun": "big dog ", "rle": {"size": list(SIZE), "counts": runs}},
    ]
    write(tmp_path, *rows)
    return tmp_path


@pytest.fixture
def few_scenes(monkeypatch):
    """Draw five scenes instead of hundreds, and forget them afterwards."""
    for name, domain in LEARNT.items():
        monkeypatch.setitem(LEARNT, name, domain._replace(scenes=5))
    open_scenes.cache_clear()
    yield
    open_scenes.cache_clear()


def write(root, *rows):
    text = "\n\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (root / "train.jsonl").write_text(text + "\n")


def test_regions_are_those_of_evaluation_and_equal_nouns_are_positives(root):
    found = open_dataset("regions", "train", root)
    assert found.classes == ("big dog", "cat")
    assert found.labels.tolist() == [0, 1, 0]
    first, box, third = (found.image(index) for index in range(3))
    assert torch.equal(first, third)
    pixels = torch.from_numpy(np.array(Image.open(root / "a.png"))).permute(2, 0, 1)
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[5:15, 5:20] = True
    expected = stretch(blank_outside(pixels, mask, MEAN)[0], SIDE).clamp(0, 255)
    assert first.shape == (3, SIDE, SIDE)
    assert (first.float() - expected).abs().max() <= 0.5 + 1e-4
    inside = stretch(pixels[:, 3:18, 2:12].float(), SIDE).clamp(0, 255)
    assert (box.float() - inside).abs().max() <= 0.5 + 1e-4
    alone = open_dataset("regions", "train", root / "train.jsonl", shots=1)
    assert sorted(alone.labels.tolist()) == [0, 1]
    assert templates_for("regions") == ("a photo of a {}.",)


ONE = {"image": "a.png", "noun": "dog", "box": [0, 0, 5, 5]}
WRONG = [
    ((ONE, "{"), "line 3 of .*train.jsonl is no JSON"),
    (({**ONE, "noun": " "},), "noun ' '"),
    (({"noun": "dog", "box": [0, 0, 5, 5]},), "no 'image'"),
    (({"image": "a.png", "noun": "dog"},), "no region; expected one of rle, mask, box"),
    (({**ONE, "mask": "numbers.png"},), "has mask and box"),
    (({**ONE, "box": [0, 0, 31, 5]},), r"box \[0, 0, 31, 5\]; expected .* 30 x 20"),
    (({**ONE, "box": "all"},), "box 'all'"),
    (({**ONE, "image": "b.png"},), "is not there"),
    (({"image": "a.png", "noun": "x", "mask": "c.png"},), "the mask of region 1"),
    (({"image": "a.png", "noun": "x", "mask": "a.png"},), "has colours"),
    (({"image": "a.png", "noun": "x", "mask": "numbers.png", "instance": 9},), "is empty"),
    (({"image": "a.png", "noun": "x", "rle": {"size": [1, 2], "counts": [0, 2]}},), "1 x 2"),
    (({"image": "a.png", "noun": "x", "rle": {"size": [1, 2], "counts": "?"}},), "damaged"),
    ((), "holds no pair"),
]


@pytest.mark.parametrize(("rows", "words"), WRONG)
def test_wrong_pairs_are_named(root, rows, words):
    write(root, *rows)

    def read():
        open_dataset("regions", "train", root).image(0)

    with pytest.raises(DataError, match=words):
        read()


def test_missing_files_and_other_splits_are_named(root):
    for place, split, words in (
        (root, "val", "cannot read the pairs .*val.jsonl"),
        (root, "test", "no split 'test'.*train, val"),
        (root / "train.jsonl", "val", "Allowed: train"),
    ):
        with pytest.raises(DataError, match=words):
            open_dataset("regions", split, place)


@pytest.mark.parametrize("name", ["ovseg/radapter", "emojishift/radapter-regions"])
def test_recipes_of_regions_train_and_name_their_suite(name, root, tmp_path, few_scenes):
    random_clip(0).export_open_clip(tmp_path / "model")
    changes = (
        f"model.name=local-dir:{tmp_path / 'model'}", "model.weights=null", "optim.epochs=null",
        "optim.steps=2", "optim.batch_size=3", "optim.warmup_steps=null", "run.precision=fp32",
    )  # fmt: skip
    if name.startswith("ovseg"):
        changes += (f"data.root={root}",)
    recipe = load_recipe(name, (*changes, "method.momentum=0.1"))
    assert (recipe.method.contrastive, recipe.method.alpha) == ("mpm_nce", 0.4)
    run = train(recipe, tmp_path / "run")
    assert run.finished
    expected = "segmentation" if name.startswith("ovseg") else "emojishift-segmentation"
    assert of_task(recipe.data.name) == expected
    after = load_recipe(
        f"{name.split('/')[0]}/maskprompts", (*changes, f"model.init={tmp_path / 'run'}")
    )
    masked = train(after, tmp_path / "masked").predictor()
    tuned = run.predictor().fold().state_dict()
    assert all(torch.equal(masked.state_dict()[key], value) for key, value in tuned.items())
    assert masked.takes_masks


def test_embedded_regions_are_labelled_by_noun(few_scenes):
    found = open_dataset("emojishift-regions", "val")
    assert len(found) == 20
    assert found.image(0).shape == (3, 40, 40)
    # Grey around the drawing: a corner of most regions is outside their mask.
    corners = torch.stack([found.image(index)[:, 0, 0] for index in range(20)]).float()
    assert ((corners - 127.5).abs() <= 1).all(dim=1).float().mean() > 0.5
    with pytest.raises(DataError, match=r"no split 'id'.*emojishift-segmentation"):
        open_dataset("emojishift-regions", "id")
    with pytest.raises(DataError, match="no part 'some'"):
        open_dataset("emojishift-regions", "val", classes="some")
