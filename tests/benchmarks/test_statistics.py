"""The benchmark of statistics runs, and both sides measure the same thing."""

from __future__ import annotations

from benchmarks.statistics import actions, compare


def test_both_ways_find_the_same() -> None:
    both = actions(8, width=16)
    theirs, mine = both["published"](), both["whole"]()
    assert isinstance(theirs, dict)
    assert isinstance(mine, dict)
    for name, ours in {
        "entropy": "teacher_entropy", "confidence": "teacher_confidence",
        "agreement": "teacher_agreement", "first five": "teacher_overlap",
        "teacher accuracy": "teacher_accuracy",
    }.items():  # fmt: skip
        for side in ("image", "text"):
            assert abs(theirs[f"{name} {side}"] - float(mine[f"{ours}_{side}"])) < 1e-5


def test_it_prints_three_ratios() -> None:
    lines = compare(8, rounds=2, steps=1)
    assert len(lines) == 3
    assert all(line.startswith("- statistics at B = 8") for line in lines)
