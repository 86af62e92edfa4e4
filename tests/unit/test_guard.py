"""The guard: what it measures, when it looks, what it does, and that kills do not change it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from perdure import states, zoo
from perdure.data.suites import SUITES, for_choosing
from perdure.errors import DataError, RecipeError, TaskError
from perdure.evaluation import evaluate
from perdure.guard import Guard, Look
from perdure.guard_spec import WORDS, GuardSpec, less_is_better, splits_of, words_of
from perdure.identities import identity
from perdure.recipe import Recipe, differences, dump_recipe, parse_recipe, plain
from perdure.records import summary
from perdure.run import Run
from perdure.runtime import Runtime
from perdure.signals import Interrupted
from perdure.training import train
from perdure.work import Work
from perdure.zoo import random_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "tiny"
    random_clip().save(path)
    return path


Make = Callable[..., Recipe]


@pytest.fixture(scope="module")
def make(clip: Path) -> Make:
    """Return a maker of recipes of 8 steps whose guard looks after steps 2, 4, 6 and 8."""

    def recipe(guard: dict[str, Any] | None = None, **tables: Any) -> Recipe:
        table: dict[str, Any] = {
            "model": {"name": str(clip)},
            "data": {"name": "emojishift", "shots": 1, "augment": "flip-shift"},
            "method": {"name": "tracer"},
            "optim": {"lr": 1e-3, "batch_size": 16, "steps": 8, "warmup": 0.25},
            "run": {"save_every": 3, "log_every": 1, "device": "cpu", "threads": 1},
        }
        for key, value in tables.items():
            table[key] = table.get(key, {}) | value
        if guard is not None:
            every = 0 if "validate" in tables else 2
            first = {"suite": "emojishift-val", "metric": "ood", "every": every}
            table["guard"] = first | ({} if "drop" in guard else {"floor": 0.5}) | guard
        return parse_recipe(table)

    return recipe


@pytest.fixture(scope="module")
def look(clip: Path) -> Callable[[Guard, Any], Look]:
    """Return a look that measures how near weights are to the start: 1 there, 0 at 8 % of it.

    Like a real metric it depends on the weights alone, and sinks faster at higher rates.
    """
    start = {name: value.clone() for name, value in zoo.load(str(clip)).state_dict().items()}

    def look(self: Guard, predictor: Any) -> Look:
        now = predictor.state_dict()
        moved = _length(now[name] - value for name, value in start.items())
        return Look(1 - moved / _length(start.values()) / 0.08, None, 100)

    return look


@pytest.fixture
def nearness(monkeypatch: pytest.MonkeyPatch, look: Callable[..., Look]) -> None:
    """Let guards look so."""
    monkeypatch.setattr(Guard, "look", look)


@pytest.fixture(scope="module")
def free(make: Make, look: Callable[..., Look], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run whose guard looks and never acts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guard, "look", look)
        return train(make({"floor": 0.0}), tmp_path_factory.mktemp("free") / "run")


@pytest.fixture
def sinking(nearness: None, free: Run) -> list[float]:
    """Return what that guard saw: before training, after steps 2, 4, 6, 8."""
    seen = [row["guard"]["value"] for row in free.log_rows() if "guard" in row]
    assert sorted(seen, reverse=True) == seen
    return seen


def floor_between(values: list[float], first: int) -> float:
    """Return a floor that look number `first` is below, and the one before is not."""
    return (values[first - 1] + values[first]) / 2


def _length(tensors: Iterable[Tensor]) -> float:
    squares = [float(one.double().square().sum()) for one in tensors if one.is_floating_point()]
    return float(sum(squares)) ** 0.5


class Kill(Exception):
    """Nothing of ours handles it."""


def killed_at(step: int) -> Any:
    """Return a progress that kills the run."""

    def progress(tick: Any, total: int) -> None:
        if tick.step == step:
            raise Kill

    return progress


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.path / "predictor" / "predictor.safetensors")


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def log(run: Run) -> list[dict[str, Any]]:
    return [{**row, "seconds": 0} for row in run.log_rows()]


def done(run: Run) -> list[tuple[str, int]]:
    """Return what the log says that the guard did, and at which step."""
    rows = [(row["guard"], row["step"]) for row in run.log_rows() if "guard" in row]
    return [(guard.get("did", "good"), step) for guard, step in rows]


def test_a_floor_that_is_never_met_changes_nothing(make: Make, tmp_path: Path, free: Run):
    plain_run = train(make(), tmp_path / "plain")
    assert equal(weights(plain_run), weights(free))
    assert done(free) == [("start", 0), ("good", 2), ("good", 4), ("good", 6), ("good", 8)]
    status = free.status()
    assert status["guard"]["rollbacks"] == []
    assert status["guard"]["stopped"] is None
    assert status["guard"]["start"] == 1.0
    assert status["step"] == status["delivered_step"] == 8
    assert [row for row in log(free) if "guard" not in row] == log(plain_run)
    assert "guard" not in plain_run.status()


@pytest.mark.parametrize(("first", "good"), [(3, 4), (2, 2), (4, 6)])
def test_stop_delivers_the_last_good_weights(
    make: Make, tmp_path: Path, sinking: list[float], first: int, good: int
):
    said: list[str] = []
    whole = make({"floor": floor_between(sinking, first)}, run={"keep": True})
    run = train(whole, tmp_path / "run", say=said.append)
    status = run.status()
    assert (status["state"], status["step"], status["delivered_step"]) == ("finished", good, good)
    stopped = status["guard"]["stopped"]
    assert (stopped["step"], stopped["to"]) == (good + 2, good)
    assert stopped["value"] == sinking[first]
    learner = load_file(run.states / f"step_{good:08d}" / "learner.safetensors")
    for name, value in weights(run).items():
        assert torch.equal(learner[f"student.{name}"], value), name
    assert max(run.states.iterdir()).name == f"step_{good:08d}"
    assert done(run)[-1] == ("stop", good + 2)
    assert [row["step"] for row in run.log_rows() if "loss" in row] == list(range(1, good + 3))
    assert f"after step {good + 2}" in said[-2]
    assert f"the weights of step {good} are delivered" in said[-2]


def test_below_the_floor_at_once_the_start_is_delivered(
    make: Make, clip: Path, tmp_path: Path, sinking: list[float]
):
    run = train(make({"floor": floor_between(sinking, 1)}), tmp_path / "run")
    assert run.status()["delivered_step"] == 0
    start = load_file(clip / "predictor.safetensors")
    found = weights(run)
    assert all(torch.equal(found[name], value) for name, value in start.items())
    assert not run.states.exists()


def test_a_rollback_goes_on_from_the_last_good_state_at_a_lower_rate(
    make: Make, tmp_path: Path, sinking: list[float], free: Run
):
    floor = floor_between(sinking, 3)
    run = train(make({"floor": floor, "action": "rollback"}), tmp_path / "run")
    status = run.status()
    rollbacks = status["guard"]["rollbacks"]
    first = {"step": 6, "to": 4, "value": sinking[3], "interval": None, "rate": 0.5}
    assert rollbacks[0] == first
    assert [one["rate"] for one in rollbacks] == [0.5**n for n in range(1, len(rollbacks) + 1)]
    assert status["guard"]["stopped"] is None
    assert (status["step"], status["delivered_step"]) == (8, 8)
    assert [one for one in done(run) if one[0] == "rollback"] == [
        ("rollback", one["to"]) for one in rollbacks
    ]
    assert all(row["guard"]["value"] >= floor for row in run.log_rows()
               if "did" not in row.get("guard", {"did": 0}))  # fmt: skip
    ours, theirs = ([row for row in log(one) if "loss" in row] for one in (run, free))
    assert [row["step"] for row in ours] == list(range(1, 9))
    assert ours[:4] == theirs[:4]
    rate, back = rollbacks[-1]["rate"], rollbacks[-1]["to"]
    assert [row["lr"] for row in ours[back:]] == [row["lr"] * rate for row in theirs[back:]]


def test_a_rollback_is_what_training_on_at_the_lower_rate_would_give(
    make: Make, tmp_path: Path, sinking: list[float], monkeypatch: pytest.MonkeyPatch
):
    guarded = make({"floor": floor_between(sinking, 3), "action": "rollback", "factor": 0.1})
    run = train(guarded, tmp_path / "run")
    assert [one["to"] for one in run.status()["guard"]["rollbacks"]] == [4]
    # The same by hand: a run that is stopped after step 4 and goes on at a tenth of the rate.
    with pytest.raises(Kill):
        train(make({"floor": 0.0}), tmp_path / "hand", progress=killed_at(5))
    prepare = Work.prepare

    def slower(recipe: Recipe, runtime: Runtime) -> Work:
        work = prepare(recipe, runtime)
        schedule = work.schedule
        work.schedule = lambda step: schedule(step) * 0.1
        return work

    monkeypatch.setattr(Work, "prepare", slower)
    hand = train(make({"floor": 0.0}), tmp_path / "hand", resume=True)
    assert equal(weights(run), weights(hand))


def test_when_all_rollbacks_are_used_up_it_stops(make: Make, tmp_path: Path, sinking: list[float]):
    hopeless = {
        "floor": floor_between(sinking, 3),
        "action": "rollback",
        "factor": 0.99,
        "times": 2,
    }
    run = train(make(hopeless), tmp_path / "run")
    guard = run.status()["guard"]
    assert [one["step"] for one in guard["rollbacks"]] == [6, 6]
    assert (guard["stopped"]["step"], guard["stopped"]["to"]) == (6, 4)
    assert run.status()["delivered_step"] == 4
    stopped = train(make({"floor": hopeless["floor"]}), tmp_path / "stopped")
    assert equal(weights(run), weights(stopped))


@pytest.mark.parametrize(
    ("action", "floor"), [("stop", "middle"), ("rollback", "middle"), ("rollback", "start")]
)
def test_killed_anywhere_it_ends_as_if_it_had_not_been(
    make: Make,
    tmp_path: Path,
    sinking: list[float],
    action: str,
    floor: str,
    monkeypatch: pytest.MonkeyPatch,
):
    """Kills before, in every step of, and after what the guard does."""
    guard = {"floor": floor_between(sinking, 3 if floor == "middle" else 1), "action": action}
    whole = train(make(guard), tmp_path / "whole")
    parts = tmp_path / "parts"

    def killed(*_: Any, **__: Any) -> None:
        raise Kill

    update = Run.update_status

    def without_record(self: Run, **values: Any) -> None:
        if values.get("guard", {}).get("rollbacks") or values.get("guard", {}).get("stopped"):
            raise Kill
        update(self, **values)

    def record_and_die(self: Run, **values: Any) -> None:
        update(self, **values)
        if values.get("guard", {}).get("rollbacks") or values.get("guard", {}).get("stopped"):
            raise Kill

    def half(self: Run, after: int) -> None:
        newest = states.complete_states(self.states)[-1]
        states.drop_states(self.states, int(newest.name.removeprefix("step_")) - 1)
        raise Kill

    def attempt(place: Any, name: str, value: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            with pytest.raises(Kill):
                train(make(guard), parts, resume=True)

    attempt(Run, "drop_states", killed)
    if floor == "middle":
        attempt(Run, "drop_states", half)
    attempt(Run, "update_status", without_record)
    attempt(Run, "update_status", record_and_die)
    assert Run(parts).status()["guard"]["rollbacks" if action == "rollback" else "stopped"]
    if action == "rollback" and floor == "middle":
        with pytest.raises(Kill):
            train(make(guard), parts, resume=True, progress=killed_at(6))
    attempt(Run, "finish", killed)
    run = train(make(guard), parts, resume=True)
    assert equal(weights(whole), weights(run))
    assert log(whole) == log(run)
    assert whole.status()["guard"] == run.status()["guard"]
    assert whole.status()["step"] == run.status()["step"]
    assert not run.states.exists()


def test_asked_to_stop_while_it_goes_back_it_is_saved_there(
    make: Make, tmp_path: Path, sinking: list[float]
):
    guard = {"floor": floor_between(sinking, 3), "action": "rollback"}
    whole = train(make(guard), tmp_path / "whole")

    def interrupt(tick: Any, total: int) -> None:
        if tick.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        train(make(guard), tmp_path / "run", progress=interrupt)
    assert caught.value.step == 4
    status = Run(tmp_path / "run").status()
    assert (status["state"], status["step"]) == ("stopped", 4)
    assert len(status["guard"]["rollbacks"]) == 1
    run = train(make(guard), tmp_path / "run", resume=True)
    assert equal(weights(whole), weights(run))
    assert log(whole) == log(run)


def test_with_validation_it_looks_when_that_does_and_the_best_is_a_good_one(
    make: Make, tmp_path: Path, sinking: list[float], monkeypatch: pytest.MonkeyPatch
):
    script = iter([0.3, 0.2, 0.9])
    monkeypatch.setattr(Work, "validate", lambda self: {"val": next(script)})
    guarded = make(
        {"floor": floor_between(sinking, 3)},
        validate={"splits": ["val"], "every": 2, "select": "best"},
    )
    run = train(guarded, tmp_path / "run")
    status = run.status()
    assert status["guard"]["stopped"]["step"] == 6
    assert (status["step"], status["best_step"], status["delivered_step"]) == (4, 2, 2)
    with pytest.raises(RecipeError, match=r"^[^:]+fault:\n  guard\.every is 2, but validate"):
        make({"every": 2}, validate={"splits": ["val"]})


def test_without_a_number_it_looks_at_the_end_of_each_epoch(
    make: Make, tmp_path: Path, nearness: None
):
    run = train(make({"floor": 0.0, "every": 0}), tmp_path / "run")  # of 5 steps
    assert [step for word, step in done(run) if word == "good"] == [5, 8]


@pytest.mark.parametrize("metric", ["ood", "val_shift.accuracy", "id", "ece_ood", "val.nll"])
def test_what_it_sees_is_what_an_evaluation_says(make: Make, metric: str):
    guard = Guard.of(make({"metric": metric, "limit": 30}), Runtime("cpu", threads=1))
    assert guard is not None
    predictor = zoo.load("perdure-tiny")
    look = guard.look(predictor)
    scores = evaluate(predictor, "emojishift-val", limit=30)
    split, _, name = metric.rpartition(".")
    words = scores.summary()
    assert look.value == (scores[split][name] if split else words[metric]["value"])
    assert look.images == 30
    if less_is_better(metric):
        assert look.interval is None
    else:
        assert look.interval is not None
        low, high = look.interval
        one = scores[split or ("val" if metric == "id" else "val_shift")]["interval"]
        assert low <= look.value <= high
        assert (low, high) == pytest.approx(one, abs=0.05)


def test_a_mean_has_the_interval_of_all_its_images(make: Make):
    art = make({"suite": "emojishift", "metric": "art", "limit": 20})
    guard = Guard.of(art, Runtime("cpu", threads=1))
    assert guard is not None
    look = guard.look(zoo.load("perdure-tiny"))
    assert look.images == 4 * 20
    assert look.interval is not None
    low, high = look.interval
    assert look.value == pytest.approx((low + high) / 2, abs=0.02)
    assert high - low == pytest.approx(3.92 * (look.value * (1 - look.value) / 80) ** 0.5, rel=0.2)


def test_a_start_below_the_floor_is_an_error_before_anything_is_written(make: Make, tmp_path: Path):
    with pytest.raises(TaskError) as caught:
        train(make({"floor": 0.9, "limit": 20}), tmp_path / "run")
    text = str(caught.value)
    assert "ood of emojishift-val is" in text
    assert "20 images" in text
    assert "floor 90.0 %" in text
    assert not (tmp_path / "run").exists()


def test_a_drop_counts_from_the_pretrained_model(make: Make, tmp_path: Path, clip: Path):
    said: list[str] = []
    run = train(
        make({"drop": 1.0, "limit": 20}, model={"init": None}), tmp_path / "run", say=said.append
    )
    guard = run.status()["guard"]
    expected = evaluate(zoo.load(str(clip)), "emojishift-val", limit=20)["val_shift"]["accuracy"]
    assert guard["pretrained"] == expected
    assert guard["bound"] == expected - 1.0
    assert said[0].startswith("Guard: ood of emojishift-val is")
    assert "(100.0 % from" in said[0]
    assert "untouched" not in said[0]
    second = make({"metric": "ece_ood", "drop": 0.25, "limit": 20})
    assert less_is_better("ece_ood")
    work = Guard.of(second, Runtime("cpu", threads=1))
    assert work is not None
    learner = Work.prepare(second, Runtime("cpu", threads=1)).learner
    work.begin(learner, lambda: zoo.load(str(clip)))
    assert work.record["bound"] == work.record["pretrained"] + 0.25
    assert work.holds(Look(work.record["bound"], None, 1))
    assert not work.holds(Look(work.record["bound"] + 1e-9, None, 1))


def test_a_drop_that_is_just_met_is_met(make: Make):
    guard = Guard.of(make({"drop": 0.1, "limit": 5}), Runtime("cpu", threads=1))
    assert guard is not None
    guard.record = {"bound": 0.8 - 0.1}
    assert guard.record["bound"] > 0.7  # in floats
    assert guard.holds(Look(0.7, None, 10))
    assert not guard.holds(Look(0.7 - 1e-6, None, 10))


def test_suites_that_are_made_for_a_data_set_are_known(make: Make):
    for name in ("forgetting-pets", "corrupt-own", "base-to-novel-own"):
        spec = make({"suite": name, "metric": "target"}).guard
        assert spec is not None
        assert spec.suite == name


def test_a_drop_counts_from_there_also_where_training_starts_elsewhere(
    make: Make, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
):
    values = iter([0.8, 0.6, 0.8, 0.6])
    monkeypatch.setattr(Guard, "look", lambda self, predictor: Look(next(values), None, 5))
    with pytest.raises(TaskError, match=r"guard\.drop, or start elsewhere"):
        train(make({"drop": 0.1}), tmp_path / "run")


def test_test_sets_are_named_before_they_are_looked_at(make: Make, tmp_path: Path, nearness: None):
    said: list[str] = []
    run = train(make({"suite": "emojishift", "floor": 0.0}), tmp_path / "run", say=said.append)
    assert "v2, rendition, sketch, hard, corrupt of emojishift" in said[0]
    assert "no untouched test" in said[0]
    assert run.status()["guard"]["for_choosing"] is False


def test_suites_for_choosing_are_those_without_a_test_set():
    chosen = {name for name, suite in SUITES.items() if suite.splits and for_choosing(suite)}
    assert chosen == {"emojishift-val", "emojishift-b2n-val", "emojishift-b2n-val-2"}


def test_words_are_those_of_a_report():
    roles = ("id", "ood", "base", "novel", "base_ood", "novel_ood", "target")
    splits = {
        name: {"task": "classify", "role": role, "accuracy": 0.5, "ece": 0.1}
        for role in roles
        for name in ((role,) if role != "ood" else ("corrupt", "objectnet"))
    }
    assert set(summary(splits)) == set(WORDS)
    for name, suite in SUITES.items():
        if suite.splits and all(split.task == "classify" for split in suite.splits):
            known = {
                split.name: {"task": "classify", "role": split.role, "accuracy": 0.5, "ece": 0.1}
                for split in suite.splits
            }
            assert set(words_of(suite)) == set(summary(known)), name
    assert splits_of("art", SUITES["emojishift"]) == ["v2", "rendition", "sketch", "hard"]


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ({"floor": 55}, "floor is 55, but ood is a share between 0 and 1; write 0.55 for 55 %"),
        ({"drop": 3}, "drop is 3, but ood is a share"),
        ({"floor": 0.5, "drop": 0.1}, "give either floor (such as 0.55) or drop (such as 0.03)"),
        ({"suite": "emojishift-vall"}, "did you mean 'emojishift-val'?"),
        ({"metric": "odd"}, "did you mean 'ood'? its words: id, ood, ece_id"),
        ({"metric": "novel"}, "suite emojishift-val does not have; its words: id, ood, ece_id"),
        ({"metric": "val_shft.ece"}, "no split 'val_shft'; did you mean 'val_shift'?"),
        ({"metric": "val.acuracy"}, "did you mean 'accuracy'? after the split and a dot comes one"),
        ({"action": "undo"}, "guard.action: 'undo' is not allowed"),
        ({"factor": 1.0}, "guard.factor: 1.0 is not allowed"),
        ({"flor": 1.0}, "guard.flor: unknown key; did you mean 'floor'?"),
    ],
)
def test_faults_of_the_table_are_told_before_anything_starts(
    make: Make, guard: dict[str, Any], message: str
):
    with pytest.raises(RecipeError) as caught:
        make(guard)
    assert message in str(caught.value)
    assert "guard" in str(caught.value)


def test_what_only_the_data_can_tell_is_told_before_anything_is_written(make: Make, tmp_path: Path):
    with pytest.raises(DataError, match="own"):
        train(make({"suite": "own"}), tmp_path / "run")
    with pytest.raises(TaskError, match=r"no such number of suite emojishift-val, which has: val_"):
        train(make({"metric": "val_shift.worst_group_accuracy", "limit": 5}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_embedded_suites_need_no_root_where_the_training_data_have_one(tmp_path: Path, make: Make):
    guarded = make({"limit": 5}, data={"root": str(tmp_path)})
    guard = Guard.of(guarded, Runtime("cpu", threads=1))
    assert guard is not None
    assert guard.how.root is None


def test_recipes_without_a_guard_are_what_they_were(make: Make):
    old, new = make(), make({"drop": 0.05})
    assert "guard" not in dump_recipe(old)
    assert parse_recipe(plain(old)) == old
    assert parse_recipe(plain(new)) == new
    assert "guard.suite: None -> 'emojishift-val'" in differences(old, new)
    settings = identity(plain(old))[3]
    assert not [key for key in settings if key.startswith("guard")]
    assert identity(plain(new))[3]["guard.drop"] == 0.05
    assert isinstance(new.guard, GuardSpec)


def test_later_states_go_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for step in (2, 4, 6):
        (tmp_path / f"step_{step:08d}").mkdir()
    gone: list[str] = []
    monkeypatch.setattr(states.shutil, "rmtree", lambda path, **_: gone.append(path.name))
    states.drop_states(tmp_path, 2)
    assert gone == ["step_00000006", "step_00000004"]
