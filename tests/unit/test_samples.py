"""Models are compared by what tables show: mIoU from counts, recall by picture, RSUM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perdure import ranking
from perdure.comparison import paired_overlap_difference
from perdure.errors import DataError, RunError
from perdure.evaluation import Scores
from perdure.overlap import Overlap, dense, drawn_mious, miou, miou_interval, sparse
from perdure.records import Record
from perdure.samples import Sample, differences, samples
from perdure.tasks import Outcomes


def counts_of(*images: list[list[int]]) -> Overlap:
    """Return counts of images: (3, C) of hit, truth, predicted each."""
    return Overlap(*np.array(images).swapaxes(0, 1))


GOOD = counts_of(*[[[9, 9], [10, 10], [10, 10]]] * 6)
BAD = counts_of(*[[[10, 0], [10, 10], [20, 0]]] * 6)


def written(folder: Path, splits: dict[str, Any], outcomes: dict[str, Outcomes]) -> Record:
    Scores("toy", {}, splits, outcomes).write(folder / "scores")
    return Record(
        path=folder, method="ft", alpha=None, seed=0, settings={}, tuned=None, suite="toy",
        definition="", splits=splits,
    )  # fmt: skip


def labelled(folder: Path, counts: Overlap, right: list[int], **more: Any) -> Record:
    """Write a run on six images of two classes, with this share of its masks right."""
    entry = {
        "role": "id", "task": "segment", "metric": "miou", "n": 6,
        "miou": miou(Overlap(*(rows.sum(axis=0) for rows in counts))),
    }  # fmt: skip
    masks = np.array(right)
    outcomes = Outcomes(np.ones_like(masks), masks, masks.astype(np.float32), **more)
    return written(folder, {"id": entry}, {"id": outcomes})


def test_what_is_kept_sparsely_is_whole() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, (2, 5, 4))
    truth[:, 1] = predicted[:, 1] = 0  # a class that occurs nowhere
    counts = Overlap(np.minimum(truth, predicted), truth, predicted)
    back = dense(sparse(counts), 5)
    assert miou_interval(back) == miou_interval(counts)
    for ours, theirs in zip(back, counts, strict=True):
        assert ours.tolist() == theirs[:, [0, 2, 3]].tolist()
    assert dense(sparse(counts)[:0], 5).truth.shape == (5, 0)
    for rows, images in ((sparse(counts), 4), (sparse(counts)[:, :4], 5)):
        with pytest.raises(DataError, match="are not of"):
            dense(rows, images)


def test_equal_runs_differ_by_exactly_nothing() -> None:
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, 50, (2, 9, 5))
    counts = Overlap(np.minimum(truth, predicted) // 2, truth, predicted)
    sets = {"id": [counts, counts], "ood": [counts]}
    assert paired_overlap_difference(sets, sets) == (0.0, 0.0, 0.0)
    both = (
        drawn_mious(counts, np.random.default_rng(3)),
        drawn_mious(counts, np.random.default_rng(3)),
    )
    assert np.array_equal(*both)


def test_where_masks_and_miou_disagree_miou_is_compared(tmp_path: Path) -> None:
    good = labelled(tmp_path / "good", GOOD, [0, 0, 1], pixels=sparse(GOOD))
    bad = labelled(tmp_path / "bad", BAD, [1, 1, 1], pixels=sparse(BAD))
    found = differences([samples(good)], [samples(bad)])
    # 9 of 11 of both classes; 10 of 20 of one, and nothing of the other: every draw is the same.
    assert list(found) == ["id"]
    assert found["id"] == pytest.approx((9 / 11 - 1 / 4,) * 3)
    assert good.correct()["id"].mean() < bad.correct()["id"].mean()
    assert found["id"].value == pytest.approx(good.splits["id"]["miou"] - bad.splits["id"]["miou"])
    half = differences([samples(good), samples(bad)], [samples(bad)])["id"]
    assert half.value == pytest.approx(found["id"].value / 2)


def test_scores_of_before_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"kept no pixels per image.*--suite toy --again"):
        samples(labelled(tmp_path / "old", GOOD, [1]))
    rows = sparse(counts_of(*[[[1], [1], [1]]] * 7))
    wrong = labelled(tmp_path / "wrong", GOOD, [1], pixels=rows)
    with pytest.raises(RunError, match=r"are not of 6 images\. Score it again"):
        samples(wrong)


def searched(folder: Path, asked: list[int], told: list[int], *, ranks: bool = True) -> Record:
    """Write a run that ranked three pictures and four captions so."""
    splits, outcomes = {}, {}
    for direction, own, places in (
        ("image_to_text", [3, 5, 8], asked), ("text_to_image", [3, 5, 5, 8], told),
    ):  # fmt: skip
        rank, label = np.array(places), np.array(own)
        name = f"shop_{direction}"
        splits[name] = {
            "role": "target", "task": "retrieve", "metric": "recall_at_1", "n": len(own),
            "set": "shop", "direction": direction,
            **{f"recall_at_{k}": value for k, value in ranking.recalls(rank).items()},
        }  # fmt: skip
        first = np.where(rank == 0, label, -1)
        outcomes[name] = Outcomes(label, first, np.zeros(len(own)), rank if ranks else None)
    return written(folder, splits, outcomes)


def test_searches_are_compared_by_picture(tmp_path: Path) -> None:
    first = samples(searched(tmp_path / "one", [0, 3, 20], [0, 0, 7, 2]))
    second = samples(searched(tmp_path / "two", [0, 0, 20], [1, 0, 7, 12]))
    found = differences([first], [second])
    assert list(found) == ["target", "rsum"]
    for places, one in (([0, 3, 20], first), ([0, 0, 20], second)):
        told = [0, 0, 7, 2] if one is first else [1, 0, 7, 12]
        six = [v for side in (places, told) for v in ranking.recalls(np.array(side)).values()]
        assert one["shop"].rsum is not None
        assert one["shop"].rsum.mean() == pytest.approx(sum(six))
    assert found["target"].value == pytest.approx(((1 / 3 - 2 / 3) + (2 / 4 - 1 / 4)) / 2)
    assert found["rsum"].low <= found["rsum"].value <= found["rsum"].high
    assert differences([first], [first])["rsum"] == (0.0, 0.0, 0.0)
    # What was written before ranks were kept still compares at rank 1.
    old = samples(searched(tmp_path / "old", [0, 3, 20], [0, 0, 7, 2], ranks=False))
    assert differences([old], [second]) == {"target": found["target"]}


def test_sets_of_several_tasks_are_told_apart() -> None:
    right = np.array([1.0, 0.0])
    sets = {"a": Sample("id", shares=right), "b": Sample("id", counts=GOOD)}
    assert differences([sets], [sets]) == {"id": (0, 0, 0), "id miou": (0, 0, 0)}
    with pytest.raises(ValueError, match="same sets"):
        paired_overlap_difference({"b": [GOOD]}, {"b": [Overlap(*(x[:5] for x in GOOD))]})
