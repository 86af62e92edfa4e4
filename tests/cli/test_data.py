"""The verbs of `perdure data` on small copies of data sets."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from perdure.console import tally
from tests import asking, layouts, pixels

from .conftest import Perdure


def test_check_lists_what_is_there_and_ends_with_one_where_something_is_wrong(
    perdure: Perdure, tmp_path: Path
) -> None:
    layouts.coop(tmp_path, "dtd")
    good = perdure("data", "check", tmp_path, "--decode", "--duplicates", "--set", "dtd")
    assert "pictures are in train" in good.out  # the copies share four colours
    good = perdure("data", "check", tmp_path)
    assert good.code == 0
    assert "Nothing is wrong." in good.out
    assert "Remark: dtd, train: 8 pictures, but a whole copy is said to have 2,820." in good.out
    (tmp_path / "dtd/images/val-bus-0.jpg").unlink()
    bad = perdure("data", "check", tmp_path, "--json")
    assert bad.code == 1
    document = json.loads(bad.out)
    assert document["faults"] == ["dtd, val: 1 files are not there: val-bus-0.jpg."]
    assert [part["split"] for part in document["parts"]] == ["train", "val", "test"]


def test_where_nothing_is_found_it_is_said(perdure: Perdure, tmp_path: Path) -> None:
    sheet = ("sheet", "nowhere", "--out", "sheet.png")
    for arguments in (("check", "nowhere"), ("stats", "nowhere"), sheet):
        answer = perdure("data", *arguments)
        assert answer.code == 2
        assert answer.out == ""
        assert "cannot read nowhere" in " ".join(answer.err.split())
        assert "None" not in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_suite_names_what_must_be_there(perdure: Perdure, tmp_path: Path) -> None:
    layouts.iwildcam(tmp_path)
    answer = perdure("data", "check", tmp_path, "--suite", "imagenet-shift")
    assert answer.code == 1
    assert "imagenet: nothing of it is below" in answer.out
    assert perdure("data", "check", tmp_path / "none").code in (1, 2)
    refused = perdure("data", "check", tmp_path, "--set", "iwildcm").err
    assert "did you mean 'iwildcam'?" in " ".join(refused.split())


def test_a_model_is_asked(perdure: Perdure, model: str, tmp_path: Path) -> None:
    layouts.iwildcam(tmp_path)
    answer = perdure("data", "check", tmp_path, "--set", "iwildcam", "--model", model)
    assert "zero-shot, iwildcam train" in answer.out
    assert "chance 33.3 %" in answer.out


def test_pictures_that_are_in_no_files_of_their_own(perdure: Perdure, tmp_path: Path) -> None:
    shard = layouts.shard(
        tmp_path / "shards/train/0.tar",
        [{"jpg": layouts.JPEGS[number], "txt": f"text {number}".encode()} for number in range(3)],
    )
    layouts.shard(tmp_path / "shards/test/0.tar", [{"jpg": layouts.JPEGS[0], "txt": b"again"}])
    answer = perdure("data", "check", tmp_path / "shards", "--decode")
    assert (answer.code, "wds" in answer.out) == (0, True)
    rows = json.loads(perdure("data", "stats", tmp_path / "shards", "--json").out)
    assert [(row["split"], row["pictures"]) for row in rows] == [("test", 1), ("train", 3)]
    assert perdure("data", "sheet", tmp_path / "shards", "--out", "a.png").code == 0
    twice = perdure("data", "check", tmp_path / "shards", "--duplicates", "--set", "wds")
    assert "pictures are in train and in test: 0.tar/000000 = 0.tar/000000" in twice.out
    shard.write_bytes(shard.read_bytes()[:700])
    assert "is damaged behind" in perdure("data", "check", tmp_path / "shards").out
    rows = {"image": [*layouts.JPEGS, b"?"], "label": ["cat", "dog", "cat", "dog", "cat"]}
    table = datasets.Dataset.from_dict(rows, split="train")
    table.save_to_disk(tmp_path / "saved")
    answer = perdure("data", "check", tmp_path / "saved", "--decode", "--json")
    assert json.loads(answer.out)["faults"] == ["hf, train: 1 files are damaged: row 4."]
    table.select(range(4)).save_to_disk(tmp_path / "whole")
    assert "pictures 4" in perdure("data", "stats", tmp_path / "whole").out
    assert perdure("data", "sheet", tmp_path / "whole", "--out", "b.png").code == 0
    assert (tmp_path / "b.png").is_file()


def test_stats_sheet_and_compact(perdure: Perdure, tmp_path: Path) -> None:
    layouts.coop(tmp_path, "ucf101")
    rows = json.loads(perdure("data", "stats", tmp_path, "--json").out)
    assert [row["pictures"] for row in rows] == [8, 8, 8]
    assert "classes 4" in perdure("data", "stats", tmp_path).out
    assert "Wrote" in perdure("data", "sheet", tmp_path, "--out", "sheet.png").out
    assert (tmp_path / "sheet.png").is_file()
    (tmp_path / "big.csv").write_text("title,filepath,label\na,x.jpg,cat\nb,x.jpg,cat\n")
    done = perdure("data", "compact", "big.csv", "--out", "small.csv")
    assert done.out == "Wrote small.csv: 1 pictures of 1 classes, from 2 rows\n"
    assert (tmp_path / "small.csv").read_text().split() == ["filepath,label", "x.jpg,cat"]


def test_labelled_pixels_regions_and_questions(perdure: Perdure, tmp_path: Path) -> None:
    pixels.names_of(pixels.write(tmp_path, "pas20"), "pas20")
    answer = perdure("data", "check", tmp_path, "--suite", "segmentation", "--decode")
    assert (answer.code, "Nothing is wrong." in answer.out) == (0, True)
    (row,) = (line for line in answer.out.splitlines() if line.startswith("pas20"))
    assert row.split() == ["pas20", "test", "2", "2", "1449", "20", "0", "0"]
    asking.own(tmp_path, asking.ASKED)
    answer = perdure("data", "check", tmp_path, "--suite", "vqa", "--json")
    assert [part["classes"] for part in json.loads(answer.out)["parts"]] == [""]
    pixels.regions(tmp_path)
    rows = json.loads(perdure("data", "stats", tmp_path, "--json").out)
    assert [row["name"] for row in rows] == ["pas20", "regions", "vqa"]
    assert (rows[1]["nouns"], rows[2]["questions"]) == (2, 1)
    assert "pixels_labelled 0.75" in perdure("data", "stats", tmp_path, "--set", "pas20").out
    assert perdure("data", "sheet", tmp_path, "--out", "sheet.png").code == 0
    (tmp_path / "proposals/pas20/first.npz").unlink()
    bad = perdure("data", "check", tmp_path, "--set", "pas20")
    assert (bad.code, "1 images have no proposals in" in bad.out) == (1, True)


def test_retrieval_asks_for_whichever_captions_are_there(perdure: Perdure, tmp_path: Path) -> None:
    layouts.flickr(tmp_path, "karpathy")
    answer = perdure("data", "check", tmp_path, "--suite", "retrieval")
    assert (answer.code, "coco" in answer.out) == (0, False)
    table = tmp_path / "own/test.csv"
    layouts.picture(table.with_name("a.jpg"))
    table.write_text("filepath,caption\na.jpg,a cat\n")
    answer = perdure("data", "check", table.parent, "--suite", "retrieval")
    assert (answer.code, "own" in answer.out) == (0, True)


def _is_file(place: Path) -> Path:
    place.write_text("hello")
    return place


REFUSED = {
    "nothing there": lambda place: place,
    "below a file": lambda place: _is_file(place) / "more",
    "no table": _is_file,
    "name too long": lambda place: place / ("x" * 300),
    "path too long": lambda place: place / ("x/" * 3000),
    "empty table": lambda place: _is_file(place.with_suffix(".csv")),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("verb", ["check", "stats", "sheet", "compact"])
def test_places_that_hold_no_data(perdure: Perdure, tmp_path: Path, verb: str, kind: str) -> None:
    place = REFUSED[kind](tmp_path / "given")
    if kind == "empty table":
        place.write_text("")
    before = sorted(tmp_path.iterdir())
    out = ("--out", "out.png") if verb in ("sheet", "compact") else ()
    answer = perdure("data", verb, place, *out)
    if (verb, kind) == ("check", "empty table"):  # it is there and wrong, which check is about
        assert answer.code == 1
        assert "Wrong: own: " in answer.out
    else:
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.count("Error: ") == 1
        assert "Traceback" not in answer.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("verb", ["check", "stats", "sheet", "compact"])
def test_places_that_may_not_be_read(
    perdure: Perdure, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rights of files do not bind the administrator, so the system's answer is played."""
    place = tmp_path / "given"
    place.mkdir()
    table = place / "train.csv"
    table.write_text("filepath,label\na.jpg,cat\n")

    def refuse(self: Path, *_where: object, **_how: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    out = ("--out", "out.png") if verb in ("sheet", "compact") else ()
    monkeypatch.setattr("os.access", lambda *_: False)
    answer = perdure("data", verb, table if verb == "compact" else place, *out)
    assert (answer.code, answer.out) == (2, "")
    assert "is not readable" in " ".join(answer.err.split())
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    if verb != "compact":  # a folder somewhere below
        monkeypatch.setattr(Path, "is_dir", refuse)
        answer = perdure("data", verb, place, *out)
        assert (answer.code, answer.out) == (2, "")
        assert "(Permission denied); check its rights" in " ".join(answer.err.split())
    assert sorted(tmp_path.iterdir()) == [place]


def test_one_row_is_enough_where_captions_are_counted(perdure: Perdure, tmp_path: Path) -> None:
    layouts.picture(tmp_path / "own/a.jpg")
    root, table = tmp_path / "own", tmp_path / "own/test.csv"
    table.write_text("filepath,caption\na.jpg,a cat\n")
    assert perdure("data", "check", root).code == 0
    assert "captions 1, pictures 1" in perdure("data", "stats", root).out
    assert perdure("data", "sheet", root, "--out", "one.png").code == 0
    table.write_text("filepath,label\na.jpg,cat\n")
    answer = perdure("data", "stats", table)
    assert (answer.code, answer.out) == (2, "")
    assert "there is nothing to look at" in answer.err
    assert "has one class, 'cat'" in " ".join(answer.err.split())
    done = perdure("data", "compact", table, "--out", "small.csv", "--json")
    assert json.loads(done.out) == {"rows": 1, "pictures": 1, "classes": 1}


def test_a_table_is_not_replaced_by_its_smaller_copy(perdure: Perdure, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("title,filepath,label\na,x.jpg,cat\nb,x.jpg,cat\n")
    before = table.read_text()
    for out in ("t.csv", table, "./t.csv"):
        answer = perdure("data", "compact", "t.csv", "--out", out)
        assert (answer.code, answer.out) == (2, "")
        assert "would be replaced by its smaller copy" in " ".join(answer.err.split())
    assert table.read_text() == before


def test_outputs_that_cannot_be_written(perdure: Perdure, tmp_path: Path) -> None:
    layouts.coop(tmp_path / "data", "dtd")
    (tmp_path / "t.csv").write_text("filepath,label\nx.jpg,cat\n")
    (tmp_path / "folder").mkdir()
    for out in ("folder", "t.csv/out.png", "x" * 300):
        for verb, place in (("sheet", "data"), ("compact", "t.csv")):
            answer = perdure("data", verb, place, "--out", out)
            assert (answer.code, answer.out) == (2, "")
            assert "cannot write" in answer.err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["data", "folder", "t.csv"]
    assert list((tmp_path / "folder").iterdir()) == []


def test_what_is_left_of_a_broken_copy_is_counted_with_a_remark(
    perdure: Perdure, tmp_path: Path
) -> None:
    layouts.coop(tmp_path, "dtd")
    (tmp_path / "dtd/images/val-bus-0.jpg").unlink()
    answer = perdure("data", "stats", tmp_path, "--json")
    assert len(json.loads(answer.out)) == 3
    assert "Wrong: dtd, val: 1 files are not there: val-bus-0.jpg." in answer.err


def test_files_are_counted_while_they_are_looked_at() -> None:
    said: list[tuple[str, str]] = []

    class Shown:
        def describe(self, phase: str, detail: str = "") -> None:
            said.append((phase, detail))

        def advance(self, amount: float) -> None:
            assert amount == 0  # how many there will be is not known

    count = tally(Shown(), "looking", every=50)
    for _ in range(120):
        count(1)
    count(1_000)
    assert said == [("looking", "50"), ("looking", "100"), ("looking", "1,120")]
