"""Merging from the command line gives runs like any other."""

import json
from pathlib import Path

from perdure.predictor import Predictor

from .conftest import Perdure


def test_merged_runs_are_evaluated_and_reported(
    perdure: Perdure, tmp_path: Path, model: str, short: list[str]
) -> None:
    for seed in ("0", "1"):
        settings = (*short, "--set", f"seed={seed}")
        assert perdure("train", "emojishift/ft", "--out", f"ft-{seed}", *settings).code == 0
    answer = perdure("merge", "wise-ft", model, "ft-0", "--alpha", "0.5", "--out", "half", "--json")
    document = json.loads(answer.out)
    assert (document["path"], document["alpha"]) == ("half", 0.5)
    assert document["inputs"][1]["recipe"]["method"]["name"] == "ft"
    assert perdure("merge", "soup", "ft-0", "ft-1", "--shares", "1,3", "--out", "soup").code == 0
    head = Predictor.load(tmp_path / "soup" / "predictor").head
    assert head is not None
    for run in ("half", "soup", "ft-0"):
        assert perdure("eval", run, "--limit", "80").code == 0
    rows = json.loads(perdure("report", "half", "soup", "ft-0", "--json").out)["rows"]
    assert [row["label"] for row in rows] == ["ft", "ft + WiSE 0.5", "soup"]


def test_wise_ft_needs_alpha(perdure: Perdure, tmp_path: Path, model: str) -> None:
    answer = perdure("merge", "wise-ft", model, model, "--out", "x")
    assert answer.code == 2
    assert "alpha" in answer.err
    assert list(tmp_path.iterdir()) == []
