"""PromptKD: the authors' divergence, where prompts and projector act, and students on their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from perdure import losses, zoo
from perdure.batch import Batch
from perdure.errors import RunError, SurgeryError, TaskError, WeightsError
from perdure.inputs import Preprocess
from perdure.method import Context
from perdure.methods.promptkd import PromptKd, PromptKdLearner, converted
from perdure.predictor import Predictor
from perdure.recipe import load_recipe
from perdure.surgery.projector import Projector, layers_of, without_projector
from perdure.training import train

Golden = Callable[[str], dict[str, np.ndarray]]
CLASSES = ("taco", "tiger", "fire engine")
ALL = (*CLASSES, "guitar", "rose")
TEMPLATES = ("a photo of a {}", "{}")
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}


def build(
    method: PromptKd, seed: int = 0, student: Predictor | None = None, **context: Any
) -> PromptKdLearner:
    around = Context(10, CLASSES, TEMPLATES, zoo.random_clip, seed, lambda: ALL, **context)
    learner = method.build(student or zoo.random_clip(), around)
    assert isinstance(learner, PromptKdLearner)
    return learner.train()


def batch(seed: int = 0, rows: int = 6, size: int = 40) -> Batch:
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 3, size, size, generator=random)
    return Batch(images, torch.zeros(rows, 20, dtype=torch.int64), torch.zeros(rows).long())


def run(learner: PromptKdLearner, steps: int, lr: float = 1e-3) -> list[float]:
    live = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(live, lr=lr)
    found = []
    for step in range(1, steps + 1):
        loss = learner(batch(step % 4, 16), step).terms["task"]
        found.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def test_golden_divergence_and_that_of_points_on_a_path(golden: Golden) -> None:
    data = golden("mergetune_promptkd")
    now, before, text, teacher = (
        torch.from_numpy(data[name])
        for name in ("features_current_unit", "features_pretrained_unit", "teacher_text_unit",
                     "teacher_logits")
    )  # fmt: skip
    scale, temperature = float(data["logit_scale_current"]), float(data["TEMPERATURE"])
    found = losses.softened_kl(scale * now @ text.T, teacher, temperature)
    assert float(found) == pytest.approx(float(data["loss_kd"]), rel=2e-5, abs=2e-5)
    # The released path mixes features and does not normalise the mixtures.
    alphas = torch.from_numpy(data["alphas"]).float()[:, None, None]
    mixed = scale * ((1 - alphas) * before + alphas * now) @ text.T
    path = losses.softened_kl(mixed, teacher, temperature)
    np.testing.assert_allclose(path, data["lmc_per_alpha_float64"], rtol=2e-5, atol=2e-5)
    whole = (
        float(data["KD_WEIGHT"]) * found
        + float(data["LAMBDA_REG"]) * float(data["l2_reg"])
        + float(data["BETA_LMC"]) * path.mean()
    )
    assert float(whole) == pytest.approx(float(data["loss"]), rel=2e-5)


@given(seed=st.integers(0, 99), classes=st.integers(2, 7), temperature=st.floats(0.2, 5))
def test_the_divergence_is_never_negative_and_a_share_of_the_usual_one(
    seed: int, classes: int, temperature: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    one, two = 5 * torch.randn(2, 4, classes, generator=random, dtype=torch.float64)
    assert float(losses.softened_kl(one, two, temperature)) >= 0
    assert float(losses.softened_kl(one, one, temperature)) == 0
    torch.testing.assert_close(
        classes * losses.softened_kl(one, two), losses.class_kl(one, two), rtol=1e-9, atol=1e-12
    )
    usual = nn.functional.kl_div(
        (one / temperature).log_softmax(-1), (two / temperature).log_softmax(-1),
        reduction="batchmean", log_target=True,
    )  # fmt: skip
    found = losses.softened_kl(one, two, temperature)
    torch.testing.assert_close(found, temperature**2 * usual / classes, rtol=1e-9, atol=1e-12)


def test_the_loss_is_the_divergence_of_the_student_at_the_teachers_rows() -> None:
    method = PromptKd(teacher="perdure-tiny", kd_weight=200, temperature=2)
    learner = build(method)
    data = batch()
    found = learner(data, 1).terms
    teacher = zoo.load("perdure-tiny")
    pixels = converted(data.images, learner.student.preprocess, teacher.preprocess)
    target = teacher.logits_fn(ALL, TEMPLATES)(pixels)
    rows = teacher.classifier(ALL, TEMPLATES)
    with torch.no_grad(), without_projector(learner.student.clip) as project:
        raw = learner.student.clip.encode_image(data.images)
        features = nn.functional.normalize(project(raw), dim=-1)
    scores = learner.student.scale * features @ rows.T
    expected = 200 * losses.softened_kl(scores, target, 2)
    assert found.keys() == {"task"}
    torch.testing.assert_close(found["task"].detach(), expected.detach(), rtol=1e-4, atol=1e-4)


def test_labels_and_texts_are_not_looked_at() -> None:
    learner = build(PromptKd())
    one = batch()
    two = one._replace(labels=one.labels + 2, tokens=one.tokens + 1)
    assert torch.equal(learner(one, 1).terms["task"], learner(two, 1).terms["task"])


def test_only_prompts_and_projector_train_and_only_the_projector_sees_batches() -> None:
    learner = build(PromptKd(depth=2))
    trained = {name for name, p in learner.named_parameters() if p.requires_grad}
    visual = "student.clip.visual"
    assert trained == {
        f"{visual}.ln_pre.prompts.weight",
        f"{visual}.transformer.resblocks.1.prompts.weight",
        *(f"{visual}.projector.{name}" for name in
          ("first.weight", "norm.weight", "norm.bias", "last.weight", "last.bias")),
    }  # fmt: skip
    modes = {name for name, module in learner.student.clip.named_modules() if module.training}
    assert modes == {f"visual.projector{part}" for part in ("", ".first", ".norm", ".last")}
    before = layers_of(learner.student.clip).norm.running_mean.clone()
    run(learner, 1)
    assert not torch.equal(layers_of(learner.student.clip).norm.running_mean, before)


def test_batch_statistics_of_a_frozen_resnet_stay_and_those_of_the_teacher_too() -> None:
    teacher = zoo.random_clip(vision_cfg=RESNET)
    learner = build(PromptKd(prompts=0), student=zoo.random_clip(vision_cfg=RESNET))
    learner._teacher = (teacher,)
    states = [
        {name: value.clone() for name, value in module.named_buffers() if "projector" not in name}
        for module in (learner.student, teacher)
    ]
    assert all("clip.visual.bn1.running_mean" in state for state in states)
    learner(batch(size=32), 1)
    for state, module in zip(states, (learner.student, teacher), strict=True):
        now = dict(module.named_buffers())
        assert all(torch.equal(value, now[name]) for name, value in state.items())


def test_a_single_image_takes_the_running_statistics() -> None:
    layers = layers_of(build(PromptKd()).student.clip)
    x = torch.randn(1, 32)
    state = {name: value.clone() for name, value in layers.named_buffers()}
    alone = layers(x)
    assert torch.equal(alone, layers.eval()(x))
    assert all(torch.equal(value, state[name]) for name, value in layers.named_buffers())


def test_the_divergence_falls() -> None:
    found = run(build(PromptKd(teacher="perdure-tiny")), 24, lr=3e-3)
    assert np.mean(found[-4:]) < 0.5 * np.mean(found[:4])


def test_a_saved_student_scores_all_classes_of_the_data_and_no_others(tmp_path: Path) -> None:
    learner = build(PromptKd(teacher="perdure-tiny"))
    run(learner, 2)
    learner.export().save(tmp_path / "student")
    student = Predictor.load(tmp_path / "student")
    images = batch().images
    rows = zoo.load("perdure-tiny").classifier(ALL, TEMPLATES)
    assert student.encode_image(images).shape == (6, 96)
    expected = student.scale * student.encode_image(images) @ rows.T
    for names in (ALL, CLASSES, ("rose", "taco")):  # all, those trained on, any
        columns = [ALL.index(name) for name in names]
        found = student.logits_fn(names, ("other prompts of {}",))(images)
        torch.testing.assert_close(found, expected[:, columns].detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(student.classifier(names, TEMPLATES), rows[columns])
    for ask in (student.logits_fn, student.classifier):
        with pytest.raises(TaskError, match=r"no row for the class 'violin'.* 5 classes"):
            ask(("taco", "violin"), TEMPLATES)


def test_a_teacher_is_a_run_a_model_or_the_start_and_its_size_may_differ(tmp_path: Path) -> None:
    recipe = load_recipe("emojishift/flyp", ("optim.epochs=null", "optim.steps=1", "data.shots=1"))
    made = train(recipe, tmp_path / "run-3")
    learner = build(PromptKd(teacher=str(tmp_path / "run-{seed}")), seed=3)
    data = batch()
    pixels = converted(data.images, learner.student.preprocess, made.predictor().preprocess)
    expected = made.predictor().logits_fn(ALL, TEMPLATES)(pixels)
    torch.testing.assert_close(learner.targets(data), expected)
    small = build(PromptKd(teacher="perdure-tiny", prompts=0),
                  student=zoo.random_clip(vision_cfg=RESNET))  # fmt: skip
    assert small.targets(batch(size=32)).shape == (6, 5)
    assert small.targets(batch(size=32, rows=0)).shape == (0, 5)
    (tmp_path / "run-3" / "predictor" / "predictor.json").unlink()
    with pytest.raises(RunError, match="holds no finished run"):
        build(PromptKd(teacher=str(tmp_path / "run-3")))


def test_pictures_are_converted_to_the_teachers_scale() -> None:
    pixels = torch.randint(0, 256, (2, 3, 8, 8)).to(torch.uint8)
    one = Preprocess(8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    two = Preprocess(8, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    torch.testing.assert_close(
        converted(one.normalize(pixels), one, two), two.normalize(pixels), rtol=1e-5, atol=1e-6
    )
    assert converted(one.normalize(pixels), one, Preprocess(12, two.mean, two.std)).shape[2] == 12


def test_a_task_or_teacher_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TaskError, match="the task has none"):
        PromptKd().build(zoo.random_clip(), Context(1, (), TEMPLATES, zoo.random_clip))

    def headed() -> Predictor:
        teacher = zoo.random_clip()
        teacher.set_head(CLASSES, TEMPLATES)
        return teacher

    around = Context(1, CLASSES, TEMPLATES, headed, 0, lambda: ALL)
    with pytest.raises(TaskError, match="has a head of 3 classes, without 'guitar'"):
        PromptKd().build(zoo.random_clip(), around)
    PromptKd().build(zoo.random_clip(), Context(1, CLASSES, TEMPLATES, headed))
    with pytest.raises(SurgeryError, match="no transformer blocks"):
        build(PromptKd(), student=zoo.random_clip(vision_cfg=RESNET))


def test_a_run_goes_on_with_prompts_and_projector_of_the_one_before(tmp_path: Path) -> None:
    first = build(PromptKd(teacher="perdure-tiny"))
    run(first, 2)
    first.export().save(tmp_path / "student")
    again = build(PromptKd(teacher="perdure-tiny"), student=Predictor.load(tmp_path / "student"))
    now = again.student.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in first.student.state_dict().items())
    trained = {name for name, p in again.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in first.named_parameters() if p.requires_grad}
    with pytest.raises(TaskError, match=r"tokens=4.* not those of the recipe .*tokens=3"):
        build(PromptKd(teacher="perdure-tiny", prompts=3), student=first.export())


def test_a_teacher_that_is_not_there_and_pairs_of_two_spaces_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"^method\.teacher: runs/none is no finished run"):
        build(PromptKd(teacher="runs/none"))
    student = build(PromptKd()).export()
    with pytest.raises(TaskError, match="live in the space of its teacher"):
        student(batch().images, student.tokenizer(["a taco"]))


def test_a_trained_run_knows_all_classes_of_the_data(tmp_path: Path) -> None:
    few = ("data.shots=1", "optim.epochs=null", "optim.steps=1", "method.teacher=perdure-tiny")
    student = train(load_recipe("emojishift/promptkd", few), tmp_path / "run").predictor()
    assert len(student.classes) == 80
    assert not (tmp_path / "run" / "model").exists()


def test_a_student_has_no_strength() -> None:
    student = build(PromptKd()).export()
    with pytest.raises(SurgeryError, match=r"alpha is 0\.5"):
        student.set_alpha(0.5)
    with pytest.raises(SurgeryError, match=r"alpha is 0\.0"):
        student.fold(0.0)
    with pytest.raises(SurgeryError, match="already"):
        student.attach(Projector(32, 32))
