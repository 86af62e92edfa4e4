"""Pictures are written, are PNG, and leave matplotlib's global state alone."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from perdure.comparison import Curve, Point
from perdure.figures import Confidence, frontier, reliability

PNG = b"\x89PNG\r\n\x1a\n"


def curve(method: str, seed: int, drop: float) -> Curve:
    alphas = (0.0, 0.5, 1.0)
    return Curve(method, seed, tuple(Point(a, 0.5 + 0.3 * a, 0.45 - drop * a) for a in alphas))


@pytest.mark.parametrize("seeds", [1, 3])
def test_frontier_is_drawn_for_any_number_of_seeds(tmp_path: Path, seeds: int) -> None:
    curves = [curve(name, seed, 0.1) for name in ("ft", "tracer") for seed in range(seeds)]
    before = dict(mpl.rcParams)
    out = frontier(
        curves,
        (0.5, 0.45),
        tmp_path / "new" / "frontier.png",
        suite="emojishift",
        shifted=["v2", "sketch"],
        images=1600,
    )
    assert out.read_bytes().startswith(PNG)
    assert dict(mpl.rcParams) == before


def test_more_methods_than_colours_are_drawn(tmp_path: Path) -> None:
    curves = [curve(f"method-{number}", 0, number / 100) for number in range(9)]
    out = tmp_path / "frontier.png"
    frontier(curves, (0.5, 0.45), out, suite="emojishift", shifted=["v2"], images=10)
    assert out.stat().st_size > 10_000


def test_reliability_accepts_empty_bins(tmp_path: Path) -> None:
    sure = Confidence(np.array([0.99, 1.0], dtype=np.float32), np.array([True, False]), 0.5)
    spread = Confidence(np.linspace(0.01, 1, 50, dtype=np.float32), np.arange(50) > 20, 0.1)
    out = reliability(
        {"zero-shot": {"ID": spread, "OOD": sure}, "ft": {"ID": sure, "OOD": spread}},
        tmp_path / "reliability.png",
        suite="emojishift",
    )
    assert out.read_bytes().startswith(PNG)
