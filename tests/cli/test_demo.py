"""The demo on a random model: its rows, its files, and that it only replaces itself."""

import json
from functools import partial
from pathlib import Path

import pytest

from perdure import demo
from perdure.console import clock

from .conftest import Perdure

ROW = {
    "method",
    "alpha",
    "seed",
    "id",
    "ood",
    "ece_id",
    "ece_ood",
    "splits",
    "trainable",
    "seconds",
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """Make the demo short and let it start from a random model."""
    monkeypatch.setattr(demo, "QUICK", demo.Plan(epochs=1, alphas=(0.5, 1.0), limit=80))
    monkeypatch.setattr(demo, "run_demo", partial(demo.run_demo, model=model))


@pytest.mark.usefixtures("small")
def test_demo_tells_the_whole_story(perdure: Perdure, tmp_path: Path) -> None:
    answer = perdure("demo", "--quick", "--json")
    assert answer.code == 0, answer.err
    rows = json.loads(answer.out)["rows"]
    assert [(row["method"], row["alpha"]) for row in rows] == [
        ("zero-shot", None),
        ("ft", None),
        ("ft", 0.5),
        ("flyp", None),
        ("flyp", 0.5),
        ("tracer", None),
        ("tracer", 0.5),
    ]
    for row in rows:
        assert row.keys() == ROW
        assert list(row["splits"]) == ["id", "v2", "rendition", "sketch", "hard", "corrupt"]
        assert row["splits"]["v2"].keys() == {"accuracy", "ece", "nll", "n"}
        shifted = [entry["accuracy"] for name, entry in row["splits"].items() if name != "id"]
        assert row["ood"] == pytest.approx(sum(shifted) / 5)
        assert row["id"] == row["splits"]["id"]["accuracy"]
    out = tmp_path / "perdure-demo"
    for name in ("frontier.png", "reliability.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    page = (out / "report.md").read_text()
    assert "quick look" in page
    assert "| tracer |" in page
    assert json.loads((out / "demo.json").read_text())["rows"] == rows
    assert "tracer: scoring" in answer.err

    again = perdure("demo", "--quick")
    assert again.code == 0, again.err
    assert "tracer + WiSE 0.5" in again.out
    assert perdure("report", "perdure-demo").code == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600, "1:00:00"), (59.6, "1:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_effort_grows_with_everything() -> None:
    assert demo.FULL.effort() > demo.QUICK.effort() > 0
