"""Errors: one clear paragraph, the nearest valid name, exit code 2, nothing half-written."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perdure.console import print_error

from .conftest import Perdure

WRONG: list[tuple[tuple[str, ...], str]] = [
    (("trian",), "Did you mean 'train'?"),
    (("train", "emojishift/tracer", "--uot", "x"), "--out"),
    (("train", "emojishift/tracr", "--out", "x"), "did you mean 'emojishift/tracer'"),
    (("train", "nowhere.yaml", "--out", "x"), "neither a file"),
    (("train", "emojishift/ft", "--out", "x", "--set", "optim.lrr=1"), "did you mean 'lr'"),
    (("train", "emojishift/ft", "--out", "x", "--set", "data.shots=many"), "'many'"),
    (("train", "emojishift/ft", "--out", "x", "--set", "method.name=trace"), "'tracer'"),
    (("train", "emojishift/ft", "--out", "x", "--set", "optim.lr"), "a.b=value"),
    (("train", "emojishift/ft", "--out", "x", "--set", "model.name=perdure-tny"), "perdure-tiny"),
    (("train", "emojishift/ft", "--out", "x", "--set", "data.split=trian"), "'train'"),
    (("train", "emojishift/ft", "--out", "x", "--seeds", "0,one"), "as in 0,1,2"),
    (("train", "emojishift/ft", "--out", "x", "--seeds", "0,0"), "as in 0,1,2"),
    (("eval", "perdure-tny"), "did you mean 'perdure-tiny'"),
    (("eval", "perdure-tiny", "--suite", "emojishft"), "did you mean 'emojishift'"),
    (("eval", "runs/flpy"), "run"),
    (("merge", "wise", "a", "b", "--out", "x"), "did you mean 'wise-ft'"),
    (("merge", "soup", "a", "b", "--out", "x", "--shares", "1;2"), "commas"),
    (("report", "nowhere"), "does not exist"),
    (("report", "nowhere", "--at-id", "65,120"), "120 is no accuracy in per cent, 0 to 100"),
    (("report", "nowhere", "--at-id", "nan"), "nan is no accuracy"),
    (("report", "nowhere", "--format", "jsn"), "did you mean 'json'"),
    (("list", "metods"), "did you mean 'methods'"),
    (("show", "emojishft"), "did you mean 'emojishift'"),
]


@pytest.mark.parametrize(("arguments", "hint"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_wrong_input_is_answered(
    perdure: Perdure, tmp_path: Path, arguments: tuple[str, ...], hint: str
) -> None:
    answer = perdure(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert "Traceback" not in answer.err
    assert "Error: " in answer.err
    assert hint in " ".join(answer.err.split())
    assert list(tmp_path.iterdir()) == []


def test_all_faults_of_a_recipe_are_listed_at_once(perdure: Perdure, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "model: {nam: perdure-tiny}\ndata: {name: emojishift}\n"
        "method: {name: tracer, strenth: 1}\noptim: {lr: fast, batch_size: 64, epochs: 1}\n"
    )
    answer = perdure("train", recipe, "--out", "run")
    assert answer.code == 2
    for part in ("model.nam", "'name'", "method.strenth", "'strength'", "optim.lr", "'fast'"):
        assert part in answer.err
    assert list(tmp_path.iterdir()) == [recipe]


def test_an_existing_directory_is_never_written_over(
    perdure: Perdure, tmp_path: Path, short: list[str]
) -> None:
    kept = tmp_path / "run" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("years of work")
    for arguments in (
        ("train", "emojishift/ft", "--out", "run", *short),
        ("demo", "--quick", "--out", "run"),
    ):
        answer = perdure(*arguments)
        assert answer.code == 2
        assert "run" in answer.err
    assert kept.read_text() == "years of work"


def test_no_seed_starts_if_one_of_the_directories_exists(
    perdure: Perdure, tmp_path: Path, short: list[str]
) -> None:
    (tmp_path / "run" / "seed-1").mkdir(parents=True)
    answer = perdure("train", "emojishift/ft", "--out", "run", "--seeds", "0,1", *short)
    assert answer.code == 2
    assert "seed-1" in answer.err
    assert not (tmp_path / "run" / "seed-0").exists()


def test_long_messages_are_wrapped_and_lists_keep_their_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    print_error("first line of a list:\n  " + "word " * 40)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Error: first line of a list:"
    assert all(len(line) < 60 and line.startswith("  ") for line in lines[1:])


@pytest.mark.slow
def test_interrupt_ends_with_130_and_says_how_to_go_on(
    tmp_path: Path, model: str, short: list[str]
) -> None:
    command = [sys.executable, "-m", "perdure", "train", "emojishift/ft", "--out", "run"]
    command += [*short, "--set", "optim.steps=100000"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "log.jsonl").is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "--resume" in err


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m perdure list recipes | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("name")
    assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("default:the average keeps:UserWarning")
def test_a_warning_is_one_paragraph_without_code(perdure: Perdure) -> None:
    answer = perdure(
        "train", "emojishift/radapter", "--dry-run", "--out", "x", "--set", "method.momentum=0.999",
        "--set", "data.shots=1",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "Warning: the average keeps 0.98 of the untrained adapters" in answer.err
    assert "UserWarning" not in answer.err
    assert "build(" not in answer.err
