"""Small hosts of MERGETUNE for tests, and what they could have made of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from perdure import zoo
from perdure.batch import Batch, Step
from perdure.learner import Learner
from perdure.method import Context, parse_method
from perdure.methods.mergetune_learners import MergeTuneLearner
from perdure.predictor import Predictor
from perdure.weights import trainable

CLASSES = ("taco", "fire engine", "tiger")
TEMPLATES = ("a photo of a {}", "an image of the {}")
CONTEXT = Context(20, CLASSES, TEMPLATES, zoo.random_clip)
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}

HOSTS: tuple[dict[str, Any], ...] = (
    {"name": "ft"},
    {"name": "l2sp"},
    {"name": "carot", "every": 1},
    {"name": "tracer", "class_weight": 1.0},
    {"name": "radapter", "drop": 0.5, "drop_mode": "sample", "momentum": 0.5},
    {"name": "lora", "rank": 2, "teacher": {"teacher": "ema"}},
)
"""One of every kind that trains weights, with what makes its loss random or remember."""


def tuned(host: dict[str, Any], context: Context = CONTEXT) -> Predictor:
    """Return what a host could have made of the model, far enough from it to be told apart."""
    learner = parse_method(host).build(context.zeroshot(), context)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=random)
    learner.restart()
    return learner.export()


def build(host: dict[str, Any], context: Context = CONTEXT, **options: Any) -> MergeTuneLearner:
    method = parse_method({"name": "mergetune", "host": host, **options})
    learner = method.build(tuned(host, context), context)
    assert isinstance(learner, MergeTuneLearner)
    return learner.train()


def batch(learner: Learner, step: int = 1, rows: int = 5) -> Batch:
    student = learner.student
    random = torch.Generator().manual_seed(step)
    labels = torch.randint(len(CLASSES), (rows,), generator=random)
    size = student.preprocess.size
    images = torch.randn(rows, 3, size, size, generator=random)
    texts = [TEMPLATES[0].format(CLASSES[label]) for label in labels]
    return Batch(images, student.trim(student.tokenizer(texts)), labels)


def total(step: Step) -> Tensor:
    return torch.stack(list(step.terms.values())).sum()


def gradients(learner: Learner, loss: Tensor) -> dict[str, Tensor]:
    learner.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(each) if each.grad is None else each.grad.clone()
        for name, each in trainable(learner).items()
    }
