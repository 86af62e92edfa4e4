"""The verbs that study a method, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perdure.alpha.report import RULES
from perdure.cli_alpha import ALPHA_RULES
from perdure.profiling import measure

from .conftest import Perdure


def test_the_command_line_knows_every_rule() -> None:
    assert tuple(RULES) == ALPHA_RULES


def test_alpha_prints_its_grounds_and_writes_a_run(
    perdure: Perdure, tmp_path: Path, short: list[str]
) -> None:
    assert perdure("train", "emojishift/flyp", "--out", "run", *short).code == 0
    answer = perdure("alpha", "run")
    assert (answer.code, answer.out.splitlines()[0]) == (0, "fixed: alpha 0.5")
    assert "Distrust: a convention" in answer.out
    command = ("alpha", "run", "--method", "id_one_se", "--limit", "80")
    answer = perdure(*command, "--out", "merged")
    assert answer.code == 0, answer.err
    assert "on `val` of emojishift, n = 80, per cent" in answer.out
    assert "Cost: 80 images decoded, 1,680 forward passes" in answer.out
    assert (tmp_path / "merged" / "alpha.json").is_file()
    assert perdure("merge", "soup", "run", "merged", "--out", "soup").code == 0
    fast = ("--workers", "1", "--precision", "bf16")
    found = json.loads(perdure(*command, *fast, "--json").out)
    assert (len(found["curve"]), found["precision"]) == (21, "bf16")
    assert found["out"] is None
    for method, text in (("mono", "alpha per tensor"), ("dynamic", "alpha per image")):
        answer = perdure("alpha", "run", "--method", method, "--limit", "80")
        assert text in answer.out, answer.err


def test_ablate_plans_trains_and_goes_on(
    perdure: Perdure, tmp_path: Path, short: list[str]
) -> None:
    command = (
        "ablate", "emojishift/tracer", "--grid", "method.serve=student,teacher",
        "--grid", "alpha=0.5,1", "--out", "grid", "--limit", "80", *short,
    )  # fmt: skip
    answer = perdure(*command, "--plan")
    assert answer.out.splitlines()[0] == "4 cells x 1 seeds: 1 trainings"
    assert list(tmp_path.iterdir()) == []
    plans = json.loads(perdure(*command, "--plan", "--json").out)
    assert [one["delivered_by"] is None for one in plans] == [True, False]
    answer = perdure(*command)
    assert answer.code == 0, answer.err
    assert "| serve=student, alpha=0.5 | 1 |" in answer.out
    assert (tmp_path / "grid" / "ablation.md").read_text().strip() == answer.out.strip()
    assert len(json.loads(perdure(*command, "--json").out)["rows"]) == 4
    scores = next((tmp_path / "grid").glob("*/seed-0/at-0.5/scores/emojishift.json"))
    assert "precision" not in json.loads(scores.read_text())
    assert perdure(*command, "--precision", "bf16").code == 0  # others than those that are there
    assert json.loads(scores.read_text())["precision"] == "bf16"


def test_profile(
    perdure: Perdure, tmp_path: Path, short: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fresh processes are the business of tests/unit/test_profiling.py.
    monkeypatch.setattr(
        "perdure.profiling._in_a_process",
        lambda label, recipe, count: measure(recipe, count, label),
    )
    command = ("profile", "emojishift/tracer", "--steps", "1", *short)
    answer = perdure(*command, "--grid", "method.strength=0.9,0")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[0].split()[:2] == ["cell", "ms"]
    assert answer.out.splitlines()[3].startswith("strength=0 ")
    found = json.loads(perdure(*command, "--json").out)
    assert [one["label"] for one in found] == ["as it is"]
    assert list(tmp_path.iterdir()) == []


WRONG = [
    (("ablate", "emojishift/tracer", "--out", "x"), "give at least one"),
    (("ablate", "emojishift/tracer", "--out", "x", "--preset", "trcer"), "did you mean 'tracer'"),
    (("ablate", "emojishift/trace", "--out", "x", "--grid", "seed=0,1"), "did you mean"),
    (("ablate", "emojishift/ft", "--out", "x", "--grid", "method.a=0,1"), "method.a"),
    (("profile", "emojishift/tracer", "--grid", "optim.lr"), "is not an axis"),
    (("profile", "emojishift/tracer", "--preset", "x"), "no grid is called 'x'"),
    (("alpha", "perdure-tiny"), "is not a training run"),
    (("alpha", "run", "--method", "id_one_sd"), "did you mean 'id_one_se'"),
    (("alpha", "run", "--suite", "emojishft"), "did you mean 'emojishift'"),
    (("alpha", "perdure-tiny", "--out", "there"), "exists already"),
]


@pytest.mark.parametrize(("arguments", "hint"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_mistakes_end_with_2_and_a_hint(
    perdure: Perdure, tmp_path: Path, arguments: tuple[str, ...], hint: str
) -> None:
    (tmp_path / "there").mkdir()
    answer = perdure(*arguments)
    assert answer.code == 2
    assert hint in " ".join(answer.err.split())
    assert "Traceback" not in answer.err
