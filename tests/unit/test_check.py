"""What `perdure data` says of whole and of broken copies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perdure import zoo
from perdure.data.check import Findings, check, statistics
from perdure.data.compact import compact
from perdure.data.datasets import open_dataset
from perdure.data.emojishift import open_emojishift
from perdure.data.tables import read_table
from perdure.errors import DataError
from perdure.looking import gate
from perdure.sheets import sheet_of
from tests import layouts


def said(found: Findings) -> str:
    return "\n".join((*found.faults, *found.remarks))


def test_file_checks_need_no_torch(tmp_path: Path) -> None:
    layouts.coop(tmp_path, "dtd")
    code = (
        "import sys; from pathlib import Path; from perdure.data.check import check;"
        "check(Path(sys.argv[1]), decode=True, duplicates=True);"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0


def test_everything_that_is_there_is_found(tmp_path: Path) -> None:
    layouts.iwildcam(layouts.coop(layouts.coop(tmp_path, "eurosat"), "fgvc_aircraft"))
    layouts.flickr(layouts.coco(tmp_path, "splits"), "lines")
    found = check(tmp_path)
    names = [part.name for part in found.parts]
    assert names.count("eurosat") == names.count("fgvc_aircraft") == 3
    assert names.count("coco") == names.count("flickr30k") == 3
    assert names.count("iwildcam") == 5
    assert [fault for fault in found.faults if "129,809" not in fault] == []  # the proved count
    assert "eurosat, train: 8 pictures, but a whole copy is said to have 13,500" in said(found)
    assert {part.pictures for part in found.parts if part.name == "coco"} == {1, 2}


def test_counts_that_are_proved_are_faults(tmp_path: Path) -> None:
    layouts.v2(tmp_path)
    found = check(tmp_path, ["imagenet-v2"])
    assert not found.good
    assert "imagenet-v2, test: 1,000 pictures, but a whole copy has 10,000." in found.faults
    assert "missile, sunglasses" in said(found)


def test_missing_and_damaged_files_are_listed(tmp_path: Path) -> None:
    layouts.coop(tmp_path, "dtd")
    (tmp_path / "dtd/images/train-dog-0.jpg").unlink()
    whole = tmp_path / "dtd/images/test-bus-1.jpg"
    whole.write_bytes(whole.read_bytes()[:-200])
    found = check(tmp_path, ["dtd"], decode=True)
    assert "dtd, train: 1 files are not there: train-dog-0.jpg." in found.faults
    assert "dtd, test: 1 files are damaged: test-bus-1.jpg." in found.faults
    assert len(check(tmp_path, ["dtd"]).faults) == 1
    assert "nothing of it is below" in said(check(tmp_path, ["sun397"]))


def test_pictures_that_are_trained_on_are_found_in_tests(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "test")):
        for place, name in enumerate(("cat", "dog")):
            layouts.picture(tmp_path / split / name / f"{number}.jpg", place)
    found = check(tmp_path, duplicates=True)
    assert [part.name for part in found.parts] == ["own", "own"]
    assert "own: 2 pictures are in train and in test" in said(found)
    for place, name in enumerate(("cat", "dog")):
        layouts.picture(tmp_path / "test" / name / "1.jpg", place + 2)
    assert check(tmp_path, duplicates=True).good


def test_wrong_separators_and_half_downloads_are_faults(tmp_path: Path) -> None:
    layouts.iwildcam(tmp_path)
    file = tmp_path / "iwildcam_v2.0/metadata.csv"
    file.write_text(file.read_text().replace(",", "\t"))
    assert "separated by something else than commas" in said(check(tmp_path))
    (tmp_path / "own").mkdir()
    for name in ("cat", "dog"):
        layouts.picture(tmp_path / "own/train" / name / "1.jpg")
    (tmp_path / "own/classes.txt").write_text("Cat\ncat\n")
    assert "a model cannot tell them apart" in said(check(tmp_path / "own"))
    (tmp_path / "empty").mkdir()
    assert "holds no folder of a class" in said(check(tmp_path / "empty"))


def test_statistics(tmp_path: Path) -> None:
    layouts.coco(layouts.coop(tmp_path, "ucf101"), "karpathy")
    parts = {(part.name, part.split): part for part in check(tmp_path).parts}
    values = statistics(parts["ucf101", "train"])
    assert (values["pictures_min"], values["pictures_max"]) == (2, 2)
    assert values["classes_effective"] == pytest.approx(4)
    values = statistics(parts["coco", "test"])
    assert (values["pictures"], values["captions_max"]) == (2, 5)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of EmojiShift pictures, 8 classes of 6."""
    root = tmp_path_factory.mktemp("drawn")
    data = open_emojishift("id", shots=6)
    for index in np.flatnonzero(data.labels < 8):
        pixels = data.image(int(index)).permute(1, 2, 0).numpy()
        file = root / "test" / data.classes[data.labels[index]] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return root


def test_a_model_notices_permuted_labels(drawn: Path, tmp_path: Path) -> None:
    tiny = zoo.load("perdure-tiny")
    catalog = next(part.catalog for part in check(drawn).parts)
    assert catalog is not None
    good = gate(tiny, catalog, drawn)
    assert good.above_chance
    assert good.fault() is None
    folders = sorted((drawn / "test").iterdir())
    for old, new in zip(folders, folders[1:] + folders[:1], strict=True):
        (tmp_path / "test" / new.name).mkdir(parents=True)
        for file in old.iterdir():
            (tmp_path / "test" / new.name / file.name).write_bytes(file.read_bytes())
    catalog = next(part.catalog for part in check(tmp_path).parts)
    assert catalog is not None
    bad = gate(tiny, catalog, tmp_path)
    assert "probably permuted" in str(bad.fault())
    assert bad.accuracy < good.accuracy


def test_a_sheet_has_a_row_per_split(tmp_path: Path) -> None:
    layouts.coop(tmp_path, "dtd")
    file = sheet_of(check(tmp_path).parts, tmp_path, tmp_path / "sheet.png", 4)
    with Image.open(file) as sheet:
        assert sheet.size[1] > 3 * 80


HEADERS = {
    "flyp": ("title\tfilepath", lambda title, path, label, name: f"{title}\t{path}"),
    "radapter": (
        "title\tfilepath\tclass",
        lambda title, path, label, name: f"{title}\t{path}\t{label}",
    ),
    "tracer": (
        "title\tfilepath\tlabel_idx\tlabel_name",
        lambda title, path, label, name: f"{title}\t{path}\t{label}\t{name}",
    ),
    "iwildcam": (
        "title,filepath,label",
        lambda title, path, label, name: f"{title},{path},{label}",
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_tables_with_a_row_per_prompt_get_a_row_per_picture(tmp_path: Path, kind: str) -> None:
    header, line = HEADERS[kind]
    rows = [header]
    for label, name in enumerate(("great white shark", "cat")):
        for number in range(2):
            path = f"{name}-{number}.jpg"
            layouts.picture(tmp_path / path)
            prompts = (
                f"a photo of a {name}.",
                f"a bad photo of the {name}.",
                f"the origami {name}.",
            )
            rows += [line(prompt, path, label, name) for prompt in prompts[: 2 + number]]
    (tmp_path / "big.csv").write_text("\n".join(rows) + "\n")
    done = compact(tmp_path / "big.csv", tmp_path / "sub" / "train.csv")
    assert done == (10, 4, 2)
    table = read_table(tmp_path / "sub/train.csv")
    by_name = kind in ("flyp", "tracer")
    first = "great white shark" if by_name else "0"
    assert table.rows[0][1:3] == ("../great white shark-0.jpg", first)
    if not by_name:
        (tmp_path / "sub/classes.txt").write_text("great white shark\ncat\n")
    data = open_dataset("own", "train", tmp_path / "sub")
    assert sorted(data.classes) == ["cat", "great white shark"]
    assert len(data) == 4


def test_tables_that_cannot_be_made_smaller(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    for text, reason in (
        ("filepath,label\na.jpg,cat\na.jpg,dog\n", "line 3: a.jpg is 'dog' here and 'cat' before"),
        ("filepath,title\na.jpg,who knows\n", "line 2: the title 'who knows' is no known prompt"),
        ("filepath,title\na.jpg,a photo of a cat.\na.jpg,a photo of a dog.\n", "another class"),
        ("file,size\na.jpg,3\n", "are needed"),
        ("filepath,label\na.jpg\n", "line 2: 1 values"),
        ("filepath,label\n", "no row"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=reason):
            compact(file, tmp_path / "out.csv")
        assert not (tmp_path / "out.csv").exists()
    with pytest.raises(DataError, match="cannot read"):
        compact(tmp_path / "none.csv", tmp_path / "out.csv")
