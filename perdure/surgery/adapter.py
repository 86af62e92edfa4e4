"""The module that a residual surgery adds, and how it is left out of training steps.

Source: R-Adapter (Kim et al. 2024, arXiv 2408.05749), sections 3.2 and 3.3.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

DropMode = Literal["module", "sample", "token"]
"""What is left out together: a whole adapter, single rows of the batch, or single positions."""


class Adapter(nn.Module):
    """z to z + alpha s drop(z F^T + u): a linear map with an inner residual that starts at zero.

    F is `weight` (d, d), or `up` (d, r) times `down` (r, d); s is `gate`, u is `bias` (d,).

    Args:
        width: d.
        rank: r, in [1, d - 1]; None for a full matrix.
        gate: Where the trainable factor s starts; None for s = 1.
        bias: Whether there is a u.
        drop: Probability in [0, 1) that the branch is left out in training.
        drop_mode: What is left out together: "module" all of it, "sample" single rows of the batch,
            "token" single positions of all rows. What is kept is divided by 1 - drop.
        alpha: Strength of the branch.
        index: Number of the adapter in the model, for its random draws.
    """

    weight: nn.Parameter | None
    down: nn.Parameter | None
    up: nn.Parameter | None
    gate: nn.Parameter | None
    bias: nn.Parameter | None
    clock: tuple[int, int, int] | None
    """Seed, step and first row of this process, from which draws follow; None for torch's state"""
    masks: list[Tensor] | None
    """Where drawn masks are kept, 1 for kept; None for nowhere"""

    def __init__(
        self, width: int, rank: int | None = None, *, gate: float | None = 0.1, bias: bool = False,
        drop: float = 0.0, drop_mode: DropMode = "module", alpha: float = 1.0, index: int = 0,
        device: torch.device | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        place: Any = {"device": device, "dtype": dtype}

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, **place))

        self.weight = self.down = self.up = self.gate = self.bias = None
        if rank is None:
            self.weight = zeros(width, width)
        else:
            self.down, self.up = zeros(rank, width), zeros(width, rank)
            nn.init.xavier_uniform_(self.down)
        if gate is not None:
            self.gate = nn.Parameter(torch.tensor(gate, **place))
        if bias:
            self.bias = zeros(width)
        self.drop, self.drop_mode, self.alpha, self.index = drop, drop_mode, alpha, index
        self.clock = None
        self.masks = None

    def forward(self, z: Tensor) -> Tensor:
        """Adapt outputs (B, ..., d)."""
        scale = self.alpha
        mask: Tensor | None = None
        if self.training and self.drop > 0:
            scale /= 1.0 - self.drop
            mask = self._mask(z)
            if self.drop_mode == "module":
                if not mask.item():
                    skipped: Tensor = _Skip.apply(z, *self.parameters())
                    return skipped
                mask = None
        # The factor goes into the smaller matrix: activations are read and stored once less.
        factor = scale if self.gate is None else scale * self.gate
        bias = None if self.bias is None else factor * self.bias
        if self.weight is not None:
            branch = functional.linear(z, factor * self.weight, bias)
        else:
            assert self.down is not None
            assert self.up is not None
            branch = functional.linear(functional.linear(z, self.down), factor * self.up, bias)
        if mask is not None:
            branch = branch * mask.to(branch)
        return z + branch.to(z.dtype)

    @torch.no_grad()
    def fold_into(self, linear: nn.Linear, alpha: float) -> None:
        """Write W' = (I + alpha s F) W and b' = (I + alpha s F) b + alpha s u in place."""
        factor = alpha * (1.0 if self.gate is None else _precise(self.gate))
        for tensor in (linear.weight, linear.bias):
            if tensor is None:
                continue
            old = _precise(tensor)
            if self.weight is not None:
                change = _precise(self.weight) @ old
            else:
                assert self.down is not None
                assert self.up is not None
                change = _precise(self.up) @ (_precise(self.down) @ old)
            if tensor is linear.bias and self.bias is not None:
                change = change + _precise(self.bias)
            tensor.copy_(old + factor * change)

    def _mask(self, z: Tensor) -> Tensor:
        """Draw what is kept, on the host: (1,), (B, 1, ...) or (1, L, ..., 1), 1 for kept."""
        shape = [1] * z.dim()
        if self.drop_mode == "module":
            shape = [1]
        elif self.drop_mode == "sample":
            shape[0] = z.shape[0]
        else:
            shape[1:-1] = z.shape[1:-1]
        count = math.prod(shape)
        if self.clock is None:
            draws = torch.rand(count, dtype=torch.float64)
        else:
            seed, step, first = self.clock
            start = first if self.drop_mode == "sample" else 0
            random = np.random.default_rng((seed, step, self.index))
            draws = torch.from_numpy(random.random(start + count)[start:])
        mask = (draws >= self.drop).to(torch.float32).view(shape)
        if self.masks is not None:
            self.masks.append(mask)
        return mask


class _Skip(torch.autograd.Function):
    """Return the input; the left-out parameters get the zero gradient that they have.

    Without it they would get none, for which optimisers and data-parallel wrappers do other things.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, *parameters: Tensor) -> Tensor:
        ctx.like = [(tuple(p.shape), p.dtype, p.device) for p in parameters]
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        zeros = (
            torch.zeros(shape, dtype=dtype, device=device) if needed else None
            for (shape, dtype, device), needed in zip(
                ctx.like, ctx.needs_input_grad[1:], strict=True
            )
        )
        return (grads[0], *zeros)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
