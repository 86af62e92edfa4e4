"""How far to move from a zero-shot model to a fine-tuned one: rules on the weights themselves.

Pure functions, tensor by tensor, that look at no data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import WeightsError
from ..task_vectors import stock_share as stock_share
from ..weights import Weights

Floats = NDArray[np.float64]

_BLOCK = re.compile(
    r"(?:^|\.)(?:resblocks|blocks|layers?|stages)[._]?(\d+)(?:\.(?:blocks\.)?(\d+)(?=\.))?"
)
_SHALLOW = re.compile(r"embed|cls_token|ln_pre|norm_pre|stem|(?:^|\.)(?:conv|bn)\d")


def stock(start: Weights, first: Weights, second: Weights) -> tuple[dict[str, Tensor], Floats]:
    """Return, tensor by tensor, the point between `start` and the mean of two runs; and cosines.

    Args:
        start: The weights from which both runs started.
        first: One end.
        second: Another end: of another seed, or of other data. Two stages of one run will not do,
            because their updates are nearly parallel.

    Returns:
        New weights, and the cosine of every floating-point tensor that both runs moved, in order.

    Raises:
        WeightsError: If names or shapes differ, or no tensor moved in both.

    Source: Jang et al. 2024, arXiv 2403.19522.
    """
    _require_fit(start, first, second)
    weights, cosines = {}, []
    for name, origin in start.items():
        if not origin.is_floating_point():
            weights[name] = first[name]
            continue
        one, other = (end[name].double() - origin.double() for end in (first, second))
        size = float(one.norm() * other.norm())
        cosine = float((one * other).sum()) / size if size else 0.0
        if size:
            cosines.append(cosine)
        moved = origin.double() + stock_share(cosine) * (one + other) / 2
        weights[name] = moved.to(origin.dtype)
    if not cosines:
        raise WeightsError("no tensor was moved by both runs, so there are no angles to compare.")
    return weights, np.array(cosines)


class Split(NamedTuple):
    """How a matrix of updates is divided, and what is kept of the two parts."""

    rank: int
    """Singular values in the high part"""
    gap: float
    """Square of the first low singular value over the largest, rho"""
    tail: float
    """Norm of the low part over that of the whole, c"""
    low: float
    """Factor on the low part"""

    @property
    def high(self) -> float:
        """Factor on the high part."""
        return 1.0 - self.low


def mono_split(values: Floats, rank: int | None = None, energy: float = 0.8) -> Split:
    """Return the factors on the high and low part of a matrix of updates.

    Args:
        values: Its singular values, descending, not all zero.
        rank: How many belong to the high part; None for the fewest with `energy` of the squares.
        energy: In (0, 1].

    Source: MonoSoup, arXiv 2602.09689.
    """
    squares = values**2
    total = squares.sum()
    if rank is None:
        rank = int(np.searchsorted(np.cumsum(squares), energy * total * (1 - 1e-12))) + 1
    rank = min(rank, len(values))
    gap = float(squares[rank] / squares[0]) if rank < len(values) else 0.0
    tail = float(np.sqrt(squares[rank:].sum() / total))
    return Split(rank, gap, tail, gap + (1.0 - gap) * tail)


def mono(start: Weights, end: Weights, energy: float = 0.8) -> dict[str, Tensor]:
    """Return `end` with the update of every matrix divided by its spectrum, and shrunk.

    Acts on tensors of two and more dimensions, as matrices (first, rest); others stay as they are.

    Raises:
        WeightsError: If names or shapes differ.

    Source: MonoSoup, arXiv 2602.09689.
    """
    _require_fit(start, end)
    weights = {}
    for name, origin in start.items():
        weights[name] = end[name]
        if not origin.is_floating_point() or origin.ndim < 2:
            continue
        update = (end[name].double() - origin.double()).flatten(1)
        left, values, right = torch.linalg.svd(update, full_matrices=False)
        if float(values[0]) == 0.0:
            continue
        split = mono_split(values.cpu().numpy(), energy=energy)
        factors = torch.full_like(values, split.low)
        factors[: split.rank] = split.high
        edited = (left * (values * factors)) @ right
        weights[name] = (origin.double() + edited.reshape(origin.shape)).to(origin.dtype)
    return weights


def norm_ratio(start: Weights, end: Weights, edited: Weights) -> float:
    """Return the alpha that shrinks the whole update of `end` to the length of that of `edited`.

    An edit that is worth its name must beat this plain interpolation.
    """
    squares = [
        sum(
            float((one[name].double() - origin.double()).square().sum())
            for name, origin in start.items()
            if origin.is_floating_point()
        )
        for one in (edited, end)
    ]
    return float(np.sqrt(squares[0] / squares[1])) if squares[1] else 0.0


def depths(names: Sequence[str]) -> dict[str, float]:
    """Return the depth of every tensor in its tower, 0 for the first block and 1 for the last.

    What stands before the blocks counts as first, what follows them, and all else, as last.
    """
    keys = {name: _block_of(name) for name in names}
    blocks: dict[str, set[tuple[int, ...]]] = {}
    for tower, block in filter(None, keys.values()):
        blocks.setdefault(tower, set()).add(block)
    found = {}
    for name, key in keys.items():
        if key is None:
            found[name] = 0.0 if _SHALLOW.search(name) else 1.0
            continue
        order = sorted(blocks[key[0]])
        found[name] = order.index(key[1]) / (len(order) - 1) if len(order) > 1 else 1.0
    return found


def lines(start: Weights, end: Weights, alpha: float, shallow: float) -> dict[str, Tensor]:
    """Return weights that moved by `shallow` in the first block up to `alpha` in the last.

    Raises:
        WeightsError: If names or shapes differ.

    Source: Wang et al. 2024, "LiNeS", arXiv 2410.17146.
    """
    _require_fit(start, end)
    shares = {
        name: shallow + (alpha - shallow) * depth for name, depth in depths(list(start)).items()
    }
    return {
        name: torch.lerp(origin, end[name], shares[name])
        if origin.is_floating_point()
        else end[name]
        for name, origin in start.items()
    }


def _block_of(name: str) -> tuple[str, tuple[int, ...]] | None:
    """Return a tensor's tower, as the text before its block, and the block's numbers."""
    match = _BLOCK.search(name)
    if match is None:
        return None
    return name[: match.start()], tuple(int(part) for part in match.groups() if part is not None)


def _require_fit(start: Weights, *ends: Weights) -> None:
    for end in ends:
        wrong = [name for name in start if name not in end or end[name].shape != start[name].shape]
        if wrong or len(end) != len(start):
            raise WeightsError(
                f"the ends do not fit together (first difference: {(wrong or ['their number'])[0]}"
                "); both must be fine-tuned from the same start, on the same classes."
            )
