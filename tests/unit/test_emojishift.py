"""The embedded benchmark: counts, determinism, coverage, and pixels that stay what they were."""

from pathlib import Path

import numpy as np
import pytest
import torch

from perdure.data.emoji_domains import RETRIEVAL, SPLITS
from perdure.data.emojishift import (
    half_names,
    open_emojishift,
    open_retrieval,
    picture_sheet,
)
from perdure.data.scenes import DOMAINS, open_scenes
from perdure.data.sprites import (
    BASE,
    CLASSES,
    CONCEPTS,
    COVERAGE,
    PRETRAINING_ONLY,
    VENDORS,
    atlas,
    covered,
)
from perdure.errors import DataError

FINGERPRINT = Path(__file__).parent.parent / "golden" / "emojishift_world.npz"


def test_the_world_has_the_documented_size():
    assert (len(CLASSES), len(PRETRAINING_ONLY), len(BASE)) == (80, 60, 40)
    assert len(set(CONCEPTS)) == 140
    assert set(BASE) < set(CLASSES)
    assert atlas().shape == (8, 140, 48, 48, 4)
    sizes = {split: len(open_emojishift(split)) for split in SPLITS}
    assert sizes == {
        "train": 1280, "val": 1600, "val_shift": 1200, "id": 1600, "v2": 1600,
        "rendition": 1600, "sketch": 1600, "hard": 1600, "corrupt": 1600,
    }  # fmt: skip


def test_colours_are_premultiplied():
    assert (atlas()[..., :3] <= atlas()[..., 3:]).all()
    assert (atlas()[..., 3].max((2, 3)) > 200).all()


def test_coverage_is_as_drawn():
    table = covered()
    assert table[:, len(CLASSES) :].all()
    for vendor, row in zip(VENDORS, table, strict=True):
        assert row[: len(CLASSES)].mean() == pytest.approx(COVERAGE[vendor], abs=0.12)


@pytest.mark.parametrize("split", ["v2", "sketch", "corrupt", "val_shift"])
def test_an_image_does_not_depend_on_how_many_are_asked_for(split):
    few = open_emojishift(split, shots=2)
    all_of_them = open_emojishift(split)
    per_class = SPLITS[split].per_class
    for index in (0, 1, 6):
        same = (index // 2) * per_class + index % 2
        assert torch.equal(few.image(index), all_of_them.image(same))


def test_training_renders_follow_the_seed_and_tests_do_not():
    first, again, other = (open_emojishift("train", seed=s, shots=1) for s in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    fixed = [open_emojishift("v2", seed=s, shots=1).images for s in (0, 1)]
    assert torch.equal(*fixed)


def test_splits_share_no_image():
    seen = set()
    for split in ("train", "val", "id"):
        pictures = {image.numpy().tobytes() for image in open_emojishift(split, shots=4).images}
        assert len(pictures) == 320
        assert not pictures & seen
        seen |= pictures


def test_halves_divide_the_classes_and_relabel_them():
    for base, novel in (("base", "novel"), ("base-2", "novel-2")):
        assert len(half_names(base)) == len(half_names(novel)) == 40
        assert set(half_names(base)) | set(half_names(novel)) == set(CLASSES)
    novel = open_emojishift("id", classes="novel", shots=1)
    assert novel.labels.tolist() == list(range(40))
    every = open_emojishift("id", shots=1)
    where = CLASSES.index(novel.classes[7])
    assert torch.equal(novel.image(7), every.image(where))


def test_vendors_and_corruptions_take_turns():
    sketch = open_emojishift("sketch")
    assert np.bincount(sketch.vendors)[-2:].tolist() == [800, 800]
    shift = open_emojishift("val_shift")
    assert {VENDORS[v] for v in shift.vendors} == {
        "twemoji", "emojione", "fluent", "fluent-flat", "monotone", "line",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "rendtion"}, "rendition"),
        ({"split": "id", "classes": "nvel"}, "novel"),
        ({"split": "id", "shots": 0}, "1 or more"),
        ({"split": "val_shift", "classes": "base"}, "other classes"),
    ],
)
def test_wrong_requests_say_what_is_allowed(arguments, message):
    with pytest.raises(DataError, match=message):
        open_emojishift(**arguments)


def test_retrieval_captions_are_unique_and_true():
    counts = {}
    for domain in RETRIEVAL:
        pairs = open_retrieval(domain)
        assert len(set(pairs.captions)) == len(pairs.captions) == len(pairs.images)
        counts[domain] = len(pairs.captions)
    assert counts == {"id": 250, "rendition": 246, "sketch": 158}
    assert not any("background" in text for text in open_retrieval("sketch").captions)


def test_scene_masks_are_exact_disjoint_and_visible():
    for domain in DOMAINS:
        scenes = open_scenes(domain)
        assert scenes.masks.sum(1).max() == 1
        assert scenes.masks.flatten(2).sum(2).min() > 40
        assert all(len(set(row)) == 4 for row in scenes.labels.tolist())


def test_pixels_are_what_they_were():
    """A changed renderer would silently change every published number."""
    stored = np.load(FINGERPRINT, allow_pickle=False)
    for split in SPLITS:
        images = open_emojishift(split).images.float()
        assert images.mean((0, 2, 3)).numpy() == pytest.approx(stored[f"{split}__mean"], abs=0.02)
        sample = images[torch.from_numpy(stored["rows"])].numpy()
        difference = np.abs(sample - stored[f"{split}__sample"])
        assert (difference > 2).mean() < 1e-3


def test_picture_sheet_shows_every_split(tmp_path):
    from PIL import Image

    path = picture_sheet(tmp_path / "new" / "sheet.png", columns=3)
    with Image.open(path) as sheet:
        assert sheet.height > 80 * (len(SPLITS) + len(RETRIEVAL) + len(DOMAINS))


def test_the_documented_coverage_is_the_one_that_was_trained_on():
    page = (Path(__file__).parents[2] / "docs" / "benchmark.md").read_text(encoding="utf-8")
    for vendor, row in zip(VENDORS, covered()[:, : len(CLASSES)], strict=True):
        line = next(line for line in page.splitlines() if line.startswith(f"| {vendor} |"))
        _, _, count, missing, _ = line.split("|")
        assert int(count) == row.sum()
        unseen = [name for name, seen in zip(CLASSES, row, strict=True) if not seen]
        assert missing.strip() == ", ".join(unseen)
