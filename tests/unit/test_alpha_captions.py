"""Choosing alpha by captioned pictures: what is measured, what is hidden, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import ranking
from perdure.alpha.pairs import Captions, look_at_pairs, of_suite
from perdure.alpha.report import RULES, Options
from perdure.alpha.select import select_alpha, write_choice
from perdure.data.datasets import captions_of, open_dataset
from perdure.data.paired import open_paired
from perdure.data.suites import suite
from perdure.errors import DataError, TaskError
from perdure.evaluation import evaluate
from perdure.prediction import How
from perdure.recipe import load_recipe
from perdure.run import Run
from perdure.sweeping import Line
from perdure.training import train
from perdure.zoo import random_clip
from tests.unit.test_concepts import write_pairs

GRID = (0.0, 0.5, 1.0)
COARSE = Options(grid=GRID)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a table of captioned pictures; `val` shows things that `train` speaks of."""
    return write_pairs(tmp_path_factory.mktemp("shop"), {"train": 32, "val": 32, "test": 12})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shop: Path) -> dict[str, Path]:
    """Train FLYP from a random model for six steps: on captions, and on classes."""
    folder = tmp_path_factory.mktemp("runs")
    random_clip(0).export_open_clip(folder / "random")
    changes = (
        f"model.name=local-dir:{folder / 'random'}", "model.weights=null", "optim.epochs=null",
        "optim.steps=6", "optim.batch_size=16", "optim.lr=3e-3",
    )  # fmt: skip
    found = {}
    for name, recipe, more in (
        ("pairs", "own/flyp", (f"data.root={shop}",)),
        ("pairs-1", "own/flyp", (f"data.root={shop}", "seed=1")),
        ("classes", "emojishift/flyp", ("data.shots=1",)),
    ):
        found[name] = train(load_recipe(recipe, (*changes, *more)), folder / name).path
    return found


def recalls(scores: Any) -> float:
    """Return RSUM / 6 of one set."""
    return float(
        np.mean([entry[f"recall_at_{k}"] for entry in scores.splits.values() for k in ranking.KS])
    )


ranks = st.lists(st.integers(0, 12), min_size=1, max_size=9)


@given(st.lists(st.tuples(st.integers(0, 12), ranks), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None)
def test_what_pictures_add_is_the_mean_of_six_recalls(rows: list[tuple[int, list[int]]]) -> None:
    asked = np.array([first for first, _ in rows])
    told = np.concatenate([own for _, own in rows])
    places = np.repeat(np.arange(len(rows)), [len(own) for _, own in rows])
    shares = ranking.shares_of_recall(asked, told, places)
    six = [value for side in (asked, told) for value in ranking.recalls(side).values()]
    assert shares.shape == (len(rows),)
    assert shares.mean() == pytest.approx(np.mean(six), abs=1e-12)


def test_with_one_caption_each_a_picture_adds_its_own_six_hits() -> None:
    asked, told = np.array([0, 4, 20]), np.array([7, 0, 11])
    shares = ranking.shares_of_recall(asked, told, np.arange(3))
    assert shares.tolist() == pytest.approx([4 / 6, 5 / 6, 0])


def test_the_curve_is_what_retrieval_scores(shop: Path) -> None:
    line = Line(random_clip(0), random_clip(1))
    paired = open_paired("own", "test", shop)
    seen = look_at_pairs(line, paired, How(), GRID, [line.end])
    assert np.array_equal(seen.edited[0], seen.shares[2])
    assert not np.array_equal(seen.shares[0], seen.shares[2])
    for alpha, model in ((0, random_clip(0)), (2, random_clip(1))):
        scores = evaluate(model, "retrieval", root=shop)
        point = seen.curve()[alpha]
        assert point.value == pytest.approx(recalls(scores))
        assert point.parts["i2t R@1"] == scores["own_image_to_text"]["recall_at_1"]
        assert point.parts["t2i R@1"] == scores["own_text_to_image"]["recall_at_1"]
    assert (seen.n, seen.cost.images, seen.cost.forwards) == (12, 12, 48)


@pytest.mark.parametrize("method", [rule for rule in RULES if rule != "dynamic"])
def test_every_rule_but_one_chooses_by_captions(
    runs: dict[str, Path], method: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = []

    def spy(dataset: str, split: str, *arguments: Any) -> Any:
        opened.append((dataset, split))
        return open_paired(dataset, split, *arguments)

    monkeypatch.setattr("perdure.alpha.pairs.open_paired", spy)
    options = replace(COARSE, other=runs["pairs-1"], work=tmp_path / "work")
    report = select_alpha(runs["pairs"], method=method, options=options)
    assert set(opened) == ({("own", "val")} if method != "fixed" else set())
    json.dumps(report.to_dict(), allow_nan=False)
    if method == "fixed":
        assert report.alpha == 0.8  # of retrieval, which nobody had to name
    else:
        assert (report.suite, report.split, report.n) == ("own", "val", 32)
        assert "mean recall" in report.measure
    if method == "mono":
        out = write_choice(report, runs["pairs"], tmp_path / "out")
        paired = open_paired("own", "val", Run(runs["pairs"]).recipe().data.root)
        merged = Run(out).predictor()
        point = look_at_pairs(Line(merged, merged), paired, How(), (0.0,)).curve()[0]
        assert point.value == pytest.approx(report.value)


def test_hidden_words_are_in_no_caption_that_trains(
    runs: dict[str, Path], shop: Path, tmp_path: Path
) -> None:
    options = replace(COARSE, work=tmp_path, splits=2)
    report = select_alpha(runs["pairs"], method="leave_concepts_out", options=options)
    extra = [Run(tmp_path / f"split-{number}") for number in range(2)]
    assert [run.status()["step"] for run in extra] == [3, 3]
    assert [run.recipe().data.classes for run in extra] == ["all/seen-0", "all/seen-1"]
    assert report.measure == "harmonic mean of mean recall of seen and hidden captions"
    assert set(report.curve[0].parts) == {"seen", "hidden"}
    assert report.curve[0].parts["seen"] > 0
    # Of "some cups 3" and "a photo of a cup", all that is spoken of is hidden.
    assert report.figures["shared"] == 0
    whole = captions_of(open_dataset("own", "train", shop))[0]
    for number in range(2):
        kept = captions_of(open_dataset("own", "train", shop, classes=f"all/seen-{number}"))[0]
        assert len(kept) == len(whole) / 2


def test_of_a_run_on_classes_their_names_are_hidden(runs: dict[str, Path], tmp_path: Path) -> None:
    options = replace(COARSE, work=tmp_path)
    how = How(limit=120)
    report = select_alpha(
        runs["classes"], "emojishift-retrieval", "leave_concepts_out", how=how, options=options
    )
    assert (report.suite, report.split, report.n) == ("emojishift-retrieval", "val", 120)
    # Half of the things that are beside a hidden thing were trained on.
    assert 0.2 < report.figures["shared"] < 0.5
    report = select_alpha(
        runs["classes"], "emojishift-retrieval", "id_one_se", how=how, options=COARSE
    )
    assert report.measure == "mean recall"
    assert select_alpha(runs["classes"], "emojishift-retrieval").alpha == 0.8
    assert select_alpha(runs["classes"]).alpha == 0.5


def test_refusals(runs: dict[str, Path], shop: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="captions are fixed, id_one_se, leave_concepts_out, stock"):
        select_alpha(runs["pairs"], method="dynamic", options=COARSE)
    with pytest.raises(TaskError, match="trained on captions, whose words are hidden"):
        select_alpha(
            runs["pairs"],
            "emojishift",
            "leave_concepts_out",
            options=replace(COARSE, work=tmp_path),
        )
    with pytest.raises(TaskError, match="asks to segment, by which no rule"):
        select_alpha(runs["classes"], "emojishift-segmentation", "id_one_se", options=COARSE)
    with pytest.raises(DataError, match="the first 10 are everything"):
        select_alpha(runs["pairs"], method="id_one_se", how=How(limit=10), options=COARSE)
    with pytest.raises(DataError, match="the seen half of split val"):
        select_alpha(
            runs["pairs"], method="leave_concepts_out", how=How(limit=16),
            options=replace(COARSE, work=tmp_path),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())
    (tmp_path / "two").mkdir()
    table = write_pairs(tmp_path / "two", {"train": 16, "val": 12})
    with pytest.raises(DataError, match="add a split test"):
        select_alpha(runs["pairs"], method="id_one_se", how=How(root=table), options=COARSE)
    with pytest.raises(DataError, match="scores split val itself"):
        of_suite(suite("retrieval", table), "own", table)
    both = suite("retrieval", shop)
    both = replace(both, splits=tuple(replace(both.splits[0], dataset=n) for n in ("coco", "hf")))
    with pytest.raises(DataError, match="scores coco, hf, and the run was trained on own"):
        of_suite(both, "own", shop)
    assert of_suite(both, "coco", shop) == Captions("coco", "val", shop, "retrieval")


def test_without_its_data_the_convention_says_what_it_took(
    runs: dict[str, Path], shop: Path
) -> None:
    moved = shop.rename(shop.with_name("moved.csv"))
    try:
        report = select_alpha(runs["pairs"])
    finally:
        moved.rename(shop)
    assert report.alpha == 0.5
    assert "taken for classification, because the data are not there" in report.warnings[1]
