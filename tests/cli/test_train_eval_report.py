"""The daily path: train seeds, evaluate, sweep, report."""

import csv
import io
import json
from pathlib import Path

import pytest
from pytest import approx  # noqa: PT013

from .conftest import Perdure

LIMIT = ("--limit", "80")


def train(perdure: Perdure, short: list[str], method: str, *arguments: str) -> None:
    answer = perdure("train", f"emojishift/{method}", "--out", method, *short, *arguments)
    assert answer.code == 0, answer.err


def test_train_writes_a_run(perdure: Perdure, tmp_path: Path, short: list[str]) -> None:
    answer = perdure("train", "emojishift/tracer", "--out", "run", *short, "--json")
    (about,) = json.loads(answer.out)["runs"]
    assert about["path"] == "run"
    assert about["state"] == "finished"
    assert about["step"] == 3
    assert (tmp_path / "run" / "predictor" / "predictor.json").is_file()
    assert "3 steps" in answer.err
    again = perdure("train", "emojishift/tracer", "--out", "run", *short, "--resume")
    assert again.code == 0
    assert "finished already" in again.err


def test_commands_to_copy_quote_what_a_shell_would_take_apart(
    perdure: Perdure, short: list[str]
) -> None:
    answer = perdure("train", "emojishift/ft", "--out", "my run", *short)
    assert "\nNext: perdure eval 'my run' --suite emojishift\n" in answer.out
    answer = perdure("report", "my run")
    assert "perdure eval 'my run' --suite" in " ".join(answer.err.split())


def test_seeds_are_runs_of_one_directory(
    perdure: Perdure, tmp_path: Path, short: list[str]
) -> None:
    train(perdure, short, "flyp", "--seeds", "0,2")
    assert sorted(path.name for path in (tmp_path / "flyp").iterdir()) == ["seed-0", "seed-2"]
    answer = perdure("eval", "flyp", *LIMIT, "--json")
    documents = json.loads(answer.out)
    assert [document["seed"] for document in documents] == [0, 2]


def test_eval_prints_what_it_stores(perdure: Perdure, tmp_path: Path, short: list[str]) -> None:
    train(perdure, short, "ft")
    text = perdure("eval", "ft", *LIMIT, "--temperature").out
    assert "rendition" in text
    assert "ECE scaled" in text
    document = json.loads(perdure("eval", "ft", *LIMIT, "--json").out)
    stored = json.loads((tmp_path / "ft" / "scores" / "emojishift.json").read_text())
    assert document == stored
    assert list(document["splits"]) == ["id", "v2", "rendition", "sketch", "hard", "corrupt"]
    assert document["splits"]["id"]["classifier"] == "head"


def test_a_model_can_be_scored_without_a_run(perdure: Perdure, model: str, tmp_path: Path) -> None:
    document = json.loads(perdure("eval", model, *LIMIT, "--json").out)
    assert document["seed"] is None
    assert list(tmp_path.iterdir()) == []


def test_report_joins_seeds_zero_shot_and_sweeps(
    perdure: Perdure, model: str, short: list[str]
) -> None:
    train(perdure, short, "flyp", "--seeds", "0,1")
    train(perdure, short, "tracer")
    assert perdure("eval", model, *LIMIT, "--out", "zero-shot").code == 0
    assert perdure("eval", "flyp", *LIMIT).code == 0
    swept = json.loads(perdure("eval", "tracer", *LIMIT, "--sweep", "--json").out)
    assert [point["alpha"] for point in swept["sweep"]] == [step / 8 for step in range(9)]

    answer = perdure("report", ".", "--at-id", "1,99", "--json")
    assert answer.code == 0, answer.err
    document = json.loads(answer.out)
    rows = {row["label"]: row for row in document["rows"]}
    assert list(rows) == ["zero-shot", "flyp", "tracer"]
    assert rows["flyp"]["seeds"] == [0, 1]
    assert rows["tracer"]["values"]["id"]["mean"] == approx(swept["splits"]["id"]["accuracy"])
    assert rows["tracer"]["trainable"] > 0
    assert {equal["id"] for equal in document["equal"]} == {0.01, 0.99}

    table = list(csv.DictReader(io.StringIO(perdure("report", ".", "--format", "csv").out)))
    assert [row["run"] for row in table] == list(rows)
    text = perdure("report", "flyp", "tracer", "zero-shot", "--against", "flyp").out
    assert "| flyp | 2 |" in text
    assert "| tracer | flyp |" in text


def test_scores_of_different_images_are_not_compared(
    perdure: Perdure, model: str, short: list[str]
) -> None:
    train(perdure, short, "ft")
    perdure("eval", "ft", *LIMIT)
    perdure("eval", model, "--limit", "160", "--out", "zero-shot")
    answer = perdure("report", "ft", "zero-shot")
    assert answer.code == 2
    assert "different numbers of images" in answer.err


@pytest.mark.parametrize("option", [("--temperature",), ("--out", "x")])
def test_options_that_exclude_each_other(perdure: Perdure, option: tuple[str, ...]) -> None:
    answer = perdure("eval", "perdure-tiny", "--sweep", *option)
    assert answer.code == 2
    assert "--sweep" in answer.err
