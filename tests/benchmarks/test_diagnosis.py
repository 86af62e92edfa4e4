"""The benchmark of diagnoses runs on a short recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.diagnosis import compare
from perdure.data.datasets import open_dataset
from perdure.recipe import load_recipe
from perdure.zoo import random_clip


def test_it_prints_a_ratio_and_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = "val", open_dataset("emojishift", "train", seed=1, shots=1)
    monkeypatch.setattr("perdure.diagnosis.watching._held_out", lambda data, seed: few)
    random_clip().save(tmp_path / "tiny")
    changes = (
        f"model.name={tmp_path / 'tiny'}", "data.shots=1", "optim.batch_size=16", "run.device=cpu",
        "diagnose={every: 5, images: 8}",
    )  # fmt: skip
    lines = compare(load_recipe("emojishift/ft", changes), rounds=2)
    assert len(lines) == 2
    assert lines[0].startswith("- ft, 8 images: one look / one step (batch 16): ")
    assert lines[1].startswith("- ft, 8 images: every 5 steps: ")
