"""The verbs around a run, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import Perdure


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
