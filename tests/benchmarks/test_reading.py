"""The benchmarks of reading and of sweeps run, and both sides compute the same thing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import reading, sweep
from perdure.zoo import random_clip


def test_pixels_are_compared_and_every_way_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = reading.write(tmp_path, count=4, high=40, wide=60)
    reading.exact(found)
    said = capsys.readouterr().out
    assert "torchvision decodes 4" in said
    assert "fast against exact: largest difference" in said
    lines = reading.compare(found, rounds=2)
    assert len(lines) == 10
    assert all("times as many pictures as" in line for line in lines)


def test_a_sweep_decodes_once_writes_nothing_and_has_the_logits_of_single_evaluations(
    tmp_path: Path,
) -> None:
    found = sweep.case(tmp_path, lambda: random_clip(0), count=4)
    assert sweep.counts(found) == (4, 0)
    assert sweep.apart(found) <= sweep.TOLERANCE
    lines = sweep.compare(found, rounds=2, halves=False)
    assert [line.partition(",")[0] for line in lines] == ["- usual sweep", "- sweep"]
    assert len(list(tmp_path.glob("alpha-*.pt"))) == len(sweep.ALPHAS)


def test_the_usual_evaluation_is_of_the_same_model(tmp_path: Path) -> None:
    found = sweep.case(tmp_path, lambda: random_clip(0), count=4)
    how = sweep.How(root=tmp_path, batch_size=4)
    data = sweep.open_dataset("own", "test", tmp_path)
    unit = sweep.Unit(data, sweep.PROMPTS, data.classes)
    ours = sweep.gather(found.tuned, {0.0: sweep.stay}, unit, how)[0.0].logits
    theirs = sweep.usual_evaluation(found, found.tuned)()
    assert abs(ours - theirs.numpy()).max() < 1e-4
