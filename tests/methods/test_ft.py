"""FT and LP: the zero-shot start, what trains, and the chain LP-FT."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from perdure import zoo
from perdure.batch import Batch
from perdure.errors import TaskError
from perdure.method import Context
from perdure.methods.ft import Ft

CLASSES = ("taco", "fire engine", "tiger", "whale")
TEMPLATES = ("a photo of a {}", "{}")
CONTEXT = Context(4, CLASSES, TEMPLATES, zoo.random_clip)
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}


def batch(size: int = 40) -> Batch:
    labels = torch.tensor([0, 1, 2, 3, 1])
    return Batch(torch.randn(5, 3, size, size), torch.zeros(5, 20, dtype=torch.int64), labels)


def test_the_first_loss_is_that_of_the_zero_shot_classifier() -> None:
    student = zoo.random_clip()
    data = batch()
    logits = student.logits_fn(CLASSES, TEMPLATES)(data.images)
    step = Ft().build(student, CONTEXT)(data, 1)
    expected = nn.functional.cross_entropy(logits, data.labels)
    torch.testing.assert_close(step.terms["cross_entropy"], expected)
    assert set(step.terms) == {"cross_entropy"}


def test_smoothing_spreads_the_target() -> None:
    data = batch()
    student = zoo.random_clip()
    logits = student.logits_fn(CLASSES, TEMPLATES)(data.images)
    found = Ft(smoothing=0.1).build(student, CONTEXT)(data, 1).terms["cross_entropy"]
    target = nn.functional.one_hot(data.labels, 4) * 0.9 + 0.025
    torch.testing.assert_close(found, nn.functional.cross_entropy(logits, target))


def test_a_linear_probe_moves_the_head_alone_and_no_batch_statistics() -> None:
    student = zoo.random_clip(vision_cfg=RESNET)
    learner = Ft(train="head").build(student, CONTEXT)
    learner.train()
    before = {name: value.clone() for name, value in student.clip.state_dict().items()}
    loss = learner(batch(32), 1).terms["cross_entropy"]
    loss.backward()
    assert student.head is not None
    assert student.head.weight.grad is not None
    assert all(parameter.grad is None for parameter in student.clip.parameters())
    assert all(
        torch.equal(before[name], value) for name, value in student.clip.state_dict().items()
    )
    assert learner.training
    assert student.head.training


def test_head_decay_is_half_the_squared_length_of_the_weight() -> None:
    student = zoo.random_clip()
    terms = Ft(train="head", head_decay=0.01).build(student, CONTEXT)(batch(), 1).terms
    assert student.head is not None
    torch.testing.assert_close(terms["head_decay"], 0.005 * student.head.weight.square().sum())


def test_a_head_for_these_classes_is_kept_as_in_lp_ft() -> None:
    student = zoo.random_clip()
    student.set_head(CLASSES, TEMPLATES)
    assert student.head is not None
    nn.init.ones_(student.head.weight)
    Ft().build(student, CONTEXT)
    assert torch.equal(student.head.weight, torch.ones(4, 32))


def test_a_head_for_other_classes_is_replaced() -> None:
    student = zoo.random_clip()
    student.set_head(CLASSES[::-1], TEMPLATES)
    Ft().build(student, CONTEXT)
    assert student.classes == CLASSES


def test_without_class_names_there_is_no_classifier() -> None:
    with pytest.raises(TaskError, match="no class names"):
        Ft().build(zoo.random_clip(), Context(4, (), TEMPLATES, zoo.random_clip))
