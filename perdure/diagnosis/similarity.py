"""How alike the features of two models are, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import towers
from ..errors import DataError
from ..predictor import Predictor
from ..surgery.sites import Tower
from .layers import blocks_of, same_lengths

Features = Mapping[str, Tensor]
"""Name of a place in a tower to one row per example, (n, width)."""


@dataclass(frozen=True)
class Similarity:
    """How alike two models see the same examples at one place."""

    place: str
    """"image block 0", "image embedding", "text block 0", "class rows", ..."""
    cka: float | None
    """Linear, in [0, 1]; None where the features of a model do not differ between examples"""
    cosine: float | None
    """Mean over examples, in [-1, 1]; None where the widths differ"""
    n: int


def linear_cka(x: Tensor, y: Tensor) -> float | None:
    """Return the linear centred kernel alignment of two sets of features, in [0, 1].

    |Yc^T Xc|^2 / (|Xc^T Xc| |Yc^T Yc|) with centred columns and Frobenius norms. It does not change
    under rotation or scaling of either side. With few rows for its widths it is biased upwards.

    Args:
        x: One row per example, (n, p).
        y: The same examples, (n, q).

    Raises:
        DataError: If there are no two rows, or their numbers differ.

    Source: Kornblith et al. 2019, arXiv 1905.00414, equation 5.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise DataError(
            f"features have shapes {tuple(x.shape)} and {tuple(y.shape)}; expected (n, p) and "
            "(n, q) with n >= 2."
        )
    x, y = (side.double() - side.double().mean(dim=0) for side in (x, y))
    if len(x) < max(x.shape[1], y.shape[1]):  # the same numbers from the smaller products
        own, other = x @ x.T, y @ y.T
        shared, sizes = float((own * other).sum()), (float(own.norm()), float(other.norm()))
    else:
        shared = float((y.T @ x).square().sum())
        sizes = float((x.T @ x).norm()), float((y.T @ y).norm())
    return min(1.0, shared / (sizes[0] * sizes[1])) if min(sizes) > 0 else None


def mean_cosine(x: Tensor, y: Tensor) -> float | None:
    """Return the mean cosine of matched rows (n, p); None where the widths differ."""
    if x.shape != y.shape:
        return None
    return float(torch.cosine_similarity(x.double(), y.double(), dim=1).mean())


def compare(before: Features, after: Features) -> list[Similarity]:
    """Return how alike two models are at every place that both have."""
    return [
        Similarity(
            place, linear_cka(rows, after[place]), mean_cosine(rows, after[place]), len(rows)
        )
        for place, rows in before.items()
        if place in after
    ]


@torch.no_grad()
def image_features(
    predictor: Predictor,
    images: Iterable[Tensor],
    run: Callable[[Tensor], object] | None = None,
) -> dict[str, Tensor]:
    """Return what every block of the image tower makes of images, and their embeddings.

    A block's row is what the tower pools: its class token, where embeddings are read from it, else
    the mean over tokens, or over places.

    Args:
        predictor: In evaluation mode.
        images: Normalised batches (B, 3, H, W).
        run: What sends a batch through the tower, such as the scoring of its images; the tower
            alone by default.
    """
    first = getattr(predictor.clip.visual, "pool_type", None) == "tok"
    found: dict[str, list[Tensor]] = {}
    with _hearing(predictor, "image", found, _first if first else _mean):
        for batch in images:
            (run or predictor.encode_image)(batch.to(predictor.device))
    return {place: torch.cat(parts) for place, parts in found.items()}


@torch.no_grad()
def text_features(predictor: Predictor, prompts: Tensor) -> dict[str, Tensor]:
    """Return what every block of the text tower makes of prompts (N, L), and their embeddings.

    In the order of their lengths. A block's row is the end-of-text token where the tower reads
    there, else the mean.
    """
    causal = int(towers.lengths(predictor.clip, prompts).min()) < prompts.shape[1]
    found: dict[str, list[Tensor]] = {}
    with _hearing(predictor, "text", found, _last if causal else _mean):
        for texts in same_lengths(predictor, prompts):
            rows = predictor.encode_text(texts)
            found.setdefault("text embedding", []).append(rows.float().cpu())
    return {place: torch.cat(parts) for place, parts in found.items()}


@contextmanager
def _hearing(
    predictor: Predictor,
    tower: Tower,
    found: dict[str, list[Tensor]],
    pool: Callable[[Tensor], Tensor],
) -> Iterator[None]:
    """Keep one row per example of what blocks return, and of what an image tower does."""

    def hook(place: str) -> Callable[..., None]:
        def hear(block: nn.Module, _args: Any, output: Any) -> None:
            x: Tensor = output[0] if isinstance(output, tuple) else output
            if x.ndim == 4:  # places of a ResNet
                x = x.flatten(2).transpose(1, 2)
            elif not getattr(getattr(block, "attn", None), "batch_first", True):
                x = x.transpose(0, 1)
            found.setdefault(place, []).append(pool(x).float().cpu())

        return hear

    def embedded(_tower: nn.Module, _args: Any, output: Any) -> None:
        x: Tensor = output[0] if isinstance(output, tuple) else output
        found.setdefault("image embedding", []).append(towers.unit(x).cpu())

    handles = [
        predictor.clip.get_submodule(path).register_forward_hook(hook(f"{tower} block {number}"))
        for number, path in enumerate(blocks_of(predictor, tower))
    ]
    if tower == "image":
        handles.append(predictor.clip.visual.register_forward_hook(embedded))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(tokens: Tensor) -> Tensor:
    return tokens[:, 0]


def _last(tokens: Tensor) -> Tensor:
    return tokens[:, -1]


def _mean(tokens: Tensor) -> Tensor:
    return tokens.mean(dim=1)
