"""Ablations: grids, what is trained, what is delivered from the training of another, and tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from perdure import ablate as module
from perdure.ablate import ablate, carriers, plan
from perdure.data.suites import Split, Suite
from perdure.errors import RecipeError, RunError
from perdure.grids import PRESETS, Axis, Choice, cells, parse_axis
from perdure.prediction import How
from perdure.recipe import load_recipe
from perdure.run import Run
from perdure.tables import Report
from perdure.training import train
from perdure.zoo import random_clip

SUITE = Suite(
    name="small",
    summary="two splits",
    splits=(
        Split(name="id", role="id", dataset="emojishift", split="id"),
        Split(name="v2", role="ood", dataset="emojishift", split="v2"),
    ),
    templates="emojishift",
)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Return overrides that make a recipe a run of three steps."""
    path = tmp_path_factory.mktemp("models") / "random"
    random_clip(0).export_open_clip(path)
    return (
        f"model.name=local-dir:{path}", "data.shots=1", "optim.epochs=null", "optim.steps=3",
        "optim.batch_size=8",
    )  # fmt: skip


def test_axes_are_read_as_people_write_them() -> None:
    axis = parse_axis("method.drop=0, .2")
    assert [choice.assignments for choice in axis.choices] == [
        ("method.drop=0",),
        ("method.drop=.2",),
    ]
    assert [choice.label for choice in axis.choices] == ["drop=0", "drop=.2"]
    lists = parse_axis("data.templates=['a {}', 'my {}'],['the {}']")
    assert len(lists.choices) == 2
    assert [choice.alpha for choice in parse_axis("alpha=.5,1").choices] == [0.5, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drop", "is not an axis"), ("=1,2", "is not an axis"), ("seed=1,,2", "is not an axis"),
        ("seed=1,1", "different values"), ("alpha=2", r"in \[0, 1\]"), ("alpha=x", r"in \[0, 1\]"),
    ],
)  # fmt: skip
def test_axes_that_are_none(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_axis(text)


def test_cells_are_the_product_and_share_folders_over_alpha() -> None:
    grid = cells([parse_axis("optim.lr=1e-3,2e-3"), parse_axis("alpha=0.5,1")])
    assert [cell.label for cell in grid][:2] == ["lr=1e-3, alpha=0.5", "lr=1e-3, alpha=1"]
    assert len({cell.folder for cell in grid}) == 2
    odd = [Axis("x", (Choice("a", ("data.root=a/b",)), Choice("b", ("data.root=a_b",))))]
    assert len({cell.folder for cell in cells(odd)}) == 2
    assert all("/" not in cell.folder for cell in cells(odd))
    with pytest.raises(RecipeError, match="give at least one"):
        cells([])


def test_named_grids() -> None:
    assert len(cells(PRESETS["tracer"])) == 16
    assert len(cells(PRESETS["radapter"])) == 5 * 2**3
    for name in ("tracer", "tracer-beta", "tracer-every", "tracer-strength"):
        for cell in cells(PRESETS[name]):
            load_recipe("emojishift/tracer", cell.assignments)
    for cell in cells(PRESETS["radapter"]):
        load_recipe("emojishift/radapter", cell.assignments)


def test_a_run_that_keeps_more_is_trained_for_those_that_keep_less() -> None:
    def carried(*grid: str) -> dict[str, str | None]:
        recipes = {
            cell.folder: load_recipe("emojishift/tracer", cell.assignments)
            for cell in cells([parse_axis(axis) for axis in grid])
        }
        return carriers(recipes)

    assert carried("method.serve=student,teacher") == {
        "method.serve=student": "method.serve=teacher",
        "method.serve=teacher": None,
    }
    assert set(carried("method.beta=.5,1").values()) == {None}
    both = carried("method.serve=student,teacher", "method.beta=.5,1")
    assert both["method.serve=student+method.beta=1"] == "method.serve=teacher+method.beta=1"
    with pytest.raises(RecipeError, match="the same run"):
        carried("method.beta=.5,0.5")


@pytest.mark.parametrize(
    ("name", "axis"),
    [("tracer", "method.serve=student,teacher"), ("radapter", "method.momentum=0.0,0.2")],
)
def test_what_is_delivered_is_what_training_gives(
    short: tuple[str, ...], tmp_path: Path, name: str, axis: str
) -> None:
    grid = [parse_axis(axis)]
    (bare, full) = (cell.folder for cell in cells(grid))
    found = ablate(f"emojishift/{name}", grid, tmp_path / "grid", SUITE, overrides=short,
                   how=How(limit=80))  # fmt: skip
    delivered = Run(tmp_path / "grid" / bare / "seed-0")
    assert delivered.status()["delivered_by"].endswith(f"{full}/seed-0")
    changes = cells(grid)[0].assignments
    own = train(load_recipe(f"emojishift/{name}", (*short, *changes)), tmp_path / "own")
    expected = own.predictor().state_dict()
    for tensor, value in delivered.predictor().state_dict().items():
        assert torch.equal(value, expected[tensor])
    assert [row.label for row in found.rows] == [choice.label for choice in grid[0].choices]
    assert found.rows[0].trainable == found.rows[1].trainable
    assert not any((tmp_path / "grid").rglob("state"))
    with pytest.raises(RunError, match="missing or incomplete"):
        module.deliver(load_recipe("emojishift/flyp", short), own, tmp_path / "none")


def test_alpha_needs_no_training_and_nothing_is_done_twice(
    short: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = [parse_axis("optim.lr=1e-3,1e-2"), parse_axis("alpha=0,0.5")]

    def carry_out() -> Report:
        return ablate("emojishift/flyp", axes, tmp_path, SUITE, overrides=short, seeds=(0, 1),
                      how=How(limit=80))  # fmt: skip

    found = carry_out()
    assert [len(row.seeds) for row in found.rows] == [2] * 4
    assert [row.alpha for row in found.rows] == [0, 0.5, 0, 0.5]
    # Zero-shot is the same model whatever was trained.
    assert found.rows[0].splits == found.rows[2].splits
    assert [pair.second for pair in found.pairs] == ["lr=1e-3, alpha=0"] * 3
    assert found.pairs[1].values["id"] == (0, 0, 0)
    files = sorted(tmp_path.rglob("*.safetensors"))
    before = [file.stat().st_mtime_ns for file in files]
    monkeypatch.setattr(module, "sweep", None)  # would be called again
    assert carry_out() == found
    assert [file.stat().st_mtime_ns for file in files] == before
    table = json.loads((tmp_path / "ablation.json").read_text())
    assert len(table["rows"]) == 4
    assert "95 % interval" in (tmp_path / "ablation.md").read_text()
    assert len((tmp_path / "ablation.csv").read_text().splitlines()) == 5


def test_an_interrupted_grid_goes_on(short: tuple[str, ...], tmp_path: Path) -> None:
    axes = [parse_axis("method.smoothing=0,0.1")]
    train(
        load_recipe("emojishift/flyp", (*short, "method.smoothing=0")),
        tmp_path / "method.smoothing=0" / "seed-0",
    )
    before = (tmp_path / "method.smoothing=0" / "seed-0" / "log.jsonl").stat().st_mtime_ns
    ablate("emojishift/flyp", axes, tmp_path, SUITE, overrides=short, how=How(limit=80))
    assert (tmp_path / "method.smoothing=0" / "seed-0" / "log.jsonl").stat().st_mtime_ns == before
    with pytest.raises(RunError, match="another recipe"):
        ablate("emojishift/flyp", axes, tmp_path, SUITE, overrides=(*short, "optim.lr=1"),
               how=How(limit=80))  # fmt: skip


def test_faults_are_answered_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"method\.smothing"):
        plan("emojishift/flyp", [parse_axis("method.smothing=0,1")], tmp_path)
    assert list(tmp_path.iterdir()) == []
