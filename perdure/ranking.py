"""Ranks of right answers among a gallery: recall, and what came first; numpy only.

A query is answered by the gallery rows of its own label. Of equal scores the lower gallery index
ranks first, so that a ranking never depends on a sorting routine. Equal gallery rows have equal
scores whatever their place, which a matrix product alone does not promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .reliability import Floats, Labels

KS = (1, 5, 10)
"""Ranks at which published tables give recall"""

_CELLS = 1 << 23
"""Scores held at once: 32 MB in float32, whatever the sizes"""


class Ranks(NamedTuple):
    """How a gallery answers queries, in their order."""

    rank: NDArray[np.int64]
    """(N,), of the best right row, 0 for the first place"""
    first: NDArray[np.int64]
    """(N,), gallery index in the first place"""
    score: NDArray[np.float32]
    """(N,), of the row in the first place"""


def rank(
    queries: Floats,
    gallery: Floats,
    query_labels: Labels,
    gallery_labels: Labels,
    chunk: int | None = None,
) -> Ranks:
    """Rank a gallery for every query by inner product.

    Args:
        queries: Unit rows, (N, D).
        gallery: Unit rows, (M, D).
        query_labels: (N,).
        gallery_labels: (M,).
        chunk: Queries scored at once; by default as many as fit into about 100 MB. Only rounding
            depends on it.

    Raises:
        DataError: If shapes do not fit, there are no queries, or a query has no right row.
    """
    _require_embeddings(queries, query_labels)
    _require_embeddings(gallery, gallery_labels)
    hopeless = ~np.isin(query_labels, gallery_labels)
    if hopeless.any():
        raise DataError(
            f"{int(hopeless.sum())} of {len(queries)} queries have no positive in the gallery, "
            f"the first is query {int(hopeless.argmax())} with label "
            f"{query_labels[hopeless.argmax()]}; leave them out or complete the gallery."
        )
    distinct, place = _distinct(gallery)
    found = Ranks(
        np.empty(len(queries), dtype=np.int64),
        np.empty(len(queries), dtype=np.int64),
        np.empty(len(queries), dtype=np.float32),
    )
    chunk = chunk or max(1, _CELLS // len(gallery))
    for start in range(0, len(queries), chunk):
        part = slice(start, start + chunk)
        scores = queries[part] @ distinct.T
        if place is not None:
            scores = scores[:, place]
        positive = query_labels[part, None] == gallery_labels[None, :]
        # The best right row: highest score, then lowest index (argmax takes the first).
        best = np.where(positive, scores, -np.inf).argmax(axis=1)[:, None]
        score = np.take_along_axis(scores, best, axis=1)
        before = (scores > score) | ((scores == score) & (np.arange(len(gallery)) < best))
        found.rank[part] = before.sum(axis=1)
        found.first[part] = scores.argmax(axis=1)
        found.score[part] = scores.max(axis=1)
    return found


def recall_at_k(
    queries: Floats,
    gallery: Floats,
    query_labels: Labels,
    gallery_labels: Labels,
    ks: Sequence[int] = KS,
    chunk: int | None = None,
) -> dict[int, float]:
    """Return the share of queries with a positive among their k best gallery rows, for each k.

    Rows with equal labels are positives; one suffices. Of equal scores the lower gallery index
    ranks first.

    Args:
        queries: Unit rows, (N, D).
        gallery: Unit rows, (M, D).
        query_labels: (N,).
        gallery_labels: (M,).
        ks: Ranks, >= 1.
        chunk: As in `rank`.

    Raises:
        DataError: If shapes do not fit, there are no queries, or a query has no positive.
    """
    return recalls(rank(queries, gallery, query_labels, gallery_labels, chunk).rank, ks)


def recalls(ranks: Labels, ks: Sequence[int] = KS) -> dict[int, float]:
    """Return the share of ranks (N,), counted from 0, that lie below each k."""
    return {k: float(np.mean(ranks < k)) for k in ks}


def shares_of_recall(
    asked: Labels, told: Labels, pictures: Labels, ks: Sequence[int] = KS
) -> NDArray[np.float64]:
    """Return what every picture adds to the mean of the recalls of both directions, (N,).

    Their mean is that mean exactly, RSUM / 6 for the three ranks of published tables. Their
    standard deviation over the root of N is its standard error over pictures, also where these
    have different numbers of captions (linearised ratio).

    Args:
        asked: (N,), ranks of pictures' best captions, from 0.
        told: (M,), ranks of captions' pictures.
        pictures: (M,), place among the N of the picture that each caption describes.
        ks: Ranks at which recall is taken, >= 1.
    """
    found, back = (np.mean([ranks < k for k in ks], axis=0) for ranks in (asked, told))
    mean = float(back.mean())
    apart = np.bincount(pictures, back - mean, minlength=len(asked)) * len(asked) / len(told)
    shares: NDArray[np.float64] = (found + mean + apart) / 2
    return shares


def recall_of_folds(
    queries: Floats,
    gallery: Floats,
    query_labels: Labels,
    gallery_labels: Labels,
    size: int,
    ks: Sequence[int] = KS,
) -> dict[int, float]:
    """Return the mean recall over folds of consecutive labels, each a gallery of its own.

    Args:
        queries: Unit rows, (N, D).
        gallery: Unit rows, (M, D).
        query_labels: (N,).
        gallery_labels: (M,).
        size: Labels per fold; what is left over at the end is in none.
        ks: As in `recall_at_k`.

    Raises:
        DataError: As `rank`, or there is no whole fold.

    Source: Karpathy and Fei-Fei 2015, arXiv 1412.2306, section 4.1: COCO in 1K folds.
    """
    labels = np.unique(gallery_labels)
    folds = len(labels) // size
    if not folds:
        raise DataError(f"{len(labels)} labels make no fold of {size}.")
    found = []
    for fold in range(folds):
        members = labels[fold * size : (fold + 1) * size]
        asked, held = np.isin(query_labels, members), np.isin(gallery_labels, members)
        rows = queries[asked], gallery[held], query_labels[asked], gallery_labels[held]
        found.append(recall_at_k(*rows, ks))
    return {k: float(np.mean([one[k] for one in found])) for k in ks}


def neighbours_kept(before: Floats, after: Floats, k: int) -> NDArray[np.float64]:
    """Return for every row the share of its k nearest other rows that are still its nearest, (N,).

    Args:
        before: Unit rows, (N, D).
        after: The same examples' rows, (N, D'), unit.
        k: Neighbours, in [1, N).

    Raises:
        DataError: If numbers of rows differ, or k is out of range.
    """
    if len(before) != len(after) or not 1 <= k < len(before):
        raise DataError(
            f"{len(before)} and {len(after)} rows have no {k} nearest others to compare; the same "
            "rows are needed twice, and k from 1 to one less than there are."
        )
    shares = np.empty(len(before))
    chunk = max(1, _CELLS // len(before))
    for start in range(0, len(before), chunk):
        part = slice(start, start + chunk)
        near = []
        for rows in (before, after):
            scores = rows[part] @ rows.T
            places = np.arange(len(scores))
            scores[places, places + start] = -np.inf  # a row is not its own neighbour
            near.append(np.argpartition(-scores, k - 1, axis=1)[:, :k])
        both = near[0][:, :, None] == near[1][:, None, :]
        shares[part] = both.any(axis=2).mean(axis=1)
    return shares


def _distinct(rows: Floats) -> tuple[Floats, NDArray[np.int64] | None]:
    """Return the different rows, and the place of every row among them; None if all differ."""
    whole = np.ascontiguousarray(rows)
    as_bytes = whole.view(np.dtype((np.void, whole.itemsize * whole.shape[1]))).ravel()
    _, kept, place = np.unique(as_bytes, return_index=True, return_inverse=True)
    return (rows, None) if len(kept) == len(rows) else (whole[kept], place)


def _require_embeddings(rows: Floats, labels: Labels) -> None:
    if rows.ndim != 2 or labels.shape != rows.shape[:1] or 0 in rows.shape:
        raise DataError(
            f"embeddings have shape {rows.shape} and labels {labels.shape}; "
            "expected (N, D) and (N,) with N >= 1."
        )
