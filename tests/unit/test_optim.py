"""Learning rates against the golden numbers, and which parameters train how."""

import pytest
import torch
from torch import nn

from perdure import optim
from perdure.batch import Step
from perdure.errors import TaskError
from perdure.learner import Learner
from perdure.optim_spec import OptimSpec
from perdure.zoo import random_clip

CASES = [
    (1e-5, 500, 25030, 0.0),
    (1e-5, 5, 20, 0.0),
    (1e-5, 0, 20, 0.0),
    (3e-5, 5, 20, 1e-6),
]


class Plain(Learner):
    def forward(self, batch, step):
        return Step({}, {})


def spec(**options):
    return OptimSpec(**{"lr": 1e-3, "batch_size": 4, "steps": 10} | options)


@pytest.mark.parametrize(("base", "warmup", "total", "least"), CASES)
def test_schedule_equals_the_golden_learning_rates(golden, base, warmup, total, least):
    key = f"lr_base{base:.0e}_warm{warmup}_T{total}_min{least}"
    numbers = golden("tracer_schedules")
    factor = optim.warmup_cosine(total, warmup)
    for papers_step, expected in zip(numbers[f"{key}__step"], numbers[f"{key}__lr"], strict=True):
        # The published code adds min_lr after warm-up; it is 0 in every published run.
        jump = least if papers_step >= warmup else 0.0
        rate = base * factor(int(papers_step) + 1) + jump
        assert rate == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("key", "base", "epochs", "warmup"),
    [
        ("coop_ep100", 2e-3, 100, 1),
        ("lmc_ep50", 2e-3, 50, 1),
        ("coop_upstream_ep200", 2e-3, 200, 1),
        ("mma_ep5", 1.5e-3, 5, 0),
        ("promptkd_ep20", 5e-3, 20, 1),
    ],
)
def test_cosine_per_epoch_equals_the_golden_learning_rates(golden, key, base, epochs, warmup):
    steps = 3
    options = {"lr": base, "steps": None, "epochs": epochs, "optimizer": "sgd"}
    chosen = spec(schedule="cosine-epochs", warmup_epochs=warmup, **options)
    optimizer, factor = optim.make(Plain(random_clip()), chosen, epochs * steps)
    expected = golden("mergetune_grids")[f"lr/{key}"]
    found = [optim.set_rate(optimizer, factor(step)) for step in range(1, epochs * steps + 1)]
    assert found == pytest.approx(expected.repeat(steps).tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schedule": "cosine-epochs"}, "needs epochs"),
        ({"schedule": "cosine-epochs", "steps": None, "epochs": 3, "warmup": 0.1}, "warmup_epochs"),
        ({"warmup_epochs": 1}, "belongs to the schedule"),
    ],
)
def test_schedules_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        spec(**options)


def test_run_shorter_than_its_warmup_only_warms_up():
    factor = optim.warmup_cosine(3, 500)
    assert [factor(step) for step in (1, 2, 3)] == [1 / 500, 2 / 500, 3 / 500]


def test_head_has_its_own_rate_and_vectors_can_be_spared_from_decay():
    student = random_clip()
    student.set_head(("cat", "dog"), ("a {}",))
    learner = Plain(student)
    options = {"head_lr": 1e-2, "weight_decay": 0.1, "decay": "matrices"}
    groups = optim.parameter_groups(learner, spec(**options))
    head = {id(parameter) for parameter in student.head.parameters()}
    seen = 0
    for group in groups:
        for parameter in group["params"]:
            seen += 1
            assert group["lr"] == group["initial_lr"] == (1e-2 if id(parameter) in head else 1e-3)
            assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0)
    assert seen == len(list(learner.parameters()))
    assert len(groups) == 4


def test_without_head_rate_everything_is_one_decayed_group():
    groups = optim.parameter_groups(Plain(random_clip()), spec(weight_decay=0.1))
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.1)]


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_an_error():
    learner = Plain(random_clip())
    learner.requires_grad_(False)
    with pytest.raises(TaskError, match="nothing to train"):
        optim.make(learner, spec(), 10)
    learner.student.clip.logit_scale.requires_grad_(True)
    optimizer, _ = optim.make(learner, spec(), 10)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_set_rate_scales_every_group():
    student = random_clip()
    student.set_head(("cat", "dog"), ("a {}",))
    optimizer, schedule = optim.make(Plain(student), spec(head_lr=1e-2, warmup_steps=4), 10)
    assert optim.set_rate(optimizer, schedule(2)) == pytest.approx(0.5e-3)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5e-3, 0.5e-2])
    assert optim.set_rate(optimizer, schedule(4)) == pytest.approx(1e-3)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_first_step_is_the_textbook_one(name):
    learner = Plain(random_clip())
    learner.requires_grad_(False)
    scale = learner.student.clip.logit_scale.requires_grad_(True)
    before = scale.item()
    optimizer, _ = optim.make(learner, spec(optimizer=name, lr=0.1, weight_decay=0.5), 10)
    (3.0 * scale).backward()
    optimizer.step()
    # AdamW: decay, then a step of the rate whatever the gradient; SGD: decay is in the gradient.
    after = before * (1 - 0.05) - 0.1 if name == "adamw" else before - 0.1 * (3 + 0.5 * before)
    assert scale.item() == pytest.approx(after, rel=1e-5)


def test_fused_and_plain_adamw_agree():
    torch.manual_seed(0)
    results = []
    for fused in (False, True):
        layer = nn.Linear(8, 8)
        nn.init.constant_(layer.weight, 0.5)
        nn.init.zeros_(layer.bias)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, fused=fused)
        for value in (1.0, -2.0, 0.5):
            optimizer.zero_grad()
            (layer(torch.full((2, 8), value)) ** 2).sum().backward()
            optimizer.step()
        results.append(layer.weight.detach().clone())
    assert torch.allclose(*results, atol=1e-7)


def test_a_constant_rate_stays_after_the_warm_up():
    _, factor = optim.make(Plain(random_clip()), spec(warmup_steps=4, schedule="constant"), 10)
    assert [factor(step) for step in (1, 2, 4, 5, 10)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert optim.warmup_constant(0)(1) == 1.0
