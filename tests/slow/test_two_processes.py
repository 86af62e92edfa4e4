"""Two processes compute what one computes: every method, evaluation, resuming, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from perdure.method import METHODS

pytestmark = pytest.mark.slow

SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "ft": ({}, {"train": "head", "head_decay": 1e-3}),
    "flyp": ({}, {"smoothing": 0.1}, {"contrastive": "mpm_nce", "margin": 0.05}),
    "tracer": ({}, {"teacher": "ema", "class_weight": 1, "orthogonality_weight": 0.1}),
}
TABLES = [{"name": name, **options} for name in METHODS for options in SETTINGS.get(name, ({},))]

# One pair of processes serves all methods: starting it costs more than all that it computes.
# Batches of 33 never divide evenly, and the last of 80 images has 14. SGD, because AdamW turns the
# rounding noise of gradients that are zero in theory, those of key biases, into whole steps.
WORKER = """
import json, sys
from pathlib import Path
import numpy as np, torch
from perdure import optim, zoo
from perdure.data.datasets import open_dataset
from perdure.data.loading import Loader
from perdure.data.suites import suite
from perdure.evaluation import evaluate
from perdure.loop import steps
from perdure.method import Context, parse_method
from perdure.prediction import How, open_suite, predict
from perdure.recipe import OptimSpec
from perdure.runtime import Runtime

out, tables = Path(sys.argv[1]), json.loads(sys.argv[2])
runtime = Runtime("cpu", threads=1)
runtime.close = lambda: None
dataset = open_dataset("emojishift", "train", shots=1, seed=0)
templates = ("a photo of a {}", "an image of the {}")
spec = OptimSpec(optimizer="sgd", lr=0.02, batch_size=33, steps=4, weight_decay=0.01)
for number, table in enumerate(tables):
    student = zoo.random_clip()
    loader = Loader(
        dataset, student.preprocess, student.tokenizer, templates, batch_size=33, seed=0,
        augment="flip-shift", trim=student.trim, rank=runtime.rank, world_size=runtime.world_size,
    )
    context = Context(4, dataset.classes, templates, zoo.random_clip)
    learner = parse_method(table).build(student, context).train()
    optimizer, schedule = optim.make(learner, spec, 4)
    found = {}
    for tick in steps(learner, loader.batches(0, 4), optimizer, schedule, runtime):
        for name, parameter in learner.named_parameters():
            if parameter.grad is not None:
                found[f"gradient {tick.step} {name}"] = parameter.grad.clone().numpy()
        found[f"terms {tick.step}"] = np.array([tick.terms[name] for name in sorted(tick.terms)])
    found |= {f"weight {name}": value.numpy() for name, value in learner.state_dict().items()}
    if runtime.is_main:
        np.savez(out / f"{number}.npz", **found)

clip = zoo.random_clip()
for limit in (1, 7, 64):  # one image: the second process has none
    scores = evaluate(clip, "emojishift", limit=limit, batch_size=5, runtime=runtime)
    arrays = {}
    for name, outcomes in scores.outcomes.items():
        arrays |= {f"{name}/{part}": value for part, value in outcomes._asdict().items()}
    for split, unit in open_suite(suite("emojishift"), How(limit=limit)):
        outputs = predict(
            clip, unit.dataset, unit.templates, names=unit.names, columns=unit.columns,
            batch_size=5, runtime=runtime,
        )
        arrays[f"{split.name}/logits"] = outputs.logits
        arrays[f"{split.name}/expected"] = unit.dataset.labels
    np.savez(out / f"scores-{limit}-rank-{runtime.rank}.npz", **arrays)
"""


def launch(processes: int, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python program alone, or under torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += [f"--nproc-per-node={processes}"]
    start = torchrun if processes > 1 else [sys.executable]
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*start, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Return where one process and two left their arrays."""
    places = {}
    for processes in (1, 2):
        places[processes] = place = tmp_path_factory.mktemp(f"processes-{processes}")
        (place / "worker.py").write_text(WORKER)
        done = launch(processes, "worker.py", str(place), json.dumps(TABLES), cwd=place)
        assert done.returncode == 0, done.stderr[-3000:]
    return places


@pytest.mark.parametrize("number", range(len(TABLES)), ids=[str(table) for table in TABLES])
def test_gradients_terms_and_weights_are_those_of_one_process(
    outputs: dict[int, Path], number: int
) -> None:
    one, two = (dict(np.load(outputs[count] / f"{number}.npz")) for count in (1, 2))
    assert one.keys() == two.keys()
    assert any(name.startswith("gradient 3 ") for name in one)  # the short batch
    for name, value in one.items():
        size = max(1.0, float(np.abs(value).max()))
        assert np.abs(value - two[name]).max() <= 1e-5 * size, name


@pytest.mark.parametrize("limit", [1, 7, 64])
@pytest.mark.parametrize("rank", [0, 1])
def test_sharded_scores_are_in_the_order_of_the_data(
    outputs: dict[int, Path], limit: int, rank: int
) -> None:
    one = dict(np.load(outputs[1] / f"scores-{limit}-rank-0.npz"))
    two = dict(np.load(outputs[2] / f"scores-{limit}-rank-{rank}.npz"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.shape == two[name].shape
        if value.dtype.kind == "f":
            assert np.abs(value - two[name]).max() <= 1e-5, name
        else:
            assert np.array_equal(value, two[name]), name
    for split in ("id", "sketch", "corrupt"):
        assert np.array_equal(two[f"{split}/label"], two[f"{split}/expected"])
        assert np.array_equal(two[f"{split}/prediction"], two[f"{split}/logits"].argmax(axis=1))


RECIPE = {
    "model": {"name": "perdure-tiny"},
    "data": {"name": "emojishift", "shots": 1, "augment": "flip-shift"},
    "method": {"name": "tracer"},
    "optim": {"optimizer": "sgd", "lr": 0.01, "batch_size": 33, "steps": 6},
    "run": {"save_every": 3, "log_every": 1, "device": "cpu", "threads": 1, "keep": True},
}


def perdure(processes: int, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return launch(processes, "-m", "perdure", *arguments, cwd=folder)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_resumed_with_another_number_of_processes_sees_the_same_examples(
    tmp_path: Path, before: int, after: int
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    runs = {}
    for name, processes in (("whole", 1), ("parts", before)):
        done = perdure(processes, tmp_path, "train", "recipe.yaml", "--out", name)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Finished") == 1
        runs[name] = tmp_path / name
    # Back to step 3, as a kill after it would have left it.
    for file in ("predictor/predictor.json", "state/step_00000006/COMPLETE"):
        (runs["parts"] / file).unlink()
    done = perdure(after, tmp_path, "train", "recipe.yaml", "--out", "parts", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Resumed after step 3 of 6.") == 1
    one, two = (load_file(runs[name] / "predictor" / "predictor.safetensors") for name in runs)
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-5), name
    rows = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in runs.values()
    ]
    for first, second in zip(*rows, strict=True):
        assert first["step"] == second["step"]
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)


def test_the_command_line_trains_and_scores_with_two_processes(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    change = ("--seeds", "0,1", "--set", "optim.steps=2")
    done = perdure(2, tmp_path, "train", "recipe.yaml", "--out", "runs", *change, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [run["seed"] for run in json.loads(done.stdout)["runs"]] == [0, 1]
    for subject, extra in (("runs/seed-0", ()), ("perdure-tiny", ("--out", "zero-shot"))):
        answers = []
        for processes in (2, 1):
            out = (*extra[:1], f"{extra[1]}-{processes}") if extra else ()
            arguments = ("eval", subject, *out, "--limit", "16", "--json")
            done = perdure(processes, tmp_path, *arguments)
            assert done.returncode == 0, done.stderr[-3000:]
            answers.append(json.loads(done.stdout)["splits"])
        for name, entry in answers[0].items():
            assert entry["accuracy"] == answers[1][name]["accuracy"]
            assert entry["nll"] == pytest.approx(answers[1][name]["nll"], rel=1e-4)
