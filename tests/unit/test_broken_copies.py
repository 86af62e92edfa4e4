"""Copies of data sets that are broken in every way people have met, and what is said of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from perdure import zoo
from perdure.data import published
from perdure.data.check import Findings, check
from perdure.data.emojishift import open_emojishift
from perdure.looking import gate
from tests import layouts
from tests.copies import SMALL, thousand

HIDDEN = ("wds", "hf")
"""Readers whose pictures are in no files of their own"""


def distinct(root: Path) -> list[Path]:
    """Make all pictures below a root differ, by bytes behind their ends; return them in order."""
    base = root if root.is_dir() else root.parent
    files = [one for one in sorted(base.rglob("*")) if one.suffix in (".jpg", ".png")]
    for number, file in enumerate(files):
        file.write_bytes(file.read_bytes() + number.to_bytes(4, "big"))
    return files


def faults(root: Path, name: str, **options: bool) -> Findings:
    found = check(root, [name], **options)
    # Counts of whole copies are not what these tests break.
    found.faults = [fault for fault in found.faults if "a whole copy has" not in fault]
    return found


def first_of(root: Path, name: str, split: str) -> Path:
    """Return the file of the first picture of a split."""
    part = next(one for one in check(root, [name]).parts if one.split == split)
    assert part.catalog is not None
    return part.catalog.file(0)


@pytest.mark.parametrize("name", [name for name in SMALL if name not in HIDDEN])
def test_missing_damaged_and_shared_pictures_are_named(name: str, tmp_path: Path) -> None:
    root = SMALL[name].write(tmp_path / "data")
    distinct(root)
    good = faults(root, name, decode=True, duplicates=True)
    assert good.faults == []
    held = "id_test" if "id_test" in published.SPLITS.get(name, ()) else "test"
    train, test = (first_of(root, name, split) for split in ("train", held))
    content = test.read_bytes()
    shutil.copy(train, test)
    said = faults(root, name, duplicates=True).faults
    assert [one.split(": ")[:2] for one in said] == [
        [name, f"1 pictures are in train and in {held}"]
    ]
    test.write_bytes(content[: len(content) // 3])
    said = faults(root, name, decode=True).faults
    assert len(said) == 1
    assert f"{name}, {held}: 1 files are damaged" in said[0]
    assert test.name in said[0]
    test.unlink()
    said = faults(root, name).faults
    assert len(said) == 1
    assert test.name in said[0]
    assert "files are not there" in said[0] or "there is no file" in said[0]


def rewrite(file: str, old: str, new: str, count: int = -1) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        base = root if root.is_dir() else root.parent
        path = base / file
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new, count))

    return apply


ZHOU = "eurosat/split_zhou_EuroSAT.json"
SEPARATED = "separated by something else than commas"
WRONG: tuple[tuple[str, Callable[[Path], None], str], ...] = (
    ("iwildcam", rewrite("metadata.csv", ",", "\t"), SEPARATED),
    (
        "iwildcam",
        rewrite("categories.csv", "tayassu pecari", "puma"),
        "two classes each are called",
    ),
    ("iwildcam", rewrite("categories.csv", "1,2,", "5,2,"), "does not name the labels 0 to 5"),
    ("fmow", rewrite("rgb_metadata.csv", ",", ";"), SEPARATED),
    ("fmow", rewrite("country_code_mapping.csv", "region", "area"), "no column 'region'"),
    ("eurosat", rewrite(ZHOU, '"dog"', '"red_cat"'), "two classes are called 'red cat'"),
    ("eurosat", rewrite(ZHOU, '"train"', '"trian"'), "is not a division as CoOp publishes it"),
    (
        "fgvc_aircraft",
        rewrite("fgvc_aircraft/images_variant_train.txt", " ", "\t"),
        "is no line of",
    ),
    ("fgvc_aircraft", rewrite("fgvc_aircraft/variants.txt", "dog", "bus"), "twice"),
    ("flickr30k", rewrite("flickr30k/flickr30k_test_karpathy.txt", ".jpg,", ".jpg;"), "line 2"),
    (
        "coco",
        rewrite("coco/annotations/captions_val2014.json", '"id": 30', '"id": 99'),
        "are missing",
    ),
    ("wds", rewrite("classnames.txt", "dog", "cat"), "two classes each are called cat"),
    ("wds", rewrite("train/nshards.txt", "2", "3"), "half a download"),
    ("own", rewrite("all.csv", "filepath|", "file|path|"), "4 values, but the header has 5"),
)


@pytest.mark.parametrize(("name", "damage", "reason"), WRONG, ids=[one[2] for one in WRONG])
def test_lists_that_are_wrong_are_explained(
    name: str, damage: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    root = SMALL[name].write(tmp_path / "data")
    damage(root)
    found = check(root, [name])
    lines = (*found.faults, *found.remarks)
    assert any(reason in line for line in lines), lines


@pytest.mark.parametrize("name", [name for name in SMALL if name in published.FINDERS])
def test_counts_of_whole_copies_are_compared(name: str, tmp_path: Path) -> None:
    found = check(SMALL[name].write(tmp_path / "data"), [name])
    for part in found.parts:
        assert part.expected is not None
        said = f"{name}, {part.split}: {part.pictures:,} pictures, but a whole copy"
        assert any(said in line for line in (*found.faults, *found.remarks))


def test_imagenet_counts_and_half_downloads(tmp_path: Path) -> None:
    store = thousand(tmp_path / "store")
    for name, place, expected in (
        ("imagenet-a", "imagenet-a", "is said to have 7,500"),
        ("imagenet-r", "imagenet-r", "has 30,000"),
        ("imagenet-sketch", "sketch", "is said to have 50,889"),
    ):
        kind = {"imagenet-a": "a", "imagenet-r": "r"}.get(name, "synsets")
        shutil.copytree(store / kind, tmp_path / place)
        found = check(tmp_path, [name], decode=True)
        assert any(expected in line for line in (*found.faults, *found.remarks))
        damaged = next((tmp_path / place).glob("*/*.JPEG"))
        damaged.write_bytes(damaged.read_bytes()[:90])
        faulty = check(tmp_path, [name], decode=True).faults
        assert any("1 files are damaged" in one for one in faulty)
        damaged.unlink()
        assert "holds no picture" in check(tmp_path, [name]).faults[0]
        damaged.parent.rmdir()
        assert "class folders" in check(tmp_path, [name]).faults[0]


# Labels that are permuted, which no check of files can see.


def _as_coop(root: Path, rows: Sequence[tuple[bytes, int]], names: tuple[str, ...]) -> Path:
    (root / "eurosat/2750").mkdir(parents=True)
    lists = []
    for number, (content, label) in enumerate(rows):
        (root / f"eurosat/2750/{number}.png").write_bytes(content)
        lists.append([f"{number}.png", label, names[label]])
    parts = dict.fromkeys(("train", "val", "test"), lists)
    (root / ZHOU).write_text(json.dumps(parts))
    return root


def _as_shards(root: Path, rows: Sequence[tuple[bytes, int]], names: tuple[str, ...]) -> Path:
    samples = [{"png": content, "cls": str(label).encode()} for content, label in rows]
    layouts.shard(root / "test/0.tar", samples)
    (root / "classnames.txt").write_text("\n".join(names))
    return root


def _as_hf(root: Path, rows: Sequence[tuple[bytes, int]], names: tuple[str, ...]) -> Path:
    columns = {"image": [row[0] for row in rows], "label": [names[row[1]] for row in rows]}
    datasets.Dataset.from_dict(columns, split="test").save_to_disk(root)
    return root


@pytest.mark.parametrize("write", [_as_coop, _as_shards, _as_hf])
def test_a_model_catches_permuted_labels_in_every_kind_of_list(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    data = open_emojishift("id", shots=4)
    kept = np.flatnonzero(data.labels < 8)
    contents = []
    for index in kept:
        file = tmp_path / "one.png"
        Image.fromarray(data.image(int(index)).permute(1, 2, 0).numpy()).save(file)
        contents.append(file.read_bytes())
    tiny = zoo.load("perdure-tiny")
    names = tuple(data.classes[:8])
    said = []
    for shift in (0, 1):
        labels = [(int(label) + shift) % 8 for label in data.labels[kept]]
        root = write(tmp_path / str(shift), list(zip(contents, labels, strict=True)), names)
        part = check(root).parts[-1]
        assert part.catalog is not None
        said.append(gate(tiny, part.catalog, root).fault())
    assert said[0] is None
    assert "probably permuted" in str(said[1])
