"""Training: the loop, resuming bit by bit, stopping, diverging, validating."""

import json
import math
import os
import signal
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from perdure import optim
from perdure.batch import Batch, Step
from perdure.errors import (
    DataError,
    DivergedError,
    RecipeError,
    RunError,
    TaskError,
    WeightsError,
)
from perdure.learner import Learner
from perdure.loop import steps
from perdure.method import METHODS, Entry
from perdure.opening import find_templates, load_student
from perdure.optim_spec import OptimSpec
from perdure.recipe import parse_recipe
from perdure.run import Run
from perdure.runtime import Runtime
from perdure.signals import Interrupted
from perdure.training import train
from perdure.work import Work
from perdure.zoo import random_clip


class Noisy(Learner):
    """Fits a scale, with random numbers, a moving average and a step at which it breaks."""

    def __init__(self, student, broken):
        super().__init__(student)
        self.student.requires_grad_(False)
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("average", torch.zeros(4))
        self.broken = broken
        self.updates = []

    def forward(self, batch, step):
        noise = torch.randn(4)
        fit = (self.weight * noise - batch.labels.float().mean()).square().mean()
        size = self.weight.square().sum() * (math.nan if step == self.broken else 0.1)
        return Step({"fit": fit, "size": size}, {"noise": noise.mean()})

    def after_step(self, step):
        self.updates.append(step)
        self.average.lerp_(self.weight.detach(), 0.5)


@dataclass(frozen=True)
class NoisyMethod:
    name: ClassVar[str] = "noisy"
    paper: ClassVar[str] = "https://example.org"

    broken: int = 0

    def build(self, student, context):
        return Noisy(student, self.broken)


@pytest.fixture(autouse=True)
def _noisy_method(monkeypatch):
    monkeypatch.setitem(METHODS, "noisy", Entry(f"{__name__}:NoisyMethod", "for tests"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    random_clip().save(path / "tiny")
    return path / "tiny"


@pytest.fixture
def make(clip):
    """Return a maker of recipes: 80 images, batches of 32, so 3 steps per epoch."""

    def recipe(method="noisy", options=None, **tables):
        table = {
            "model": {"name": str(clip)},
            "data": {"name": "emojishift", "shots": 1, "augment": "flip-shift"},
            "method": {"name": method, **(options or {})},
            "optim": {"lr": 1e-3, "batch_size": 32, "steps": 8, "warmup": 0.25},
            "run": {"save_every": 3, "log_every": 1, "device": "cpu", "threads": 1},
        }
        for key, value in tables.items():
            old = table.get(key)
            table[key] = old | value if isinstance(old, dict) else value
        return parse_recipe(table)

    return recipe


class Crash(Exception):
    """Stands for a kill: nothing of ours handles it."""


def crash_at(step):
    def progress(tick, total):
        if tick.step == step:
            raise Crash

    return progress


def weights(run):
    return load_file(run.path / "predictor" / "predictor.safetensors")


def equal(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[name]) for name, value in first.items())


def log(run, *, timed=False):
    hidden = () if timed else ("seconds",)
    return [{k: v for k, v in row.items() if k not in hidden} for row in run.log_rows()]


def loop(broken=0, total=6, precision="fp32", **options):
    learner = Noisy(random_clip(), broken)
    runtime = Runtime("cpu", precision, threads=1)
    spec = OptimSpec(lr=0.1, batch_size=2, steps=total)
    optimizer, schedule = optim.make(learner, spec, total)
    batch = Batch(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([1, 2]))
    return learner, steps(learner, [batch] * total, optimizer, schedule, runtime, **options)


def test_gradients_are_gone_while_the_next_step_looks_forward():
    learner, ticks = loop()
    seen = []
    learner.register_forward_pre_hook(lambda module, args: seen.append(module.weight.grad))
    for _ in ticks:
        assert learner.weight.grad is not None  # whoever looks at a step still sees its own
    assert seen == [None] * 6


def test_loss_is_the_sum_of_its_named_terms_and_steps_count_from_one():
    learner, ticks = loop()
    ticks = list(ticks)
    assert [tick.step for tick in ticks] == learner.updates == [1, 2, 3, 4, 5, 6]
    for tick in ticks:
        assert set(tick.terms) == {"fit", "size"}
        assert tick.loss == sum(tick.terms.values())
        assert set(tick.stats) == {"noise"}
        assert tick.grad_norm > 0
    assert [tick.lr for tick in ticks] == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * t / 6)) for t in range(6)]
    )
    assert sorted(tick.seconds for tick in ticks) == [tick.seconds for tick in ticks]


def test_random_numbers_belong_to_seed_and_step():
    noise = [tick.stats["noise"] for tick in loop()[1]]
    assert len(set(noise)) == 6
    assert [tick.stats["noise"] for tick in loop()[1]] == noise
    assert [tick.stats["noise"] for tick in loop(start=2)[1]][:4] == noise[2:]
    assert [tick.stats["noise"] for tick in loop(seed=1)[1]] != noise


def test_only_steps_that_are_read_wait_for_the_device():
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Reads.count += "_local_scalar_dense" in str(func)
            return func(*args, **(kwargs or {}))

    _, ticks = loop(read=lambda step: step in (1, 6))
    assert next(ticks).loss is not None
    with Reads():
        quiet = [next(ticks) for _ in range(4)]
    assert Reads.count == 0
    assert [(tick.loss, tick.terms, tick.grad_norm) for tick in quiet] == [(None, None, None)] * 4
    assert next(ticks).loss is not None


def test_what_is_read_does_not_change_what_is_computed():
    first, ticks = loop()
    list(ticks)
    second, ticks = loop(read=lambda step: False)
    list(ticks)
    assert equal(first.state_dict(), second.state_dict())


@pytest.mark.parametrize("read", [steps.__kwdefaults__["read"], lambda step: step == 6])
def test_a_diverged_step_is_named_with_every_term_even_when_read_later(read):
    _, ticks = loop(broken=3, read=read)
    with pytest.raises(DivergedError) as caught:
        list(ticks)
    assert caught.value.step == 3
    assert set(caught.value.terms) == {"fit", "size"}
    assert math.isnan(caught.value.terms["size"])
    assert math.isfinite(caught.value.terms["fit"])


def test_gradients_that_are_not_finite_are_a_divergence_too():
    learner, ticks = loop()
    learner.weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(DivergedError) as caught:
        list(ticks)
    assert caught.value.step == 1
    assert set(caught.value.terms) == {"fit", "size", "gradient"}


def test_clipping_limits_the_step_and_reports_the_norm_before():
    free = [tick.grad_norm for tick in loop(total=1)[1]]
    learner, ticks = loop(total=1, clip_norm=1e-3)
    assert [tick.grad_norm for tick in ticks] == free
    assert learner.weight.grad.norm() == pytest.approx(1e-3, rel=1e-3)


def test_an_fp16_overflow_repeats_the_step_and_counts_it_once():
    learner, ticks = loop(precision="fp16", total=3)
    overflows = iter([math.inf, math.inf, 1.0, 1.0, 1.0])
    learner.weight.register_hook(lambda grad: grad * next(overflows))
    assert [tick.step for tick in ticks] == learner.updates == [1, 2, 3]
    assert torch.isfinite(learner.weight).all()


@pytest.mark.parametrize("broken", [0, 2])
def test_fp16_that_never_recovers_ends(broken):
    learner, ticks = loop(precision="fp16", total=3, broken=broken)
    if not broken:
        learner.weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(DivergedError) as caught:
        list(ticks)
    assert caught.value.step == (broken or 1)


def test_a_run_leaves_the_whole_directory_and_nothing_else(make, tmp_path):
    said, ticks = [], []
    recipe = make("tracer", validate={"splits": ["val"]}, run={"log_every": 3})
    progress = lambda tick, total: ticks.append((tick.step, total))  # noqa: E731
    run = train(recipe, tmp_path / "run", progress=progress, say=said.append)
    assert {file.name for file in run.path.iterdir()} == {
        "recipe.yaml",
        "env.json",
        "log.jsonl",
        "status.json",
        "predictor",
        "model",
    }
    assert list(tmp_path.iterdir()) == [run.path]
    assert run.recipe() == recipe
    assert said == ["Training on cpu, fp32, 1 thread; 8 steps."]
    assert ticks == [(step, 8) for step in range(1, 9)]
    status = run.status()
    assert status["state"] == "finished"
    assert status["step"] == status["total_steps"] == status["delivered_step"] == 8
    assert status["trainable"] == status["parameters"] == 115_585  # a teacher is no parameter
    assert status["seconds"] > 0
    rows = log(run, timed=True)
    assert [row["step"] for row in rows if "loss" in row] == [1, 3, 6, 8]
    assert [row["step"] for row in rows if "validation" in row] == [3, 6, 8]
    assert all(row["loss"] == sum(row["terms"].values()) for row in rows if "loss" in row)
    assert all(0 <= row["validation"]["val"] <= 1 for row in rows if "validation" in row)


@pytest.mark.parametrize("method", ["noisy", "tracer", "ft"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_ends_bitwise_as_if_never_stopped(make, tmp_path, method, workers):
    settings = {"optim": {"clip_norm": 1.0}, "validate": {"splits": ["val"], "every": 4}}
    recipe = make(method, **settings)
    whole = train(recipe, tmp_path / "whole")
    said = []
    other = make(method, **settings, run={"workers": workers})
    for step in (2, 5, 8):
        with pytest.raises(Crash):
            train(other, tmp_path / "parts", resume=True, progress=crash_at(step), say=said.append)
    parts = train(other, tmp_path / "parts", resume=True, say=said.append)
    assert [line for line in said if "Resumed" in line] == [
        "Resumed after step 4 of 8.",
        "Resumed after step 6 of 8.",
    ]
    assert equal(weights(whole), weights(parts))
    assert log(whole) == log(parts)
    assert parts.status()["best_step"] == whole.status()["best_step"]


def test_an_incomplete_state_is_ignored(make, tmp_path):
    recipe = make(run={"save_every": 2})
    whole = train(recipe, tmp_path / "whole")
    with pytest.raises(Crash):
        train(recipe, tmp_path / "parts", progress=crash_at(7))
    (tmp_path / "parts" / "state" / "step_00000006" / "COMPLETE").unlink()
    said = []
    parts = train(recipe, tmp_path / "parts", resume=True, say=said.append)
    assert "Resumed after step 4 of 8." in said
    assert equal(weights(whole), weights(parts))
    assert log(whole) == log(parts)


def test_a_finished_run_is_left_alone(make, tmp_path):
    recipe = make()
    run = train(recipe, tmp_path / "run")
    before = {file: file.stat().st_mtime_ns for file in run.path.rglob("*")}
    said = []
    again = train(recipe, tmp_path / "run", resume=True, say=said.append)
    assert said == [f"{run.path} is finished already; nothing to do."]
    assert again.finished
    assert before == {file: file.stat().st_mtime_ns for file in run.path.rglob("*")}


def test_a_run_killed_right_after_its_result_was_written_is_whole(make, tmp_path, monkeypatch):
    def killed(self, *, keep_states):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Run, "tidy", killed)
        with pytest.raises(Crash):
            train(make(), tmp_path / "run")
    run = train(make(), tmp_path / "run", resume=True)
    status = run.status()
    assert (status["state"], status["step"], status["delivered_step"]) == ("finished", 8, 8)
    assert not run.states.exists()
    assert equal(weights(run), weights(train(make(), tmp_path / "whole")))


def test_an_existing_directory_or_another_recipe_is_refused(make, tmp_path):
    train(make(), tmp_path / "run")
    with pytest.raises(RunError, match="exists already"):
        train(make(), tmp_path / "run")
    with pytest.raises(RunError, match=r"optim\.lr: 0\.001 -> 0\.01"):
        train(make(optim={"lr": 1e-2}), tmp_path / "run", resume=True)
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match="not a run directory"):
        train(make(), tmp_path / "other", resume=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_says_how_to_go_on(make, tmp_path, number):
    recipe = make("tracer", run={"save_every": 100, "log_every": 100})
    handler = signal.getsignal(number)

    def interrupt(tick, total):
        if tick.step == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        train(recipe, tmp_path / "run", progress=interrupt)
    assert signal.getsignal(number) is handler
    assert caught.value.number == number
    text = str(caught.value)
    assert f"stopped by {number.name} after step {caught.value.step}" in text
    assert f"--out {tmp_path / 'run'} --resume" in text
    assert caught.value.step in (4, 5)
    assert Run(tmp_path / "run").status()["state"] == "stopped"
    run = train(recipe, tmp_path / "run", resume=True)
    assert equal(weights(run), weights(train(recipe, tmp_path / "whole")))


def test_a_diverged_run_keeps_its_last_good_state(make, tmp_path):
    recipe = make("noisy", {"broken": 5}, run={"log_every": 4})
    with pytest.raises(DivergedError, match="step 5"):
        train(recipe, tmp_path / "run")
    run = Run(tmp_path / "run")
    status = run.status()
    assert status["state"] == "failed"
    assert "not finite at step 5" in status["error"]
    assert [path.name for path in run.states.iterdir()] == ["step_00000003"]
    assert not run.finished


def scripted(monkeypatch, accuracies):
    script = iter(accuracies)
    monkeypatch.setattr(Work, "validate", lambda self: {"val": next(script)})


@pytest.mark.parametrize(("select", "delivered"), [("last", 8), ("best", 4)])
def test_the_run_delivers_the_last_or_the_best_weights(
    make, tmp_path, monkeypatch, select, delivered
):
    scripted(monkeypatch, [0.1, 0.3, 0.3, 0.2])
    recipe = make(
        "flyp",
        validate={"splits": ["val"], "every": 2, "select": select},
        run={"keep": True, "save_every": 3},
    )
    run = train(recipe, tmp_path / "run")
    status = run.status()
    assert (status["best_step"], status["best_value"]) == (4, 0.3)
    assert status["delivered_step"] == delivered
    state = load_file(run.states / f"step_{delivered:08d}" / "learner.safetensors")
    for name, value in weights(run).items():
        assert torch.equal(state[f"student.{name}"], value), name
    names = sorted(path.name for path in run.states.iterdir())
    assert names == ["step_00000004", "step_00000006", "step_00000008"]


def test_validation_does_not_change_training(make, tmp_path):
    plain = train(make("tracer"), tmp_path / "plain")
    watched = train(make("tracer", validate={"splits": ["val"], "every": 2}), tmp_path / "watched")
    assert equal(weights(plain), weights(watched))
    assert [row for row in log(watched) if "loss" in row] == log(plain)


def test_a_second_stage_starts_from_the_first(make, tmp_path):
    for seed in (0, 1):
        train(make("ft", {"train": "head"}, seed=seed), tmp_path / f"lp-{seed}")
    chained = make("ft", model={"init": str(tmp_path / "lp-{seed}")}, seed=1)
    student = load_student(chained.model, chained.seed)
    assert equal(student.state_dict(), weights(Run(tmp_path / "lp-1")))
    run = train(chained, tmp_path / "ft")
    assert Run(run.path).recipe() == chained
    with pytest.raises(RunError, match="nothing does not exist"):
        train(make("ft", model={"init": str(tmp_path / "nothing")}), tmp_path / "bad")


def test_templates_come_from_the_recipe_a_named_set_or_the_data(make):
    assert find_templates(make().data) == find_templates(
        make(data={"templates": "emojishift"}).data
    )
    assert find_templates(make(data={"templates": ["my {}"]}).data) == ("my {}",)


@pytest.mark.parametrize(
    ("tables", "error"),
    [
        ({"model": {"name": "perdure-tny"}}, WeightsError),
        ({"model": {"init": "/nowhere/run"}}, RunError),
        ({"data": {"name": "emojishft"}}, DataError),
        ({"data": {"split": "trian"}}, DataError),
        ({"data": {"templates": ["a photo"]}}, TaskError),
        ({"data": {"templates": "openai-8"}}, DataError),
        ({"validate": {"splits": ["vla"]}}, DataError),
        ({"run": {"device": "cuda:99"}}, RunError),
    ],
)
def test_a_recipe_that_cannot_be_carried_out_leaves_no_directory(make, tmp_path, tables, error):
    with pytest.raises(error):
        train(make(**tables), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_methods_reach_the_recipe_by_name_only(make):
    with pytest.raises(RecipeError, match="did you mean 'tracer'"):
        make("trcer")
    assert json.loads(json.dumps(make().method.broken)) == 0
