"""The verbs around a run, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from .conftest import Perdure

ROOT = Path(__file__).parents[2]


def test_dry_run_tells_and_writes_nothing(
    perdure: Perdure, tmp_path: Path, short: list[str]
) -> None:
    command = ("train", "emojishift/tracer", "--out", "x", "--dry-run", *short)
    answer = perdure(*command)
    assert answer.code == 0, answer.err
    assert "each got a gradient in the first 2 steps" in answer.out
    assert "x 3 steps" in answer.out
    document = json.loads(perdure(*command, "--json", "--seeds", "0,1").out)
    assert [run["path"] for run in document["runs"]] == ["x/seed-0", "x/seed-1"]
    run = document["runs"][0]
    assert run["trainable"] == sum(tensor["numbers"] for tensor in run["tensors"])
    assert run["memory"]["known"] > 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x").mkdir()
    assert perdure(*command).code == 2


def test_train_calibrate_predict_export(perdure: Perdure, tmp_path: Path, short: list[str]) -> None:
    assert perdure("train", "emojishift/ft", "--out", "run", *short).code == 0
    assert perdure("show", "emojishift", "--out", "sheets/one.png").code == 0
    fitted = json.loads(perdure("calibrate", "run", "--limit", "80", "--json").out)
    assert (fitted["classifier"], fitted["split"], fitted["n"]) == ("head", "val", 80)
    answer = perdure("predict", "run", "sheets", "--json")
    assert "temperature" in answer.err
    found = json.loads(answer.out)
    assert (found["classifier"], found["temperature"]) == ("head", fitted["temperature"])
    assert sum(found["images"][0]["probabilities"]) == pytest.approx(1, abs=1e-5)
    (tmp_path / "names.txt").write_text("taco\npiano\n")
    assert perdure("predict", "run", "sheets", "--classes", "names.txt", "--out", "a.csv").out == ""
    header, line = (tmp_path / "a.csv").read_text().splitlines()
    assert header == "image,prediction,probability,p:taco,p:piano"
    assert line.startswith("sheets/one.png,")
    answer = perdure("export", "run", "--to", "open_clip", "--out", "clip", "--json")
    assert json.loads(answer.out)["text"] < 1e-4
    assert (tmp_path / "clip" / "head.safetensors").is_file()
    assert "largest difference to run" in perdure("export", "run", "--out", "again").out
    lines = perdure("calibrate", "run", "--limit", "80").out.splitlines()
    assert lines[0] == "run on emojishift val (n = 80), scored by head"
    assert lines[-1] == "Wrote run/calibration.json"


WRONG = [
    (("predict", "perdure-tiny", "nowhere.png", "--classes", "names.txt"), "does not exist"),
    (("predict", "perdure-tiny", "x.png", "--classes", "nowhere.txt"), "nowhere.txt"),
    (("predict", "perdure-tiny", "x.png"), "cannot be read: x.png"),
    (("predict", "perdure-tiny", "x.png", "--format", "jsn"), "did you mean 'json'"),
    (("predict", "runs/nowhere", "x.png"), "runs/nowhere"),
    (("predict", "perdure-tiny", "x.png", "--out", "."), "is a directory"),
    (("predict", "perdure-tiny", "x.png", "--out", "x.png/rows.csv"), "cannot write x.png/rows"),
    (("predict", "perdure-tiny", "x.png", "--threads", "0"), "--threads"),
    (("eval", "perdure-tiny", "--device", "gpu"), "the device is 'gpu'"),
    (("eval", "perdure-tiny", "--device", "cuda:99"), "the device is 'cuda:99'"),
    (("calibrate", "perdure-tiny"), "is not a run"),
    (("calibrate", "runs", "--suite", "emojishft"), "did you mean 'emojishift'"),
    (("export", "perdure-tiny", "--out", "x.png"), "exists already"),
    (("export", "perdure-tny", "--out", "y"), "did you mean 'perdure-tiny'"),
    (("export", "perdure-tiny", "--out", "y", "--to", "openclip"), "did you mean 'open_clip'"),
]


@pytest.mark.parametrize(("arguments", "hint"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_mistakes_end_with_2_and_a_hint(
    perdure: Perdure, tmp_path: Path, arguments: tuple[str, ...], hint: str
) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    (tmp_path / "names.txt").write_text("taco\n")
    answer = perdure(*arguments)
    assert answer.code == 2
    assert hint in " ".join(answer.err.split())
    assert "Traceback" not in answer.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["names.txt", "x.png"]


def test_doctor(perdure: Perdure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer = perdure("doctor")
    assert answer.code == 0, answer.err
    assert "loads and runs" in answer.out
    assert answer.out.endswith("Everything that perdure needs is here.\n")
    assert json.loads(perdure("doctor", "--json").out)["faults"] == []
    monkeypatch.setattr("perdure.zoo._ASSETS", tmp_path)
    answer = perdure("doctor", "--json")
    assert answer.code == 2
    assert "does not work" in answer.err
    assert json.loads(answer.out)["models"] == {"perdure-tiny": None}


def test_classes_and_prompts_are_those_of_the_training(
    perdure: Perdure, tmp_path: Path, model: str, short: list[str]
) -> None:
    prompts = ("--set", "data.templates=['my {}', 'your {}']", "--set", "data.classes=base")
    assert perdure("train", "emojishift/flyp", "--out", "run", *short, *prompts).code == 0
    merged = ("merge", "wise-ft", model, "run", "--alpha", "0.5", "--out", "half")
    assert perdure(*merged).code == 0
    assert perdure("merge", "soup", "half", "half", "--out", "soup").code == 0
    assert perdure("show", "emojishift", "--out", "one.png").code == 0
    for run in ("run", "half", "soup"):
        found = json.loads(perdure("predict", run, "one.png", "--json").out)
        assert (found["classifier"], found["templates"]) == ("text", ["my {}", "your {}"])
        assert len(found["classes"]) == 40


def test_any_name_that_a_file_can_have_is_written_and_printed(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/n\xff \xc3\xa9, .bmp"
    with open(odd, "wb") as file:
        Image.new("RGB", (40, 40)).save(file, "BMP")
    (tmp_path / "names.txt").write_text("cup\nleaf\n")
    command = [sys.executable, "-m", "perdure", "predict", "perdure-tiny", odd]
    command += ["--classes", "names.txt"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": str(ROOT)}
    for extra in ([], ["--out", "rows.csv"]):
        done = subprocess.run(
            [*command, *extra], cwd=tmp_path, env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr
    _, row = (tmp_path / "rows.csv").read_bytes().splitlines()
    assert row.startswith(b'"' + odd + b'",')
    assert done.stdout == b""
