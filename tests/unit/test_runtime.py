"""Runtime: threads, devices, precision, random numbers; two processes equal one (slow)."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from perdure import runtime as module
from perdure.errors import RunError
from perdure.runtime import Runtime, default_threads, physical_cores
from perdure.zoo import random_clip

TWO_CORES = """
processor\t: 0
physical id\t: 0
core id\t\t: 0

processor\t: 1
physical id\t: 0
core id\t\t: 0

processor\t: 2
physical id\t: 0
core id\t\t: 1

processor\t: 3
physical id\t: 0
core id\t\t: 1
"""


@pytest.fixture
def runtime():
    threads = torch.get_num_threads()
    yield Runtime("cpu", threads=1)
    torch.set_num_threads(threads)


def test_hyper_threads_are_not_cores(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(TWO_CORES)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert physical_cores(tmp_path / "cpuinfo") == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert physical_cores(tmp_path / "cpuinfo") == 1
    assert physical_cores(tmp_path / "nothing") == 2


def test_default_threads_follow_the_environment_and_torchrun(monkeypatch):
    monkeypatch.setattr(module, "physical_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert default_threads() == 6
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert default_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3


def test_threads_are_set_and_described(runtime):
    assert torch.get_num_threads() == runtime.threads == 1
    assert runtime.describe() == "cpu, fp32, 1 thread"


def test_a_device_that_is_not_there_is_an_error():
    with pytest.raises(RunError, match="no such device"):
        Runtime(f"cuda:{torch.cuda.device_count()}", threads=1)


def test_random_numbers_are_a_function_of_seed_and_step(runtime):
    def draw(seed, step):
        runtime.seed(seed, step)
        return torch.rand(3).tolist()

    first = draw(0, 1)
    torch.rand(100)
    assert draw(0, 1) == first
    assert len({tuple(draw(*key)) for key in ((0, 1), (0, 2), (1, 1), (1, 0))}) == 4


def test_one_process_needs_no_communication(runtime):
    assert runtime.is_main
    assert runtime.total(3) == 3
    rows = torch.arange(6.0, requires_grad=True).view(3, 2)
    assert np.array_equal(runtime.to_host(rows), rows.detach().numpy())
    runtime.wait()
    runtime.close()


def test_bf16_runs_the_towers_in_bf16_and_leaves_weights_alone(runtime):
    half = Runtime("cpu", "bf16", threads=1)
    clip = random_clip()
    with half.autocast():
        features = clip.clip.encode_image(torch.rand(2, 3, 40, 40))
    assert features.dtype == torch.bfloat16
    with runtime.autocast():
        features = clip.clip.encode_image(torch.rand(2, 3, 40, 40))
    assert features.dtype == torch.float32
    assert {weight.dtype for weight in clip.parameters()} == {torch.float32}


def test_an_overflow_of_fp16_changes_nothing_and_lowers_the_scale():
    half = Runtime("cpu", "fp16", threads=1)
    layer = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    for value, stepped in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        half.backward((layer(torch.ones(1, 2)) * value).sum(), optimizer)
        assert half.step(optimizer) is stepped
        assert torch.equal(layer.weight, before) is not stepped
    assert torch.allclose(before - layer.weight, torch.tensor(0.1))  # the scale is gone again
    assert half.scaler_state()["scale"] == 2.0**15
    again = Runtime("cpu", "fp16", threads=1)
    again.load_scaler_state(json.loads(json.dumps(half.scaler_state())))
    assert again.scaler_state() == half.scaler_state()


# AdamW would turn the rounding noise of gradients that are zero in theory into whole steps.
RECIPE = """
model: {{name: {model}}}
data: {{name: emojishift, shots: 1, augment: flip-shift}}
method: {{name: {method}}}
optim: {{optimizer: sgd, lr: 0.05, batch_size: 33, steps: 6, clip_norm: 1.0}}
validate: {{splits: [val], every: 3}}
run: {{save_every: 4, log_every: 1, device: cpu, workers: {workers}}}
"""

TRAIN = """
import sys
from perdure.recipe import load_recipe
from perdure.training import train
train(load_recipe(sys.argv[1]), sys.argv[2], say=print)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tracer", "ft"])
def test_two_processes_train_as_one(tmp_path, method):
    random_clip().save(tmp_path / "clip")
    (tmp_path / "train.py").write_text(TRAIN)
    results = []
    for world_size in (1, 2):
        recipe, out = tmp_path / f"{world_size}.yaml", tmp_path / f"run-{world_size}"
        text = RECIPE.format(model=tmp_path / "clip", method=method, workers=world_size - 1)
        recipe.write_text(text)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launcher = [*launcher, f"--nproc-per-node={world_size}"] if world_size > 1 else launcher[:1]
        script = [str(tmp_path / "train.py"), str(recipe), str(out)]
        done = subprocess.run([*launcher, *script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Training on cpu") == 1
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        results.append((load_file(out / "predictor" / "predictor.safetensors"), rows))
    (one, one_rows), (two, two_rows) = results
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=1e-5), name
    assert [row["step"] for row in one_rows] == [row["step"] for row in two_rows]
    for first, second in zip(one_rows, two_rows, strict=True):
        if "validation" in first:
            assert first == second
        else:
            assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
            assert second["terms"] == pytest.approx(first["terms"], rel=1e-4, abs=1e-6)
