"""A real training process that is killed, asked to stop or out of space loses nothing."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from perdure.recipe import parse_recipe
from perdure.states import complete_states
from perdure.training import train
from perdure.zoo import random_clip

pytestmark = pytest.mark.slow

PATIENCE = 300
"""Seconds after which a process that shows no progress fails the test"""


def write_recipe(folder: Path, model: str, method: str, steps: int) -> dict[str, Any]:
    """Write a run that saves a state after every step."""
    if model == "random":
        random_clip().save(folder / "clip")
        model = str(folder / "clip")
    table = {
        "model": {"name": model},
        "data": {"name": "emojishift", "shots": 1, "augment": "flip-shift"},
        "method": {"name": method},
        "optim": {"lr": 1e-3, "batch_size": 16, "steps": steps, "warmup": 0.1},
        "run": {"save_every": 1, "log_every": 1, "device": "cpu", "threads": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(table))
    return table


TRAIN = ("train", "recipe.yaml", "--out", "run", "--resume")


def start(
    folder: Path, limit: int | None = None, command: tuple[str, ...] = TRAIN
) -> subprocess.Popen[str]:
    """Start a verb, by default the run again, where no file may be larger than `limit` bytes."""

    def restrict() -> None:
        # A shell starts what it puts into the background with Ctrl-C ignored, and we inherit that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "perdure", *command],
        cwd=folder,
        stdout=subprocess.DEVNULL if command is TRAIN else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restrict,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
    )


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """Return when something has happened or the process has ended."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and not happened():
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.0005)


def newest(run: Path) -> int:
    """Return the step of the newest whole state."""
    states = complete_states(run / "state")
    return int(states[-1].name.removeprefix("step_")) if states else 0


def assert_as_never_stopped(folder: Path, table: dict[str, Any]) -> None:
    """Compare the run, bit by bit, with one in this process that was left alone."""
    whole = train(parse_recipe(table), folder / "whole").path
    run = folder / "run"
    for file in ("predictor/predictor.safetensors", "model/open_clip_model.safetensors"):
        expected, found = load_file(whole / file), load_file(run / file)
        assert expected.keys() == found.keys()
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    logs = []
    for path in (whole, run):
        rows = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        logs.append([{**row, "seconds": 0} for row in rows])
    assert logs[0] == logs[1]
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert not (run / "state").exists()
    assert not list(run.glob(".unfinished-*"))


@pytest.mark.parametrize(
    ("model", "method", "steps_per_kill"), [("random", "tracer", 12), ("perdure-tiny", "carot", 6)]
)
def test_a_run_killed_again_and_again_ends_with_the_same_weights(
    tmp_path: Path, pytestconfig: pytest.Config, model: str, method: str, steps_per_kill: int
) -> None:
    kills = pytestconfig.getoption("kills")
    table = write_recipe(tmp_path, model, method, steps_per_kill * kills)
    run, moments = tmp_path / "run", random.Random(kills)
    killed = torn = 0
    for number in range(kills):
        process = start(tmp_path)
        before = newest(run)
        if number == 0:  # while it loads
            time.sleep(moments.uniform(0.5, 2.0))
        elif number == kills - 1:  # while it writes the result
            wait_for(process, (run / "model").exists)
        else:
            wait_for(process, lambda before=before: newest(run) > before)
            time.sleep(moments.uniform(0.0, 0.2))
            if number % 2:  # in the middle of a checkpoint
                wait_for(process, lambda: bool(list((run / "state").glob(".unfinished-*"))))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        torn += bool(list((run / "state").glob(".unfinished-*")))
        assert newest(run) >= before, "a state was lost"
    print(f"{method}: killed {killed} times, {torn} of them in the middle of a checkpoint")
    assert killed >= kills - 1  # the last may have been too late
    assert torn >= kills // 5
    process = start(tmp_path)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert_as_never_stopped(tmp_path, table)


def test_a_guarded_run_killed_again_and_again_does_the_same(tmp_path: Path) -> None:
    table = write_recipe(tmp_path, "perdure-tiny", "ft", 12)
    table["optim"] |= {"lr": 4e-3}
    table["guard"] = {
        "suite": "emojishift-val", "metric": "ood", "drop": 0.1, "every": 3, "limit": 60,
        "action": "rollback", "times": 2,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(table))
    run, moments = tmp_path / "run", random.Random(0)
    for number in range(6):
        process = start(tmp_path)
        before = newest(run)
        if number % 2:  # where the guard looks and acts
            wait_for(process, lambda: newest(run) % 3 == 2)
            time.sleep(moments.uniform(0.0, 0.5))
        else:
            wait_for(process, lambda before=before: newest(run) != before)
        process.kill()
        process.communicate()
    process = start(tmp_path)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert_as_never_stopped(tmp_path, table)
    guards = [
        json.loads((tmp_path / name / "status.json").read_text())["guard"]
        for name in ("run", "whole")
    ]
    assert guards[0] == guards[1]
    assert guards[0]["rollbacks"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_resumed_run_ends_the_same(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    table = write_recipe(tmp_path, "random", "flyp", 100)
    process = start(tmp_path)
    wait_for(process, lambda: newest(tmp_path / "run") >= 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert "Traceback" not in err
    text = " ".join(err.split())
    assert f"stopped by {number.name} after step {newest(tmp_path / 'run')}" in text
    assert "perdure train run/recipe.yaml --out run --resume" in text
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"
    process = start(tmp_path)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert_as_never_stopped(tmp_path, table)


def test_no_space_ends_in_an_error_and_the_last_state_stays(tmp_path: Path) -> None:
    table = write_recipe(tmp_path, "random", "tracer", 60)
    run = tmp_path / "run"
    process = start(tmp_path)
    wait_for(process, lambda: newest(run) >= 3)
    process.kill()
    process.communicate()
    reached = newest(run)
    files = {
        file: file.read_bytes()
        for path in complete_states(run / "state")
        for file in path.iterdir()
    }
    largest = max(len(content) for content in files.values())
    for limit in (largest // 2, 500):  # weights do not fit; not even the log does
        process = start(tmp_path, limit)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2, err
        assert "Traceback" not in err
        assert err.count("Error: ") == 1
        assert "cannot write" in err
        assert "Free some space" in " ".join(err.split())
        assert newest(run) == reached
        assert not list((run / "state").glob(".unfinished-*"))
        assert all(file.read_bytes() == content for file, content in files.items())
    process = start(tmp_path)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert_as_never_stopped(tmp_path, table)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_scoring_that_is_stopped_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    write_recipe(tmp_path, "perdure-tiny", "ft", 1)
    process = start(tmp_path)
    process.communicate(timeout=PATIENCE)
    sprite = Image.new("RGB", (64, 64), "red")
    (tmp_path / "pictures").mkdir()
    for picture in range(3000):
        sprite.save(tmp_path / "pictures" / f"{picture}.bmp")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    for verb in (
        ("eval", "run"),
        ("eval", "run", "--sweep"),
        ("predict", "run", "pictures", "--out", "rows.csv"),
    ):
        process = start(tmp_path, command=verb)
        assert process.stderr is not None
        while "scoring" not in (line := process.stderr.readline()) and "predicting" not in line:
            assert line, "it ended too early"
        time.sleep(0.3)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + number, (verb, err)
        assert "Traceback" not in err
        assert not out
        shutil.rmtree(tmp_path / "run" / "scores" / ".partial", ignore_errors=True)  # whole splits
        after = {file for file in (tmp_path / "run").rglob("*") if file.is_file()}
        assert after == set(before)
        assert all(file.read_bytes() == content for file, content in before.items())
        names = {"clip", "pictures", "recipe.yaml", "run"}
        assert {path.name for path in tmp_path.iterdir()} <= names
