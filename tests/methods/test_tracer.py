"""TRACER: its objective and teachers against golden numbers, and what its switches switch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import perdure.distillation
from perdure import zoo
from perdure.batch import Batch, Pairs
from perdure.distillation import Distiller
from perdure.errors import TaskError
from perdure.learner import Learner
from perdure.losses import feature_distill, mpm_nce
from perdure.method import Context
from perdure.methods.flyp import Flyp
from perdure.methods.tracer import Tracer, TracerLearner
from perdure.teacher import Teacher, after_steps, from_first_step
from perdure.weights import beta_wma, lerp, trainable

Golden = Callable[[str], dict[str, np.ndarray]]

CLASSES = ("taco", "tiger", "fire engine")
TEMPLATES = ("a photo of a {}", "{}")
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}
TERMS = ("feature", "relational", "interactive", "cross")
OFF: dict[str, Any] = {f"{name}_weight": 0.0 for name in TERMS}


def context(total: int = 10) -> Context:
    return Context(total, CLASSES, TEMPLATES, zoo.random_clip)


def build(method: Tracer, total: int = 10, **overrides: Any) -> TracerLearner:
    learner = method.build(zoo.random_clip(**overrides), context(total))
    assert isinstance(learner, TracerLearner)
    return learner


def batch(size: int = 40, seed: int = 0) -> Batch:
    tokens = zoo.random_clip().tokenizer(["a taco", "a photo of a tiger", "taco"])
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return Batch(images, tokens, torch.tensor([0, 1, 0]))


def step_once(learner: Learner, data: Batch, step: int) -> dict[str, float]:
    terms = learner(data, step).terms
    learner.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    with torch.no_grad():
        for parameter in learner.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    learner.after_step(step)
    return {name: value.item() for name, value in terms.items()}


class _Features(nn.Module):
    """A student whose embeddings are its weights."""

    def __init__(self, image: Tensor, text: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.image, self.text = nn.Parameter(image), nn.Parameter(text)
        self.logit_scale = nn.Parameter(scale.log())

    def forward(self, images: Tensor, tokens: Tensor) -> Pairs:
        unit = nn.functional.normalize
        return Pairs(unit(self.image, dim=1), unit(self.text, dim=1), self.logit_scale.exp())


@pytest.mark.parametrize("case", ["N4_D16_f64", "N8_D16_f64", "N32_D16_f64", "independent"])
def test_the_objective_and_its_gradients_are_the_golden_ones(golden: Golden, case: str) -> None:
    data = {
        key.removeprefix(f"{case}__"): torch.from_numpy(value)
        for key, value in golden("tracer_losses").items()
        if key.startswith(f"{case}__") and value.dtype.kind == "f"
    }
    rows, width = data["img_s"].shape
    student: Any = _Features(data["img_s"], data["txt_s"], data["scale_s"])
    teacher = Teacher(
        _Features(data["img_t"], data["txt_t"], data["scale_t"]),  # type: ignore[arg-type]
        None,
        after_steps(1, 2),
    )
    # The source takes the mean over D with weight 2000.
    method = Tracer(feature_weight=2000 / width)
    learner = TracerLearner(student, method, Distiller(method, 2, teacher, None))
    none = torch.zeros(rows, 1)
    terms = learner(Batch(none, none, none), 2).terms
    for name, key in {"relational": "crd", "interactive": "icl", "cross": "cross_kd"}.items():
        torch.testing.assert_close(terms[name], 0.9 * data[key], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms["feature"], 0.9 * 2000 * data["fd"], rtol=1e-11, atol=1e-12)
    loss = torch.stack(list(terms.values())).sum()
    torch.testing.assert_close(loss, data["objective"], rtol=1e-11, atol=1e-12)

    loss.backward()
    for parameter, key in ((student.image, "img"), (student.text, "txt")):
        # The source differentiates some terms with and some without its second normalisation:
        # the part of a gradient along its row has no meaning on the sphere.
        full, row = data[f"objective_grad_{key}"], data[f"{key}_s"]
        tangent = full - (full * row).sum(dim=1, keepdim=True) * row
        torch.testing.assert_close(parameter.grad, tangent, rtol=1e-9, atol=1e-11)
    scale = data["scale_s"] * data["objective_grad_scale"]
    torch.testing.assert_close(student.logit_scale.grad, scale, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("total", "every", "beta"),
    [
        (1, 1, 0.5), (5, 1, 0.5), (20, 1, 0.2), (20, 1, 0.5), (20, 1, 1.0), (20, 1, 1.5),
        (20, 5, 0.5), (100, 1, 0.5), (100, 1, 1.0), (100, 7, 0.5), (100, 50, 0.5),
    ],
)  # fmt: skip
def test_golden_sequences_of_the_averaged_teacher(
    golden: Golden, total: int, every: int, beta: float
) -> None:
    data = golden("tracer_teachers")
    key = f"seq_wma_T{total}_freq{every if every > 1 else 0}_b{beta}"
    path, expected = torch.from_numpy(data[f"{key}__student"]), data[f"{key}__teacher"]
    student: Any = nn.ParameterList([nn.Parameter(path[0].clone())])
    method = Tracer(beta=beta, teacher_every=every, released=True)
    teacher = Teacher(student, *method.average(total))
    for step in range(1, total + 1):
        with torch.no_grad():
            student[0].copy_(path[step])
        teacher.after_step(student, step)
        (value,) = teacher.average.values().values()
        np.testing.assert_allclose(value.numpy(), expected[step], rtol=1e-12, atol=1e-12)


def test_rarer_updates_keep_the_whole_kernel_and_end_on_the_last_step() -> None:
    number = after_steps(30, 100)
    updates = {step: k for step in range(1, 101) if (k := number(step)) is not None}
    assert updates == {30: 1, 60: 2, 90: 3, 100: 4}
    mix = beta_wma(0.5, 100, 30)
    kernel = np.array([0, 30, 60, 90, 100])
    time = (kernel + 0.5) / 101
    alpha = (time * (1 - time)) ** -0.5
    np.testing.assert_allclose([mix(k) for k in (1, 2, 3, 4)], (alpha / alpha.cumsum())[1:])


def test_updates_as_released_follow_the_first_step_and_the_last() -> None:
    number = from_first_step(30, last=100)
    updates = {step: k for step in range(1, 101) if (k := number(step)) is not None}
    assert updates == {1: 1, 31: 2, 61: 3, 91: 4, 100: 5}
    assert from_first_step(33, last=100)(100) == 4  # already due, not twice


def test_nothing_is_distilled_at_the_first_step() -> None:
    learner = build(Tracer())
    first = step_once(learner, batch(), 1)
    assert list(first) == ["contrastive", *TERMS]
    assert all(first[name] == 0.0 for name in TERMS)
    second = step_once(learner, batch(), 2)
    assert all(second[name] > 0 for name in TERMS)


def test_the_teacher_of_step_2_is_the_weighted_mean_of_the_first_two_weights() -> None:
    learner = build(Tracer(**OFF | {"feature_weight": 1.0}, strength=1.0))
    start = {name: value.detach().clone() for name, value in trainable(learner.student).items()}
    step_once(learner, batch(), 1)
    average = lerp(start, trainable(learner.student), beta_wma(0.5, 10)(1))
    teacher = learner.student.copy()
    teacher.load_state_dict(average, strict=False)
    data = batch(seed=1)
    expected = feature_distill(
        learner.student(data.images, data.tokens), teacher(data.images, data.tokens)
    )
    torch.testing.assert_close(learner(data, 2).terms["feature"], expected)


@pytest.mark.parametrize("kind", ["wma", "ema", "uniform", "static"])
def test_every_kind_of_teacher_is_a_known_mean_of_the_path(kind: Any) -> None:
    learner = build(Tracer(teacher=kind, decay_start=0.5, decay_end=0.5), total=4)
    assert learner.distiller is not None
    name = "clip.visual.proj"
    path = [learner.student.clip.visual.proj.detach().clone()]
    for step in range(1, 5):
        step_once(learner, batch(seed=step), step)
        path.append(learner.student.clip.visual.proj.detach().clone())
    time = (np.arange(5) + 0.5) / 5
    masses = {
        "wma": (time * (1 - time)) ** -0.5,
        "ema": np.array([1, 1, 2, 4, 8]),
        "uniform": np.ones(5),
        "static": np.array([1, 0, 0, 0, 0]),
    }[kind]
    shares = torch.tensor(masses / masses.sum(), dtype=torch.float32)
    expected = torch.einsum("t,tij->ij", shares, torch.stack(path))
    torch.testing.assert_close(learner.distiller.teacher.average.values()[name], expected)


def test_without_strength_it_is_flyp_without_a_teacher() -> None:
    for method in (Tracer(strength=0), Tracer(**OFF)):
        learner, plain = build(method), Flyp().build(zoo.random_clip(), context())
        assert learner.distiller is None
        for step in (1, 2):
            assert step_once(learner, batch(), step) == step_once(plain, batch(), step)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_of_weight_0_is_neither_reported_nor_computed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Tensor:
        raise AssertionError(f"{name} was computed")

    monkeypatch.setitem(perdure.distillation._PAIRWISE, name, fail)
    learner = build(Tracer(**{f"{name}_weight": 0.0}))
    assert set(learner(batch(), 2).terms) == {"contrastive", *TERMS} - {name}


def test_the_teacher_gets_no_gradient_and_is_stored_once() -> None:
    learner = build(Tracer())
    step_once(learner, batch(), 1)
    step_once(learner, batch(), 2)
    assert learner.distiller is not None
    values = learner.distiller.teacher.average.values()
    assert all(not value.requires_grad and value.grad is None for value in values.values())
    assert set(values) == set(trainable(learner.student))
    stored = [name for name in learner.state_dict() if not name.startswith("student.")]
    assert len(stored) == len(values)


def test_the_scale_is_averaged_in_log_space() -> None:
    learner = build(Tracer(teacher="uniform"))
    assert learner.distiller is not None
    with torch.no_grad():
        learner.student.clip.logit_scale.fill_(math.log(10))
    learner.distiller.teacher = Teacher(learner.student, *learner.method.average(10))
    with torch.no_grad():
        learner.student.clip.logit_scale.fill_(math.log(40))
    learner.after_step(1)
    data = batch()
    found = learner.distiller.teacher.embed(learner.student, data.images, data.tokens).scale
    torch.testing.assert_close(found, torch.tensor(20.0))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.9, 0.9, 0.9]),
        ("linear", [0.9, 0.45, 0.009]),
        ("cosine", [0.9, 0.45, 0.9 * 0.5 * (1 + math.cos(math.pi * 0.99))]),
    ],
)
def test_schedules_of_the_strength(schedule: Any, expected: list[float]) -> None:
    method = Tracer(schedule=schedule)
    found = [method.strength_at(step, 100) for step in (1, 51, 100)]
    np.testing.assert_allclose(found, expected)


def test_the_schedule_scales_all_distillation_and_nothing_else() -> None:
    constant, falling = build(Tracer(), total=10), build(Tracer(schedule="linear"), total=10)
    data = batch()
    one, two = constant(data, 6).terms, falling(data, 6).terms
    for name in TERMS:
        torch.testing.assert_close(two[name], 0.5 * one[name])
    assert torch.equal(one["contrastive"], two["contrastive"])


def test_serving_the_teacher_exports_its_weights() -> None:
    learner = build(Tracer(serve="teacher", teacher="uniform"), vision_cfg=RESNET)
    learner.train()
    for step in (1, 2):
        step_once(learner, batch(32, seed=step), step)
    assert learner.distiller is not None
    served, student = learner.export(), learner.student
    for name, value in learner.distiller.teacher.average.values().items():
        assert torch.equal(dict(served.named_parameters())[name], value)
    assert not torch.equal(served.clip.visual.conv1.weight, student.clip.visual.conv1.weight)
    norm, own = served.clip.visual.bn1, student.clip.visual.bn1
    assert torch.equal(norm.running_mean, own.running_mean)


def test_a_teacher_may_be_served_that_nothing_is_distilled_from() -> None:
    learner = build(Tracer(strength=0, serve="teacher", teacher="static"))
    before = learner.student.clip.visual.proj.detach().clone()
    assert list(step_once(learner, batch(), 1)) == ["contrastive"]
    assert torch.equal(learner.export().clip.visual.proj, before)


def test_a_batch_normalised_teacher_uses_the_students_running_statistics() -> None:
    learner = build(Tracer(**OFF | {"feature_weight": 1.0}, strength=1.0), vision_cfg=RESNET)
    learner.train()
    data = batch(32)
    # No optimiser step between: teacher and student have equal weights, not equal statistics.
    found = learner(data, 2).terms["feature"]
    student = learner.student
    assert student.training
    assert student.clip.visual.bn1.training
    assert student.clip.visual.bn1.num_batches_tracked == 1
    live = student.copy()(data.images, data.tokens)  # evaluation mode, statistics of this step
    student.clip.visual.bn1.momentum = 0.0
    expected = feature_distill(student(data.images, data.tokens), live)
    torch.testing.assert_close(found, expected)
    assert found > 0


def test_a_teacher_in_bfloat16_changes_the_targets_a_little_and_nothing_else() -> None:
    fine, coarse = build(Tracer()), build(Tracer(teacher_precision="bf16"))
    step_once(fine, batch(), 1)
    step_once(coarse, batch(), 1)
    one, two = fine(batch(), 2).terms, coarse(batch(), 2).terms
    assert torch.equal(one["contrastive"], two["contrastive"])
    assert not torch.equal(one["cross"], two["cross"])
    assert coarse.distiller is not None
    assert all(
        value.dtype == torch.float32 for value in coarse.distiller.teacher.average.values().values()
    )
    for name in TERMS:
        torch.testing.assert_close(one[name], two[name], rtol=0.2, atol=0.05)
        assert two[name].dtype == torch.float32


def test_class_level_distillation_compares_all_classes_in_one_template_per_step() -> None:
    method = Tracer(**OFF | {"class_weight": 2.0}, strength=0.5)
    learner = build(method)
    teacher = learner.student.copy()
    step_once(learner, batch(), 1)
    assert learner.distiller is not None
    learner.distiller.teacher = Teacher(teacher, None, after_steps(1, 10))
    data = batch(seed=1)
    for step, template in ((2, TEMPLATES[1]), (3, TEMPLATES[0])):
        logs = []
        for model in (learner.student, teacher):
            rows = model.encode_text(model.tokenizer([template.format(c) for c in CLASSES]))
            logits = model.scale * model.encode_image(data.images) @ rows.T
            logs.append(logits.log_softmax(dim=1))
        expected = (logs[1].exp() * (logs[1] - logs[0])).sum(dim=1).mean()
        short = data._replace(tokens=learner.student.trim(data.tokens))
        for found in (learner(data, step), learner(short, step)):
            torch.testing.assert_close(found.terms["class"], expected)
            assert set(found.terms) == {"contrastive", "class"}
    assert learner(data, 1).terms["class"] == 0
    assert "prompts" not in learner.state_dict()


def test_class_level_distillation_needs_class_names() -> None:
    empty = Context(10, (), TEMPLATES, zoo.random_clip)
    with pytest.raises(TaskError, match="no class names"):
        Tracer(class_weight=1).build(zoo.random_clip(), empty)


def test_penalties_on_the_projections_do_not_need_the_teacher() -> None:
    learner = build(Tracer(strength=0, cross_norm_weight=0.05, orthogonality_weight=0.1))
    terms = learner(batch(), 1).terms
    proj, text = learner.student.clip.visual.proj, learner.student.clip.text_projection
    torch.testing.assert_close(terms["cross_norm"], 0.05 * (proj @ text.T).norm())
    torch.testing.assert_close(terms["orthogonality"], 0.1 * (proj.T @ proj - torch.eye(32)).norm())


def test_statistics_are_computed_on_request_only() -> None:
    assert set(build(Tracer())(batch(), 2).stats) == {"scale"}
    learner = build(Tracer(stats=True, stats_every=2))
    assert set(learner(batch(), 1).stats) == set(learner(batch(), 3).stats) == {"scale"}
    stats = learner(batch(), 2).stats
    assert stats["teacher_agreement"] == 1.0  # teacher and student are still equal
    torch.testing.assert_close(stats["teacher_divergence"], torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(stats["teacher_confidence"], stats["student_confidence"])
    assert 1 / 3 <= stats["student_confidence"] <= 1
    assert not any(value.requires_grad for value in stats.values())


def test_the_contrastive_term_may_have_many_positives_and_shares_its_scores() -> None:
    method = Tracer(contrastive="mpm_nce", margin=0.05, smoothing=0.02)
    learner, data = build(method), batch()
    step_once(learner, data, 1)
    pairs = learner.student(data.images, data.tokens)
    found = learner(data, 2).terms
    expected = mpm_nce(pairs, data.labels, margin=0.05, smoothing=0.02)
    assert torch.equal(found["contrastive"], expected)
    plain = build(Tracer())
    plain.load_state_dict(learner.state_dict())
    same = plain(data, 2).terms
    assert all(torch.equal(found[name], same[name]) for name in TERMS)
    assert not torch.equal(found["contrastive"], same["contrastive"])
