"""Masks and proposals on disk: every form gives the same masks, and damage is named."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from perdure.data.masks import decode_rle, instance_masks, read_map
from perdure.data.proposals import find_proposals, read_fusion, read_proposals
from perdure.data.segmented import Fusion
from perdure.errors import DataError

SIZE = (6, 9)


def drawn(seed, size=SIZE, number=3):
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, number + 1, size)
    return np.stack([owner == index for index in range(1, number + 1)])


def compressed(mask):
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


@given(st.integers(0, 10_000), st.integers(1, 70), st.integers(1, 40), st.floats(0, 1))
def test_run_lengths_are_those_of_cocos_own_program(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    np.testing.assert_array_equal(decode_rle(compressed(mask), "x"), mask)
    runs, last = [0], False
    for value in mask.T.ravel():
        if value != last:
            runs.append(0)
            last = value
        runs[-1] += 1
    rle = {"size": [height, width], "counts": runs}
    np.testing.assert_array_equal(decode_rle(rle, "x"), mask)


def test_long_runs_decode_too():
    mask = np.zeros((700, 900), dtype=bool)
    mask[100:650, 3:880] = True
    np.testing.assert_array_equal(decode_rle(compressed(mask), "x"), mask)


GOOD = compressed(drawn(0)[0])


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ([[1, 2, 3, 4]], "no run-length mask.*Polygons"),
        ({"size": [6], "counts": [54]}, r"size \[6\]"),
        ({"size": [6, 9], "counts": [1, -2]}, "neither text nor numbers"),
        ({"size": [6, 9], "counts": [50]}, "cover 50 pixels, but 6 x 9 are 54"),
        ({**GOOD, "counts": GOOD["counts"][:-2]}, "damaged"),
        ({**GOOD, "counts": "!" + GOOD["counts"]}, "character 0 of its counts is '!'"),
        ({**GOOD, "counts": "ü"}, "character 0|runs cover"),
        ({**GOOD, "counts": "o"}, "end inside a number"),
        ({**GOOD, "counts": "O"}, "has -1 pixels"),
    ],
)
def test_damaged_run_lengths_are_refused(rle, words):
    with pytest.raises(DataError, match=f"mask 3 of x.*({words})|({words})"):
        decode_rle(rle, "mask 3 of x")


def test_every_form_gives_the_same_masks(tmp_path):
    masks = drawn(1)
    np.savez(tmp_path / "a.npz", masks=masks, scores=np.array([0.5, 1, 0]))
    np.savez(tmp_path / "b.npz", masks=masks.astype(np.uint8))
    np.savez(tmp_path / "c.npz", masks=masks.astype(np.float16))
    entries = [{"segmentation": compressed(mask), "predicted_iou": 1.01} for mask in masks]
    (tmp_path / "d.json").write_text(json.dumps(entries))
    (tmp_path / "e.json").write_text(json.dumps({"annotations": [compressed(m) for m in masks]}))
    numbers = (masks * np.array([3, 7, 200])[:, None, None]).sum(0)
    Image.fromarray(numbers.astype(np.uint8)).save(tmp_path / "f.png")
    Image.fromarray((numbers * 300).astype(np.uint16)).save(tmp_path / "g.png")
    wide = numbers * 1000
    colours = np.stack([wide % 256, wide // 256 % 256, wide // 65536], axis=-1)
    Image.fromarray(colours.astype(np.uint8)).save(tmp_path / "h.png")
    for name in "abcdefgh":
        found = read_proposals(find_proposals(tmp_path, name), SIZE, 4)
        np.testing.assert_array_equal(found.masks, masks, err_msg=name)
        assert found.class_logits is None
    assert read_proposals(tmp_path / "a.npz", SIZE, 4).scores.tolist() == [0.5, 1, 0]
    assert read_proposals(tmp_path / "d.json", SIZE, 4).scores.tolist() == [1, 1, 1]
    assert read_proposals(tmp_path / "e.json", SIZE, 4).scores is None


def test_palettes_are_not_looked_at_and_nothing_is_an_instance_less(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 2]], dtype=np.uint8), "P")
    picture.putpalette([9, 9, 9] * 256)
    picture.save(tmp_path / "p.png")
    assert read_map(tmp_path / "p.png", "p").tolist() == [[0, 1], [2, 2]]
    assert instance_masks(np.zeros((2, 2), np.uint8)).shape == (0, 2, 2)
    (tmp_path / "none.json").write_text("[]")
    assert len(read_proposals(tmp_path / "none.json", SIZE, 4).masks) == 0


def test_probabilities_may_be_smaller_and_have_classes(tmp_path):
    masks, logits = np.full((2, 3, 4), 0.25), np.zeros((2, 5))
    np.savez(tmp_path / "a.npz", masks=masks, class_logits=logits)
    found = read_proposals(tmp_path / "a.npz", SIZE, 4)
    assert found.masks.dtype == np.float32
    assert found.class_logits.shape == (2, 5)


def _npz(folder, **arrays):
    np.savez(folder / "x.npz", **arrays)


def _write(text, name="x.json"):
    return lambda folder: (folder / name).write_text(text)


ONE = np.ones((1, *SIZE), bool)
WRONG = [
    (lambda folder: None, "no mask proposals for x: none of .npz, .json, .png"),
    (lambda folder: _npz(folder, mask=ONE), r"must hold `masks`.*it has mask \(1, 6, 9\)"),
    (lambda folder: _npz(folder, masks=ONE[:, :5]), "5 x 9 pixels, but the image has 6 x 9"),
    (lambda folder: _npz(folder, masks=np.ones((1, 9, 6)) / 2), "of the same aspect"),
    (lambda folder: _npz(folder, masks=ONE * 7.0), "expected probabilities"),
    (lambda folder: _npz(folder, masks=ONE, class_logits=np.ones((1, 4))), r"\(1, 5\)"),
    (lambda folder: _npz(folder, masks=ONE, scores=np.ones(2)), r"are \(2,\); expected \(1,\)"),
    (lambda folder: _npz(folder, masks=ONE, scores=np.array([2.0])), "`scores`.*2.0"),
    (lambda folder: _npz(folder, masks=np.array([[[None]]])), "cannot read the proposals"),
    (_write("PK\x03\x04cut off", "x.npz"), "cannot read the proposals"),
    (_write("{"), "cannot read the proposals"),
    (_write('{"a": 1}'), "no list of masks"),
    (_write('[{"size": [2, 2], "counts": [4]}, {"size": [1, 1], "counts": [1]}]'), "differ in"),
    (_write('[{"size": [2, 2], "counts": [3]}]'), "mask 0 of .*x.json is damaged"),
    (_write('[{"size": [2, 2], "counts": [4]}]'), "2 x 2 pixels, but the image has 6 x 9"),
    (_write("[3]"), "mask 0 of .*no run-length mask"),
    (_write("no picture", "x.png"), "cannot read .*x.png"),
]


@pytest.mark.parametrize(("write", "words"), WRONG)
def test_wrong_files_are_named(tmp_path, write, words):
    write(tmp_path)
    with pytest.raises(DataError, match=words):
        read_proposals(find_proposals(tmp_path, "x"), SIZE, 4)


def test_how_proposals_are_used_stands_beside_them(tmp_path):
    default = Fusion(weight=0.6)
    assert read_fusion(tmp_path, default) == default
    file = tmp_path / "proposals.yaml"
    file.write_text("threshold: 0.4\nmade_by: somebody\n")
    assert read_fusion(tmp_path, default) == Fusion(weight=0.6, threshold=0.4)
    for text, words in (
        ("treshold: 0.4", "did you mean 'threshold'"),
        ("weight: much", "'much'; it must be a number"),
        ("weight: 2", r"proposals.yaml: weight is 2"),
        ("weight: [", "proposals.yaml"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=words):
            read_fusion(tmp_path, default)
