"""A guarded run from the command line, and scores that are there already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perdure.guard import Guard, Look
from perdure.tasks.classify import Classification

from .conftest import Perdure

GUARD = "guard={suite: emojishift-val, metric: ood, floor: 0.5, every: 1, action: rollback}"


def test_what_a_guard_did_is_told_everywhere(
    perdure: Perdure, tmp_path: Path, short: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.9, 0.8, 0.4, 0.8, 0.8])  # the start; steps 1, 2; again 2, 3
    monkeypatch.setattr(
        Guard, "look", lambda self, predictor: Look(next(values), (0.3, 0.95), 1200)
    )
    answer = perdure("train", "emojishift/ft", "--out", "run", *short, "--set", GUARD)
    assert answer.code == 0, answer.err
    assert "Guard: ood of emojishift-val is 90.0 %" in answer.err
    assert "back to step 1, learning rates times 0.5" in answer.err
    assert "went back from step 2 to 1, on at 0.5 of the rates; what is delivered is step 3" in (
        answer.out
    )
    shown = perdure("show", "run").out
    assert "guard: ood of emojishift-val (1,200 images for choosing), 0.900 before" in shown
    assert "went back from step 2 to 1" in shown
    assert "scores: none" in shown
    assert perdure("show", "run", "--out", "a.png").code == 2
    assert perdure("eval", "run", "--suite", "emojishift-val", "--limit", 4).code == 0
    report = perdure("report", "run").out
    assert "a guard looked at val_shift during training" in report
    assert (
        "went back from step 2 to 1"
        in json.loads(perdure("report", "run", "--json").out)["notes"][1]
    )


def test_a_second_evaluation_reads_what_is_there_and_a_stopped_one_says_how_to_go_on(
    perdure: Perdure, tmp_path: Path, short: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert perdure("train", "emojishift/flyp", "--out", "run", *short).code == 0
    arguments = ("eval", "run", "--suite", "emojishift-val", "--limit", 4)
    judge = Classification.judge

    def stopped(self: Classification, *args: object) -> object:
        if self.split.name == "val_shift":
            raise KeyboardInterrupt
        return judge(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "judge", stopped)
        answer = perdure(*arguments)
    assert answer.code == 130
    assert "the same command goes on from there" in answer.err
    assert not (tmp_path / "run" / "scores" / "emojishift-val.json").exists()
    first = perdure(*arguments)
    assert first.code == 0
    assert "Scored before" not in first.err
    second = perdure(*arguments)
    assert "Scored before, with the same weights and images: run. Anew with --again." in second.err
    assert second.out == first.out
    assert "Scored before" not in perdure(*arguments, "--again").err
