"""Several subjects share a pass over the images, and what is finished is not scored again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perdure import prediction, scoring
from perdure.data.suites import SUITES
from perdure.errors import RunError
from perdure.evaluation import Scores, evaluate
from perdure.kept import PARTIAL, Kept
from perdure.prediction import How
from perdure.recipe import parse_recipe
from perdure.subjects import Subject, find
from perdure.sweeping import sweep_run
from perdure.tasks.classify import Classification
from perdure.training import train
from perdure.zoo import random_clip

SUITE = SUITES["emojishift-val"]
HOW = How(limit=6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of three runs: two of the same kind, and one with a head."""
    place = tmp_path_factory.mktemp("runs")
    random_clip().save(place / "clip")
    for name, method, seed in (("a", "flyp", 0), ("b", "flyp", 1), ("head", "ft", 0)):
        table = {
            "model": {"name": str(place / "clip")},
            "data": {"name": "emojishift", "shots": 1},
            "method": {"name": method},
            "optim": {"lr": 1e-3, "batch_size": 8, "steps": 1},
            "run": {"device": "cpu", "threads": 1},
            "seed": seed,
        }
        train(parse_recipe(table), place / name)
    return place


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> list[Subject]:
    """Return fresh copies of the runs."""
    for name in ("a", "head", "b"):
        shutil.copytree(trained / name, tmp_path / name)
    return [find(tmp_path / name) for name in ("a", "head", "b")]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of images of every batch that is decoded."""
    seen: list[int] = []
    batches = prediction.eval_batches

    def counted(*args: Any, **options: Any) -> Iterator[Any]:
        for images in batches(*args, **options):
            seen.append(len(images))
            yield images

    monkeypatch.setattr(prediction, "eval_batches", counted)
    return seen


def same(first: Scores, second: Scores) -> bool:
    """Return whether two scores are equal, bit by bit and image by image."""
    assert json.dumps(first.to_dict()) == json.dumps(second.to_dict())
    return all(
        np.array_equal(one, other)
        for name in first.splits
        for one, other in zip(first.outcomes[name], second.outcomes[name], strict=True)
    )


def test_runs_that_differ_in_weights_alone_share_one_pass(
    runs: list[Subject], decoded: list[int], monkeypatch: pytest.MonkeyPatch
):
    single = [evaluate(one, SUITE, limit=6) for one in runs]
    assert sum(decoded) == 3 * 2 * 6
    decoded.clear()
    together = scoring.evaluate_all(runs, SUITE, HOW, again=True)
    assert sum(decoded) == 2 * 2 * 6  # one pass for a and b, one for the run with a head
    assert all(same(one, other) for one, other in zip(single, together, strict=True))
    assert [one.conditions["seed"] for one in together] == [0, 0, 1]
    assert together[0].to_dict()["splits"] != together[2].to_dict()["splits"]
    decoded.clear()
    monkeypatch.setattr(scoring, "MEMORY", 1)  # of no two predictors
    apart = scoring.evaluate_all(runs, SUITE, HOW, again=True)
    assert sum(decoded) == 3 * 2 * 6
    assert all(same(one, other) for one, other in zip(single, apart, strict=True))


def test_progress_counts_every_image_of_every_subject(runs: list[Subject]):
    seen: list[int] = []
    scoring.evaluate_all(runs, SUITE, How(limit=6, progress=seen.append))
    assert sum(seen) == 3 * 2 * 6


def test_what_is_scored_already_is_read(runs: list[Subject], decoded: list[int]):
    first = scoring.evaluate_all(runs, SUITE, HOW)
    files = {file: file.stat().st_mtime_ns for one in runs for file in one.run.rglob("*")}
    decoded.clear()
    said: list[str] = []
    second = scoring.evaluate_all(runs, SUITE, HOW, say=said.append)
    assert decoded == []
    assert len(said) == 1
    assert all(one.name in said[0] for one in runs)
    assert "--again" in said[0]
    assert all(same(one, other) for one, other in zip(first, second, strict=True))
    assert files == {file: file.stat().st_mtime_ns for one in runs for file in one.run.rglob("*")}
    model = [*runs, Subject("perdure-tiny")]  # it keeps nothing
    scoring.evaluate_all(model, SUITE, HOW)
    assert sum(decoded) == 2 * 6
    decoded.clear()
    scoring.evaluate_all(runs, SUITE, HOW, again=True)
    assert sum(decoded) == 2 * 2 * 6


@pytest.mark.parametrize("change", ["limit", "weights", "outcomes", "damaged"])
def test_whatever_scores_depend_on_makes_them_anew(
    runs: list[Subject], decoded: list[int], change: str
):
    run, other = runs[0].run, runs[2].run
    assert run is not None
    assert other is not None
    scoring.evaluate_all(runs[:1], SUITE, HOW)
    decoded.clear()
    limit = 5 if change == "limit" else 6
    if change == "weights":
        shutil.copytree(other / "predictor", run / "predictor", dirs_exist_ok=True)
    elif change == "outcomes":
        (run / "scores" / f"{SUITE.name}.outcomes.npz").unlink()
    elif change == "damaged":
        (run / "scores" / f"{SUITE.name}.json").write_text("{")
    scores = scoring.evaluate_all(runs[:1], SUITE, How(limit=limit))[0]
    assert sum(decoded) == 2 * limit
    assert same(scores, evaluate(runs[0], SUITE, limit=limit))


def test_a_temperature_is_a_condition_too(runs: list[Subject], decoded: list[int]):
    suite, how = SUITES["emojishift-b2n"], How(limit=2)
    scoring.evaluate_all(runs[:1], suite, how)
    decoded.clear()
    scores = scoring.evaluate_all(runs[:1], suite, how, temperature=True)[0]
    assert sum(decoded) == 4 * 2 + 2  # and those that it is fitted on
    assert "ece_scaled" in scores["base"]
    decoded.clear()
    read = scoring.evaluate_all(runs[:1], suite, how, temperature=True)[0]
    assert decoded == []
    assert same(scores, read)


class Stop(BaseException):
    """Stands for Ctrl-C."""


def interrupted(work: Callable[[], Any]) -> None:
    """Stop an evaluation before its second split."""
    judge = Classification.judge

    def stopped(self: Classification, *args: Any, **options: Any) -> Any:
        if self.split.name == "val_shift":
            raise Stop
        return judge(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classification, "judge", stopped)
        with pytest.raises(Stop):
            work()


def test_an_interrupted_evaluation_goes_on_with_the_next_split(
    runs: list[Subject], decoded: list[int]
):
    expected = [evaluate(one, SUITE, limit=6) for one in runs]
    for one in runs:
        assert one.run is not None
        shutil.rmtree(one.run / "scores")
    interrupted(lambda: scoring.evaluate_all(runs, SUITE, HOW))
    kept = [len(list((one.run / "scores" / PARTIAL).glob("*"))) for one in runs if one.run
            and (one.run / "scores").exists()]  # fmt: skip
    assert kept == [1, 1]  # of a and b; the run with a head was not reached
    decoded.clear()
    found = scoring.evaluate_all(runs, SUITE, HOW)
    assert sum(decoded) == 6 + 2 * 6
    assert all(same(one, other) for one, other in zip(expected, found, strict=True))
    for one in runs:
        assert one.run is not None
        names = {file.name for file in (one.run / "scores").iterdir()}
        assert names == {f"{SUITE.name}.json", f"{SUITE.name}.outcomes.npz"}


def test_kept_splits_of_other_conditions_or_damaged_ones_are_not_read(
    runs: list[Subject], decoded: list[int]
):
    run = runs[0]
    assert run.run is not None
    interrupted(lambda: evaluate(run, SUITE, limit=6))
    file = next((run.run / "scores" / PARTIAL).iterdir())
    decoded.clear()
    evaluate(run, SUITE, limit=5)
    assert sum(decoded) == 2 * 5
    interrupted(lambda: evaluate(run, SUITE, limit=6))
    file.write_bytes(file.read_bytes()[:-40])
    decoded.clear()
    evaluate(run, SUITE, limit=6)
    assert sum(decoded) == 2 * 6
    assert not (run.run / "scores" / PARTIAL).exists()
    assert Kept(run.run, SUITE.name, "x").read("val") is None


def test_again_forgets_kept_splits_too(runs: list[Subject], decoded: list[int]):
    interrupted(lambda: scoring.evaluate_all(runs[:1], SUITE, HOW))
    decoded.clear()
    scoring.evaluate_all(runs[:1], SUITE, HOW, again=True)
    assert sum(decoded) == 2 * 6


def test_an_interrupted_sweep_goes_on_and_a_finished_one_is_read(
    runs: list[Subject], decoded: list[int]
):
    run, alphas = runs[0], (0.0, 0.5, 1.0)
    assert run.run is not None
    expected = sweep_run(run, SUITE, alphas=alphas, how=HOW)
    shutil.rmtree(run.run / "scores")
    interrupted(lambda: sweep_run(run, SUITE, alphas=alphas, how=HOW))
    assert len(list((run.run / "scores" / PARTIAL).iterdir())) == 3
    decoded.clear()
    found = sweep_run(run, SUITE, alphas=alphas, how=HOW)
    assert sum(decoded) == 6
    assert all(same(one, found[alpha]) for alpha, one in expected.items())
    assert not (run.run / "scores" / PARTIAL).exists()
    decoded.clear()
    read = sweep_run(run, SUITE, alphas=alphas, how=HOW, again=False)
    assert decoded == []
    before, after = (
        json.dumps([one.to_dict() for one in line.values()], sort_keys=True)
        for line in (found, read)
    )
    assert before == after
    sweep_run(run, SUITE, alphas=(0.0, 1.0), how=HOW, again=False)
    assert sum(decoded) == 2 * 6


def test_an_unfinished_run_is_refused_before_anything_is_scored(
    runs: list[Subject], decoded: list[int]
):
    assert runs[1].run is not None
    shutil.rmtree(runs[1].run / "predictor")
    with pytest.raises(RunError, match="--resume"):
        scoring.evaluate_all(runs, SUITE, HOW)
    assert decoded == []
