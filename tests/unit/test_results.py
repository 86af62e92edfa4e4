"""Proposals of all images in one file: the masks of single files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perdure.data.check import check
from perdure.data.labelled import LabelledPixels, open_labelled
from perdure.data.results import Piece, open_results, pieces
from perdure.errors import DataError
from tests import pixels
from tests.pixels import SIZE, STEMS

NUMBERS = {"first": 11, "second": 7}
"""Of the images, as a list says"""


def rle(mask: np.ndarray) -> dict[str, Any]:
    """Return run lengths as numbers, down the columns."""
    runs, last = [0], False
    for value in mask.T.ravel().tolist():
        if value != last:
            runs.append(0)
            last = value
        runs[-1] += 1
    return {"size": list(mask.shape), "counts": runs}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as coco

    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


def entries(root: Path, names: dict[str, Any], form: Any = rle) -> list[dict[str, Any]]:
    """Return the masks of the copy's npz files as results, those of the two images in turns."""
    found = []
    for place in range(2):
        for stem in STEMS:
            with np.load(root / "proposals/pas20" / f"{stem}.npz") as stored:
                mask = stored["masks"][place]
            row = {"image_id": names[stem], "category_id": 1, "segmentation": form(mask)}
            found.append({**row, "score": 0.9 - place / 2, "bbox": [0, 0, 1, 1]})
    return found


def images(names: dict[str, Any] = NUMBERS) -> dict[str, Any]:
    return {"images": [{"id": names[stem], "file_name": f"a/{stem}.jpg"} for stem in names]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    pixels.names_of(pixels.write(tmp_path, "pas20"), "pas20")
    return tmp_path


def opened(root: Path) -> LabelledPixels:
    return open_labelled("pas20", "test", root)


def alone(root: Path) -> None:
    """Remove the files of single images."""
    for stem in STEMS:
        (root / "proposals/pas20" / f"{stem}.npz").unlink()


def write(root: Path, document: Any, place: str = "pas20/results.json") -> Path:
    file = root / "proposals" / place
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


FORMS = {
    "bare, ids in a list beside": ("pas20/results.json", NUMBERS, "beside"),
    "bare, ids in a list one folder up": ("pas20/coco_instances_results.json", NUMBERS, "above"),
    "with its own list": ("pas20/results.json", NUMBERS, "inside"),
    "named after the set, ids are names": ("pas20.json", dict.fromkeys(STEMS), "none"),
}


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("form", [rle, compressed])
def test_every_form_gives_the_masks_of_single_files(root: Path, kind: str, form: Any) -> None:
    place, numbers, where = FORMS[kind]
    names = {stem: number or stem for stem, number in numbers.items()}
    before = [opened(root).proposals(index).masks for index in range(2)]
    document: Any = entries(root, names, form)
    if where == "inside":
        document = {"info": {"a": [{}]}, **images(), "annotations": document}
    elif where != "none":
        write(root, images(), f"{'pas20/' if where == 'beside' else ''}instances_val.json")
    write(root, document, place)
    alone(root)
    found = opened(root)
    assert found.source == (place if "/" in place else f"proposals/{place}")
    for index in range(2):
        proposals = found.proposals(index)
        np.testing.assert_array_equal(proposals.masks, before[index])
        assert proposals.scores is not None
        assert proposals.scores.tolist() == pytest.approx([0.9, 0.4])
    assert check(root, ["pas20"], decode=True).faults == []


def test_names_that_are_numbers_and_names_of_files(tmp_path: Path) -> None:
    mask = rle(np.ones(SIZE, bool))
    rows = [{"image_id": 139, "segmentation": mask}, {"file_name": "x/a.jpg", "segmentation": mask}]
    file = tmp_path / "results.json"
    file.write_text(json.dumps(rows))
    found = open_results(file, ["000000000139", "a"])
    assert {stem: len(found.entries(stem)) for stem in found.places} == {"000000000139": 1, "a": 1}


def test_files_of_single_images_go_before(root: Path) -> None:
    write(root, entries(root, dict(zip(STEMS, STEMS, strict=True))))
    assert opened(root).proposals(0).scores is None
    (root / "proposals/pas20/second.npz").unlink()
    assert opened(root).proposals(0).scores is None
    assert opened(root).proposals(1).scores is not None
    assert check(root, ["pas20"], decode=True).faults == []


def test_only_the_places_are_kept(tmp_path: Path) -> None:
    """Text with brackets, quotes and backslashes is no structure."""
    odd = {"image_id": "a", "counts": '[{"\\"]}{', "list": [[1], {"a": {}}], "segmentation": None}
    file = tmp_path / "r.json"
    text = json.dumps([odd, {"image_id": "b"}, odd], indent=1)
    file.write_text(text)
    places = list(pieces(file))
    assert [piece.section for piece in places] == [""] * 3
    assert [json.loads(text[piece.start : piece.end]) for piece in places] == [
        odd,
        {"image_id": "b"},
        odd,
    ]
    found = open_results(file, "ab")
    assert found.places == {"a": (0, 2), "b": (2, 3)}
    assert found.starts.nbytes == 3 * 8
    assert found.entries("a") == [odd, odd]
    text = json.dumps({"x": {"images": [{"no": 1}]}, "images": [odd], "annotations": [{}, {}]})
    file.write_text(text)
    sections = [piece.section for piece in pieces(file)]
    assert sections == ["images", "annotations", "annotations"]
    assert isinstance(next(iter(pieces(file))), Piece)


@pytest.mark.parametrize(
    ("document", "listed", "message"),
    [
        ([{"image_id": 5}], None, "mask 0 of .* is of image 5, and no image of the data set has"),
        ([{"image_id": 5}], NUMBERS, "image 5, and the list of images has no such number"),
        ([{"image_id": []}], NUMBERS, r"is of image \[\]"),
        ([{"score": 1}], None, "mask 0 of .* has no image_id"),
        ("", None, "cannot read .*results.json"),
        ("[{", None, "is cut off: 2 brackets are never closed"),
        ("[{,}]", None, "is no JSON"),
        ([], {"first": None}, "there are no mask proposals for second"),
        ([], {"first": 3, "second": 3}, "calls image 3 second, and before it was called first"),
    ],
)
def test_what_is_refused(root: Path, document: Any, listed: Any, message: str) -> None:
    alone(root)
    write(root, document)
    if listed is not None:
        write(root, images(listed), "pas20/instances_val.json")
    with pytest.raises(DataError, match=message):
        opened(root).proposals(1)
    (fault,) = check(root, ["pas20"]).faults
    if "second" not in message or "calls" in message:
        assert fault.startswith("pas20, test: ")
    else:
        assert "images have no proposals in" in fault


def test_wrong_sizes_and_damaged_runs_name_the_image(root: Path) -> None:
    rows = entries(root, dict(zip(STEMS, STEMS, strict=True)))
    alone(root)
    rows[1]["segmentation"] = rows[3]["segmentation"] = rle(np.ones((2, 2), bool))
    write(root, rows)
    assert len(opened(root).proposals(0).masks) == 2
    with pytest.raises(DataError, match="image second have 2 x 2 pixels, but the image has 12 x"):
        opened(root).proposals(1)
    (fault,) = check(root, ["pas20"]).faults
    assert "1 images have proposals that cannot be used: second." in fault
    rows[1]["segmentation"]["counts"] = [1]
    write(root, rows)
    with pytest.raises(DataError, match=r"mask 0 of .*results\.json, image second is damaged"):
        opened(root).proposals(1)


def test_an_image_that_was_looked_at_may_have_no_mask(root: Path) -> None:
    alone(root)
    write(root, {**images(), "annotations": []})
    assert len(opened(root).proposals(0).masks) == 0
    found = check(root, ["pas20"])
    assert found.good
    assert "pas20, test: 2 images have been given no mask: first, second." in found.remarks
