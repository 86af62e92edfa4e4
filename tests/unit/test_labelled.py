"""Test sets with labelled pixels: every layout is read, and what is wrong with a copy is said."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from perdure.data.label_layouts import LAYOUTS, present
from perdure.data.labelled import open_labelled
from perdure.data.segmented import PUBLISHED
from perdure.data.suites import suite as find_suite
from perdure.errors import DataError
from perdure.evaluation import evaluate
from perdure.prediction import How
from perdure.tasks import open_exams
from perdure.zoo import random_clip
from tests.pixels import SIZE, names_of, truth, write


def score(root, limit):
    """Evaluate a tiny model with one prompt per class, to save time."""
    suite = replace(find_suite("segmentation", root), templates="photo")
    return evaluate(random_clip(0), suite, root=root, limit=limit)


VARIANTS = [(name, v) for name in LAYOUTS for v in range(len(LAYOUTS[name].labels))]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_layout_gives_labels_names_and_masks(tmp_path, name, variant):
    base = write(tmp_path, name, variant)
    names_of(base, name)
    found = open_labelled(name, "test", tmp_path)
    assert len(found) == 2
    assert len(found.classes) == LAYOUTS[name].classes
    assert found.fusion.weight == LAYOUTS[name].weight
    for index in range(2):
        np.testing.assert_array_equal(found.truth(index), truth(len(found.classes), index))
        assert found.image(index).shape == (3, *SIZE)
        assert found.proposals(index).masks.shape == (2, *SIZE)
    assert present(tmp_path) == [name]


def test_names_are_the_first_synonyms_and_those_somebody_wrote_go_before(tmp_path):
    base = write(tmp_path, "a150")
    names_of(base, "a150")
    assert open_labelled("a150", "test", tmp_path).classes[149] == "thing 149"
    (base / "a150.txt").write_text("\n".join(f"word {i}" for i in range(150)))
    assert open_labelled("a150", "test", tmp_path).classes[149] == "word 149"
    write(tmp_path, "pas20")
    assert open_labelled("pas20", "test", tmp_path).classes[10] == "dining table"


def test_suite_scores_what_is_there(tmp_path):
    for name in ("pas20", "pc59"):
        names_of(write(tmp_path, name), name)
    (tmp_path / "proposals" / "pas20" / "proposals.yaml").write_text("weight: 0.5\n")
    suite = find_suite("segmentation", tmp_path)
    assert [split.name for split in suite.splits] == ["pc59", "pas20"]
    assert suite.templates == "vild-14"
    scores = score(tmp_path, limit=2)
    entry = scores["pas20"]
    assert entry["n"] == 2
    assert entry["proposals"] == "proposals/pas20"
    assert entry["fusion"]["weight"] == 0.5
    assert entry["masks"] == 4
    # True masks leave no pixel without an answer.
    assert entry["pixel_accuracy"] == pytest.approx(entry["mask_accuracy"])
    assert set(scores.summary()) == {"miou"}


def _without(*parts):
    def spoil(root, base):
        for part in parts:
            path = root / part
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def _colours(root, base):
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(
        base / "annotations_detectron2/val/first.png"
    )


def _label(number):
    def spoil(root, base):
        Image.fromarray(np.full(SIZE, number, np.uint8)).save(
            base / "annotations_detectron2/val/first.png"
        )

    return spoil


def _masks(size):
    def spoil(root, base):
        np.savez(root / "proposals/pas20/first.npz", masks=np.ones((1, *size), bool))

    return spoil


def _damaged(root, base):
    file = root / "proposals/pas20/first.npz"
    file.unlink()
    rle = {"size": list(SIZE), "counts": "abc"}
    file.with_suffix(".json").write_text(json.dumps([{"segmentation": rle}]))


VOC = "VOCdevkit/VOC2012"
SPOILT = [
    (_without("proposals"), "no mask proposals for pas20: neither .*perdure propose"),
    (_without("proposals/pas20/first.npz"), "no mask proposals for first: none of .npz"),
    (_without(f"{VOC}/JPEGImages/first.jpg"), "pas20 lacks the image first"),
    (_without(f"{VOC}/annotations_detectron2/val/second.png"), "lacks the map of labels second"),
    (_without(f"{VOC}/annotations_detectron2"), "finds no labelled test set below"),
    (_colours, "first.png has colours; expected one number"),
    (_label(20), r"label 20, but pas20 has 20 classes \(0 to 19"),
    (_label(255), "none of the masks|covers mostly"),
    (_masks((16, 12)), "16 x 12 pixels, but the image has 12 x 16"),
    (_damaged, "mask 0 of .*first.json is damaged"),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILT)
def test_what_is_wrong_with_a_copy_is_said(tmp_path, spoil, words):
    base = write(tmp_path, "pas20")
    spoil(tmp_path, base)
    with pytest.raises(DataError, match=words):
        score(tmp_path, limit=1)


def test_missing_names_splits_and_roots_are_named(tmp_path):
    base = write(tmp_path, "pc59")
    with pytest.raises(DataError, match=r"no names of its 59 classes: none of pc59\.txt"):
        open_labelled("pc59", "test", tmp_path)
    (base / "pc59.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="has 2 class names, but pc59 has 59"):
        open_labelled("pc59", "test", tmp_path)
    with pytest.raises(DataError, match="no split 'train'"):
        open_labelled("pc59", "train", tmp_path)
    with pytest.raises(DataError, match="add --data ROOT"):
        open_labelled("pc59", "test", None)
    with pytest.raises(DataError, match="needs the directory"):
        find_suite("segmentation")
    with pytest.raises(DataError, match="cannot find a847"):
        open_labelled("a847", "test", tmp_path)


def test_image_and_labels_of_two_sizes_are_refused(tmp_path):
    base = write(tmp_path, "pas20")
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(base / "JPEGImages/first.jpg")
    with pytest.raises(DataError, match=r"first.* 5 x 5 .*12 x 16"):
        score(tmp_path, limit=1)


def test_names_of_test_sets_are_one_list(tmp_path):
    assert tuple(LAYOUTS) == PUBLISHED
    names_of(write(tmp_path, "pas20"), "pas20")
    exams = open_exams(find_suite("segmentation", tmp_path), How(root=tmp_path))
    assert [exam.images for _, exam in exams] == [2]
    assert exams[0][1].classes[0] == "aeroplane"
    assert torch.is_tensor(exams[0][1].scenes.image(0))
