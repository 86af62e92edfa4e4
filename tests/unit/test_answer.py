"""Questions answered as CLIP answers them: rules, generated questions, scores, and bad rules."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional import accuracy as torch_accuracy

from perdure import metrics, zoo
from perdure.data.emoji_questions import COUNT, KINDS, VERSION, open_emoji_questions
from perdure.data.questions import Question, QuestionSet, read_rules, tidy
from perdure.data.splits import Split, Suite
from perdure.data.suites import suite
from perdure.errors import DataError, TaskError
from perdure.evaluation import evaluate
from perdure.prediction import How, stay
from perdure.surgery.projector import Projector
from perdure.sweeping import sweep
from perdure.tasks.answer import Answering
from perdure.zoo import random_clip

SMALL = Suite(
    name="small",
    summary="two kinds",
    splits=tuple(
        Split(name=kind, role="id", task="answer", dataset="emojishift", split=f"id/{kind}")
        for kind in ("which", "count")
    ),
    templates="emojishift",
)


def test_every_kind_is_balanced_and_its_pictures_stay_the_same() -> None:
    for kind in KINDS:
        asked = open_emoji_questions(f"id/{kind}")
        assert len(asked.questions) == len(asked.pictures) == COUNT
        answers = Counter(question.answer for question in asked.questions)
        assert len(answers) == (2 if kind == "count" else 4)
        assert set(answers.values()) == {COUNT // len(answers)}
        for question in asked.questions:
            assert len(set(question.candidates)) == len(question.candidates)
            assert question.kind == kind
    # Known by heart: other questions or pictures must have another version.
    assert suite("emojishift-vqa").version == VERSION == 1
    asked = open_emoji_questions("sketch/where")
    assert asked.questions[5].text == "where is the butterfly?"
    assert asked.questions[5].candidates[1] == "next to a fish cake with swirl"
    pixels = torch.stack([asked.pictures.image(index) for index in range(COUNT)]).float()
    assert float(pixels.mean()) == pytest.approx(198.89, abs=0.1)
    with pytest.raises(DataError, match="did you mean 'id/which'"):
        open_emoji_questions("id/whch")


def test_rules_turn_questions_into_captions() -> None:
    rules = read_rules()
    for question, candidates, name, captions in (
        ("Which of these is in the picture?", ["cat"], "which-of-these",
         [["a picture of a cat", "a cat"]]),
        ("Is there a dog in the picture?", ["Yes", "no"], "is-there",
         [["a picture of a dog", "there is a dog"],
          ["a picture without a dog", "there is no dog"]]),
        ("How many  dogs are there?", ["2"], "how-many", [["a picture of 2 dogs", "2 dogs"]]),
        ("where is the cat?", ["on the mat", "under it"], "where-beside",
         [["a cat on the mat"], ["a cat under it"]]),
        ("where is the cat?", ["on the mat", "kitchen"], "where",
         [["a picture of a cat at the on the mat", "a cat, on the mat"],
          ["a picture of a cat at the kitchen", "a cat, kitchen"]]),
        ("What color is the bus?", ["red"], "colour",
         [["a picture of a red bus", "the bus is red"]]),
        ("How often is a rat in the picture?", ["once", "twice"], "how-often",
         [["a rat", "one rat"], ["a rat and a rat", "two rat"]]),
        # Nobody has a caption for "maybe".
        ("is there a dog?", ["yes", "maybe"], "plain",
         [["question: is there a dog? answer: yes"], ["question: is there a dog? answer: maybe"]]),
        ("Why?", ["{x}"], "plain", [["question: why? answer: {x}"]]),
    ):  # fmt: skip
        assert rules.captions(question, candidates) == (name, captions)


def test_own_rules_go_first_and_bad_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "question_templates.yaml"
    file.write_text("rules:\n- question: 'why (?P<what>.+)'\n  captions: ['{answer} so {what}']\n")
    rules = read_rules(file)
    assert rules.captions("Why me?", ["not"]) == ("rule 1", [["not so me"]])
    assert rules.captions("What is this?", ["cat"])[0] == "what-is-this"
    assert rules.sha256 != read_rules().sha256
    for text, message in (
        ("rules: []", "needs a list `rules`"),
        ("- a", "table"),
        ("rule: 1", "needs a list `rules`"),
        ("rules: [{question: a}]", "rule 1 is .*it needs `question`"),
        ("rules: [{question: 1, captions: [a]}]", "it needs `question`"),
        ("rules: [{question: '(', captions: [a]}]", r"pattern '\(' is malformed"),
        ("rules: [{question: a, answer: 3, captions: [a]}]", "pattern 3 is malformed"),
        ("rules: [{question: a, captions: a}]", "they are a list of texts"),
        ("rules: [{question: a, captions: ['{who}']}]", r"uses \{who\}; allowed are \{answer\}"),
        ("rules: [{question: a, captions: ['{']}]", "is malformed"),
        ("rules: [{question: a, answers: [b]}]", "maps answers to lists"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_rules(file)


def test_answers_are_those_of_the_embeddings() -> None:
    predictor = zoo.load("perdure-tiny")
    found = evaluate(predictor, SMALL, limit=12)
    asked = open_emoji_questions("id/which").limited(12)
    correct = []
    for place, question in enumerate(asked.questions):
        image = predictor.preprocess.normalize(asked.pictures.image(question.picture)[None])
        captions = asked.rules.captions(question.text, question.candidates)[1]
        with torch.no_grad():
            rows = torch.stack(
                [predictor.encode_text(predictor.tokenizer(own)).mean(0) for own in captions]
            )
            scores = torch.nn.functional.normalize(rows) @ predictor.encode_image(image)[0]
            shares = (predictor.scale * scores).softmax(0)
        outcomes = found.outcomes["which"]
        assert outcomes.prediction[place] == int(scores.argmax())
        assert outcomes.confidence[place] == pytest.approx(float(shares.max()), abs=1e-4)
        correct.append(int(scores.argmax()) == question.answer)
    entry = found["which"]
    assert entry["accuracy"] == pytest.approx(np.mean(correct))
    assert (entry["n"], entry["chance"], entry["pictures"]) == (12, 0.25, 12)
    assert entry["kinds"] == {"which": {"accuracy": entry["accuracy"], "n": 12, "chance": 0.25}}
    assert entry["rules"] == {"which-of-these": 12}
    assert found["count"]["chance"] == 0.5
    assert found.summary()["accuracy"]["value"] == pytest.approx(
        (entry["accuracy"] + found["count"]["accuracy"]) / 2
    )


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    whole = evaluate(random_clip(0), SMALL, limit=30, progress=told.append)
    assert sum(told) == 2 * 60
    monkeypatch.setattr("perdure.tasks.answer._CAPTIONS", 9)
    blocks = evaluate(random_clip(0), SMALL, limit=30)
    for name, entry in whole.splits.items():
        assert blocks[name]["rules"] == entry["rules"]
        one, two = whole.outcomes[name], blocks.outcomes[name]
        assert (one.prediction == two.prediction).all()
        assert one.confidence == pytest.approx(two.confidence, abs=1e-5)
    line = sweep(random_clip(0), random_clip(1), SMALL, alphas=(0.0, 1.0), how=How(limit=30))
    assert (line[0.0].outcomes["which"].prediction == whole.outcomes["which"].prediction).all()
    assert (line[1.0].outcomes["which"].prediction != whole.outcomes["which"].prediction).any()


def people(*answers: str) -> tuple[str, ...]:
    return answers + ("something else",) * (10 - len(answers))


def test_agreement_with_people_is_a_third_each_up_to_one() -> None:
    found = metrics.vqa_agreement(np.array([0, 1, 2, 3, 10]))
    assert found.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    base = open_emoji_questions("id/which").limited(4)
    questions = [
        Question(q.picture, q.text, q.candidates, q.answer, "", humans)
        for q, humans in zip(
            base.questions,
            (people(*base.questions[0].candidates), people(), (), people()),
            strict=True,
        )
    ]
    exam = Answering(
        SMALL.splits[0], QuestionSet(base.pictures, tuple(questions), base.rules, {"text": 3})
    )
    entry = exam.judge(random_clip(0), {0.0: stay}, How(), {})[0.0]["which"].entry
    assert entry["vqa_n"] == 3
    assert entry["vqa_accuracy"] == pytest.approx(1 / 9)  # one of ten said each candidate
    assert entry["vqa_interval"][0] <= 1 / 9 <= entry["vqa_interval"][1]
    assert entry["kinds"] == {}
    assert entry["skipped"] == {"text": 3}


def test_accuracy_is_that_of_torchmetrics() -> None:
    outcomes: Any = evaluate(random_clip(2), SMALL, limit=40).outcomes["which"]
    theirs = torch_accuracy(
        torch.tensor(outcomes.prediction), torch.tensor(outcomes.label),
        task="multiclass", num_classes=4,
    )  # fmt: skip
    assert outcomes.correct.mean() == pytest.approx(float(theirs), abs=1e-6)


def test_limits_and_models_that_cannot_answer() -> None:
    asked = open_emoji_questions("sketch/count").limited(5)
    assert [question.picture for question in asked.questions] == list(range(5))
    with pytest.raises(DataError, match="at least 1"):
        asked.limited(0)
    student = random_clip(0)
    student.attach(Projector(student.clip.visual.output_dim, 32))
    with pytest.raises(TaskError, match="cannot be compared"):
        evaluate(student, SMALL, limit=2)
    with pytest.raises(DataError, match="leave --data away"):
        evaluate(random_clip(0), SMALL, root=Path("here"))


def test_the_suite_asks_three_kinds_in_three_domains() -> None:
    names = [split.name for split in suite("emojishift-vqa").splits]
    assert names[:3] == ["id_which", "id_count", "id_where"]
    assert len(names) == 9
    assert tidy("  Two  Cats ") == "two cats"
