"""Rows of all processes, with gradient; identity in one process.

Every process computes the loss of the whole global batch. `DistributedDataParallel` then averages
the processes' gradients, which gives exactly the gradient one process would have computed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .batch import Pairs


def gather(x: Tensor) -> Tensor:
    """Return the rows of all processes in the order of their ranks, (sum of B, ...).

    Gradients flow back to the process that owns a row. Processes may hold different numbers of
    rows, but must agree in the other dimensions and in the type.

    Args:
        x: This process's rows, (B, ...).
    """
    if not _several():
        return x
    rows: Tensor = _Gather.apply(x)
    return rows


def gather_pairs(pairs: Pairs) -> Pairs:
    """Return the pairs of all processes; the scale is a weight and the same everywhere."""
    if not _several():
        return pairs
    # One message instead of two.
    rows = gather(torch.cat([pairs.image, pairs.text], dim=1))
    width = pairs.image.shape[1]
    return Pairs(rows[:, :width], rows[:, width:], pairs.scale)


def gather_labels(labels: Tensor) -> Tensor:
    """Return the labels of all processes in the order of `gather`, (sum of B,)."""
    return gather(labels)


def average(x: Tensor) -> Tensor:
    """Return the mean over all processes, without gradient; `x` where there is one."""
    if not _several():
        return x
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def first_row(x: Tensor) -> int:
    """Return where this process's rows (B, ...) begin among those that `gather` would return."""
    if not _several():
        return 0
    lengths = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=x.device)
    lengths[dist.get_rank()] = len(x)
    dist.all_reduce(lengths)
    return int(lengths[: dist.get_rank()].sum())


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        lengths = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=x.device)
        lengths[dist.get_rank()] = len(x)
        dist.all_reduce(lengths)
        counts = lengths.tolist()
        ctx.start, ctx.count = sum(counts[: dist.get_rank()]), len(x)
        # The last batch of an epoch may not divide evenly, and all_gather wants equal shapes.
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # The sum over processes undoes the mean that the data-parallel wrapper takes afterwards.
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.count]
