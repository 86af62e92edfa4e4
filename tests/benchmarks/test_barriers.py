"""The barriers of the page: permuted models are the same function, tables and pictures follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import barriers
from perdure.zoo import random_clip

OODS = ("v2", "sketch")


def segment(start: str, end: str, control: bool, bump: float) -> dict[str, Any]:
    """Return a line whose loss rises by `bump` in its middle, and its accuracy falls by a tenth."""
    t = np.linspace(0, 1, barriers.POINTS)
    rise = bump * (1 - np.abs(2 * t - 1))
    split = {
        "n": barriers.LIMIT,
        "nll": list(1 - 0.5 * t + rise),
        "accuracy": list(0.5 + 0.2 * t - 0.1 * rise),
        "loss_barrier": {"value": bump, "low": bump - 0.01, "high": bump + 0.01},
        "accuracy_barrier": {"value": bump / 10, "low": 0, "high": 1},
    }
    roles = {"id": "id", **dict.fromkeys(OODS, "ood")}
    splits = {name: {**split, "role": role} for name, role in roles.items()}
    return {"start": start, "end": end, "control": control, "splits": splits}


def figures(seeds: str) -> dict[str, Any]:
    """Return scans in which only permuted units show a barrier, 2 nats and 0.1 more per seed."""
    zero, repaired, tuned = barriers.NAMES
    ways = ((zero, repaired, False), (repaired, tuned, False), (zero, tuned, True))
    return {
        seed: {
            "lines": {"segments": [segment(*way, 0.0) for way in ways]},
            "permuted": {
                "segments": [segment(tuned, barriers.PERMUTED, False, 2 + int(seed) / 10)]
            },
        }
        for seed in seeds
    }


def test_permuted_units_are_the_same_function_in_another_order() -> None:
    model = random_clip()
    other = barriers.permuted(model, 3)
    images = torch.randn(4, 3, model.preprocess.size, model.preprocess.size)
    tokens = model.tokenizer(["a taco", "a tiger"])
    with torch.no_grad():
        for ours, theirs in zip(model(images, tokens), other(images, tokens), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    old, new = model.state_dict(), other.state_dict()
    moved = {name for name, value in old.items() if not torch.equal(value, new[name])}
    blocks = len(model.clip.visual.transformer.resblocks) + len(model.clip.transformer.resblocks)
    assert len([name for name in moved if name.endswith("c_fc.weight")]) == blocks
    assert all(".mlp." in name for name in moved)


def test_the_table_says_where_barriers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barriers, "FIGURES", tmp_path / "barriers.json")
    (tmp_path / "barriers.json").write_text(json.dumps(figures("012")))
    lines = barriers.barriers().splitlines()
    assert (
        "| zero-shot → FT, directly | 0.000 ± 0.000 | 0.0 ± 0.0 | 50.0 at 0.0 (50.0, 70.0)"
        in (lines[4])
    )
    # 2.1 nats in the middle; accuracy falls by a tenth of it, from 60 % between the ends.
    assert "| FT → FT, permuted | 2.100 ± 0.100 | 21.0 ± 1.0 | 39.0 at 0.5 (50.0, 70.0)" in lines[5]
    assert "ends at 0.010 nats or below on the first three lines, and begins at 1.990" in lines[-1]
    assert "mean ± sd of seeds 0, 1, 2; n = 400 images per set" in lines[-1]
    (tmp_path / "barriers.json").write_text(json.dumps(figures("1")))
    assert "| 2.100 | 21.0 | 39.0 at 0.5" in barriers.barriers()
    assert "points, seed 1; n = 400 images per set" in barriers.barriers()


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    barriers.draw(figures("01"), tmp_path / "new" / "barriers.png")
    assert (tmp_path / "new" / "barriers.png").read_bytes().startswith(b"\x89PNG")
