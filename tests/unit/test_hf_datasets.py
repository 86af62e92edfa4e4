"""Data sets that Hugging Face's library wrote: layouts, columns, a step of training, faults."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from perdure import training
from perdure.data import hf_pictures
from perdure.data.cache import source_of
from perdure.data.check import check
from perdure.data.datasets import open_dataset, templates_for, texts_of
from perdure.data.hf_columns import files_outside
from perdure.data.hf_datasets import find_hf
from perdure.data.loading import eval_batches
from perdure.data.suites import of_task, suite
from perdure.errors import DataError, DependencyError
from perdure.evaluation import evaluate
from perdure.kept import files_of
from perdure.recipe import load_recipe
from perdure.zoo import random_clip

NAMES = ("red_cat", "dog")
FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
)


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 255 - value, 60)).save(stream, "PNG")
    return stream.getvalue()


def labelled(count: int, first: int = 0) -> Any:
    """Return a data set of pictures that all differ, with labels 0, 1, 0, ..."""
    columns = {
        "image": [{"bytes": png(first + row), "path": None} for row in range(count)],
        "label": [row % 2 for row in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def divided() -> Any:
    parts = {"train": (6, 0), "validation": (4, 20), "test": (4, 40), "ood_fog": (2, 60)}
    return datasets.DatasetDict({name: labelled(*part) for name, part in parts.items()})


def saved(root: Path) -> Path:
    divided().save_to_disk(root)
    return root


def of_the_hub(root: Path) -> Path:
    (root / "data").mkdir(parents=True)
    for name, part in divided().items():
        for number in range(2):
            part.shard(2, number).to_parquet(root / f"data/{name}-0000{number}-of-00002.parquet")
    (root / "README.md").write_text("---\nlicense: mit\n---\n")
    return root


def converted(root: Path) -> Path:
    for name, part in divided().items():
        (root / "default" / name).mkdir(parents=True)
        part.to_parquet(root / "default" / name / "0000.parquet")
    return root


def plain_parquet(root: Path) -> Path:
    """Write Parquet files without the library's own description, as other programs do."""
    import pyarrow.parquet

    root.mkdir()
    for name, part in divided().items():
        table = part.data.table.replace_schema_metadata(None)
        pyarrow.parquet.write_table(table, root / f"{name}.parquet")
    (root / "classes.txt").write_text("red cat\ndog\n")
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "save_to_disk": saved,
    "hub": of_the_hub,
    "converted": converted,
    "plain": plain_parquet,
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_is_read_checked_trained_on_and_scored(kind: str, tmp_path: Path) -> None:
    root = LAYOUTS[kind](tmp_path / "data")
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    assert find_hf(root).splits == ("train", "val", "test", "ood_fog")
    train = open_dataset("hf", "train", root)
    assert (train.name, train.classes, train.captioned) == ("hf", ("red cat", "dog"), False)
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert train.image(3)[:, 0, 0].tolist() == [3, 252, 60]
    assert len(open_dataset("hf", "train", root, shots=1)) == 2
    assert templates_for("hf", root) == ("a photo of a {}.",)

    found = check(root, decode=True, duplicates=True)
    assert found.good, found.faults
    assert [(part.name, part.split, part.pictures) for part in found.parts] == [
        ("hf", "train", 6), ("hf", "val", 4), ("hf", "test", 4), ("hf", "ood_fog", 2),
    ]  # fmt: skip

    random_clip(0).export_open_clip(tmp_path / "clip")
    changes = (
        f"model.name=local-dir:{tmp_path / 'clip'}",
        "model.weights=null",
        "data.name=hf",
        f"data.root={root}",
        "optim.epochs=null",
        "optim.steps=1",
        "optim.batch_size=4",
    )
    run = training.train(load_recipe("own/flyp", changes), tmp_path / "run")
    assert run.finished
    scores = evaluate(run, of_task("hf") or "", root=root)
    assert [(name, entry["n"]) for name, entry in scores.splits.items()] == [("id", 4), ("fog", 2)]
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*")} == before


def test_one_split_is_what_it_says_or_holds_a_part_out(tmp_path: Path) -> None:
    labelled(10).save_to_disk(tmp_path / "undivided")
    train, val = (open_dataset("hf", split, tmp_path / "undivided") for split in ("train", "val"))
    assert np.bincount(train.labels).tolist() == [4, 4]
    assert np.bincount(val.labels).tolist() == [1, 1]
    sets = [{one.image(row).numpy().tobytes() for row in range(len(one))} for one in (train, val)]
    assert len(sets[0]) == 8
    assert not sets[0] & sets[1]
    assert [one.split for one in suite("hf", tmp_path / "undivided").splits] == ["val"]
    test = datasets.Dataset.from_dict(labelled(4).to_dict(), features=FEATURES, split="test")
    test.save_to_disk(tmp_path / "test")
    assert find_hf(tmp_path / "test").splits == ("test",)
    labelled(2).save_to_disk(tmp_path / "two")
    assert "none has two" in refusal(tmp_path / "two", "val")


def test_captions_of_one_text_and_of_lists(tmp_path: Path) -> None:
    pictures = [png(row) for row in range(3)]
    texts = ["a cat", "a  dog", "a cat"]
    datasets.Dataset.from_dict({"jpg": pictures, "txt": texts, "text": texts}).save_to_disk(
        tmp_path / "one"
    )
    data = open_dataset("hf", "train", tmp_path / "one")
    assert data.captioned
    assert set(data.classes) == {"a cat", "a dog"}
    lists = {"image": pictures, "caption": [["one", "two"], ["three"], ["four", " ", "five"]]}
    table = datasets.Dataset.from_dict(lists)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "several")
    data = open_dataset("hf", "train", tmp_path / "several")
    assert data.classes == ("one", "two", "three", "four", "five")
    assert data.labels.tolist() == [0, 0, 1, 2, 2]  # the picture, so its captions are positives
    assert texts_of(data).tolist() == [0, 1, 2, 3, 4]
    assert templates_for("hf", tmp_path / "several") == ("{}",)
    with pytest.raises(DataError, match="captions, no classes"):
        open_dataset("hf", "train", tmp_path / "several", shots=1)
    with pytest.raises(DataError, match="suite hf needs labels"):
        suite("hf", tmp_path / "several")
    found = check(tmp_path / "several", ["hf"], duplicates=True)
    assert [part.pictures for part in found.parts] == [3, 3]
    assert "3 pictures are in train and in test: row 0 = row 0" in found.faults[0]


def test_captions_of_one_picture_are_held_out_together(tmp_path: Path) -> None:
    captions = [[f"caption {word} of {row}" for word in range(7)] for row in range(12)]
    table = datasets.Dataset.from_dict(
        {"image": [png(row) for row in range(12)], "caption": captions}
    )
    table.save_to_disk(tmp_path / "data")
    sides = [open_dataset("hf", split, tmp_path / "data") for split in ("train", "val")]
    rows = [side.listing.rows.tolist() for side in sides]
    assert len(rows[0]) + len(rows[1]) == 12 * 7
    assert rows[1]
    assert not set(rows[0]) & set(rows[1])


def test_texts_paths_and_other_names_of_columns(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    rows = {
        "file_name": [f"{number}.png" for number in range(4)],
        "category": ["dog", "cat", "cat", "dog"],
        "caption": ["w", "x", "y", "z"],
    }
    train = datasets.Dataset.from_dict(rows, split="train")
    train.save_to_disk(tmp_path / "saved")
    for name in ("state.json", "dataset_info.json"):
        shutil.move(tmp_path / "saved" / name, tmp_path / name)
    shutil.move(next((tmp_path / "saved").glob("*.arrow")), tmp_path)
    data = open_dataset("hf", "train", tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [1, 0, 0, 1]
    assert data.image(2)[0, 0, 0] == 2
    (tmp_path / "2.png").unlink()
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"row 2: cannot read the picture 2\.png"):
        data.image(2)
    with pytest.raises(DataError, match="cannot read the picture row 3 of split train"):
        data.image(3)
    assert "2 files are damaged: row 2, row 3" in check(tmp_path, ["hf"], decode=True).faults[0]
    fine = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=list(NAMES)),
            "coarse_label": datasets.ClassLabel(names=["animal", "plant"]),
        }
    )
    both = {"img": [png(0), png(1)], "fine_label": [0, 1], "coarse_label": [0, 0]}
    datasets.Dataset.from_dict(both, features=fine, split="train").save_to_disk(tmp_path / "fine")
    assert open_dataset("hf", "train", tmp_path / "fine").classes == ("red cat", "dog")


def refusal(root: Path, split: str = "train") -> str:
    """Return the paragraph that opening a split ends with."""
    with pytest.raises(DataError) as caught:
        open_dataset("hf", split, root)
    message = str(caught.value)
    assert "\n" not in message
    assert message[-1] in ".?"
    return message


TWO = [{"bytes": png(0), "path": None}, {"bytes": png(1), "path": None}]
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no pictures": (
        {"url": ["https://a/b.jpg"] * 2, "label": ["a", "b"]},
        {},
        "no column holds pictures; its columns are url (string), label (string)",
    ),
    "addresses": (
        {"image": ["https://a/b.jpg"] * 2, "label": ["a", "b"]},
        {},
        "is the address https://a/b.jpg, and perdure downloads nothing",
    ),
    "no labels": (
        {"image": [png(0), png(1)], "size": [1.0, 2.0]},
        {},
        "no column holds labels or captions; its columns are image (binary), size (float64)",
    ),
    "numbers": ({"image": [png(0), png(1)], "label": [0, 1]}, {}, "are numbers (0, 1)"),
    "one class": ({"image": [png(0), png(1)], "label": ["a", "a"]}, {}, "has one class, 'a'"),
    "two names": ({"image": [png(0), png(1)], "label": ["cat", "Cat"]}, {}, "two classes"),
    "empty label": ({"image": [png(0), png(1)], "label": ["cat", None]}, {}, "row 1: label is em"),
    "blank label": (
        {"image": [png(0), png(1), png(2)], "label": ["cat", "dog", " "]},
        {},
        "row 2: label is em",
    ),
    "empty caption": ({"image": [png(0), png(1)], "text": ["x", " "]}, {}, "row 1: text is empty"),
    "two pictures": (
        {"left": TWO, "right": TWO, "label": ["a", "b"]},
        {"left": datasets.Image(), "right": datasets.Image(), "label": datasets.Value("string")},
        "left and right may all be the pictures; rename the one that is meant to 'image'",
    ),
    "two labels": (
        {"image": TWO, "genus": [0, 1], "order": [0, 1]},
        {
            "image": datasets.Image(),
            "genus": datasets.ClassLabel(names=list(NAMES)),
            "order": datasets.ClassLabel(names=list(NAMES)),
        },
        "genus and order may all be the labels",
    ),
    "hidden": ({"image": TWO, "label": [-1, -1]}, FEATURES, "its labels are hidden (all are -1)"),
    "out of range": ({"image": TWO, "label": [0, -1]}, FEATURES, "row 1: label is -1; 2 classes"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_columns_that_are_wrong(kind: str, tmp_path: Path) -> None:
    columns, features, reason = WRONG[kind]
    declared = datasets.Features(features) if features else None
    table = datasets.Dataset.from_dict(columns, features=declared, split="train")
    table.save_to_disk(tmp_path / "data")
    if kind == "addresses":
        with pytest.raises(DataError) as caught:
            open_dataset("hf", "train", tmp_path / "data").image(0)
        assert reason in str(caught.value)
    else:
        assert reason in refusal(tmp_path / "data")


def test_a_test_set_with_hidden_labels_is_not_scored(tmp_path: Path) -> None:
    parts = divided()
    hidden = {"image": TWO, "label": [-1, -1]}
    parts["test"] = datasets.Dataset.from_dict(hidden, features=FEATURES)
    parts.save_to_disk(tmp_path / "data")
    assert suite("hf", tmp_path / "data").splits[0].split == "val"
    splits = [part.split for part in check(tmp_path / "data").parts]
    assert splits == ["train", "val", "ood_fog"]
    assert [one.classes for one in suite("base-to-novel-hf", tmp_path / "data").splits] == [
        "base", "novel",
    ]  # fmt: skip


def test_copies_that_are_not_whole(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no data set of the datasets library" in refusal(tmp_path / "empty")
    root = of_the_hub(tmp_path / "hub")
    (root / "data/train-00001-of-00002.parquet").unlink()
    assert "1 Parquet files of split train, but their names count 2" in refusal(root)
    root = saved(tmp_path / "saved")
    assert "did you mean 'test'?" in refusal(root, "tset")
    arrow = next((root / "train").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    assert "cannot read split train" in refusal(root)
    (root / "train/state.json").unlink()
    assert "lacks split train, which dataset_dict.json lists" in refusal(root)
    (root / "dataset_dict.json").write_text("[")
    assert "is not the JSON that save_to_disk writes" in refusal(root)
    assert "is not the JSON" in check(root, ["hf"]).faults[0]
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["val", "validation"]}))
    (root / "val").mkdir()
    (root / "val/state.json").write_text("{}")
    assert "has split 'val' twice" in refusal(root)
    (tmp_path / "hub/data").rename(tmp_path / "hub/x")
    parquet = tmp_path / "hub/train.parquet"
    parquet.write_bytes(b"PAR1 and nothing else")
    shutil.rmtree(tmp_path / "hub/x")
    assert "cannot read split train" in refusal(tmp_path / "hub")


def test_the_library_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = saved(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DependencyError, match=r"needs the package datasets.*perdure\[hf\]"):
        open_dataset("hf", "train", root)
    assert "pip install 'perdure[hf]'" in check(root).faults[0]


def test_checks_of_files_import_no_torch(tmp_path: Path) -> None:
    root = saved(tmp_path / "data")
    code = (
        "import sys; from pathlib import Path; from perdure.data.check import check;"
        "assert check(Path(sys.argv[1]), decode=True).good; assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code, str(root)]).returncode == 0


def test_captions_are_searched_and_their_files_are_known(tmp_path: Path) -> None:
    texts = [["a cat", f"cat {name}"] for name in "abc"]
    rows = {"image": [png(one) for one in range(3)], "caption": texts}
    parts = {name: datasets.Dataset.from_dict(rows) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    scores = evaluate(random_clip(0), "retrieval", root=tmp_path)
    assert {name: entry["n"] for name, entry in scores.splits.items()} == {
        "hf_image_to_text": 3, "hf_text_to_image": 6,
    }  # fmt: skip
    files = files_of(open_dataset("hf", "test", tmp_path))
    assert files is not None
    assert [file.suffix for file in files] == [".arrow"]


@pytest.mark.parametrize("write", [saved, of_the_hub])
def test_pixels_are_kept_and_read_again(
    tmp_path: Path, write: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, kept = write(tmp_path / "data"), tmp_path / "kept"

    def read(cache: Path | None, split: str = "train") -> torch.Tensor:
        data = open_dataset("hf", split, root)
        return torch.cat(list(eval_batches(data, random_clip().preprocess, 4, cache=cache)))

    plain = read(None)
    assert torch.equal(read(kept), plain)
    monkeypatch.setattr(hf_pictures, "decode", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(read(kept), plain)
    monkeypatch.undo()
    assert not torch.equal(read(kept, "test"), plain[:4])
    assert len(list(kept.iterdir())) == 2


def test_pictures_beside_the_table_count_among_what_is_kept(tmp_path: Path) -> None:
    for row in range(4):
        (tmp_path / f"{row}.png").write_bytes(png(row))
    columns = {
        "image": [{"bytes": None, "path": f"{row}.png"} for row in range(3)]
        + [{"bytes": png(9), "path": "3.png"}],
        "label": [0, 1, 0, 1],
    }
    (tmp_path / "data").mkdir()
    table = datasets.Dataset.from_dict(columns, features=FEATURES).data.table
    # The library's own writers would take the files in.
    parquet.write_table(table, tmp_path / "data" / "test-00000-of-00001.parquet")
    data = open_dataset("hf", "test", tmp_path)
    listing = data.listing
    outside = list(files_outside(listing.table, listing.columns.image, listing.base))
    assert outside == [tmp_path / f"{row}.png" for row in range(3)]
    before = source_of(data)
    os.utime(tmp_path / "1.png", ns=(1, 1))
    assert source_of(open_dataset("hf", "test", tmp_path)) != before
