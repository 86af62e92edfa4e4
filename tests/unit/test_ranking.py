"""Ranks and recall: against brute force, other libraries, and a bound on memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k as benchmark_recall
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.retrieval import RetrievalHitRate

from perdure import ranking
from perdure.errors import DataError


def random_pairs(
    seed: int, pictures: int, captions: int, width: int = 16
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unit rows of pictures and captions, and the number of each one's picture."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(pictures, width))
    texts = images.repeat(captions, axis=0) + 1.2 * rng.normal(size=(pictures * captions, width))
    images, texts = (
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        for rows in (images, texts)
    )
    return images, texts, np.arange(pictures), np.arange(pictures).repeat(captions)


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 14), st.integers(1, 5))
def test_ranks_are_those_of_sorting_by_score_and_then_by_index(seed, queries, gallery, chunk):
    rng = np.random.default_rng(seed)
    # Whole numbers are exact, so that ties are ties.
    left = rng.integers(-1, 2, (queries, 3)).astype(np.float32)
    right = rng.integers(-1, 2, (gallery, 3)).astype(np.float32)
    theirs = rng.integers(0, 4, gallery)
    own = rng.choice(theirs, queries)
    found = ranking.rank(left, right, own, theirs, chunk)
    for query in range(queries):
        scores = [float(left[query] @ row) for row in right]
        order = sorted(range(gallery), key=lambda index, s=scores: (-s[index], index))
        places = [place for place, index in enumerate(order) if theirs[index] == own[query]]
        assert found.rank[query] == min(places)
        assert found.first[query] == order[0]
        assert found.score[query] == scores[order[0]]
        assert (found.rank[query] == 0) == (theirs[order[0]] == own[query])


@pytest.mark.parametrize("captions", [1, 5])
def test_recall_is_that_of_torchmetrics_and_clip_benchmark(captions):
    images, texts, own, theirs = random_pairs(0, 60, captions)
    scores = torch.tensor(texts @ images.T)
    right = torch.tensor(theirs[:, None] == own[None, :])
    for k in ranking.KS:
        for asked, held, a, b, table, hits in (
            (texts, images, theirs, own, scores, right),
            (images, texts, own, theirs, scores.T, right.T),
        ):
            found = ranking.recall_at_k(asked, held, a, b, (k,))[k]
            rate = RetrievalHitRate(top_k=k)
            queries = torch.arange(len(table))[:, None].expand_as(table)
            rate.update(table.flatten(), hits.flatten(), indexes=queries.flatten())
            assert found == pytest.approx(float(rate.compute()), abs=1e-6)
            # Theirs is the number of right answers found; more than none is a hit.
            counted = (benchmark_recall(table, hits, k) > 0).float().mean()
            assert found == pytest.approx(float(counted), abs=1e-6)


def test_equal_gallery_rows_tie_wherever_they_stand():
    rng = np.random.default_rng(1)
    gallery = rng.normal(size=(2_003, 48)).astype(np.float32)
    gallery[[7, 1_001, 2_002]] = gallery[7]  # the last ones lie where kernels treat the rest
    labels = np.arange(len(gallery))
    queries = np.repeat(gallery[7][None], 3, axis=0)
    found = ranking.rank(queries, gallery, np.array([7, 1_001, 2_002]), labels)
    assert found.rank.tolist() == [0, 1, 2]
    assert found.first.tolist() == [7, 7, 7]


def test_folds_are_galleries_of_consecutive_pictures():
    images, texts, own, theirs = random_pairs(2, 25, 5)
    found = ranking.recall_of_folds(texts, images, theirs, own, 10)
    parts = [
        ranking.recall_at_k(
            texts[start * 5 : start * 5 + 50], images[start : start + 10],
            theirs[start * 5 : start * 5 + 50], own[start : start + 10],
        )
        for start in (0, 10)  # the last five pictures make no fold
    ]  # fmt: skip
    assert found == {k: pytest.approx((parts[0][k] + parts[1][k]) / 2) for k in ranking.KS}
    whole = ranking.recall_at_k(texts, images, theirs, own)
    assert found[1] > whole[1]  # a smaller gallery is easier
    with pytest.raises(DataError, match="25 labels make no fold of 26"):
        ranking.recall_of_folds(texts, images, theirs, own, 26)


def test_what_cannot_be_ranked_is_refused():
    rows, labels = np.eye(3, dtype=np.float32), np.arange(3)
    with pytest.raises(DataError, match="1 of 3 queries have no positive"):
        ranking.rank(rows, rows, np.array([0, 1, 5]), labels)
    with pytest.raises(DataError, match="embeddings have shape"):
        ranking.rank(rows, rows[:, :0], labels, labels)
    with pytest.raises(DataError, match="embeddings have shape"):
        ranking.rank(rows, rows, labels[:2], labels)


@pytest.mark.slow
def test_coco_is_ranked_both_ways_in_less_than_a_gigabyte():
    images, texts, own, theirs = random_pairs(3, 5_000, 5, width=512)
    rng = np.random.default_rng(4)
    # Captions of the same words, as COCO has them, take the longer way.
    texts[rng.integers(0, len(texts), 300)] = texts[0]
    tracemalloc.start()
    for asked, held, a, b in ((images, texts, own, theirs), (texts, images, theirs, own)):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        recall = ranking.recalls(ranking.rank(asked, held, a, b).rank)
        peak = tracemalloc.get_traced_memory()[1] - before
        assert 0 < recall[1] <= recall[5] <= recall[10]
        print(f"{len(asked):,} x {len(held):,}: {peak / 2**20:.0f} MiB beside the embeddings")
        assert peak < 400 * 2**20
    tracemalloc.stop()
