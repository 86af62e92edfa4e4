"""Own data: layouts as people have them, pictures as cameras write them, and every refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perdure.data.compact import compact
from perdure.data.datasets import group_names_of, open_dataset, rows_of, templates_for
from perdure.data.folders import PICTURES
from perdure.data.layout import find_own
from perdure.data.own import decode, unlabelled
from perdure.data.suites import suite
from perdure.data.tables import read_table
from perdure.errors import DataError
from perdure.evaluation import evaluate
from perdure.zoo import random_clip


def draw(file: Path, value: int = 0) -> Path:
    """Write a small grey picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (value, value, value)).save(file)
    return file


def folders(root: Path, *splits: str, names: tuple[str, ...] = ("cat", "red_dog")) -> Path:
    """Write two pictures per class and split."""
    for split in splits:
        for name in names:
            draw(root / split / name / "0.png")
            draw(root / split / name / "1.jpeg")
    return root


def table(root: Path, text: str, name: str = "train.csv") -> Path:
    """Write a table and the pictures a.png, b.png, c.png, d.png beside it."""
    for picture in "abcd":
        draw(root / f"{picture}.png")
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def refusal(root: Path, split: str = "train") -> str:
    """Return the paragraph that opening a split ends with."""
    with pytest.raises(DataError) as caught:
        open_dataset("own", split, root)
    message = str(caught.value)
    assert "\n" not in message
    assert message[-1] in ".?"
    return message


def test_folders_are_splits_of_classes_by_name(tmp_path: Path) -> None:
    root = folders(tmp_path, "train", "test", "ood_fog")
    draw(root / "ood_snow" / "red_dog" / "deep" / "x.webp", 200)
    draw(root / "validation" / "cat" / "x.BMP")
    (root / "runs").mkdir()
    (root / "train" / ".DS_Store").write_text("")
    assert find_own(root).splits == ("train", "val", "test", "ood_fog", "ood_snow")
    data = open_dataset("own", "train", root)
    assert data.classes == ("cat", "red dog")
    assert data.labels.tolist() == [0, 0, 1, 1]
    snow = open_dataset("own", "ood_snow", root)
    assert snow.labels.tolist() == [1]
    assert snow.classes == data.classes
    assert snow.image(0).shape == (3, 3, 4)
    own = suite("own", root)
    assert [(one.name, one.role, one.split) for one in own.splits] == [
        ("id", "id", "test"),
        ("fog", "ood", "ood_fog"),
        ("snow", "ood", "ood_snow"),
    ]
    assert suite("own", root).definition == own.definition
    draw(root / "ood_fog" / "cat" / "2.png")
    assert suite("own", root).definition != own.definition


def test_undivided_folders_hold_out_a_part_that_stays_the_same(tmp_path: Path) -> None:
    for name in ("bus", "train", "one"):
        for number in range(1 if name == "one" else 20):
            draw(tmp_path / name / f"{number}.png")
    train, val = (open_dataset("own", split, tmp_path) for split in ("train", "val"))
    assert train.classes == val.classes == ("bus", "one", "train")
    assert np.bincount(train.labels).tolist() == [16, 1, 16]
    assert np.bincount(val.labels).tolist() == [4, 0, 4]
    files = [set(find_own(tmp_path).listing(split).files.tolist()) for split in ("train", "val")]
    assert not files[0] & files[1]
    assert set(find_own(tmp_path).listing("val").files.tolist()) == files[1]


def test_single_pictures_leave_nothing_to_hold_out(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        draw(tmp_path / name / "1.png")
    assert len(open_dataset("own", "train", tmp_path)) == 2
    assert "'val'" in (message := refusal(tmp_path, "val"))
    assert "none has two" in message


def test_shots_are_a_seeded_subset(tmp_path: Path) -> None:
    for name in ("a_b", "c"):
        for number in range(10 if name == "c" else 2):
            draw(tmp_path / "train" / name / f"{number}.png", number)
    few = open_dataset("own", "train", tmp_path, shots=3, seed=1)
    assert few.labels.tolist() == [0, 0, 1, 1, 1]
    values = [[int(one.image(index)[0, 0, 0]) for index in range(5)] for one in (
        few,
        open_dataset("own", "train", tmp_path, shots=3, seed=1),
        open_dataset("own", "train", tmp_path, shots=3, seed=2),
    )]  # fmt: skip
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "filepath,label\na.png,cat\nb.png,cat\n\nc.png,dog\nd.png,dog\n"),
        ("a.tsv", "label\tpath\r\ncat\ta.png\r\ncat\tb.png\r\ndog\tc.png\r\ndog\td.png\r\n"),
        ("a.csv", '"Image";"Class";"note"\na.png;cat;"x;y"\nb.png;cat;\nc.png;dog;\nd.png;dog;'),
        (
            "a.jsonl",
            "\n".join(
                f'{{"filepath": "{picture}.png", "label": "{name}", "box": [1, 2]}}'
                for picture, name in zip("abcd", ("cat", "cat", "dog", "dog"), strict=True)
            ),
        ),
    ],
)
def test_tables_of_any_separator_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    file = table(tmp_path, text, name)
    train, val = (open_dataset("own", split, file) for split in ("train", "val"))
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == val.labels.tolist() == [0, 1]


def test_a_column_says_the_split(tmp_path: Path) -> None:
    file = table(
        tmp_path,
        "filepath,label,caption,split\na.png,0,x,train\nb.png,1,x,train\n"
        "c.png,dog,x,valid\nd.png,1,x,ood_far\n",
    )
    (tmp_path / "classes.txt").write_text("black cat\ndog\n")
    assert find_own(file).splits == ("train", "val", "ood_far")
    assert open_dataset("own", "train", file).classes == ("black cat", "dog")
    assert open_dataset("own", "val", file).labels.tolist() == [1]
    assert [one.name for one in suite("own", file).splits] == ["id", "far"]


def test_captions_are_their_own_classes(tmp_path: Path) -> None:
    table(tmp_path, "filepath,caption\na.png,a cat\nb.png,a dog\nc.png,a cat\n")
    data = open_dataset("own", "train", tmp_path)
    assert data.classes == ("a cat", "a dog")
    assert data.labels.tolist() == [0, 1, 0]
    assert templates_for("own", tmp_path) == ("{}",)
    with pytest.raises(DataError, match="has captions, no classes"):
        open_dataset("own", "train", tmp_path, shots=2)


def test_captions_of_one_picture_are_on_one_side(tmp_path: Path) -> None:
    rows = [f"{name}.png,caption {word} of {name}" for name in "abcdefghijkl" for word in range(7)]
    for name in "efghijkl":
        draw(tmp_path / f"{name}.png")
    file = table(tmp_path, "filepath,caption\n" + "\n".join(rows) + "\n")
    sides = [open_dataset("own", split, file).files.tolist() for split in ("train", "val")]
    assert len(sides[0]) + len(sides[1]) == len(rows)
    assert sides[1]
    assert not set(sides[0]) & set(sides[1])


@pytest.mark.parametrize(
    ("lines", "classes"),
    [
        ("red_dog\tfire hound\ncat\ttabby", ("fire hound", "tabby")),
        ("tabby\nfire hound\n", ("tabby", "fire hound")),
        ("red_dog\ncat", ("red dog", "cat")),
    ],
)
def test_classes_have_readable_names(tmp_path: Path, lines: str, classes: tuple[str, ...]) -> None:
    root = folders(tmp_path, "train")
    (root / "classes.txt").write_text(lines)
    (root / "templates.txt").write_text("a {}.\n\none {}\n")
    data = open_dataset("own", "train", root)
    assert data.classes == classes
    assert data.labels.tolist() == ([1, 1, 0, 0] if "red" in lines else [0, 0, 1, 1])
    assert templates_for("own", root) == ("a {}.", "one {}")


def test_pictures_are_upright_rgb_of_eight_bits(tmp_path: Path) -> None:
    wide = Image.new("RGB", (4, 2), (10, 20, 30))
    turned = wide.getexif()
    turned[0x0112] = 6
    wide.save(tmp_path / "turned.jpg", exif=turned)
    assert decode(tmp_path / "turned.jpg").shape == (3, 4, 2)
    Image.new("P", (2, 2)).save(tmp_path / "palette.png")
    Image.fromarray(np.full((2, 2), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert decode(tmp_path / "palette.png").shape == (3, 2, 2)
    deep = decode(tmp_path / "deep.png")
    assert deep.dtype == torch.uint8
    assert deep.unique().tolist() == [40_000 // 256]


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(256, size=(20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    for name, content in (
        ("cut.png", (tmp_path / "whole.png").read_bytes()[:700]),
        ("text.jpg", b"hello"),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("empty.webp", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"cannot read the picture .*{name}"):
            decode(tmp_path / name)
    with pytest.raises(DataError, match=r"gone\.png"):
        decode(tmp_path / "gone.png")


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    assert "cannot read the directory" in refusal(tmp_path / "nowhere")
    assert "is empty" in refusal(tmp_path)
    root = folders(tmp_path / "data", "train", "ood_fog")
    assert "has no split 'val'; found: train, ood_fog" in refusal(root, "val")
    assert "did you mean 'ood_fog'?" in refusal(root, "ood_frog")
    with pytest.raises(DataError, match="neither split test nor val"):
        suite("own", root)
    (root / "train" / "owl").mkdir()
    (root / "train" / "owl" / "x.pdf").write_text("")
    assert "class 'owl' is empty" in refusal(root)
    assert ".pdf" in refusal(root)
    folders(root, "ood_fog", names=("cta",))
    assert "'cta' is no class" in refusal(root, "ood_fog")
    assert "did you mean 'cat'?" in refusal(root, "ood_fog")
    folders(root, "Test")
    assert "holds 'Test', which is no name of a split" in refusal(root)
    (root / "Test").rename(root / "ood")
    assert "holds 'ood'" in refusal(root)
    one = folders(tmp_path / "nested" / "images", "train")
    assert "has one class, 'images'" in refusal(one.parent)
    numbers = folders(tmp_path / "digits", "train", names=("0", "1"))
    assert "are numbers (0, 1)" in refusal(numbers)
    same = folders(tmp_path / "same", "train", names=("red_dog", "Red dog"))
    assert "two classes" in refusal(same)
    (tmp_path / "data.zip").write_text("")
    assert "allowed endings: .csv, .tsv, .jsonl" in refusal(tmp_path / "data.zip")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filepath label\na.png cat\n", "no separator that perdure knows"),
        ("file_pth,label\na.png,cat\n", "did you mean 'file_path'?"),
        ("filepath,lable\na.png,cat\n", "did you mean 'label'?"),
        ("filepath,label\na.png,cat,dog\n", "line 2: 3 values, but the header has 2"),
        ("filepath,label\na.png,\n", "line 2: label is empty"),
        ("filepath,label\n", "has a header but no row"),
        ("filepath,label,label\na.png,x,y\n", "column 'label' twice"),
        ('filepath,label\n"a.png,cat\n', "unexpected end of data"),
        ("filepath,label\na.png,cat\nz.png,dog\n", "line 3: there is no file"),
        ("filepath,label,split\na.png,cat,trian\n", "did you mean 'train'?"),
        ("filepath,label,split\na.png,cat,val\n", "the name of the file says train"),
        ("filepath,label\na.png,0\nb.png,1\n", "are numbers (0, 1)"),
        ("filepath,label\na.png,cat\nb.png,Cat\n", "two classes"),
        ("", "is empty"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(table(tmp_path, text).parent)


def test_labels_out_of_range_and_classes_without_pictures_are_refused(tmp_path: Path) -> None:
    file = table(tmp_path, "filepath,label\na.png,0\nb.png,2\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert "line 3: label 2 is out of range" in refusal(tmp_path)
    file.write_text("filepath,label\na.png,0\nb.png,-1\n")
    assert "label -1 is out of range" in refusal(tmp_path)
    file.write_text("filepath,label\na.png,0\nb.png,0\n")
    assert "class 'dog' has no picture" in refusal(tmp_path)
    for text, message in (
        ("\n", "is empty"),
        ("0\tcat\ndog\n", "every line is 'folder<TAB>name'"),
    ):
        (tmp_path / "classes.txt").write_text(text)
        assert message in refusal(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n")
    assert "is not UTF-8 text: byte 3 is 0xe9" in refusal(tmp_path)
    root = folders(tmp_path / "folders", "train")
    (root / "classes.txt").write_text("a\nb\nc\n")
    assert "has 3 names, but" in refusal(root)
    (root / "templates.txt").write_text("a photo of a {}\na photo\n")
    with pytest.raises(DataError, match="line 2 is 'a photo'"):
        templates_for("own", root)


def test_a_table_beside_folders_is_not_passed_over(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "x.png")
    table(tmp_path, "filepath,label\na.png,cat\n", "labels.csv")
    assert "holds the table labels.csv" in refusal(tmp_path)
    twice = folders(tmp_path / "twice", "train")
    table(twice, "filepath,label\na.png,cat\n")
    assert "has split 'train' twice" in refusal(twice)


def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .* \(Is a directory\)"):
        read_table(tmp_path)
    if os.geteuid():  # root may read everything
        file = table(tmp_path, "filepath,label\na.png,cat\n")
        file.chmod(0)
        assert f"cannot read {file} (Permission denied)" in refusal(tmp_path)


def test_finding_own_data_needs_no_torch(tmp_path: Path) -> None:
    root = folders(tmp_path, "train", "val")
    code = (
        "import sys; from pathlib import Path; from perdure.data.suites import suite; "
        f"assert suite('own', Path({str(root)!r})).splits; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("ending", PICTURES)
def test_every_ending_that_is_found_can_be_decoded(tmp_path: Path, ending: str) -> None:
    pixels = np.full((6, 8, 3), 255, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"white{ending}")
    picture = unlabelled([tmp_path / f"white{ending}"]).image(0)
    assert picture.shape == (3, 6, 8)
    assert int(picture.min()) > 250


def test_a_column_of_groups_gives_the_worst_of_them(tmp_path: Path) -> None:
    rows = [
        "filepath,label,group",
        "a.png,cat,day",
        "b.png,dog,night",
        "c.png,cat,",
        "d.png,dog,day",
    ]
    table(tmp_path, "\n".join(rows), "test.csv")
    table(tmp_path, "\n".join(rows))
    data = open_dataset("own", "test", tmp_path)
    assert rows_of(data, "groups").tolist() == [0, 1, -1, 0]
    assert group_names_of(data) == ("day", "night")
    scores = evaluate(random_clip(0), "own", root=tmp_path)["id"]
    assert set(scores["groups"]) == {"day", "night"}
    assert scores["worst_group_accuracy"] == min(scores["groups"].values())
    lines = '{"path": "a.png", "label": "cat", "group": 7}\n{"path": "b.png", "label": "dog"}\n'
    assert [row.group for row in read_table(table(tmp_path, lines, "x.jsonl")).rows] == ["7", ""]
    assert rows_of(open_dataset("own", "train", folders(tmp_path / "f", "train")), "groups") is None


MISSILES = (("a", "9", "missile"), ("b", "7", "bus"), ("c", "10", "missile"), ("d", "7", "bus"))
"""As in ImageNet, where two pairs of classes share a name"""


def prompted(rows: Sequence[tuple[str, str, str]]) -> str:
    """Return a table with two prompts per picture, number and name of its label."""
    lines = [
        f"{title} {name}.\t{picture}.png\t{number}\t{name}"
        for picture, number, name in rows
        for title in ("a photo of a", "a bad photo of a")
    ]
    return "\n".join(["title\tfilepath\tlabel_idx\tlabel_name", *lines]) + "\n"


def test_numbers_beside_names_tell_classes_apart(tmp_path: Path) -> None:
    table(tmp_path, prompted(MISSILES))
    opened = open_dataset("own", "train", tmp_path)
    assert opened.classes == ("bus", "missile", "missile")
    assert opened.labels.tolist() == [1, 1, 0, 0, 2, 2, 0, 0]
    done = compact(tmp_path / "train.csv", tmp_path / "small" / "train.csv")
    assert (done.rows, done.pictures, done.classes) == (8, 4, 3)
    small = open_dataset("own", "train", tmp_path / "small")
    assert small.classes == opened.classes
    assert small.labels.tolist() == [1, 0, 2, 0]
    # What is scored is scored once, however many prompts the table has.
    table(tmp_path, prompted(MISSILES), "test.csv")
    assert open_dataset("own", "test", tmp_path).labels.tolist() == [1, 0, 2, 0]
    table(tmp_path, "filepath,label_name\na.png,bus\nb.png,missile\n", "val.csv")
    assert "two classes" in refusal(tmp_path, "val")
    assert "column label_idx" in refusal(tmp_path, "val")
    table(tmp_path, prompted((("a", "9", "bus"),)), "val.csv")
    assert "label 9 is 'bus' here and 'missile' before" in refusal(tmp_path, "val")
    table(tmp_path, prompted((("a", "11", "bus"),)), "val.csv")
    assert "'11' is no class" in refusal(tmp_path, "val")
    table(tmp_path, prompted((*MISSILES, ("d", "9", "bus"))))
    assert "label 9 is 'bus' here" in refusal(tmp_path)
    table(tmp_path, prompted((*MISSILES, ("a", "10", "missile"))))
    with pytest.raises(DataError, match="has label 10 here and 9 before"):
        compact(tmp_path / "train.csv", tmp_path / "other.csv")


def test_numbers_alone_may_stand_for_equal_names(tmp_path: Path) -> None:
    table(tmp_path, "title\tfilepath\tclass\na\ta.png\t0\nb\tb.png\t2\nc\tc.png\t1\n")
    (tmp_path / "classes.txt").write_text("missile\nbus\nmissile\n")
    opened = open_dataset("own", "train", tmp_path)
    assert opened.classes == ("missile", "bus", "missile")
    assert opened.labels.tolist() == [0, 2, 1]
    (tmp_path / "classes.txt").write_text("0\tmissile\n1\tbus\n2\tmissile\n")
    assert open_dataset("own", "train", tmp_path).classes == opened.classes


def test_names_of_labels_go_before_their_numbers(tmp_path: Path) -> None:
    rows = "title\tfilepath\tlabel_idx\tlabel_name\na cat\ta.png\t7\tcat\na dog\tb.png\t9\tdog\n"
    table(tmp_path, rows)
    assert open_dataset("own", "train", tmp_path).classes == ("cat", "dog")
