"""The loss along a line between two models: its gradient, memory, precision and places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perdure import zoo
from perdure.batch import Batch, Step
from perdure.learner import Learner
from perdure.method import Context
from perdure.methods.mergetune_learners import MergeTuneLearner
from perdure.path_loss import grid, loss_at, path_loss
from perdure.towers import checkpoint
from perdure.weights import distance, lerp, run_at, trainable
from tests.hosts import (
    CLASSES,
    HOSTS,
    RESNET,
    TEMPLATES,
    batch,
    build,
    gradients,
    total,
)

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(name: str) -> Any:
    return np.load(GOLDEN / f"mergetune_{name}.npz", allow_pickle=False)


def plain_gradients(learner: MergeTuneLearner, now: Batch, step: int) -> dict[str, Tensor]:
    """Return the gradient of the objective as written: one graph over all points of the path."""
    host, settings = learner.host, learner.settings
    live, fixed = trainable(host), learner.tuned.values()
    places = grid(settings.grid, settings.points, learner.seed, step)
    state = torch.get_rng_state()
    losses = []
    for place in places:
        torch.set_rng_state(state)
        losses.append(total(run_at(host, lerp(fixed, live, place), now, step)))
    torch.set_rng_state(state)
    parts = total(host(now, step)) + settings.path_weight * torch.stack(losses).mean()
    gap = distance(live, learner.zeroshot.values(), "sum")
    return gradients(learner, parts + settings.anchor_weight * gap)


@pytest.mark.parametrize("host", HOSTS, ids=str)
def test_gradients_are_those_of_one_graph_over_all_points(host: dict[str, Any]) -> None:
    learner = build(host, reduction="sum", points=3, grid="stratified", anchor_weight=0.1)
    now = batch(learner)
    for step in (1, 2):  # distillation begins with the second
        torch.manual_seed(step)
        expected = plain_gradients(learner, now, step)
        torch.manual_seed(step)
        found = gradients(learner, total(learner(now, step)))
        largest = max(float(value.abs().max()) for value in expected.values())
        assert largest > 0
        for name, value in expected.items():
            assert (found[name] - value).abs().max() <= 1e-6 * max(1.0, largest), name


def test_checkpointed_towers_compute_again_with_the_weights_of_the_point() -> None:
    found = []
    for again in (False, True):
        learner = build({"name": "flyp"}, points=2)
        if again:
            checkpoint(learner.student.clip)
        found.append(gradients(learner, total(learner(batch(learner), 1))))
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=1e-6), name


class Kept:
    """Counts the bytes that graphs hold for a backward pass at the worst moment."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> _Held:
        return _Held(self, tensor)

    def unpack(self, held: _Held) -> Tensor:
        return held.tensor


class _Held:
    def __init__(self, owner: Kept, tensor: Tensor) -> None:
        self.owner, self.tensor = owner, tensor
        self.bytes = 0 if isinstance(tensor, nn.Parameter) else tensor.nbytes
        owner.now += self.bytes
        owner.peak = max(owner.peak, owner.now)

    def __del__(self) -> None:
        self.owner.now -= self.bytes


@pytest.mark.parametrize("half", [False, True])
def test_memory_does_not_grow_with_the_number_of_points(half: bool) -> None:
    peaks = []
    for points in (1, 2, 6):
        learner = build({"name": "flyp"}, points=points, anchor_weight=0)
        now, kept = batch(learner), Kept()
        with (
            torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
        ):
            loss = total(learner(now, 1))
        loss.backward()
        peaks.append(kept.peak)
    assert peaks[0] == peaks[1] == peaks[2]
    # The control: one graph over all points.
    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        live = trainable(learner.host)
        losses = [
            total(run_at(learner.host, lerp(learner.tuned.values(), live, place), now, 1))
            for place in grid("midpoints", 6)
        ]
        torch.stack(losses).mean().backward()
    assert kept.peak > 3 * peaks[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_gradient_of_the_same_point(dtype: torch.dtype) -> None:
    learner = build({"name": "ft"})
    live, now = trainable(learner.host), batch(learner)
    _, expected = loss_at(learner.host, now, 1, live)
    with torch.autocast("cpu", dtype):
        loss, found = loss_at(learner.host, now, 1, live)
        again, _ = path_loss(learner.host, now, 1, learner.tuned.values(), live, [1.0, 1.0])
    assert loss.dtype == torch.float32
    assert torch.equal(again, loss)
    for one, two in zip(expected, found, strict=True):
        assert one is not None
        assert two is not None
        assert two.dtype == torch.float32
        assert (one - two).norm() <= 0.1 * one.norm() + 1e-4


def test_tiny_gradients_survive_half_precision() -> None:
    class Faint(Learner):
        """Its gradient, 1e-9, is below what fp16 can hold."""

        def __init__(self) -> None:
            super().__init__(zoo.random_clip())
            self.student.requires_grad_(False)
            self.weight = nn.Parameter(torch.ones(4, 4))

        def forward(self, batch: Batch, step: int) -> Step:
            out = nn.functional.linear(torch.ones(1, 4), self.weight)
            return Step({"task": out.sum().float() * 1e-9}, {})

    learner = Faint()
    with torch.autocast("cpu", torch.float16):
        _, found = loss_at(learner, batch(learner), 1, trainable(learner))
    assert found[0] is not None
    assert torch.allclose(found[0], torch.full((4, 4), 1e-9), rtol=0.01, atol=0)


def test_running_statistics_follow_the_model_alone() -> None:
    context = Context(20, CLASSES, TEMPLATES, lambda: zoo.random_clip(vision_cfg=RESNET))
    with_path, without = (build({"name": "ft"}, context, path_weight=weight) for weight in (1, 0))
    for learner in (with_path, without):
        learner(batch(learner), 1)
    expected = dict(without.named_buffers())
    for name, value in with_path.named_buffers():
        if name.startswith("host.student"):
            assert torch.equal(value, expected[name]), name


def test_grids() -> None:
    known = golden("grids")
    for points in (1, 2, 5, 10, 15, 20):
        expected = known[f"alpha_grid/N{points}"]
        assert np.allclose(grid("released", points), expected, atol=1e-12)
    assert np.allclose(grid("midpoints", 5), known["alpha_grid/N5"], atol=1e-12)
    assert grid("stratified", 4, 0, 1) == grid("stratified", 4, 0, 1)
    draws = np.array([grid("stratified", 4, 3, step) for step in range(1, 2001)])
    assert ((draws * 4).astype(int) == np.arange(4)).all()
    assert np.allclose(draws.mean(axis=0), grid("midpoints", 4), atol=0.01)
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.1
    assert grid("stratified", 4, 4, 1) != grid("stratified", 4, 3, 1)
