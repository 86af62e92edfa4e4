"""Merging of task vectors, tensor by tensor: sums, trimming, signs, dropping. No files, no models.

A task vector is a fine-tuned tensor minus the one it started from. Everything is computed in
float32 or wider. Where a rule trims or drops, `density` is the share of entries that stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .mixing import precise

Majority = Literal["total", "frequency"]
"""How signs are elected: by the sum of the entries, or by their number"""


def combine(vectors: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of task vectors that may arrive one by one.

    Source: Ilharco et al. 2023, "Editing models with task arithmetic", arXiv 2212.04089.
    """
    total: Tensor | None = None
    for vector, weight in zip(vectors, weights, strict=True):
        part = weight * precise(vector)
        total = part if total is None else total + part
    assert total is not None
    return total


class Cut(NamedTuple):
    """Where a trimmed vector, or a whole model, ends."""

    value: float
    """Magnitude of the smallest entry that stays; infinite where none does"""
    equal: int
    """How many entries of just that magnitude stay, the first ones"""


def cut(parts: Callable[[], Iterable[Tensor]], keep: int) -> Cut:
    """Find the `keep` entries of largest magnitude among many tensors, without holding them.

    Reads the tensors twice: magnitudes of float32, read as whole numbers, keep their order, so
    counting their upper and then their lower halves finds the exact place.

    Args:
        parts: Returns the tensors; called twice.
        keep: Number of entries that stay.
    """
    if keep < 1:
        return Cut(float("inf"), 0)
    upper = torch.zeros(1 << 16, dtype=torch.int64)
    for part in parts():
        upper += torch.bincount(_bits(part) >> 16, minlength=1 << 16)
    first, above = _nth_from_top(upper, keep)
    lower = torch.zeros(1 << 16, dtype=torch.int64)
    for part in parts():
        bits = _bits(part)
        inside = bits[bits >> 16 == first]
        lower += torch.bincount(inside & 0xFFFF, minlength=1 << 16)
    second, more = _nth_from_top(lower, keep - above)
    bits = torch.tensor(first << 16 | second, dtype=torch.int32)
    return Cut(float(bits.view(torch.float32)), keep - above - more)


def trim_at(vector: Tensor, place: Cut) -> Tensor:
    """Return a vector with zeros for all entries beyond a cut."""
    magnitude = vector.abs().to(torch.float32)
    kept = magnitude > place.value
    equal = (magnitude == place.value).flatten().nonzero()[: place.equal]
    kept.view(-1)[equal] = True
    return torch.where(kept, vector, torch.zeros_like(vector))


def trim(vector: Tensor, density: float) -> Tensor:
    """Return a vector with zeros for all but its int(density n) entries of largest magnitude.

    Of equal magnitudes the first ones stay.

    Source: Yadav et al. 2023, "TIES-merging", arXiv 2306.01708, step 1.
    """
    vector = precise(vector)
    return trim_at(vector, cut(lambda: [vector], int(density * vector.numel())))


def elect(vectors: Sequence[Tensor], majority: Majority = "total") -> Tensor:
    """Return the sign, 1 or -1, that most of the vectors have in each entry.

    A sum of zero elects +1, as peft and mergekit do (the authors' code takes the majority of all
    signs of the model there).

    Source: Yadav et al. 2023, arXiv 2306.01708, step 2.
    """
    votes = (vector.sign() if majority == "frequency" else vector for vector in vectors)
    total = combine(votes, [1.0] * len(vectors))
    return torch.where(total >= 0, 1.0, -1.0).to(total.dtype)


def agree(vectors: Sequence[Tensor], weights: Sequence[float], signs: Tensor) -> Tensor:
    """Return the weighted sum of the entries that have the elected sign, over their number.

    Source: Yadav et al. 2023, arXiv 2306.01708, step 3; the number, and not the sum of the
    weights, is peft's divisor.
    """
    total = torch.zeros_like(signs)
    count = torch.zeros_like(signs)
    for vector, weight in zip(vectors, weights, strict=True):
        same = vector.sign() == signs
        total += weight * torch.where(same, vector, torch.zeros_like(vector))
        count += same
    return total / count.clamp(min=1.0)


def ties(
    vectors: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    majority: Majority = "total",
) -> Tensor:
    """Return one task vector out of several: trimmed, signs elected, averaged where they agree.

    Args:
        vectors: Of equal shape.
        weights: One per vector; 1 each is the paper.
        density: Share of each vector that stays, in [0, 1], per tensor.
        majority: How signs are elected.

    Source: Yadav et al. 2023, arXiv 2306.01708.
    """
    trimmed = [trim(vector, density) for vector in vectors]
    return agree(trimmed, weights, elect(trimmed, majority))


def drop(vector: Tensor, density: float, generator: torch.Generator | None = None) -> Tensor:
    """Return a vector in which each entry stays with probability `density`, divided by it.

    Args:
        vector: Any shape.
        density: In (0, 1].
        generator: Of the draws, on the CPU; torch's own if None.

    Source: Yu et al. 2024, "Language models are super mario" (DARE), arXiv 2311.03099.
    """
    vector = precise(vector)
    chances = torch.full(vector.shape, density, dtype=torch.float32)
    mask = torch.bernoulli(chances, generator=generator).to(vector)
    return vector * mask / density


def dare(
    vectors: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    generators: Sequence[torch.Generator | None],
    signs: Majority | None = None,
) -> Tensor:
    """Return the sum of task vectors of which random entries were dropped.

    Args:
        vectors: Of equal shape.
        weights: One per vector.
        density: Probability of an entry to stay, in (0, 1].
        generators: One per vector.
        signs: None for the weighted sum; else entries vote and agree as in `ties`.

    Source: Yu et al. 2024, arXiv 2311.03099.
    """
    dropped = [
        drop(vector, density, generator)
        for vector, generator in zip(vectors, generators, strict=True)
    ]
    if signs is None:
        return combine(dropped, weights)
    return agree(dropped, weights, elect(dropped, signs))


def stock_share(cosine: float, runs: int = 2) -> float:
    """Return the share of the mean of `runs` fine-tuned weights that lies nearest to their centre.

    Args:
        cosine: Of the angle between two runs' updates, in [-1, 1]; below 0 counts as 0, because
            updates that disagree are no reason to move against them.
        runs: Number of runs, >= 2.

    Source: Jang et al. 2024, "Model stock", arXiv 2403.19522.
    """
    cosine = min(1.0, max(0.0, cosine))
    return runs * cosine / ((runs - 1) * cosine + 1.0)


def model_stock(vectors: Sequence[Tensor]) -> Tensor:
    """Return the mean of two or more task vectors, shortened by how far they disagree.

    The factor is `stock_share` of the mean cosine of all pairs; a vector of zeros has cosine 0 with
    every other.

    Source: Jang et al. 2024, arXiv 2403.19522.
    """
    exact = [vector.double() for vector in vectors]
    units = [vector / vector.norm().clamp(min=torch.finfo(torch.float64).tiny) for vector in exact]
    whole = combine(units, [1.0] * len(units))
    pairs = len(units) * (len(units) - 1)
    # The square of the sum holds every pair twice and each vector with itself.
    own = float(torch.stack([one.square().sum() for one in units]).sum())
    cosine = (float(whole.square().sum()) - own) / pairs
    middle = combine(exact, [1.0 / len(exact)] * len(exact))
    return stock_share(cosine, len(exact)) * middle


def _bits(part: Tensor) -> Tensor:
    """Return magnitudes as whole numbers of the same order, flat."""
    return part.detach().abs().to(torch.float32).flatten().view(torch.int32)


def _nth_from_top(counts: Tensor, n: int) -> tuple[int, int]:
    """Return the bin of the n-th largest entry, and how many lie in the bins above it."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, torch.tensor(n)))
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, above
