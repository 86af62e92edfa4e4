"""Run directories and resumable states: whole, refused with a reason, or not there."""

import json
import shutil

import pytest
import torch
from torch import nn

from perdure import states
from perdure.batch import Step
from perdure.errors import RecipeError, RunError, SurgeryError
from perdure.learner import Learner
from perdure.recipe import parse_recipe
from perdure.run import Run
from perdure.runtime import Runtime
from perdure.states import Cursor
from perdure.zoo import load, random_clip

TABLE = {
    "model": {"name": "perdure-tiny"},
    "data": {"name": "emojishift"},
    "method": {"name": "tracer"},
    "optim": {"lr": 1e-3, "batch_size": 64, "epochs": 10},
}


class Tied(Learner):
    """A learner in which one layer has two names, as shared adapters do."""

    def __init__(self, student):
        super().__init__(student)
        self.first = nn.Linear(3, 2)
        self.second = self.first
        self.register_buffer("average", torch.zeros(()))

    def forward(self, batch, step):
        return Step({"loss": self.second(torch.ones(1, 3)).square().sum()}, {})


@pytest.fixture
def recipe():
    return parse_recipe(TABLE)


@pytest.fixture
def run(tmp_path, recipe):
    return Run.create(tmp_path / "run", recipe, Runtime("cpu", threads=1))


def trained(steps, optimizer="adamw"):
    torch.manual_seed(0)
    learner = Tied(random_clip())
    learner.student.requires_grad_(False)
    parameters = list(learner.first.parameters())
    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    chosen = kinds[optimizer](parameters, lr=0.1)
    go_on(learner, chosen, steps)
    return learner, chosen


def go_on(learner, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        learner(None, 1).terms["loss"].backward()
        optimizer.step()
        learner.average += 1


def equal(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_new_run_holds_recipe_environment_and_status(run, recipe):
    assert {file.name for file in run.path.iterdir()} == {"recipe.yaml", "env.json", "status.json"}
    assert Run(run.path).recipe() == recipe
    record = json.loads((run.path / "env.json").read_text())
    assert record["versions"].keys() >= {"perdure", "python", "torch", "open_clip_torch", "numpy"}
    assert record["threads"] == 1
    assert run.status() == {"state": "running", "step": 0}
    assert not run.finished


def test_the_environment_keeps_no_secret(tmp_path, recipe, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run = Run.create(tmp_path / "run", recipe, Runtime("cpu", threads=1))
    assert "hf_secret" not in (run.path / "env.json").read_text()


def test_nothing_is_written_over(tmp_path, recipe):
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError, match="exists already"):
        Run.create(tmp_path / "taken", recipe, Runtime("cpu", threads=1))
    assert list((tmp_path / "taken").iterdir()) == []


def test_another_recipe_is_refused_with_the_keys_that_differ(run):
    run.require_same(parse_recipe(TABLE | {"run": {"workers": 3}}))
    other = TABLE | {"seed": 1, "method": {"name": "tracer", "beta": 0.7}}
    with pytest.raises(RunError) as caught:
        run.require_same(parse_recipe(other))
    assert "method.beta: 0.5 -> 0.7" in str(caught.value)
    assert "seed: 0 -> 1" in str(caught.value)
    assert "optim" not in str(caught.value)


def test_a_directory_that_is_no_run_or_not_finished_says_so(tmp_path, run):
    with pytest.raises(RunError, match="not a run directory"):
        Run(tmp_path).recipe()
    with pytest.raises(RunError, match="--resume"):
        run.predictor()
    with pytest.raises(RunError, match="perdure eval"):
        run.scores("emojishift")
    (run.path / "recipe.yaml").write_text("seed: x")
    with pytest.raises(RecipeError, match=r"recipe\.yaml has 5 faults"):
        run.recipe()


def test_a_finished_run_loads_here_and_in_open_clip(run):
    predictor = random_clip()
    learner, optimizer = trained(1)
    run.save_state(Cursor(step=1), learner, optimizer)
    run.finish(predictor, keep_states=False, seconds=1.5)
    assert run.finished
    assert equal(run.predictor(), predictor)
    assert equal(load(f"local-dir:{run.path / 'model'}").clip, predictor.clip)
    assert not run.states.exists()
    assert run.status() == {"state": "finished", "step": 0, "note": None, "seconds": 1.5}


def test_a_model_that_plain_clip_cannot_hold_is_noted(run, monkeypatch):
    predictor = random_clip()

    def refuse():
        raise SurgeryError("the shared middle cannot be folded")

    monkeypatch.setattr(predictor, "fold", refuse)
    run.finish(predictor, keep_states=True)
    assert run.finished
    assert not (run.path / "model").exists()
    assert run.status()["note"] == "no model/: the shared middle cannot be folded"


def test_scores_are_read_back(run):
    (run.path / "scores").mkdir()
    (run.path / "scores" / "emojishift.json").write_text('{"splits": {}}')
    assert run.scores("emojishift") == {"splits": {}}


def test_a_log_is_cut_at_a_step_and_survives_half_a_line(run):
    for step in (1, 2, 2, 3):
        run.log({"step": step})
    with (run.path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "terms": {"a": 1}')
    assert [row["step"] for row in run.log_rows()] == [1, 2, 2, 3]
    run.cut_log(2)
    run.log({"step": 3})
    assert [row["step"] for row in run.log_rows()] == [1, 2, 2, 3]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_state_restores_everything_bit_by_bit(tmp_path, kind):
    learner, optimizer = trained(3, kind)
    cursor = Cursor(step=3, seconds=1.25, best_step=2, best_value=0.1, scaler={"scale": 4.0})
    path = states.save_state(tmp_path, cursor, learner, optimizer)
    assert path.name == "step_00000003"
    assert {file.name for file in path.iterdir()} == {
        "learner.safetensors",
        "optimizer.safetensors",
        "cursor.json",
        "COMPLETE",
    }
    again, fresh = trained(0, kind)
    assert states.load_state(path, again, fresh) == cursor
    go_on(learner, optimizer, 2)
    go_on(again, fresh, 2)
    assert equal(learner, again)
    for group, other in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        assert list(group["params"][0].shape) == list(other["params"][0].shape)
        assert group["lr"] == other["lr"]


def test_the_newest_whole_state_counts(run):
    learner, optimizer = trained(1)
    for step in (1, 2, 3):
        run.save_state(Cursor(step=step), learner, optimizer)
    assert [path.name for path in states.complete_states(run.states)] == [
        "step_00000002",
        "step_00000003",
    ]
    newest = run.states / "step_00000003"
    weights = newest / "learner.safetensors"
    for damage in (
        lambda: weights.write_bytes(weights.read_bytes()[:-1]),
        weights.unlink,
        (newest / "COMPLETE").unlink,
    ):
        damage()
        assert run.load_state(*trained(0)).step == 2
    shutil.rmtree(run.states / "step_00000002")
    assert run.load_state(*trained(0)) == Cursor(step=0)


def test_the_last_two_and_the_best_are_kept_and_rubbish_goes(run):
    learner, optimizer = trained(1)
    run.save_state(Cursor(step=1, best_step=1), learner, optimizer)
    (run.states / ".unfinished-77-step_00000002").mkdir()
    (run.states / "step_00000002").mkdir()
    for step in (3, 4, 5, 6):
        run.save_state(Cursor(step=step, best_step=1), learner, optimizer)
    assert sorted(path.name for path in run.states.iterdir()) == [
        "step_00000001",
        "step_00000005",
        "step_00000006",
    ]
    run.load_step(1, *trained(0))
    with pytest.raises(RunError, match="missing or incomplete"):
        run.load_step(3, *trained(0))


def test_a_full_disk_is_an_error_and_the_last_state_stays(run, monkeypatch):
    learner, optimizer = trained(1)
    run.save_state(Cursor(step=1), learner, optimizer)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states, "save_file", full)
    with pytest.raises(RunError, match=r"step_00000002 \(No space left on device\)"):
        run.save_state(Cursor(step=2), learner, optimizer)
    assert [path.name for path in run.states.iterdir()] == ["step_00000001"]
    assert run.load_state(*trained(0)).step == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("learner.safetensors", b"xxxxxxxxxxxxxxxx"),
        ("optimizer.safetensors", b"xxxxxxxxxxxxxxxx"),
        ("cursor.json", b'{"format": 1, "groups": [], "step": 1, "wrong": 2}'),
        ("cursor.json", b'{"format": 2}'),
        ("cursor.json", b"[1]"),
        ("cursor.json", b"{"),
    ],
)
def test_a_foreign_state_is_refused(tmp_path, file, content):
    learner, optimizer = trained(1)
    path = states.save_state(tmp_path, Cursor(step=1), learner, optimizer)
    (path / file).write_bytes(content)
    with pytest.raises(RunError):
        states.load_state(path, *trained(0))


def test_the_state_of_another_learner_is_refused(tmp_path):
    path = states.save_state(tmp_path, Cursor(step=1), *trained(1))
    learner, optimizer = trained(0)
    learner.first = learner.second = nn.Linear(4, 2)
    with pytest.raises(RunError, match="does not fit this run"):
        states.load_state(path, learner, optimizer)
