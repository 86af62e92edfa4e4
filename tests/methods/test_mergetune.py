"""MERGETUNE: the objective, its path and its anchor, in the memory of one pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perdure import optim, zoo
from perdure.batch import Batch, Step
from perdure.endpoints import Endpoints
from perdure.errors import RecipeError, TaskError, WeightsError
from perdure.learner import Learner
from perdure.method import Context, parse_method
from perdure.methods.mergetune import MergeTune
from perdure.methods.mergetune_learners import MergeTuneLearner
from perdure.optim_spec import OptimSpec
from perdure.path_loss import loss_at
from perdure.predictor import Predictor
from perdure.repairing import Settings
from perdure.weights import trainable
from tests.hosts import (
    CLASSES,
    CONTEXT,
    HOSTS,
    RESNET,
    TEMPLATES,
    batch,
    build,
    total,
    tuned,
)

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(name: str) -> Any:
    return np.load(GOLDEN / f"mergetune_{name}.npz", allow_pickle=False)


@pytest.mark.parametrize("host", HOSTS, ids=str)
def test_without_its_terms_it_is_the_host_going_on_from_the_tuned_model(
    host: dict[str, Any],
) -> None:
    learner = build(host, start=1, anchor_weight=0, path_weight=0, decay_towards="zero")
    alone = parse_method(host).build(zoo.random_clip(), CONTEXT).train()
    end = dict(tuned(host).named_parameters())
    with torch.no_grad():
        for name, parameter in trainable(alone.student).items():
            parameter.copy_(end[name])
    alone.restart()
    spec = OptimSpec(lr=1e-3, weight_decay=0.1, batch_size=5, steps=3)
    for each in (learner, alone):
        optimizer, _ = optim.make(each, spec, 3)
        for step in (1, 2, 3):
            torch.manual_seed(step)
            found = each(batch(each, step), step)
            assert not {"path", "anchor"} & found.terms.keys()
            total(found).backward()
            optimizer.step()
            optimizer.zero_grad()
            each.after_step(step)
    inside, outside = learner.host.state_dict(), alone.state_dict()
    assert inside.keys() == outside.keys()
    for name, value in outside.items():
        assert torch.equal(inside[name], value), name


@pytest.mark.parametrize("name", ["ft", "flyp"])
def test_for_whole_models_that_is_the_host_with_the_tuned_model_as_its_start(name: str) -> None:
    learner = build({"name": name}, start=1, anchor_weight=0, path_weight=0)
    alone = parse_method({"name": name}).build(tuned({"name": name}), CONTEXT).train()
    now = batch(learner)
    mine, theirs = learner(now, 1), alone(now, 1)
    assert mine.terms.keys() == theirs.terms.keys()
    assert all(torch.equal(mine.terms[key], value) for key, value in theirs.terms.items())


@pytest.mark.parametrize("vision", [{}, RESNET])
@pytest.mark.parametrize("name", ["ft", "flyp"])
def test_it_starts_between_its_ends_and_exactly_at_them(name: str, vision: dict[str, Any]) -> None:
    def zeroshot() -> Predictor:
        return zoo.random_clip(vision_cfg=vision) if vision else zoo.random_clip()

    context = Context(20, CLASSES, TEMPLATES, zeroshot)
    host = {"name": name}
    first = parse_method(host).build(zeroshot(), context).student.state_dict()
    last = tuned(host, context)
    for module in last.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean += 1
    end = last.state_dict()
    for start in (0, 0.25, 1):
        method = parse_method({"name": "mergetune", "host": host, "start": start})
        found = method.build(last.copy(), context).student.state_dict()
        for key, value in found.items():
            expected = {0: first[key], 1: end[key]}.get(start)
            if expected is not None:
                assert torch.equal(value, expected), key
            elif value.is_floating_point() and first[key].isfinite().all():
                middle = 0.75 * first[key] + 0.25 * end[key]
                assert torch.allclose(value, middle, atol=1e-6), key


def test_the_anchor_is_zero_at_the_zero_shot_model_and_the_path_flat_at_the_tuned_one() -> None:
    learner = build({"name": "flyp"}, start=0)
    assert learner(batch(learner), 1).terms["anchor"] == 0
    learner = build({"name": "flyp"}, start=1, log_points=True)
    found = learner(batch(learner), 1)
    points = [float(value) for key, value in found.stats.items() if key.startswith("path_")]
    assert len(points) == 5
    assert points == [float(found.terms["contrastive"].detach())] * 5
    assert found.terms["anchor"] == 1  # relative, times 1


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sum", lambda tower, head: tower[0] + head[0]),
        ("mean", lambda tower, head: (tower[0] + head[0]) / (tower[2] + head[2])),
        ("relative", lambda tower, head: (tower[0] / tower[1] + head[0] / head[1]) / 2),
    ],
)
def test_reductions(reduction: str, expected: Callable[..., float]) -> None:
    learner = build({"name": "ft"}, reduction=reduction, start=0.4, anchor_weight=3.0)
    with torch.no_grad():
        for parameter in trainable(learner).values():
            parameter += 0.01
    live, zero, end = trainable(learner.host), learner.zeroshot.values(), learner.tuned.values()
    sums: dict[bool, list[float]] = {True: [0.0, 0.0, 0.0], False: [0.0, 0.0, 0.0]}
    for name, value in live.items():
        part = sums["head" in name]
        part[0] += float((value.detach().double() - zero[name]).square().sum())
        part[1] += float((end[name].double() - zero[name]).square().sum())
        part[2] += value.numel()
    found = float(learner(batch(learner), 1).terms["anchor"].detach())
    assert found == pytest.approx(3.0 * expected(sums[False], sums[True]), rel=1e-4)


def test_fisher_information_is_the_mean_squared_gradient_of_the_first_steps() -> None:
    learner = build({"name": "ft"}, anchor="fisher", reduction="sum", fisher_steps=2)
    squares = []
    for step in (1, 2, 3):
        now = batch(learner, step)
        _, found = loss_at(learner.host, now, step, learner.zeroshot.values())
        squares.append([torch.zeros(()) if one is None else one.square() for one in found])
        distance = learner(now, step).terms["anchor"].detach()
        learner.after_step(step)
        used = squares[:2]
        live, zero = trainable(learner.host), learner.zeroshot.values()
        expected = sum(
            float((sum(each) / len(used) * (live[name].detach() - zero[name]).square()).sum())
            for name, each in zip(live, zip(*used, strict=True), strict=True)
        )
        assert float(distance) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_can_pull_to_the_anchor(optimizer: Any) -> None:
    """Without gradients AdamW shrinks a distance by 1 - lr decay; SGD's decay is a gradient."""
    spec = OptimSpec(
        optimizer=optimizer, lr=0.1, weight_decay=0.5, momentum=0, batch_size=5, steps=1
    )
    for towards in ("anchor", "zero"):
        learner = build({"name": "flyp"}, decay_towards=towards)
        found, _ = optim.make(learner, spec, 1)
        before = {name: value.detach().clone() for name, value in trainable(learner.host).items()}
        for parameter in trainable(learner).values():
            parameter.grad = torch.zeros_like(parameter)
        found.step()
        for name, value in trainable(learner.host).items():
            target = learner.zeroshot.values()[name] if towards == "anchor" else 0.0
            assert torch.allclose(value, before[name] + 0.05 * (target - before[name]), atol=1e-6)


class Toy(Learner):
    """A host of a few numbers, with a loss of any form."""

    def __init__(self, start: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__(zoo.random_clip())
        self.student.requires_grad_(False)
        self.student.numbers = nn.Parameter(start.clone())
        self.loss = loss

    def forward(self, batch: Batch, step: int) -> Step:
        return Step({"task": self.loss(self.student.numbers)}, {})


def toy(
    loss: Callable[[Tensor], Tensor], now: Any, zero: Any, tuned: Any, **settings: Any
) -> tuple[MergeTuneLearner, nn.Parameter]:
    host = Toy(torch.tensor(now), loss)
    ends = [{"student.numbers": torch.tensor(each)} for each in (zero, tuned)]
    made = Settings(reduction="sum", **settings)
    learner = MergeTuneLearner(
        host, MergeTune(host=parse_method({"name": "ft"}), log_points=True), made,
        Endpoints(ends[0], ends[1], ({}, {})), 0,
    )  # fmt: skip
    return learner, host.student.numbers


NOTHING = Batch(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2), torch.zeros(1))


@pytest.mark.parametrize("points", [5, 10])
def test_the_minimum_of_a_quadratic_objective_is_reached(points: int) -> None:
    known = golden("quadratic")
    part = {key: known[f"quad/{key}"] for key in ("A", "c2", "w", "w_zero", "w_ft")}
    curvature, best = torch.tensor(part["A"]), torch.tensor(part["c2"])
    rest = float(known["quad/const"])

    def loss(numbers: Tensor) -> Tensor:
        return 0.5 * (numbers - best) @ curvature @ (numbers - best) + rest

    learner, numbers = toy(
        loss, part["w"], part["w_zero"], part["w_ft"], points=points, grid="released",
        anchor_weight=float(known["quad/lam"]), path_weight=float(known["quad/beta"]),
    )  # fmt: skip
    expected = {key: known[f"quad/N{points}/{key}"] for key in ("path_losses", "objective", "grad")}
    found = learner(NOTHING, 1)
    total(found).backward()
    losses = [float(found.stats[f"path_{number}"]) for number in range(1, points + 1)]
    assert np.allclose(losses, expected["path_losses"], atol=1e-12)
    assert float(total(found).detach()) == pytest.approx(float(expected["objective"]), abs=1e-12)
    assert numbers.grad is not None
    assert np.allclose(numbers.grad.numpy(), expected["grad"], atol=1e-12)
    optimizer = torch.optim.LBFGS([numbers], max_iter=40, tolerance_grad=0, tolerance_change=1e-15)

    def again() -> Tensor:
        optimizer.zero_grad()
        value = total(learner(NOTHING, 1))
        value.backward()
        return value

    optimizer.step(again)
    minimiser = known[f"quad/N{points}/minimiser"]
    assert np.abs(numbers.detach().numpy() - minimiser).max() <= 1e-6


def test_a_softmax_regression_takes_the_known_twenty_steps() -> None:
    known = golden("quadratic")
    x, y = torch.tensor(known["lin/X"]), torch.tensor(known["lin/y"]).long()
    zero, end, tau = known["lin/w_zero"], known["lin/w_ft"], float(known["lin/tau"])

    def loss(weight: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x @ weight.T, y)

    learner, weight = toy(
        loss, (1 - tau) * zero + tau * end, zero, end, points=5, grid="midpoints",
        anchor_weight=float(known["lin/lam"]), path_weight=float(known["lin/beta"]),
    )  # fmt: skip
    for step, parts in enumerate(known["lin/parts_ce_sqdist_pathces"]):
        assert np.allclose(weight.detach().numpy(), known["lin/trajectory"][step], atol=1e-10)
        weight.grad = None
        found = learner(NOTHING, step + 1)
        total(found).backward()
        values = [found.terms["task"].detach(), found.stats["anchor_distance"]]
        values += [found.stats[f"path_{number}"] for number in range(1, 6)]
        assert np.allclose([float(value) for value in values], parts, atol=1e-10)
        assert float(total(found).detach()) == pytest.approx(float(known["lin/objective"][step]))
        assert weight.grad is not None
        assert np.allclose(weight.grad.numpy(), known["lin/grads"][step], atol=1e-10)
        with torch.no_grad():
            weight -= float(known["lin/lr"]) * weight.grad
    assert np.allclose(weight.detach().numpy(), known["lin/trajectory"][20], atol=1e-10)


def other_classes() -> Predictor:
    student = tuned({"name": "ft"})
    student.set_head(("cup", "leaf", "owl"), TEMPLATES)
    return student


@pytest.mark.parametrize(
    ("host", "start", "error", "said"),
    [
        ({"name": "ft"}, zoo.random_clip, WeightsError, "nothing to repair. Set model.init"),
        ({"name": "flyp"}, zoo.random_clip, WeightsError, "nothing to repair"),
        ({"name": "radapter"}, zoo.random_clip, WeightsError, "lacks .* the host adds residual"),
        ({"name": "lora"}, lambda: tuned({"name": "radapter"}), WeightsError, "modules: residual"),
        ({"name": "flyp"}, lambda: tuned({"name": "lora"}), WeightsError, "which the host has not"),
        ({"name": "lora", "rank": 2}, lambda: tuned({"name": "lora"}), WeightsError, "shapes"),
        ({"name": "flyp"}, lambda: tuned({"name": "ft"}), WeightsError, "has a linear head"),
        ({"name": "ft"}, lambda: tuned({"name": "flyp"}), WeightsError, "also differs .* clip"),
        ({"name": "ft", "train": "head"}, lambda: tuned({"name": "ft"}), WeightsError, "and would"),
        ({"name": "ft"}, other_classes, TaskError, "cup, leaf, owl"),
    ],
)  # fmt: skip
def test_a_model_that_the_host_did_not_make_is_refused(
    host: dict[str, Any], start: Callable[[], Predictor], error: type[Exception], said: str
) -> None:
    method = parse_method({"name": "mergetune", "host": host})
    with pytest.raises(error, match=said):
        method.build(start(), CONTEXT)


def test_image_tower_weights_without_a_head_get_the_zero_shot_one() -> None:
    start = tuned({"name": "ft"})
    start.drop_head()
    learner = parse_method({"name": "mergetune", "host": {"name": "ft"}}).build(start, CONTEXT)
    assert isinstance(learner, MergeTuneLearner)
    head = learner.tuned.values()["student.head.weight"]
    assert torch.equal(head, start.classifier(CLASSES, TEMPLATES) * start.scale)


def test_the_recipe_of_a_host_is_a_table_in_the_recipe() -> None:
    method = parse_method({"name": "mergetune", "host": {"name": "flyp", "margin": 0.1}})
    assert isinstance(method, MergeTune)
    assert method.host == parse_method({"name": "flyp", "margin": 0.1})
    with pytest.raises(TaskError, match="mergetune itself"):
        MergeTune(host=method).build(zoo.random_clip(), CONTEXT)


@pytest.mark.parametrize(
    ("table", "lines"),
    [
        ({}, ["method.host: missing; mergetune cannot do without."]),
        ({"host": "ft"}, ["method.host: found 'ft'; write a table"]),
        ({"host": {"name": "fyp"}}, ["method.host.name: no method 'fyp'; did you mean 'flyp'"]),
        (
            {"host": {"name": "flyp", "margn": 1, "margin": 9}, "start": 2, "pointz": 3},
            ["method.host.margn: flyp has no such key", "method.host.margin: found 9",
             "method.start: found 2", "method.pointz: mergetune has no such key"],
        ),
    ],
)  # fmt: skip
def test_faults_name_the_whole_key(table: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        parse_method({"name": "mergetune", **table})
    assert len(str(error.value).splitlines()) == len(lines)
    for line in lines:
        assert line in str(error.value)


def test_a_term_of_the_host_keeps_a_name_of_its_own() -> None:
    class Anchored(Toy):
        def forward(self, batch: Batch, step: int) -> Step:
            return Step({"anchor": self.loss(self.student.numbers)}, {})

    learner, _ = toy(lambda numbers: numbers.sum(), [1.0], [0.0], [2.0])
    learner.host = Anchored(torch.tensor([1.0]), lambda numbers: numbers.sum())
    assert list(learner(NOTHING, 1).terms) == ["host_anchor", "path", "anchor"]
