"""Half precision: towers in bf16 or fp16, losses in fp32, clipping on unscaled gradients."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from perdure import optim
from perdure.batch import Batch, Step
from perdure.learner import Learner
from perdure.loop import Tick, steps
from perdure.method import METHODS, Context, parse_method
from perdure.optim_spec import OptimSpec
from perdure.predictor import Predictor
from perdure.recipe import Recipe, parse_recipe
from perdure.run import Run
from perdure.runtime import Precision, Runtime
from perdure.training import train
from perdure.weights import trainable
from perdure.zoo import random_clip
from tests.regions_seen import as_seen

CLASSES = ("taco", "tiger", "fire engine")
TEMPLATES = ("a photo of a {}", "{}")
STEPS, ROWS = 3, 8
SPEC = OptimSpec(optimizer="sgd", lr=1e-3, batch_size=ROWS, steps=STEPS)
SETTINGS: dict[str, dict[str, Any]] = {
    "tracer": {"class_weight": 1.0, "cross_norm_weight": 0.05, "stats": True},
    "ft": {"head_decay": 1e-3},
    "mergetune": {"host": {"name": "ft"}, "points": 2},
}


def build(name: str) -> Learner:
    context = Context(STEPS, CLASSES, TEMPLATES, random_clip, masks=True)
    torch.manual_seed(0)  # of first weights of what is added
    method: Any = parse_method({"name": name, **SETTINGS.get(name, {})})
    start = random_clip()
    if name == "mergetune":
        host = method.host.build(start, context)
        with torch.no_grad():
            for value in trainable(host).values():
                value *= 1.05
        start = host.export()
    learner: Learner = method.build(start, context)
    return learner.train()


def batches(student: Predictor) -> Iterator[Batch]:
    size = student.preprocess.size
    for number in range(STEPS):
        random = torch.Generator().manual_seed(number)
        labels = torch.randint(len(CLASSES), (ROWS,), generator=random)
        images = as_seen(torch.randn(ROWS, 3, size, size, generator=random), student)
        texts = [f"a photo of a {CLASSES[label]}" for label in labels]
        yield Batch(images, student.trim(student.tokenizer(texts)), labels)


def trained(name: str, precision: Precision) -> list[Tick]:
    learner = build(name)
    optimizer, schedule = optim.make(learner, SPEC, STEPS)
    runtime = Runtime("cpu", precision, threads=1)
    ticks = list(steps(learner, batches(learner.student), optimizer, schedule, runtime))
    assert {value.dtype for value in learner.student.parameters()} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in learner.state_dict().values())
    return ticks


class Types(TorchDispatchMode):
    """Remembers the types that softmaxes, and products of the towers, are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax: set[torch.dtype] = set()
        self.scores: set[torch.dtype] = set()
        self.products: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._log_softmax.default:
            self.softmax.add(args[0].dtype)
        elif func is torch.ops.aten.mm.default and tuple(out.shape) == (ROWS, ROWS):
            self.scores.add(out.dtype)
        elif func is torch.ops.aten.addmm.default:
            self.products.add(out.dtype)
        return out


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_in_half_precision_near_fp32(name: str, precision: Precision) -> None:
    exact = trained(name, "fp32")
    with Types() as types:
        found = trained(name, precision)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert half in types.products
    assert types.softmax == {torch.float32}
    assert types.scores <= {torch.float32}
    if name in ("flyp", "carot", "tracer"):
        assert types.scores
    digits = {"bf16": 0.05, "fp16": 0.005}[precision]
    if name == "promptkd":  # batch normalisation enlarges the little by which noise images differ
        digits *= 2
    for one, two in zip(exact, found, strict=True):
        assert one.terms is not None
        assert two.terms is not None
        assert two.terms.keys() == one.terms.keys()
        assert two.loss == pytest.approx(one.loss, rel=digits)
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=4 * digits)
    assert [two.loss for two in found] != [one.loss for one in exact]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_terms_are_fp32_scalars_under_autocast(name: str, precision: Precision) -> None:
    learner = build(name)
    for number, batch in enumerate(batches(learner.student), 1):
        with Runtime("cpu", precision, threads=1).autocast():
            found = learner(batch, number)
        for value in (*found.terms.values(), *found.stats.values()):
            assert value.shape == ()
            assert value.dtype == torch.float32
            assert torch.isfinite(value)


class Line(Learner):
    """A loss whose gradient is (3, 4), of length 5, and grows by 8 at the second step."""

    def __init__(self) -> None:
        super().__init__(random_clip())
        self.student.requires_grad_(False)
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, batch: Batch, step: int) -> Step:
        slope: Tensor = torch.tensor([3.0, 4.0]) * (8.0 if step == 2 else 1.0)
        return Step({"line": (self.weight * slope).sum()}, {})


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_clipping_acts_on_unscaled_gradients(precision: Precision) -> None:
    learner = Line()
    optimizer = torch.optim.SGD([learner.weight], lr=0.1)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    runtime = Runtime("cpu", precision, threads=1)
    nothing = Batch(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    loop = steps(learner, [nothing] * 2, optimizer, lambda step: 1.0, runtime, clip_norm=10.0)
    ticks, places = [], [torch.zeros(2)]
    for tick in loop:
        ticks.append(tick)
        places.append(learner.weight.detach().clone())
    # The fp16 loss scale of 65,536 shows neither in the norms nor in what clipping does.
    assert [tick.grad_norm for tick in ticks] == pytest.approx([5.0, 40.0])
    moves = [float((new - old).norm()) for old, new in pairwise(places)]
    assert moves == pytest.approx([0.1 * 5.0, 0.1 * 10.0], rel=1e-5)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip") / "tiny"
    random_clip().save(path)
    return str(path)


def recipe(clip: str, precision: Precision) -> Recipe:
    run = {"device": "cpu", "threads": 1, "save_every": 2, "log_every": 1}
    return parse_recipe(
        {
            "model": {"name": clip},
            "data": {"name": "emojishift", "shots": 1},
            "method": {"name": "tracer"},
            "optim": {"lr": 1e-3, "batch_size": 16, "steps": 4, "clip_norm": 1.0},
            "run": {**run, "precision": precision},
        }
    )


class Kill(Exception):
    """Nothing of ours handles it."""


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_resumes_bit_by_bit(clip: str, tmp_path: Path, precision: Precision) -> None:
    def kill(tick: Tick, total: int) -> None:
        if tick.step == 3:
            raise Kill

    whole = train(recipe(clip, precision), tmp_path / "whole")
    with pytest.raises(Kill):
        train(recipe(clip, precision), tmp_path / "parts", progress=kill)
    parts = train(recipe(clip, precision), tmp_path / "parts", resume=True)
    one, two = (Run(run.path).predictor().state_dict() for run in (whole, parts))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
