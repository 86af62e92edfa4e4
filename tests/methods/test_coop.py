"""CoOp against the authors' layouts, features, loss and gradient, and as a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from perdure import zoo
from perdure.batch import Batch
from perdure.errors import SurgeryError, TaskError
from perdure.method import Context, parse_method
from perdure.methods.coop import Coop, PromptLearner
from perdure.predictor import Predictor
from perdure.surgery.slots import contexts
from tests.golden_clip import golden_clip

Golden = Callable[[str], dict[str, Any]]
CASES = [
    f"{start}_{kind}_{position}"
    for start in ("text", "random")
    for kind in ("generic", "csc")
    for position in ("end", "middle", "front")
    if (start, kind) != ("text", "csc")
]
CLASSES = ("taco", "fire engine", "tiger")


def context(classes: tuple[str, ...], **more: Any) -> Context:
    return Context(10, classes, ("a photo of a {}.",), zoo.random_clip, **more)


def build(student: Predictor, classes: tuple[str, ...] = CLASSES, **fields: Any) -> PromptLearner:
    learner = Coop(**fields).build(student, context(classes))
    assert isinstance(learner, PromptLearner)
    return learner.train()


def names(numbers: dict[str, Any]) -> tuple[str, ...]:
    return tuple(map(str, numbers["classnames"]))


@pytest.mark.parametrize("case", CASES)
def test_layouts_are_those_of_the_authors(golden: Golden, case: str) -> None:
    numbers = golden("mergetune_coop_prompt")
    start, kind, position = case.split("_")
    classes = names(numbers)
    learner = build(
        golden_clip(golden("mergetune_tinyclip")),
        classes,
        words="a photo of a" if start == "text" else None,
        position=position,
        class_specific=kind == "csc",
    )
    found = learner.student.prompts(classes, ["{}"])[:, 0]
    expected = torch.from_numpy(numbers[f"{case}/layout"])
    shape = tuple(numbers[f"{case}/ctx_shape"])
    if kind == "csc":  # the file counts vectors within a class
        own = torch.arange(len(classes))[:, None] * shape[1]
        expected = torch.where(expected < 0, expected - own, expected)
    assert torch.equal(found, expected)
    assert found.argmax(dim=1).tolist() == numbers[f"{case}/eot_index"].tolist()
    table = contexts(learner.student.clip)
    assert tuple(table.contexts.shape) == (int(np.prod(shape[:-1])), shape[-1])
    if start == "text":
        with torch.no_grad():
            table.contexts.copy_(torch.from_numpy(numbers[f"{case}/ctx"]))
            embedded = table(found)
        assert torch.equal(embedded, torch.from_numpy(numbers[f"{case}/prompts"]))


def test_word_starts_are_the_direct_embedding_of_the_words(golden: Golden) -> None:
    numbers = golden("mergetune_coop_prompt")
    assert int(numbers["n_ctx_effective_when_asked_5_with_text_init"]) == 4
    learner = build(golden_clip(golden("mergetune_tinyclip")), names(numbers), contexts=5)
    assert contexts(learner.student.clip).contexts.shape == (4, 32)
    rows = learner.rows().detach()
    for key in ("text_init_raw", "direct_encode_text"):
        expected = torch.from_numpy(numbers[f"textfeat/{key}"])
        torch.testing.assert_close(rows, expected, rtol=2e-5, atol=2e-5)


def golden_batch(numbers: dict[str, Any], prefix: str = "") -> Batch:
    images = torch.from_numpy(numbers[f"{prefix}images"])
    labels = torch.from_numpy(numbers[f"{prefix}labels"])
    return Batch(images, torch.zeros(len(labels), 1, dtype=torch.int64), labels)


def test_loss_logits_and_gradient_are_those_of_the_authors(golden: Golden) -> None:
    numbers = golden("mergetune_coop_prompt")
    learner = build(golden_clip(golden("mergetune_tinyclip")), names(numbers))
    table = contexts(learner.student.clip)
    with torch.no_grad():
        table.contexts.copy_(torch.from_numpy(numbers["coop/ctx"]))
    batch = golden_batch(numbers, "coop/")
    logits = learner.logits(learner.embed(batch), learner.rows())
    expected = torch.from_numpy(numbers["coop/logits"])
    torch.testing.assert_close(logits.detach(), expected, rtol=2e-5, atol=2e-5)
    terms = learner(batch, 1).terms
    assert set(terms) == {"task"}
    assert terms["task"].item() == pytest.approx(float(numbers["coop/loss"]), rel=2e-5)
    terms["task"].backward()
    gradient = torch.from_numpy(numbers["coop/grad_ctx"])
    assert table.contexts.grad is not None
    torch.testing.assert_close(table.contexts.grad, gradient, rtol=1e-4, atol=1e-4)
    right = (logits.argmax(dim=1) == batch.labels).float().mean()
    assert 100 * float(right) == pytest.approx(float(numbers["coop/acc_percent"]), abs=1e-4)


def toy(model: Predictor, rows: int = 6) -> Batch:
    images = torch.randn(rows, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(rows) % len(CLASSES)
    return Batch(images, model.tokenizer(["x"] * rows), labels)


def test_only_contexts_move_and_batch_normalisation_stays() -> None:
    tower = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}
    learner = build(zoo.random_clip(vision_cfg=tower))
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    batch = toy(learner.student)._replace(images=torch.randn(6, 3, 32, 32))
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)
    learner(batch, 1).terms["task"].backward()
    optimizer.step()
    moved = {
        name for name, value in learner.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == {"student.clip.token_embedding.contexts"}
    assert learner.training
    assert not any(part.training for part in learner.student.modules())


def test_the_export_scores_novel_classes_with_the_learned_contexts() -> None:
    learner = build(zoo.random_clip(), position="middle")
    with torch.no_grad():
        contexts(learner.student.clip).contexts += 0.3
    exported = learner.export()
    novel = ("giant panda", "axolotl")
    with torch.no_grad():
        expected = exported.class_features(exported.prompts(novel, ("anything {}",)))
        trained: Tensor = exported.class_features(exported.prompts(CLASSES, ("{}",)))
        rows = torch.nn.functional.normalize(learner.rows(), dim=-1)
    torch.testing.assert_close(exported.classifier(novel, ("{}",)), expected)
    torch.testing.assert_close(trained, rows)
    with pytest.raises(TaskError, match="learned for each of 3 classes alone"):
        build(zoo.random_clip(), class_specific=True).export().classifier(novel, ("{}",))


def test_a_run_goes_on_from_the_contexts_of_another_and_only_from_the_same_kind() -> None:
    learner = build(zoo.random_clip(), words=None, contexts=3)
    with torch.no_grad():
        contexts(learner.student.clip).contexts.fill_(0.5)
    again = build(learner.export().fold(), words=None, contexts=3)
    assert torch.all(contexts(again.student.clip).contexts == 0.5)
    with pytest.raises(TaskError, match="other contexts"):
        build(learner.export(), words=None, contexts=2)


def test_faults_are_explained() -> None:
    with pytest.raises(TaskError, match="the task has none"):
        Coop().build(zoo.random_clip(), context(()))
    with pytest.raises(TaskError, match="makes nothing of words"):
        Coop(words=" ").build(zoo.random_clip(), context(CLASSES))
    student = zoo.random_clip()
    del student.clip.token_embedding
    with pytest.raises(SurgeryError, match="no table of token embeddings"):
        parse_method({"name": "coop", "words": None}).build(student, context(CLASSES))
    assert dataclasses.fields(Coop)
