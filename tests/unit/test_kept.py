"""Stamps change with whatever scores depend on, the pictures of a directory included."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from perdure.data.suites import SUITES, suite
from perdure.data.views import Part
from perdure.kept import files_of, stamp_of
from perdure.prediction import How
from perdure.zoo import random_clip
from tests.layouts import iwildcam


@pytest.fixture
def run(tmp_path: Path) -> Path:
    random_clip().save(tmp_path / "run" / "predictor")
    return tmp_path / "run"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, colour in (("cat", "red"), ("dog", "blue")):
        folder = tmp_path / "pictures" / "test" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(folder / "one.png")
    return tmp_path / "pictures"


def test_a_picture_that_changes_in_its_place_changes_the_stamp(run: Path, root: Path):
    own, how = suite("own", root), How(root=root)
    before = stamp_of(run, own, how)
    assert stamp_of(run, own, how) == before
    file = root / "test" / "cat" / "one.png"
    Image.new("RGB", (8, 8), "green").save(file)
    os.utime(file, ns=(0, 0))
    assert suite("own", root).definition == own.definition  # which knows names alone
    assert stamp_of(run, own, how) != before


def test_a_label_that_changes_in_a_table_changes_the_stamp(run: Path, tmp_path: Path):
    root = iwildcam(tmp_path / "cameras")
    cameras, how = suite("wilds-iwildcam", root), How(root=root)
    before = stamp_of(run, cameras, how)
    assert stamp_of(run, cameras, how) == before
    file = root / "iwildcam_v2.0" / "metadata.csv"
    lines = file.read_text().splitlines()
    header = lines[0].split(",")
    for number, line in enumerate(lines):
        cells = line.split(",")
        if cells[header.index("split")] == "test":
            cells[header.index("y")] = "0" if cells[header.index("y")] != "0" else "1"
        lines[number] = ",".join(cells)
    file.write_text("\n".join(lines) + "\n")
    assert suite("wilds-iwildcam", root).definition == cameras.definition
    assert stamp_of(run, cameras, how) != before


def test_every_condition_changes_the_stamp(run: Path, tmp_path: Path):
    val = SUITES["emojishift-val"]
    stamps = [
        stamp_of(run, val, How()),
        stamp_of(run, val, How(limit=3)),
        stamp_of(run, val, How(), temperature=True),
        stamp_of(run, SUITES["emojishift"], How()),
    ]
    random_clip(1).save(run / "predictor")
    stamps.append(stamp_of(run, val, How()))
    assert len(set(stamps)) == len(stamps)
    assert all(len(stamp) == 16 for stamp in stamps)


def test_where_files_are_not_known_nothing_is_taken_for_unchanged():
    class Other:
        """A data set of another kind."""

    assert files_of(Other()) is None
    assert files_of(Part(Other(), None)) is None  # type: ignore[arg-type]
