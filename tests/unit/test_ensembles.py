"""Ensembles of outputs: closed forms of mixing, distances and shares, and whole evaluations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import metrics
from perdure.data.suites import suite
from perdure.ensembles import Ensemble, evaluate_ensemble, mix, nearest_distance, tuned_share
from perdure.errors import DataError, RunError
from perdure.evaluation import evaluate
from perdure.merges.evidence import Task
from perdure.prediction import How, Part
from perdure.recipe import DataSpec
from perdure.subjects import Subject
from perdure.zoo import random_clip

NAMES = [Subject("zero"), Subject("tuned")]
HOW = How(limit=40)
SUITE = suite("emojishift")
SHORT = replace(SUITE, splits=SUITE.splits[:2])


def logits(seed: int, n: int = 5, classes: int = 4) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal((n, classes)).astype(np.float32)


def test_probabilities_are_mixed_and_not_logits() -> None:
    a, b = logits(0), logits(1)
    found = metrics.softmax(mix([a, b], np.array([0.25, 0.75])))
    expected = 0.25 * metrics.softmax(a) + 0.75 * metrics.softmax(b)
    assert np.allclose(found, expected, atol=1e-6)
    shares = np.array([[1.0, 0.0, 0.5, 0.25, 0.9], [0.0, 1.0, 0.5, 0.75, 0.1]])
    found = metrics.softmax(mix([a, b], shares))
    assert np.allclose(found[0], metrics.softmax(a)[0], atol=1e-6)
    assert np.allclose(found[1], metrics.softmax(b)[1], atol=1e-6)
    assert np.allclose(found[2], (metrics.softmax(a)[2] + metrics.softmax(b)[2]) / 2, atol=1e-6)


def test_impossible_classes_stay_finite() -> None:
    sure = np.array([[1000.0, -1000.0]], dtype=np.float32)
    assert np.isfinite(mix([sure, sure], np.array([0.5, 0.5]))).all()


@given(st.integers(0, 100), st.floats(0, 1))
def test_a_mixture_is_never_less_likely_than_the_worst_member(seed: int, share: float) -> None:
    parts = [logits(seed), logits(seed + 1)]
    labels = np.arange(5) % 4
    members = [metrics.nll_rows(part, labels) for part in parts]
    mixed = metrics.nll_rows(mix(parts, np.array([1 - share, share])), labels)
    assert (mixed <= np.maximum(*members) + 1e-4).all()
    # The logarithm is concave.
    assert (mixed <= (1 - share) * members[0] + share * members[1] + 1e-4).all()


def test_distances_to_the_kth_neighbour() -> None:
    failures = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    rows = np.array([[1.0, 0.0], [0.6, 0.8]])
    assert np.allclose(nearest_distance(rows, failures), [0.0, np.sqrt(0.4)])
    assert np.allclose(nearest_distance(rows, failures, k=2), [np.sqrt(2), np.sqrt(0.8)])
    assert np.allclose(nearest_distance(rows, failures, k=9), [2.0, np.sqrt(3.2)])
    many = np.random.default_rng(0).standard_normal((30, 3))
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    whole = np.sort(np.linalg.norm(many[:, None] - many[None, :7], axis=2), axis=1)
    assert np.allclose(nearest_distance(many, many[:7], k=3, chunk=4), whole[:, 2])


def test_shares_of_the_tuned_model() -> None:
    found = tuned_share(np.array([1.5, 0.9, 2.1, 0.0]))
    assert found == pytest.approx([0.5, 1 / (1 + np.e**-1), 1 / (1 + np.e), 1 / (1 + np.e**-2.5)])
    assert (np.diff(tuned_share(np.linspace(0, 2, 20))) < 0).all()


def test_an_ensemble_of_one_model_with_itself_has_its_scores() -> None:
    model = random_clip(0)
    alone = evaluate(model, SHORT, limit=40)
    found = evaluate_ensemble([model, model], SHORT, Ensemble(kind="mean"), subjects=NAMES, how=HOW)
    for split in alone.splits:
        assert found[split]["accuracy"] == alone[split]["accuracy"]
        assert found[split]["nll"] == pytest.approx(alone[split]["nll"], rel=1e-5)
        assert found[split]["classifier"] == "ensemble"
    assert found.conditions["ensemble"]["shares"] == [0.5, 0.5]
    assert found.conditions["subject"] == "mean of zero and tuned"


def test_a_share_of_one_is_that_model() -> None:
    models = [random_clip(0), random_clip(1)]
    ensemble = Ensemble(kind="mean", shares=(0.0, 2.0))
    found = evaluate_ensemble(models, SHORT, ensemble, subjects=NAMES, how=HOW)
    alone = evaluate(models[1], SHORT, limit=40)
    assert found["id"]["accuracy"] == alone["id"]["accuracy"]


def few(self: Task, split: str, limit: int | None = None) -> Part:
    """Open few training images."""
    from perdure.data.datasets import open_dataset

    whole = open_dataset("emojishift", split)
    return Part(whole, np.arange(0, len(whole), len(whole) // 60))


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Task(DataSpec(name="emojishift"), ("a photo of a {}",), 0)
    monkeypatch.setattr(Task, "of", lambda *_: found)
    monkeypatch.setattr(Task, "open", few)


@pytest.mark.usefixtures("task")
def test_vrf_follows_its_formula_image_by_image() -> None:
    models = [random_clip(0), random_clip(1)]
    found = evaluate_ensemble(models, SHORT, Ensemble(kind="vrf"), subjects=NAMES, how=HOW)
    told = found.conditions["ensemble"]
    assert 0 < told["failures"] <= told["training_images"] < 70
    assert len(told["temperatures"]) == 2
    shares = told["last_share"]
    assert all(0 < share < 1 for share in shares.values())
    far = Ensemble(kind="vrf", centre=-1e3)
    only_first = evaluate_ensemble(models, SHORT, far, subjects=NAMES, how=HOW)
    near = Ensemble(kind="vrf", centre=1e3)
    only_second = evaluate_ensemble(models, SHORT, near, subjects=NAMES, how=HOW)
    for scores, model in ((only_first, models[0]), (only_second, models[1])):
        assert scores["id"]["accuracy"] == evaluate(model, SHORT, limit=40)["id"]["accuracy"]
    assert min(only_first["id"]["nll"], only_second["id"]["nll"]) < 4.5


@pytest.mark.usefixtures("task")
def test_without_failures_there_is_nothing_to_be_near_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure import ensembles

    outputs = ensembles._outputs

    def right(model: object, unit: object, how: object) -> object:
        found = outputs(model, unit, how)  # type: ignore[arg-type]
        return found._replace(labels=found.logits.argmax(axis=1))

    models = [random_clip(0), random_clip(1)]
    monkeypatch.setattr(ensembles, "fit_temperature", lambda *_: 1.0)
    monkeypatch.setattr(ensembles, "_outputs", right)
    with pytest.raises(DataError, match="right about all 6"):
        evaluate_ensemble(models, SHORT, Ensemble(kind="vrf"), subjects=NAMES, how=HOW)


def test_what_cannot_be_mixed_is_refused(tmp_path: Path) -> None:
    model = random_clip(0)
    for ensemble, count, words in (
        (Ensemble(kind="mean"), 1, "takes two or more; found 1"),
        (Ensemble(kind="vrf"), 3, "takes two models, zero-shot and tuned; found 3"),
        (Ensemble(kind="mean", shares=(1.0,)), 2, "do not fit"),
        (Ensemble(kind="mean", shares=(0.0, 0.0)), 2, "do not fit"),
        (Ensemble(kind="vrf", shares=(1.0, 1.0)), 2, "do not fit"),
        (Ensemble(kind="vrf", neighbours=0), 2, "neighbours is 0"),
    ):
        with pytest.raises(RunError, match=words):
            evaluate_ensemble([model] * count, SHORT, ensemble, subjects=NAMES)
