"""Files of questions in the layouts that people have, and what is said of damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perdure.data.suites import suite
from perdure.data.vqa import read_questions
from perdure.errors import DataError
from perdure.evaluation import evaluate
from perdure.zoo import random_clip
from tests.asking import ASKED, own, scienceqa, vqa_v2


def test_own_questions(tmp_path: Path) -> None:
    more = {**ASKED, "image": "a/2.png", "answer": 0, "kind": "what", "answers": ["cat"] * 10}
    root = own(tmp_path, ASKED, more, {**ASKED, "question": "why?"})
    found = read_questions("vqa", root)
    assert [question.picture for question in found.questions] == [0, 1, 0]
    assert [question.answer for question in found.questions] == [1, 0, 1]
    assert found.questions[1].humans == ("cat",) * 10
    assert found.pictures.image(1).shape[0] == 3
    assert read_questions("vqa", root / "vqa.json").questions == found.questions
    scores = evaluate(random_clip(0), "vqa", root=root)
    entry = scores["vqa"]
    assert (entry["n"], entry["chance"], entry["vqa_n"], entry["role"]) == (3, 0.5, 1, "target")
    assert entry["rules"] == {"plain": 1, "what-is-this": 2}
    before = suite("vqa", root).definition
    (root / "question_templates.yaml").write_text(
        "rules: [{question: why, captions: ['because {answer}']}]"
    )
    assert evaluate(random_clip(0), "vqa", root=root)["vqa"]["rules"]["rule 1"] == 1
    own(root, ASKED)
    assert suite("vqa", root).definition != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "none.png"}, r"none\.png, which is no file \(1 of 1 pictures are missing\)"),
        ({"image": 3}, "image is 3; it must be text"),
        ({"question": " "}, "question 1: question is ' '; it must be text"),
        ({"candidates": ["cat"]}, "two or more different answers"),
        ({"candidates": ["cat", "Cat "]}, "two or more different answers"),
        ({"candidates": "cat"}, "must be a list of texts"),
        ({"answer": "bird"}, "answer is 'bird'; it must be one of the candidates"),
        ({"answer": 2}, "the places of 2 candidates are 0 to 1"),
        ({"answer": True}, "answer is True"),
        ({"answers": "cat"}, "answers is 'cat'"),
    ],
)
def test_bad_entries_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_questions("vqa", own(tmp_path, {**ASKED, **change}))


def test_bad_files_are_named(tmp_path: Path) -> None:
    own(tmp_path, "what?")
    with pytest.raises(DataError, match="question 1 is 'what\\?'; it must be an object"):
        read_questions("vqa", tmp_path)
    file = tmp_path / "vqa.json"
    for text, message in (
        ("{", "is no JSON"),
        ("3", "is no list of questions"),
        ("[]", "holds no question that can be asked"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_questions("vqa", tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"neither vqa\.json, nor VQA's"):
        suite("vqa", tmp_path)
    with pytest.raises(DataError, match="no questions of vqa below"):
        read_questions("vqa", tmp_path)
    with pytest.raises(DataError, match="add --data ROOT"):
        suite("vqa")


@pytest.mark.parametrize("version", ["v2_", ""])
def test_vqa_takes_the_choices_of_the_file(tmp_path: Path, version: str) -> None:
    found = read_questions("vqa-v2", vqa_v2(tmp_path, True, version))
    assert [question.candidates for question in found.questions] == [
        ("yes", "no", "red", "maybe")
    ] * 3
    assert [question.answer for question in found.questions] == [0, 1, 2]
    assert found.skipped == {"without the right answer among two or more choices": 1}
    assert found.questions[2].kind == "other"
    assert len(found.questions[0].humans) == 10
    entry = evaluate(random_clip(0), "vqa", root=tmp_path)["vqa-v2"]
    assert entry["vqa_n"] == 3
    assert entry["kinds"].keys() == {"other", "yes/no"}


def test_vqa_without_choices_gets_the_popular_answers_of_the_question_type(tmp_path: Path) -> None:
    found = read_questions("vqa-v2", vqa_v2(tmp_path, False))
    assert [question.candidates for question in found.questions] == [
        ("no", "yes"), ("no", "yes"), ("blue", "red"), ("blue", "red"),
    ]  # fmt: skip
    assert [question.candidates[question.answer] for question in found.questions] == [
        "yes", "no", "red", "blue",
    ]  # fmt: skip
    notes = tmp_path / "vqa" / "v2_mscoco_val2014_annotations.json"
    notes.write_text(json.dumps({"annotations": []}))
    with pytest.raises(DataError, match="does not hold what vqa-v2 has"):
        read_questions("vqa-v2", tmp_path)
    (tmp_path / "val2014").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="cannot find the pictures"):
        read_questions("vqa-v2", tmp_path)


@pytest.mark.parametrize(("nested", "splits"), [(True, True), (False, False)])
def test_scienceqa_asks_what_has_a_picture(tmp_path: Path, nested: bool, splits: bool) -> None:
    found = read_questions("scienceqa", scienceqa(tmp_path, nested, splits))
    assert len(found.questions) == 1
    assert found.questions[0].candidates == ("a cat", "a dog")
    assert found.questions[0].answer == 1
    assert found.questions[0].kind == "natural science"
    assert found.skipped == {"without a picture": 1, "with fewer than two different choices": 1}
    assert [split.name for split in suite("vqa", tmp_path).splits] == ["scienceqa"]
