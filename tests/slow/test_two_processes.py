"""Two processes compute what one computes: every method, evaluation, resuming, the command line."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from perdure.method import METHODS

pytestmark = pytest.mark.slow

SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "ft": ({}, {"train": "head", "head_decay": 1e-3}),
    "flyp": ({}, {"smoothing": 0.1}, {"contrastive": "mpm_nce", "margin": 0.05}),
    "tracer": ({}, {"teacher": "ema", "class_weight": 1, "orthogonality_weight": 0.1}),
    "promptkd": ({"teacher": "perdure-tiny", "depth": 2, "kd_weight": 10},),
    "radapter": (
        {"rank_text": 2},
        {"drop": 0.5, "drop_mode": "sample", "teacher": {"teacher": "static"}},
    ),
}
HOSTS = [name for name in METHODS if name != "mergetune"]
TABLES = [{"name": name, **options} for name in HOSTS for options in SETTINGS.get(name, ({},))]
TABLES += [
    {"name": "mergetune", "points": 2, "host": {"name": name, **SETTINGS.get(name, ({},))[-1]}}
    for name in HOSTS
]
TABLES += [
    {"name": "mergetune", "host": {"name": "flyp"}, "anchor": "fisher", "fisher_steps": 2},
    {"name": "mergetune", "host": {"name": "tracer"}, "grid": "stratified", "points": 1},
    {
        "name": "mergetune",
        "host": SETTINGS["promptkd"][0] | {"name": "promptkd"},
        "preset": "released-promptkd",
    },
]

EXACT = [
    number
    for number, table in enumerate(TABLES)
    if table["name"] == "tracer" and table.get("teacher") == "ema"
]
"""Carried out in float64: after a batch of one image float32 rounds to 1.1e-5 on some processors"""

# One pair of processes serves all methods: starting it costs more than all that it computes.
# Batches of 33 never divide evenly, and the last of 80 images has 14; after batches of 79 one image
# is left, and the second process has none. SGD, because AdamW turns the
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
from perdure.optim_spec import OptimSpec
from perdure.runtime import Runtime
from perdure.weights import trainable

out, tables, exact = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
runtime = Runtime("cpu", threads=1)
runtime.close = lambda: None
pictures = open_dataset("emojishift", "train", shots=1, seed=0)
regions = open_dataset("emojishift-regions", "train", shots=1, seed=0)
templates = ("a photo of a {}", "an image of the {}")
jobs = [(number, table, size) for number, table in enumerate(tables) for size in (33, 79)]
for number, table, size in jobs:
    spec = OptimSpec(optimizer="sgd", lr=0.02, batch_size=size, steps=3, weight_decay=0.01)
    student = zoo.random_clip()
    masked = "maskprompts" in json.dumps(table)
    dataset = regions if masked else pictures
    loader = Loader(
        dataset, student.preprocess, student.tokenizer, templates, batch_size=size, seed=0,
        augment="flip-shift", trim=student.trim, rank=runtime.rank, world_size=runtime.world_size,
    )
    context = Context(3, dataset.classes, templates, zoo.random_clip, masks=masked)
    method = parse_method(table)
    if "host" in table:  # a tuned model to go on with
        first = method.host.build(student, context)
        with torch.no_grad():
            for index, parameter in enumerate(trainable(first).values()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
                parameter += 0.01 * noise
        first.restart()
        student = first.export()
    learner = method.build(student, context).train()
    if masked:
        loader.add_masks()
    batches = loader.batches(0, 3)
    if number in exact:
        learner = learner.double()
        batches = (batch._replace(images=batch.images.double()) for batch in batches)
    optimizer, schedule = optim.make(learner, spec, 3)
    found = {}
    for tick in steps(learner, batches, optimizer, schedule, runtime):
        for name, parameter in learner.named_parameters():
            if parameter.grad is not None:
                found[f"gradient {tick.step} {name}"] = parameter.grad.clone().numpy()
        found[f"terms {tick.step}"] = np.array([tick.terms[name] for name in sorted(tick.terms)])
    found |= {f"weight {name}": value.numpy() for name, value in learner.state_dict().items()}
    if runtime.is_main:
        np.savez(out / f"{number}-{size}.npz", **found)

clip = zoo.random_clip()
for limit in (1, 7, 64):  # one image: the second process has none
    scores = evaluate(clip, "emojishift", limit=limit, batch_size=5, runtime=runtime)
    arrays = {}
    for name, outcomes in scores.outcomes.items():
        arrays |= {f"{name}/{part}": value for part, value in outcomes.arrays().items()}
    for split, unit in open_suite(suite("emojishift"), How(limit=limit)):
        outputs = predict(
            clip, unit.dataset, unit.templates, names=unit.names, columns=unit.columns,
            batch_size=5, runtime=runtime,
        )
        arrays[f"{split.name}/logits"] = outputs.logits
        arrays[f"{split.name}/expected"] = unit.dataset.labels
    np.savez(out / f"scores-{limit}-rank-{runtime.rank}.npz", **arrays)
    for name in ("emojishift-retrieval", "emojishift-vqa"):
        scores = evaluate(clip, name, limit=limit, batch_size=5, runtime=runtime)
        arrays = {}
        for split, outcomes in scores.outcomes.items():
            arrays |= {f"{split}/{part}": value for part, value in outcomes.arrays().items()}
        np.savez(out / f"{name}-{limit}-rank-{runtime.rank}.npz", **arrays)
"""


def launch(processes: int, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python program alone, or under torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += [f"--nproc-per-node={processes}"]
    start = torchrun if processes > 1 else [sys.executable]
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*start, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Return where one process and two left their arrays."""
    places = {}
    for processes in (1, 2):
        places[processes] = place = tmp_path_factory.mktemp(f"processes-{processes}")
        (place / "worker.py").write_text(WORKER)
        done = launch(
            processes, "worker.py", str(place), json.dumps(TABLES), json.dumps(EXACT), cwd=place
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return places


@pytest.mark.xdist_group("outputs")
@pytest.mark.parametrize("size", [33, 79])
@pytest.mark.parametrize("number", range(len(TABLES)), ids=[str(table) for table in TABLES])
def test_gradients_terms_and_weights_are_those_of_one_process(
    outputs: dict[int, Path], number: int, size: int
) -> None:
    one, two = (dict(np.load(outputs[count] / f"{number}-{size}.npz")) for count in (1, 2))
    assert one.keys() == two.keys()
    short = 3 if size == 33 else 2
    tolerance = 1e-12 if number in EXACT else 1e-5
    assert any(name.startswith(f"gradient {short} ") for name in one)
    for name, value in one.items():
        size = max(1.0, float(np.abs(value).max()))
        assert np.abs(value - two[name]).max() <= tolerance * size, name


@pytest.mark.xdist_group("outputs")
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


@pytest.mark.xdist_group("outputs")
@pytest.mark.parametrize("limit", [1, 7, 64])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("suite", ["emojishift-retrieval", "emojishift-vqa"])
def test_search_and_answers_are_those_of_one_process(
    outputs: dict[int, Path], suite: str, limit: int, rank: int
) -> None:
    one = dict(np.load(outputs[1] / f"{suite}-{limit}-rank-0.npz"))
    two = dict(np.load(outputs[2] / f"{suite}-{limit}-rank-{rank}.npz"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.shape == two[name].shape
        if value.dtype.kind == "f":
            assert np.abs(value - two[name]).max() <= 1e-4, name
        elif name.endswith("/label"):
            assert np.array_equal(value, two[name]), name
        else:  # scores that differ by less than rounding may change places
            assert (value == two[name]).mean() >= 0.95, name


RECIPE = {
    "model": {"name": "perdure-tiny"},
    "data": {"name": "emojishift", "shots": 1, "augment": "flip-shift"},
    "method": {"name": "tracer"},
    "optim": {"optimizer": "sgd", "lr": 0.01, "batch_size": 33, "steps": 6},
    "run": {"save_every": 3, "log_every": 1, "device": "cpu", "threads": 1, "keep": True},
}


def perdure(processes: int, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return launch(processes, "-m", "perdure", *arguments, cwd=folder)


VIEWS = RECIPE | {
    "data": {**RECIPE["data"], "views": 2},
    "method": {"name": "coop", "words": None, "contexts": 2},
}


@pytest.mark.parametrize(
    ("before", "after", "recipe"), [(2, 1, RECIPE), (1, 2, RECIPE), (2, 1, VIEWS), (1, 2, VIEWS)]
)
def test_a_run_resumed_with_another_number_of_processes_sees_the_same_examples(
    tmp_path: Path, before: int, after: int, recipe: dict[str, Any]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    runs = {}
    for name, processes in (("whole", 1), ("parts", before)):
        change = ("--set", "run.checkpointing=true") if name == "parts" else ()
        done = perdure(processes, tmp_path, "train", "recipe.yaml", "--out", name, *change)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Finished") == 1
        runs[name] = tmp_path / name
    # Back to step 3, as a kill after it would have left it.
    for file in ("predictor/predictor.json", "state/step_00000006/COMPLETE"):
        (runs["parts"] / file).unlink()
    arguments = ("--out", "parts", "--resume", "--set", "run.checkpointing=true")
    done = perdure(after, tmp_path, "train", "recipe.yaml", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Resumed after step 3 of 6.") == 1
    one, two = (load_file(runs[name] / "predictor" / "predictor.safetensors") for name in runs)
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-5), name
    rows = [
        [
            row
            for row in map(json.loads, (run / "log.jsonl").read_text().splitlines())
            if "loss" in row
        ]
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
            arguments = ("eval", subject, *out, "--limit", "16", "--again", "--json")
            done = perdure(processes, tmp_path, *arguments)
            assert done.returncode == 0, done.stderr[-3000:]
            answers.append(json.loads(done.stdout)["splits"])
        for name, entry in answers[0].items():
            assert entry["accuracy"] == answers[1][name]["accuracy"]
            assert entry["nll"] == pytest.approx(answers[1][name]["nll"], rel=1e-4)


def test_the_guard_of_two_processes_does_what_that_of_one_does(tmp_path: Path) -> None:
    guard = {"suite": "emojishift-val", "metric": "ood", "drop": 0.1, "every": 2, "limit": 41}
    table = {
        **RECIPE,
        "method": {"name": "ft"},
        "optim": {"lr": 2e-3, "batch_size": 33, "steps": 6},
        "guard": {**guard, "action": "rollback", "times": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(table))
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = perdure(processes, tmp_path, "train", "recipe.yaml", "--out", out.name)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count(" before training") == 1
        status = json.loads((out / "status.json").read_text())
        acts = [(one["step"], one["to"], one["rate"]) for one in status["guard"]["rollbacks"]]
        found.append((acts, status["guard"]["start"], status["delivered_step"]))
    assert found[0] == found[1]
    assert found[0][0]


# Also one pair for all verbs that score.
VERBS = """
import json, sys
from perdure.cli import main
from perdure.runtime import Runtime

group = Runtime("cpu", threads=1)  # processes can meet only once, so the verbs find them together
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, arguments
group.close()
"""


def draw(folder: Path, count: int) -> None:
    """Write noise of two classes, an odd number of pictures for two processes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / ("cup", "leaf")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / f"{number:02}.png")


def test_rows_are_in_the_order_of_the_pictures_and_written_once(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 9), ("test", 7)):
        draw(tmp_path / "data" / split, count)
    (tmp_path / "verbs.py").write_text(VERBS)
    changes = ("data.root=data", "model.name=perdure-tiny", "model.weights=null")
    changes += ("optim.batch_size=1", "optim.epochs=1", "run.device=cpu")
    train = ["train", "own/flyp", *(part for one in changes for part in ("--set", one))]
    found = {}
    for processes in (1, 2):
        run, table = f"run-{processes}", f"rows-{processes}.csv"
        verbs = [
            [*train, "--out", run],  # the second process never has an example
            ["calibrate", run],
            ["predict", run, "data/test", "--out", table, "--batch-size", "2"],
            ["predict", run, "data/test/cup/00.png"],  # again none
            ["eval", run, "--suite", "own", "--data", "data", "--temperature"],
        ]
        done = launch(processes, "verbs.py", json.dumps(verbs), cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        for text in ("Finished", "Wrote run", "image,prediction", "own\n"):
            assert done.stdout.count(text) == 1, text
        for text in ("Training on", f"Wrote {table}", "scoring"):
            assert done.stderr.count(text) == 1, text
        with (tmp_path / table).open() as file:
            rows = list(csv.DictReader(file))
        found[processes] = (
            [row["image"] for row in rows],
            [float(row["p:cup"]) for row in rows],
            json.loads((tmp_path / run / "calibration.json").read_text())["temperature"],
            json.loads((tmp_path / run / "scores" / "own.json").read_text())["splits"]["id"]["nll"],
        )
        assert not list(tmp_path.rglob(".unfinished-*"))
    one, two = found.values()
    files = sorted((tmp_path / "data" / "test").rglob("*.png"))
    assert one[0] == two[0] == [str(file.relative_to(tmp_path)) for file in files]
    for first, second in zip(one[1:], two[1:], strict=True):
        assert second == pytest.approx(first, abs=1e-4)


def test_what_both_processes_find_wrong_is_said_once(tmp_path: Path) -> None:
    done = perdure(2, tmp_path, "train", "emojishift/tracr", "--out", "run")
    assert done.returncode != 0
    assert done.stderr.count("Error: there is no recipe 'emojishift/tracr'") == 1
    # torchrun's report. One that has not started yet when the other fails is ended by torchrun.
    codes = re.findall(r"exitcode  : (-?\d+) ", done.stderr)
    assert len(codes) == 2
    assert codes[-1] == "2", "the first failure, reported last, is the program's own"
    assert codes[0] in ("2", str(-int(signal.SIGTERM)))
    assert "did you mean 'emojishift/tracer'" in done.stderr.splitlines()[-2]
    assert "perdure/cli.py" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_one_process_finds_wrong_is_said_by_it(tmp_path: Path) -> None:
    draw(tmp_path / "data" / "test", 4)
    victim = tmp_path / "data" / "test" / "leaf" / "03.png"
    victim.write_bytes(victim.read_bytes()[:200])
    arguments = ("eval", "perdure-tiny", "--suite", "own", "--data", "data", "--out", "run")
    done = perdure(2, tmp_path, *arguments)
    assert done.returncode != 0
    assert done.stderr.count("Error: ") - done.stderr.count("ChildFailedError: ") == 1
    assert "Error: cannot read the picture data/test/leaf/03.png" in done.stderr
    assert done.stderr.count("exitcode  : 2 ") == 2
    assert "perdure/cli.py" not in done.stderr
    assert not list((tmp_path / "run").glob("scores/*"))
