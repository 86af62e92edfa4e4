"""What steps cost: numbers are exact, time and memory are measured in fresh processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import RecipeError, RunError
from perdure.grids import cells, parse_axis
from perdure.profiling import PROFILES, measure, numbers, profile
from perdure.recipe import load_recipe
from perdure.runtime import Runtime
from perdure.work import Work
from perdure.zoo import random_clip


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    path = tmp_path_factory.mktemp("models") / "random"
    random_clip(0).export_open_clip(path)
    return (f"model.name=local-dir:{path}", "data.shots=1", "optim.batch_size=8")


def test_numbers_of_methods(short: tuple[str, ...]) -> None:
    size = sum(parameter.numel() for parameter in random_clip(0).parameters())

    def counted(*changes: str) -> tuple[int, int, int]:
        recipe = load_recipe("emojishift/tracer", (*short, *changes))
        return numbers(Work.prepare(recipe, Runtime("cpu")).learner)

    assert counted() == (size, size, size)
    assert counted("method.strength=0") == (size, size, 0)


def test_a_grid_is_measured_cell_by_cell(short: tuple[str, ...], tmp_path: Path) -> None:
    heard: list[str] = []
    axes = [parse_axis("optim.batch_size=4,80")]
    found = profile("emojishift/flyp", axes, overrides=short, count=2, done=heard.append)
    assert heard == ["batch_size=4", "batch_size=80"]
    assert [one.batch for one in found] == [4, 80]
    small, large = found
    assert small.seconds.low <= small.seconds.median <= small.seconds.high
    assert 0 < small.cpu_seconds < large.cpu_seconds
    assert small.peak is not None
    assert small.before is not None
    # In this process, where the tests before have used more, neither could be seen.
    assert small.before <= small.peak < 2**40
    assert small.trainable == large.trainable
    with pytest.raises(RunError, match=r"batch_size=4 cannot be measured: .*nowhere"):
        profile("emojishift/flyp", axes, overrides=("model.name=local-dir:nowhere",))
    with pytest.raises(RecipeError, match="alpha changes no step"):
        profile("emojishift/flyp", [parse_axis("alpha=0,1")])


def test_the_warm_up_is_not_counted(
    short: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure(load_recipe("emojishift/flyp", short), 3, "x")
    assert (found.label, found.steps, found.peak_of) == ("x", 3, "process")
    assert found.to_dict()["seconds"]["median"] == found.seconds.median


def test_the_named_grid_is_every_combination() -> None:
    assert len(cells(PROFILES["radapter"])) == 4 * 3 * 2
