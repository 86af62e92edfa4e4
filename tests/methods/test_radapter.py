"""R-Adapter: what trains, what is averaged, what is dropped, and where its strength comes in."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perdure import losses, zoo
from perdure.batch import Batch
from perdure.distillation import Distillation
from perdure.errors import RecipeError, SurgeryError
from perdure.method import Context, parse_method
from perdure.methods.radapter import RAdapter, RAdapterLearner
from perdure.predictor import Predictor
from perdure.surgery.residual import adapters, recorded_masks
from perdure.teacher import Teacher, after_steps

Golden = Callable[[str], dict[str, np.ndarray]]

CLASSES = ("taco", "tiger", "fire engine")
TEMPLATES = ("a photo of a {}", "{}")
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}


def build(
    method: RAdapter, total: int = 10, seed: int = 0, student: Predictor | None = None
) -> RAdapterLearner:
    context = Context(total, CLASSES, TEMPLATES, zoo.random_clip, seed)
    learner = method.build(student or zoo.random_clip(), context)
    assert isinstance(learner, RAdapterLearner)
    learner.train()
    return learner


def batch(seed: int = 0, size: int = 40) -> Batch:
    tokens = zoo.random_clip().tokenizer(["a taco", "a photo of a tiger", "taco"])
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return Batch(images, tokens, torch.tensor([0, 1, 0]))


def run(learner: RAdapterLearner, first: int, last: int, size: int = 40) -> None:
    live = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(live, lr=0.5)
    for step in range(first, last + 1):
        optimizer.zero_grad()
        torch.stack(list(learner(batch(step, size), step).terms.values())).sum().backward()
        optimizer.step()
        learner.after_step(step)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("case", ["m0900", "m0999"])
def test_golden_averages_of_adapter_and_gate(golden: Golden, case: str) -> None:
    data = {key.split("/")[1]: torch.from_numpy(value) for key, value in
            golden("r_adapter_ema").items() if key.startswith(case)}  # fmt: skip
    student: Any = nn.ParameterList(
        [nn.Parameter(data["F_ema"][0].clone()), nn.Parameter(data["s_ema"][0].clone())]
    )
    method = RAdapter(momentum=float(data["momentum"]))
    average = Teacher(student, method.mix(10), after_steps(1, 10))
    for step in range(1, 11):
        with torch.no_grad():
            student[0].copy_(data["F_live_after_step"][step - 1])
            student[1].copy_(data["s_live_after_step"][step - 1])
        average.after_step(student, step)
        matrix, gate = average.average.values().values()
        torch.testing.assert_close(matrix, data["F_ema"][step], rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(gate, data["s_ema"][step], rtol=1e-13, atol=1e-15)
    product = gate * matrix
    torch.testing.assert_close(product, data["product_of_emas_final"], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(product, data["ema_of_product_final_not_used"])


@pytest.mark.parametrize(("every", "total"), [(1, 7), (3, 7), (10, 7)])
def test_rarer_updates_keep_as_much_of_the_start(every: int, total: int) -> None:
    mix, due = RAdapter(momentum=0.9, average_every=every).mix(total), after_steps(every, total)
    remains = 1.0
    for step in range(1, total + 1):
        k = due(step)
        if k is not None:
            remains *= 1 - mix(k)
            assert remains == pytest.approx(0.9**step)
    assert remains == pytest.approx(0.9**total)


@pytest.mark.parametrize("options", [{}, {"rank_image": 4, "rank_text": 2, "bias": True}])
def test_it_starts_as_the_pre_trained_model_to_the_bit(options: dict[str, Any]) -> None:
    base, data = zoo.random_clip().eval().requires_grad_(False), batch()
    found = build(RAdapter(**options)).export()
    with torch.no_grad():  # torch computes attention in another way where gradients may be needed
        for one, other in zip(base(*data[:2]), found(*data[:2]), strict=True):
            assert torch.equal(one, other)


def test_what_is_frozen_has_no_gradient_and_stays_for_ten_steps() -> None:
    learner = build(RAdapter())
    before = state(learner.student)
    run(learner, 1, 10)
    added = set(learner.student.added())
    assert added
    assert added == {name for name, p in learner.student.named_parameters() if p.requires_grad}
    for name, value in learner.student.named_parameters():
        if name in added:
            assert not torch.equal(before[name], value), name
        else:
            assert torch.equal(before[name], value), name
            assert value.grad is None


@pytest.mark.parametrize(
    ("rank", "expected"), [(None, 108_558), (16, 38_926)], ids=["full", "rank 16"]
)
def test_the_number_of_weights_that_train(rank: int | None, expected: int) -> None:
    learner = build(RAdapter(rank_image=rank, rank_text=rank), student=zoo.load("perdure-tiny"))
    assert sum(p.numel() for p in learner.parameters() if p.requires_grad) == expected


def test_the_average_is_what_is_delivered_and_the_live_adapters_are_not() -> None:
    learner = build(RAdapter(momentum=0.5))
    run(learner, 1, 5)
    assert learner.average is not None
    values, live = learner.average.average.values(), learner.student.added()
    assert values.keys() == live.keys()
    exported = learner.export().added()
    for name, value in values.items():
        assert value.dtype == torch.float32
        assert torch.equal(exported[name], value)
        assert not torch.equal(live[name], value)
    off = build(RAdapter(momentum=0))
    run(off, 1, 5)
    assert off.average is None
    assert all(torch.equal(v, off.student.added()[n]) for n, v in off.export().added().items())


def test_the_strength_is_that_of_the_export_alone() -> None:
    weak, strong = build(RAdapter(alpha=0.25)), build(RAdapter(alpha=1.0))
    for learner in (weak, strong):
        run(learner, 1, 3)
        assert {adapter.alpha for adapter in adapters(learner.student.clip).values()} == {1.0}
    one, two = state(weak), state(strong)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert weak.export().surgeries[0].alpha == 0.25
    data = batch()
    quarter, whole = weak.export(), strong.export()
    assert not torch.equal(quarter.encode_image(data.images), whole.encode_image(data.images))
    whole.set_alpha(0.25)
    assert torch.equal(quarter.encode_image(data.images), whole.encode_image(data.images))


def test_a_warning_says_how_much_of_the_untrained_start_remains() -> None:
    with pytest.warns(UserWarning, match=r"keeps 0\.018 .* momentum 0\.98 over 200 steps"):
        build(RAdapter(momentum=0.98), total=200)
    enough = math.floor(1000 * 0.01 ** (1 / 200)) / 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(RAdapter(momentum=enough), total=200)
        build(RAdapter(momentum=0), total=1)


@pytest.mark.parametrize("mode", ["module", "sample", "token"])
def test_dropping_depends_on_seed_and_step_and_not_on_the_process(mode: Any) -> None:
    def masks(seed: int, step: int, noise: int) -> list[Tensor]:
        learner = build(RAdapter(drop=0.5, drop_mode=mode), seed=seed)
        torch.manual_seed(noise)  # differs between processes
        with recorded_masks(learner.student.clip) as found:
            learner(batch(), step)
        return [mask.flatten() for drawn in found.values() for mask in drawn]

    first = torch.cat(masks(1, 5, noise=0))
    assert torch.equal(first, torch.cat(masks(1, 5, noise=99)))
    assert 0 < first.mean() < 1
    assert not torch.equal(first, torch.cat(masks(2, 5, noise=0)))
    assert not torch.equal(first, torch.cat(masks(1, 6, noise=0)))


def test_first_weights_depend_on_the_seed_and_not_on_the_process() -> None:
    starts = []
    for seed, noise in ((1, 0), (1, 99), (2, 0)):
        torch.manual_seed(noise)
        learner = build(RAdapter(rank_image=4, rank_text=4), seed=seed)
        starts.append(torch.cat([value.flatten() for value in learner.student.added().values()]))
        assert torch.initial_seed() == noise
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_without_dropping_and_in_evaluation_nothing_is_drawn() -> None:
    off, on = build(RAdapter(drop=0)), build(RAdapter(drop=0.5))
    with recorded_masks(off.student.clip) as found:
        off(batch(), 1)
    assert not any(found.values())
    on.eval()
    with recorded_masks(on.student.clip) as found:
        on(batch(), 1)
    assert not any(found.values())


@pytest.mark.parametrize("kind", ["wma", "ema", "uniform", "static"])
def test_every_teacher_of_tracer_pulls_and_averages_adapters_alone(kind: Any) -> None:
    method = RAdapter(teacher=Distillation(teacher=kind, stats=True, stats_every=1), momentum=0.5)
    learner = build(method)
    run(learner, 1, 3)
    assert learner.distiller is not None
    assert set(learner.distiller.teacher.average.values()) == set(learner.student.added())
    step = learner(batch(), 4)
    names = ("feature", "relational", "interactive", "cross")
    assert list(step.terms) == ["contrastive", *names]
    assert all(step.terms[name] > 0 for name in names)
    assert {"scale", "gate", "teacher_divergence"} <= set(step.stats)


def test_a_static_teacher_is_the_pre_trained_model_without_dropping() -> None:
    only = {f"{name}_weight": 0.0 for name in ("relational", "interactive", "cross")}
    spec = Distillation(teacher="static", feature_weight=1.0, strength=1.0, **only)
    learner, base, data = build(RAdapter(teacher=spec, drop=0)), zoo.random_clip(), batch()
    run(learner, 1, 3)
    expected = losses.feature_distill(learner.student(*data[:2]), base(*data[:2]))
    torch.testing.assert_close(learner(data, 4).terms["feature"], expected)


def test_the_contrastive_term_is_mpm_nce_with_the_published_values() -> None:
    learner, data = build(RAdapter(drop=0)), batch()
    pairs = learner.student(*data[:2])
    expected = losses.mpm_nce(pairs, data.labels, margin=0.05, smoothing=0.02)
    step = learner(data, 1)
    assert torch.equal(step.terms["contrastive"], expected)
    assert step.stats["gate"] == pytest.approx(0.1)
    assert "gate" not in build(RAdapter(gate=None))(data, 1).stats


def test_each_part_can_be_switched_off_alone() -> None:
    data = batch()
    whole: dict[str, Any] = {"drop": 0.0, "contrastive": "mpm_nce"}
    found = {}
    for change in ({}, {"drop": 0.5}, {"margin": 0.0}, {"smoothing": 0.0},
                   {"contrastive": "info_nce"}):  # fmt: skip
        learner = build(RAdapter(**(whole | change)))
        run(learner, 1, 3)
        found[str(change)] = learner(data, 4).terms["contrastive"].item()
    assert len(set(found.values())) == 5


def test_frozen_batch_statistics_do_not_move() -> None:
    student = zoo.random_clip(vision_cfg=RESNET)
    learner = build(RAdapter(towers=("text",)), student=student)
    before = state(learner.student.clip.visual)
    run(learner, 1, 2, size=32)
    after = state(learner.student.clip.visual)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert learner.student.added()
    with pytest.raises(SurgeryError, match="ResNet"):
        build(RAdapter(), student=zoo.random_clip(vision_cfg=RESNET))


def test_a_run_that_starts_from_another_folds_its_adapters_first() -> None:
    first = build(RAdapter(momentum=0, alpha=1.0))
    run(first, 1, 3)
    before = first.export()
    learner = build(RAdapter(), student=before)
    assert len(learner.student.surgeries) == 1
    data = batch()
    expected, found = before.encode_image(data.images), learner.export().encode_image(data.images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"drop": 1}, "method.drop: found 1"),
        ({"momentum": 1}, "method.momentum: found 1"),
        ({"rank_image": 0}, "method.rank_image: found 0"),
        ({"teacher": {"betta": 1}}, "method.teacher.betta: there is no such key"),
        ({"teacher": {"beta": 0}}, "method.teacher.beta: found 0"),
        ({"towers": ["sound"]}, "method.towers"),
    ],
)
def test_nonsense_is_refused(table: dict[str, Any], fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        parse_method({"name": "radapter", **table})


WORKER = """
import sys
import torch, torch.distributed as dist
from perdure.collective import first_row

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
assert first_row(torch.zeros(3 if rank == 0 else 2)) == (0, 3)[rank]
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.slow
def test_rows_of_the_second_process_follow_those_of_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.strip().endswith("equal")
