"""Embed many pictures and many free texts, with several settings of a predictor's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data.datasets import Dataset
from .data.loading import eval_batches
from .errors import TaskError, WeightsError
from .heads import texts_apart
from .inputs import cut_texts
from .passes import TEXTS, embedded
from .prediction import How, Moves, Tour
from .predictor import Predictor
from .towers import lengths

Features = dict[float, NDArray[np.float32]]
"""Position to unit rows, (N, D)"""


@torch.no_grad()
def embed_images(predictor: Predictor, moves: Moves, dataset: Dataset, how: How) -> Features:
    """Embed every picture of a data set in its order; each is decoded once.

    Args:
        predictor: Its weights are moved in place.
        moves: Positions and how to get there.
        dataset: N pictures.
        how: Device, batch size, whom to tell about finished pictures.

    Raises:
        WeightsError: If an embedding is not finite.
    """
    rank, world_size = _place(predictor, how)
    parts: dict[float, list[Tensor]] = {position: [] for position in moves}
    batches = eval_batches(
        dataset,
        predictor.preprocess,
        how.batch_size,
        device=predictor.device,
        rank=rank,
        world_size=world_size,
        workers=how.workers,
        cache=how.cache,
    )
    tour = Tour(moves)
    for images in batches:
        for position in tour:
            with how.halved(images.device):
                rows = embedded(predictor.encode_image, predictor.clip, images)
            parts[position].append(rows.float())
            _tell(how, len(images))
    return {position: _host(rows, predictor, how) for position, rows in parts.items()}


@torch.no_grad()
def embed_texts(predictor: Predictor, moves: Moves, texts: Sequence[str], how: How) -> Features:
    """Embed free texts in their order; equal texts get equal rows, bit for bit.

    Texts longer than the model's context lose their end, as in published evaluations;
    `count_cut` says how many do.

    Args:
        predictor: Its weights are moved in place.
        moves: Positions and how to get there.
        texts: N of them.
        how: Device, whom to tell about finished texts.

    Raises:
        TaskError: If the model's pictures have left the space of its own texts.
        WeightsError: If an embedding is not finite.
    """
    require_texts(predictor)
    rank, world_size = _place(predictor, how)
    places: dict[str, int] = {}
    order = [places.setdefault(text, len(places)) for text in texts]
    tokens = predictor.tokenizer(list(places))
    # Texts of similar length go through the tower together, so that little padding does.
    by_length = lengths(predictor.clip, tokens).argsort(stable=True)
    mine = by_length.tensor_split(world_size)[rank]
    parts: dict[float, list[Tensor]] = {position: [] for position in moves}
    tour = Tour(moves)
    for some in torch.split(mine, TEXTS) if len(mine) else ():
        batch = predictor.trim(tokens[some]).to(predictor.device)
        for position in tour:
            parts[position].append(predictor.encode_text(batch).float())
            _tell(how, len(some))
    back = by_length.argsort().numpy()[np.array(order, dtype=np.int64)]
    return {position: _host(rows, predictor, how)[back] for position, rows in parts.items()}


def require_texts(predictor: Predictor) -> None:
    """Refuse a model whose pictures cannot be compared with free texts.

    Raises:
        TaskError: As `embed_texts`.
    """
    if texts_apart(predictor.surgeries):
        raise TaskError(
            "this model's images are projected into the space of its teacher, of which it keeps "
            "the rows of its classes only, so free texts such as captions cannot be compared with "
            "its images. Score it on a suite of classification, or take another model."
        )


def count_cut(predictor: Predictor, texts: Sequence[str]) -> int:
    """Return how many texts are longer than the model's context and lose their end."""
    different = list(dict.fromkeys(texts))
    cut = {
        different[place]
        for place, _ in cut_texts(predictor.tokenizer, different, predictor.tokenizer(different))
    }
    return sum(text in cut for text in texts)


def _place(predictor: Predictor, how: How) -> tuple[int, int]:
    """Move the predictor to where it computes; return this process and how many there are."""
    if how.runtime is None:
        return 0, 1
    predictor.to(how.runtime.device)
    return how.runtime.rank, how.runtime.world_size


def _tell(how: How, finished: int) -> None:
    if how.progress is not None:
        how.progress(finished)


def _host(rows: Sequence[Tensor], predictor: Predictor, how: How) -> NDArray[np.float32]:
    """Join batches, and the parts of all processes, into one finite array."""
    if rows:
        joined = torch.cat(list(rows))
    else:  # there are fewer rows than processes
        width = predictor.encode_text(predictor.tokenizer(["a"]).to(predictor.device)).shape[1]
        joined = torch.empty(0, width, device=predictor.device)
    found: NDArray[Any] = (
        joined.cpu().numpy() if how.runtime is None else how.runtime.to_host(joined)
    )
    if not np.isfinite(found).all():
        raise WeightsError(
            "some embeddings are not finite, so the model cannot be scored. Its weights are "
            "damaged or its training diverged; look at the loss in log.jsonl."
        )
    return found.astype(np.float32, copy=False)
