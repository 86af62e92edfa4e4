"""What `perdure data` says of labelled pixels, regions, questions and captions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perdure.data.check import Findings, check, statistics
from perdure.data.label_layouts import LAYOUTS
from perdure.errors import DataError
from perdure.sheets import paint_labels, sheet_of
from tests import asking, layouts, pixels
from tests.asking import ASKED
from tests.pixels import REGION_SIZE, SIZE

Spoil = Callable[[Path, Path], Any]
"""Breaks a copy: from the root and the folder of the data set itself"""


def said(found: Findings) -> str:
    return "\n".join((*found.faults, *found.remarks))


def labelled(root: Path, name: str = "pas20", variant: int = 0) -> Path:
    base = pixels.write(root, name, variant)
    pixels.names_of(base, name)
    return base


def save(file: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(file)


def test_file_checks_need_no_torch(tmp_path: Path) -> None:
    labelled(tmp_path)
    pixels.regions(tmp_path)
    asking.own(tmp_path, ASKED)
    layouts.flickr(tmp_path, "lines")
    code = (
        "import sys; from pathlib import Path; from perdure.data.check import check;"
        "found = check(Path(sys.argv[1]), decode=True, duplicates=True);"
        "print(*[part.name for part in found.parts]); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout.split() == ["flickr30k"] * 3 + ["pas20", "regions", "vqa"], done.stderr


VARIANTS = [(name, v) for name in LAYOUTS for v in range(len(LAYOUTS[name].labels))]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_whole_copies_of_labelled_pixels_are_good(tmp_path: Path, name: str, variant: int) -> None:
    labelled(tmp_path, name, variant)
    found = check(tmp_path, decode=True, duplicates=True)
    assert found.faults == []
    (part,) = found.parts
    layout = LAYOUTS[name]
    assert (part.name, part.rows, part.pictures, part.classes) == (name, 2, 2, layout.classes)
    assert f"2 pictures, but a whole copy is said to have {layout.expected:,}" in said(found)
    assert part.empty_classes == layout.classes - 3
    numbers = statistics(part)
    assert numbers["classes_seen"] == 3
    assert numbers["classes_per_picture_mean"] == 2
    assert numbers["pixels_labelled"] == pytest.approx(0.75)
    assert numbers["pixels_of_largest_class"] == pytest.approx(0.5)


def _without(*parts: str) -> Spoil:
    def spoil(root: Path, base: Path) -> None:
        for part in parts:
            path = root / part
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


VOC = "VOCdevkit/VOC2012"
MAPS = "annotations_detectron2/val"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _without(f"{VOC}/JPEGImages/first.jpg", f"{VOC}/{MAPS}/second.png"),
            f"pas20, test: 2 files are not there: JPEGImages/first.jpg, {MAPS}/second.png.",
        ),
        (
            lambda root, base: save(base / MAPS / "first.png", np.zeros((5, 16), np.uint8)),
            "pas20, test: 1 maps have another size than their image: first (5 x 16, image 12 x 16)",
        ),
        (
            lambda root, base: save(base / MAPS / "first.png", np.full(SIZE, 20, np.uint8)),
            "1 maps hold labels above those of the 20 classes (0 to 19): first (label 20).",
        ),
        (
            lambda root, base: save(base / MAPS / "first.png", np.zeros((*SIZE, 3), np.uint8)),
            "1 maps have colours; expected one number of a label per pixel: first.",
        ),
        (
            lambda root, base: (base / MAPS / "first.png").write_bytes(b"\x89PNG"),
            f"pas20, test: 1 files are damaged: {MAPS}/first.png.",
        ),
        (
            lambda root, base: (base / "JPEGImages/first.jpg").write_bytes(b"?"),
            "pas20, test: 1 files are damaged: JPEGImages/first.jpg.",
        ),
        (
            lambda root, base: (base / "pas20.txt").write_text("cat\ndog\n"),
            "pas20.txt has 2 class names, but pas20 has 20 classes",
        ),
        (
            lambda root, base: (base / "pas20.txt").write_text("cat\n" * 20),
            "names 'cat' more than once",
        ),
        (
            lambda root, base: (base / LAYOUTS["pas20"].listing).write_text("first second first"),
            "pas20, test: 1 images are listed twice: first.",
        ),
        (_without(f"{VOC}/{MAPS}"), "pas20 has no maps of labels: none of the folders"),
        (
            _without("proposals/pas20/second.npz"),
            "pas20, test: 1 images have no proposals in",
        ),
        (_without("proposals"), "pas20, test: there are no mask proposals for pas20"),
        (
            lambda root, base: np.savez(
                root / "proposals/pas20/first.npz", masks=np.ones((1, 5, 16), bool)
            ),
            "have 5 x 16 pixels, but the image has 12 x 16",
        ),
        (
            lambda root, base: (root / "proposals/pas20/first.npz").write_bytes(b"PK"),
            "proposals that cannot be used: first.npz. The first: cannot read the proposals",
        ),
        (
            lambda root, base: np.savez(root / "proposals/pas20/first.npz", masks=np.ones(3)),
            "must hold `masks` of shape (Q, H, W); it has (3,)",
        ),
        (
            lambda root, base: (root / "proposals/pas20/proposals.yaml").write_text("wight: 1"),
            "has the key 'wight'",
        ),
    ],
)
def test_broken_copies_of_labelled_pixels(tmp_path: Path, spoil: Spoil, message: str) -> None:
    base = labelled(tmp_path)
    spoil(tmp_path, base)
    found = check(tmp_path, ["pas20"])
    assert len(found.faults) == 1
    assert message in found.faults[0]


def test_what_is_only_strange_of_labelled_pixels_is_a_remark(tmp_path: Path) -> None:
    base = labelled(tmp_path)
    proposals = tmp_path / "proposals/pas20"
    shutil.copy(proposals / "first.npz", proposals / "third.npz")
    (proposals / "second.npz").unlink()
    (proposals / "second.json").write_text("[]")
    save(base / MAPS / "second.png", np.full(SIZE, 255, np.uint8))
    found = check(tmp_path)
    assert found.good
    assert f"1 files in {proposals} are proposals for no image of the set: third." in said(found)
    assert "1 images have been given no mask: second.json." in said(found)
    assert "1 maps label no pixel at all: second." in said(found)
    shutil.rmtree(tmp_path / "proposals")
    found = check(tmp_path)  # nobody has said that it is going to be scored
    assert found.good
    assert "perdure propose MODEL PICTURES" in said(found)


def test_names_that_stand_twice_and_images_without_a_map(tmp_path: Path) -> None:
    base = labelled(tmp_path, "a150")
    table = base / "objectInfo150.txt"
    table.write_text(table.read_text().replace("thing 7,", "thing 8,"))
    layouts.picture(base / "images/validation/third.jpg")
    found = check(tmp_path, ["a150"])
    assert "two classes each are called thing 8;" in said(found)
    assert len(found.faults) == 1
    assert "a150, test: 1 images have no map of labels in" in found.faults[0]
    (base / "objectInfo150.txt").unlink()
    assert "a150 has no names of its 150 classes" in said(check(tmp_path, ["a150"]))


def test_decoding_finds_what_headers_hide(tmp_path: Path) -> None:
    base = labelled(tmp_path)
    picture, file = base / "JPEGImages/first.jpg", tmp_path / "proposals/pas20/second.npz"
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture, quality=95)
    picture.write_bytes(picture.read_bytes()[:-150])
    np.savez(file, masks=np.full((1, *SIZE), 2.0))
    assert check(tmp_path, ["pas20"]).good
    faults = "\n".join(check(tmp_path, ["pas20"], decode=True).faults)
    assert "1 files are damaged: JPEGImages/first.jpg" in faults
    file.unlink()
    masks = [{"size": list(SIZE), "counts": [3]}]
    file.with_suffix(".json").write_text(json.dumps(masks))
    picture.write_bytes(layouts.JPEGS[0])
    found = check(tmp_path, ["pas20"], decode=True)
    assert "maps have another size than their image: first (12 x 16, image 9 x 12)" in said(found)
    assert "its runs cover 3 pixels, but 12 x 16 are 192" in said(found)


def test_sideways_photographs_have_the_size_that_they_are_seen_with(tmp_path: Path) -> None:
    base = labelled(tmp_path)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    picture = Image.new("RGB", SIZE)  # pillow names the width first
    picture.save(base / "JPEGImages/first.jpg", exif=sideways)
    assert check(tmp_path, ["pas20"]).good


def test_regions(tmp_path: Path) -> None:
    pixels.regions(tmp_path)
    pixels.regions(tmp_path, "val", seed=1)
    found = check(tmp_path, decode=True, duplicates=True)
    assert found.faults == []
    assert [(part.name, part.split) for part in found.parts] == [
        ("regions", "train"),
        ("regions", "val"),
    ]
    assert (found.parts[0].rows, found.parts[0].pictures, found.parts[0].classes) == (3, 1, 2)
    numbers = statistics(found.parts[0])
    assert (numbers["nouns"], numbers["regions_min"], numbers["regions_max"]) == (2, 1, 2)
    assert numbers["area_mean"] == pytest.approx(150 / 600)
    assert check(tmp_path / "train.jsonl").parts[0].rows == 3
    (tmp_path / "train.jsonl").unlink()
    assert "there is no train.jsonl" in said(check(tmp_path))


RLE = {"size": list(REGION_SIZE), "counts": [600]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "none.png"}, "1 files are not there: none.png."),
        ({"image": "bad.png"}, "1 files are damaged: bad.png."),
        ({"noun": " "}, "1 lines are no pairs: line 3 of train.jsonl has the noun ' '"),
        ({"mask": "train-numbers.png"}, "has rle and mask; expected one of rle, mask, box"),
        ({"rle": RLE}, "regions, train: 1 masks are empty: line 3."),
        (
            {"rle": {"size": [10, 10], "counts": [0, 100]}},
            "1 masks have another size than their picture: line 3 (10 x 10, picture 20 x 30).",
        ),
        ({"rle": {**RLE, "counts": [3]}}, "1 regions are wrong: line 3 is damaged: its runs cover"),
        ({"rle": None, "mask": "train-numbers.png", "instance": 9}, "1 masks are empty: line 3."),
        ({"rle": None, "mask": "no.png"}, "1 regions are wrong: cannot read no.png"),
        ({"rle": None, "box": [2, 3, 40, 9]}, "line 3 has the box [2, 3, 40, 9]; expected left"),
        ({"rle": None, "box": [2, 3, 2, 9]}, "line 3 has the box [2, 3, 2, 9]; expected left"),
        ("{", "1 lines are no pairs: line 3 of train.jsonl is no JSON"),
    ],
)
def test_broken_regions(tmp_path: Path, change: dict[str, Any] | str, message: str) -> None:
    rows: list[Any] = list(pixels.regions(tmp_path)[1:])
    (tmp_path / "bad.png").write_bytes(b"?")
    if isinstance(change, dict):
        row = {**rows[1], **change}
        change = json.dumps({key: value for key, value in row.items() if value is not None})
    pixels.lines(tmp_path, rows[0], change)
    found = check(tmp_path)
    assert len(found.faults) == 1
    assert message in found.faults[0]


def test_pictures_of_regions_that_are_scored_too(tmp_path: Path) -> None:
    pixels.regions(tmp_path)
    pixels.regions(tmp_path, "val")
    base = labelled(tmp_path)
    shutil.copy(tmp_path / "train.png", base / "JPEGImages/first.png")
    (base / "JPEGImages/first.jpg").unlink()
    save(base / MAPS / "first.png", np.zeros(REGION_SIZE, np.uint8))
    masks = np.ones((1, *REGION_SIZE), bool)
    np.savez(tmp_path / "proposals/pas20/first.npz", masks=masks)
    assert check(tmp_path).good
    assert check(tmp_path, duplicates=True).faults == [
        "regions: 1 pictures are in train and in pas20: first.png = train.png.",
        "regions: 1 pictures are in train and in val: val.png = train.png.",
    ]


def test_questions(tmp_path: Path) -> None:
    more = {**ASKED, "image": "a/2.png", "kind": "what", "candidates": ["dog", "cat", "cup"]}
    asking.own(tmp_path, ASKED, more)
    asking.vqa_v2(tmp_path, choices=True)
    asking.scienceqa(tmp_path, nested=True, splits=True)
    found = check(tmp_path, decode=True, duplicates=True)
    assert found.faults == []
    counts = [(part.name, part.rows, part.pictures, part.classes) for part in found.parts]
    assert counts == [("vqa", 2, 2, None), ("vqa-v2", 3, 2, None), ("scienceqa", 1, 1, None)]
    assert "1 questions are left out: without the right answer among two" in said(found)
    assert "vqa-v2, test: 2 pictures, but a whole copy is said to have 40,504." in said(found)
    assert "scienceqa, test: 1 pictures, but a whole copy is said to have 2,017." in said(found)
    numbers = statistics(found.parts[0])
    assert (numbers["candidates_min"], numbers["candidates_max"], numbers["kinds"]) == (2, 3, 2)
    assert numbers["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert statistics(found.parts[1])["answered_by_people"] == 3


def test_broken_questions(tmp_path: Path) -> None:
    bird, beyond = {**ASKED, "answer": "bird"}, {**ASKED, "answer": 7}
    asking.own(tmp_path, ASKED, bird, beyond, {**ASKED, "image": "none.png"}, ASKED)
    (tmp_path / "a/1.png").write_bytes(b"?")
    found = check(tmp_path, decode=True)
    assert [part.rows for part in found.parts] == [3]
    first, missing, damaged = found.faults
    assert first.startswith("vqa, test: 2 questions are wrong. ")
    assert "question 2: answer is 'bird'; it must be one of the candidates" in first
    assert "question 3: answer is place 7" in first
    assert "1 files are not there" in missing
    assert "none.png" in missing
    assert "1 files are damaged" in damaged
    assert "1 questions are asked twice about the same picture: What is this?" in said(found)
    (tmp_path / "question_templates.yaml").write_text("rules: 3")
    assert "it needs a list `rules`" in said(check(tmp_path))
    (tmp_path / "vqa.json").write_text("{")
    assert "vqa.json is no JSON" in said(check(tmp_path))


def test_broken_published_questions(tmp_path: Path) -> None:
    asking.scienceqa(tmp_path, nested=False, splits=True)
    file = tmp_path / "scienceqa/problems.json"
    problems = json.loads(file.read_text())
    problems["1"]["answer"] = 5
    file.write_text(json.dumps(problems))
    (tmp_path / "scienceqa/pid_splits.json").write_text(json.dumps({"test": ["1", "9"]}))
    said_of = said(check(tmp_path, ["scienceqa"]))
    assert "2 questions are wrong. problem 1: answer is place 5, but the places of 2" in said_of
    assert "(problem 9: KeyError: '9')" in said_of
    asking.vqa_v2(tmp_path, choices=True)
    file = tmp_path / "vqa/v2_MultipleChoice_mscoco_val2014_questions.json"
    asked = json.loads(file.read_text())
    asked["questions"][0]["question_id"] = 77
    file.write_text(json.dumps(asked))
    assert "1 questions are wrong." in said(check(tmp_path, ["vqa-v2"]))
    shutil.rmtree(tmp_path / "val2014")
    assert "cannot find the pictures of" in said(check(tmp_path, ["vqa-v2"]))


def captions(root: Path, change: Callable[[list[dict[str, Any]]], Any]) -> Findings:
    """Check a copy of Flickr30k whose list of captions was changed."""
    layouts.flickr(root, "karpathy")
    file = root / "flickr30k/dataset_flickr30k.json"
    document = json.loads(file.read_text())
    for image in document["images"]:
        del image["sentences"][5:]
    change(document["images"])
    file.write_text(json.dumps(document))
    return check(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda images: images[4]["sentences"].clear(),
            "flickr30k, test: 1 pictures have no caption: 4.jpg.",
        ),
        (
            lambda images: images[4]["sentences"].pop(),
            "flickr30k, test: 1 pictures have fewer than 5 captions: 4.jpg.",
        ),
        (
            lambda images: images[4]["sentences"][2].update(raw=" "),
            "flickr30k, test: 1 pictures have an empty caption: 4.jpg.",
        ),
        (
            lambda images: images[4].update(filename="9.jpg"),
            "flickr30k, test: 1 files are not there: 9.jpg.",
        ),
    ],
)
def test_broken_captions(
    tmp_path: Path, change: Callable[[list[dict[str, Any]]], Any], message: str
) -> None:
    assert captions(tmp_path, change).faults == [message]


def test_what_is_only_strange_of_captions_is_a_remark(tmp_path: Path) -> None:
    def change(images: list[dict[str, Any]]) -> None:
        layouts.picture(tmp_path / "flickr30k/images/stray.jpg")
        images[0]["sentences"].append({"raw": "one more"})
        images[1]["sentences"].pop()

    found = captions(tmp_path, change)
    assert found.good
    assert "have no caption in any split: stray.jpg." in said(found)
    assert "flickr30k, train: 1 pictures have more than 5 captions: 0.jpg." in said(found)
    assert "flickr30k, train: 1 pictures have fewer than 5 captions: 1.jpg." in said(found)


def test_pictures_that_a_list_of_coco_says_nothing_about(tmp_path: Path) -> None:
    layouts.coco(tmp_path, "splits")
    file = tmp_path / "coco/coco_val_karpathy.json"
    document = json.loads(file.read_text())
    document["images"].append({"id": 99, "file_name": "COCO_val2014_99.jpg"})
    file.write_text(json.dumps(document))
    assert check(tmp_path).faults == [
        "coco, val: 1 pictures have no caption: val2014/COCO_val2014_99.jpg."
    ]


def test_own_captions_are_counted_per_picture(tmp_path: Path) -> None:
    rows = ["filepath,caption", "a.jpg,a cat", "a.jpg,one cat", "b.jpg,a dog"]
    for name in "ab":
        layouts.picture(tmp_path / f"{name}.jpg")
    (tmp_path / "test.csv").write_text("\n".join(rows) + "\n")
    found = check(tmp_path)
    (part,) = found.parts
    assert (part.rows, part.pictures) == (3, 2)
    assert "own, test: pictures have 1 to 2 captions" in said(found)
    assert (statistics(part)["captions_min"], statistics(part)["captions_max"]) == (1, 2)


def test_a_sheet_shows_labels_regions_questions_and_captions(tmp_path: Path) -> None:
    labelled(tmp_path)
    pixels.regions(tmp_path)
    asking.own(tmp_path, ASKED)
    layouts.flickr(tmp_path, "karpathy")
    shutil.rmtree(tmp_path / "proposals")  # not needed to look at labels
    parts = check(tmp_path, contents=False).parts
    with Image.open(sheet_of(parts, tmp_path, tmp_path / "sheet.png", 2)) as sheet:
        assert sheet.size[1] > len(parts) * 80
        assert len(parts) == 6


def test_labels_are_painted_over_pixels_that_have_one() -> None:
    image = torch.full((3, 2, 3), 100, dtype=torch.uint8)
    labels = np.array([[-1, 0, 0], [1, 1, 2]])
    painted = paint_labels(image, labels)
    assert (painted[:, 0, 0] == 100).all()
    assert painted[:, 0, 1].tolist() == [185, 59, 59]  # 0.45 * 100 + 0.55 of a strong red
    assert len({tuple(painted[:, 1, column].tolist()) for column in (0, 2)}) == 2
    with pytest.raises(DataError, match="has 2 x 3 pixels, but its labels are of 1 x 3"):
        paint_labels(image, labels[:1])
