"""FLYP: the contrastive loss alone, over both towers and the scale."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from perdure import zoo
from perdure.batch import Batch
from perdure.errors import TaskError
from perdure.method import Context, parse_method
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


@pytest.mark.parametrize("name", ["flyp", "tracer"])
def test_one_tower_may_train_alone_and_the_scale_with_it(name: str) -> None:
    for tower in ("image", "text"):
        student = zoo.random_clip(init_logit_bias=-5.0)
        learner = parse_method({"name": name, "towers": [tower]}).build(student, CONTEXT)
        trained = {key for key, value in student.clip.named_parameters() if value.requires_grad}
        visual = {key for key, _ in student.clip.named_parameters() if key.startswith("visual.")}
        shared = {"logit_scale", "logit_bias"}
        assert trained & visual == (visual if tower == "image" else set())
        assert bool(trained - visual - shared) == (tower == "text")
        assert shared <= trained
        torch.stack(list(learner(batch(), 2).terms.values())).sum().backward()
        frozen = set(dict(student.clip.named_parameters())) - trained
        assert all(student.clip.get_parameter(key).grad is None for key in frozen)
    with pytest.raises(TaskError, match="towers is empty"):
        parse_method({"name": name, "towers": []}).build(zoo.random_clip(), CONTEXT)


def test_a_head_of_an_earlier_run_is_dropped_because_the_text_tower_moves_on() -> None:
    student = zoo.random_clip()
    student.set_head(("taco", "tiger"), ("{}",))
    learner = Flyp().build(student, CONTEXT)
    assert learner.export().head is None
