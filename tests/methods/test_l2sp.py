"""L2-SP: the penalty is the distance to the start, over everything that trains."""

from __future__ import annotations

import torch

from perdure import zoo
from perdure.batch import Batch
from perdure.method import Context
from perdure.methods.l2sp import L2sp

CONTEXT = Context(4, ("taco", "tiger"), ("{}",), zoo.random_clip)
BATCH = Batch(
    torch.randn(2, 3, 40, 40), torch.zeros(2, 20, dtype=torch.int64), torch.tensor([0, 1])
)


def test_the_penalty_is_half_the_squared_distance_to_the_start() -> None:
    student = zoo.random_clip()
    learner = L2sp(strength=0.5).build(student, CONTEXT)
    assert learner(BATCH, 1).terms["l2sp"].item() == 0.0
    assert student.head is not None
    with torch.no_grad():
        student.head.bias.add_(2.0)  # 2 classes
        student.clip.visual.proj[0].add_(1.0)  # 32 entries
    torch.testing.assert_close(learner(BATCH, 2).terms["l2sp"], torch.tensor(0.25 * (8.0 + 32.0)))


def test_its_gradient_points_back_to_the_start() -> None:
    student = zoo.random_clip()
    learner = L2sp(strength=0.5).build(student, CONTEXT)
    assert student.head is not None
    with torch.no_grad():
        student.head.bias.copy_(torch.tensor([3.0, -1.0]))
    learner(BATCH, 2).terms["l2sp"].backward()
    torch.testing.assert_close(student.head.bias.grad, 0.5 * torch.tensor([3.0, -1.0]))
    assert student.clip.text_projection.grad is None


def test_without_strength_it_is_fine_tuning() -> None:
    learner = L2sp(strength=0).build(zoo.random_clip(), CONTEXT)
    assert set(learner(BATCH, 1).terms) == {"cross_entropy"}
