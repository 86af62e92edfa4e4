"""FLYP: the contrastive loss alone, over both towers and the scale."""

from __future__ import annotations

import torch
from torch import nn

from perdure import zoo
from perdure.batch import Batch
from perdure.method import Context
from perdure.methods.flyp import Flyp

CONTEXT = Context(4, ("taco", "tiger"), ("{}",), zoo.random_clip)


def batch() -> Batch:
    tokens = zoo.random_clip().tokenizer(["a taco", "a photo of a tiger", "taco"])
    return Batch(torch.randn(3, 3, 40, 40), tokens, torch.tensor([0, 1, 0]))


def test_the_loss_is_cross_entropy_on_the_diagonal_both_ways() -> None:
    student, data = zoo.random_clip(), batch()
    pairs = student(data.images, data.tokens)
    logits = pairs.scale * pairs.image @ pairs.text.T
    places = torch.arange(3)
    for smoothing in (0.0, 0.1):
        step = Flyp(smoothing=smoothing).build(student, CONTEXT)(data, 1)
        both = [
            nn.functional.cross_entropy(side, places, label_smoothing=smoothing)
            for side in (logits, logits.T)
        ]
        torch.testing.assert_close(step.terms["contrastive"], sum(both) / 2)
        assert set(step.terms) == {"contrastive"}
        torch.testing.assert_close(step.stats["scale"], pairs.scale.detach())


def test_both_towers_and_the_scale_train() -> None:
    student = zoo.random_clip()
    Flyp().build(student, CONTEXT)(batch(), 1).terms["contrastive"].backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_a_head_of_an_earlier_run_is_dropped_because_the_text_tower_moves_on() -> None:
    student = zoo.random_clip()
    student.set_head(("taco", "tiger"), ("{}",))
    learner = Flyp().build(student, CONTEXT)
    assert learner.export().head is None
