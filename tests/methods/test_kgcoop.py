"""KgCoOp against the authors' loss and gradient, and the two scales of its weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from perdure import zoo
from perdure.batch import Batch
from perdure.method import Context
from perdure.methods.kgcoop import KgCoop, KgCoopLearner, written_rows
from perdure.surgery.slots import contexts
from perdure.towers import unit
from tests.golden_clip import golden_clip

Golden = Callable[[str], dict[str, Any]]
PETS = ("a photo of a {}, a type of pet.",)


def build(numbers: dict[str, Any], classes: tuple[str, ...], **fields: Any) -> KgCoopLearner:
    student = golden_clip(numbers)
    learner = KgCoop(**fields).build(student, Context(10, classes, PETS, zoo.random_clip))
    assert isinstance(learner, KgCoopLearner)
    return learner.train()


def test_terms_and_gradient_are_those_of_the_authors(golden: Golden) -> None:
    numbers = golden("mergetune_kgcoop")
    classes = tuple(map(str, golden("mergetune_coop_prompt")["classnames"]))
    learner = build(golden("mergetune_tinyclip"), classes, anchor_weight=float(numbers["W"]))
    table = contexts(learner.student.clip)
    with torch.no_grad():
        table.contexts.copy_(torch.from_numpy(numbers["ctx"]))
    tight = {"rtol": 2e-5, "atol": 2e-5}
    expected = torch.from_numpy(numbers["zeroshot_text_features"])
    torch.testing.assert_close(learner.anchor, expected, **tight)
    rows = learner.rows()
    expected = torch.from_numpy(numbers["text_features_raw"])
    torch.testing.assert_close(rows.detach(), expected, **tight)
    labels = torch.from_numpy(numbers["labels"])
    batch = Batch(torch.from_numpy(numbers["images"]), torch.zeros(6, 1, dtype=torch.int64), labels)
    terms = learner(batch, 1).terms
    assert set(terms) == {"task", "anchor"}
    score = terms["anchor"].item() / float(numbers["W"])
    assert score == pytest.approx(float(numbers["score"]), rel=2e-5)
    loss = terms["task"] + terms["anchor"]
    assert loss.item() == pytest.approx(float(numbers["loss"]), rel=2e-5)
    loss.backward()
    assert table.contexts.grad is not None
    torch.testing.assert_close(
        table.contexts.grad, torch.from_numpy(numbers["grad_ctx"]), rtol=1e-4, atol=1e-4
    )
    # The paper's squared distance is twice the code's score.
    squared = (unit(rows.detach()) - learner.anchor).square().sum(dim=-1).mean()
    assert float(squared) == pytest.approx(float(numbers["mean_squared_l2"]), rel=2e-5)
    assert float(squared) == pytest.approx(2 * score, rel=2e-5)


def test_the_anchor_is_where_the_words_start_and_own_templates_win() -> None:
    student = zoo.random_clip()
    given = Context(10, ("taco", "fire_engine"), PETS, zoo.random_clip)
    learner = KgCoop(templates=("a photo of a {}.",)).build(student, given)
    assert isinstance(learner, KgCoopLearner)
    terms = learner.train()(
        Batch(torch.randn(4, 3, 40, 40), student.tokenizer(["x"] * 4), torch.arange(4) % 2), 1
    ).terms
    assert abs(terms["anchor"].item()) < 1e-5
    own = KgCoop().build(zoo.random_clip(), given)
    assert isinstance(own, KgCoopLearner)
    expected = written_rows(zoo.random_clip(), ("taco", "fire engine"), PETS)
    torch.testing.assert_close(own.anchor, expected)
    again = own.export()
    with torch.no_grad():
        contexts(again.clip).contexts += 1
    torch.testing.assert_close(written_rows(again, given.classes, PETS), expected)
