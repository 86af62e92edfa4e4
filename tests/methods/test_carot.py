"""CaRot: its terms, when the teacher moves and by how much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from perdure import zoo
from perdure.batch import Batch
from perdure.errors import TaskError
from perdure.learner import Learner
from perdure.losses import logit_distill
from perdure.method import Context
from perdure.methods.carot import Carot
from perdure.methods.flyp import Flyp
from perdure.teacher import Teacher, from_first_step
from perdure.weights import warmup_ema

RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}


def context(total: int = 10) -> Context:
    return Context(total, ("taco", "tiger"), ("{}",), zoo.random_clip)


def batch(size: int = 40, seed: int = 0) -> Batch:
    tokens = zoo.random_clip().tokenizer(["a taco", "a photo of a tiger", "taco"])
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return Batch(images, tokens, torch.tensor([0, 1, 0]))


def step_once(learner: Learner, data: Batch, step: int) -> dict[str, Any]:
    terms = learner(data, step).terms
    learner.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    with torch.no_grad():
        for parameter in learner.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    learner.after_step(step)
    return {name: value.item() for name, value in terms.items()}


def test_nothing_is_distilled_at_the_first_step_and_something_after_it() -> None:
    learner = Carot(every=1).build(zoo.random_clip(), context())
    first = step_once(learner, batch(), 1)
    assert first["distill"] == 0.0
    assert list(first) == ["contrastive", "distill", "cross_norm", "orthogonality"]
    assert step_once(learner, batch(), 2)["distill"] > 0


def test_the_distilled_term_is_the_weighted_cross_entropy_with_the_teacher() -> None:
    student = zoo.random_clip()
    learner = Carot(every=500).build(student, context())
    before = student.copy()
    step_once(learner, batch(), 1)
    data = batch(seed=1)
    teacher = before.copy()
    with torch.no_grad():
        # One update with decay 0.05, in log space for the scale too.
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
            old.copy_(0.05 * old + 0.95 * new)
    expected = 1.5 * logit_distill(
        student(data.images, data.tokens), teacher(data.images, data.tokens)
    )
    torch.testing.assert_close(learner(data, 2).terms["distill"], expected)


def test_the_teacher_moves_after_steps_1_and_501_with_a_rising_decay() -> None:
    number, mix = from_first_step(500), warmup_ema(0.05, 0.9, 0.2 * 5000, 500)
    updates = {step: mix(k) for step in range(1, 2001) if (k := number(step)) is not None}
    assert list(updates) == [1, 501, 1001, 1501]
    np.testing.assert_allclose(list(updates.values()), [0.95, 0.525, 0.1, 0.1])


@pytest.mark.parametrize(
    ("total", "every"), [(5, 1), (20, 1), (20, 5), (100, 1), (100, 7), (100, 500)]
)
def test_golden_sequences_of_the_moving_teacher(
    golden: Callable[[str], dict[str, np.ndarray]], total: int, every: int
) -> None:
    data = golden("tracer_teachers")
    key = f"seq_ema_T{total}_freq{every % 500}"  # the source writes its default, 500, as 0
    path, expected = torch.from_numpy(data[f"{key}__student"]), data[f"{key}__teacher"]
    student = nn.ParameterList([nn.Parameter(path[0].clone())])
    mix = warmup_ema(0.05, 0.9, 0.2 * total, every)
    teacher = Teacher(student, mix, from_first_step(every))  # type: ignore[arg-type]
    for step in range(1, total + 1):
        with torch.no_grad():
            student[0].copy_(path[step])
        teacher.after_step(student, step)  # type: ignore[arg-type]
        (value,) = teacher.average.values().values()
        np.testing.assert_allclose(value.numpy(), expected[step], rtol=1e-12, atol=1e-12)


def test_with_all_weights_0_it_is_flyp_without_a_teacher() -> None:
    method = Carot(distill_weight=0, orthogonality_weight=0, cross_norm_weight=0)
    learner = method.build(zoo.random_clip(), context())
    plain = Flyp().build(zoo.random_clip(), context())
    assert learner.teacher is None
    for step in (1, 2):
        assert step_once(learner, batch(), step) == step_once(plain, batch(), step)


def test_an_attention_pooled_tower_is_orthogonal_in_the_embedding_dimension() -> None:
    student = zoo.random_clip(vision_cfg=RESNET)
    terms = Carot().build(student, context())(batch(32), 1).terms
    weight = student.clip.visual.attnpool.c_proj.weight  # (D, width)
    gram = weight @ weight.T
    expected = 0.2 * (gram - torch.eye(32)).norm()
    torch.testing.assert_close(terms["orthogonality"], expected)
    crossed = weight.T @ student.clip.text_projection.T
    torch.testing.assert_close(terms["cross_norm"], 0.05 * crossed.norm())


def test_a_tower_without_a_projection_is_refused_before_training() -> None:
    student = zoo.random_clip()
    student.clip.visual.proj = None
    with pytest.raises(TaskError, match="does not end in one linear map"):
        Carot().build(student, context())
