"""The layers that a low-rank update turns others into, and its two factors.

An adapted layer keeps its parameters and their names. It gets a child `low_rank` with the factors,
and a class whose forward adds their product.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CHILD = "low_rank"
"""Name of the factors below the layer they belong to"""


class Factors(nn.Module):
    """The update alpha * scale * up @ down of one matrix (out, in); zero at the start.

    Args:
        weight: The matrix; gives size, type and device.
        rank: Rows of `down` and columns of `up`.
        scale: Fixed factor.
        alpha: Strength, which may be changed at any time.

    Source: Hu et al. 2022, "LoRA", arXiv 2106.09685, section 4.1.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(weight.new_empty(rank, columns))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale = scale
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Return what the update adds to the output for x (..., in), (..., out)."""
        low = functional.linear(x, self.down)
        return functional.linear(self.alpha * self.scale * low, self.up)

    def added_to(self, weight: Tensor) -> Tensor:
        """Return the updated matrix (out, in)."""
        updated = weight + (self.alpha * self.scale * self.up) @ self.down
        if not updated.requires_grad and not torch.is_grad_enabled():
            # torch chooses its kernel by this flag too, which would change the last digit.
            updated.requires_grad_(weight.requires_grad)
        return updated

    def product(self) -> Tensor:
        """Return the update itself, (out, in), in float32 or wider."""
        precise = torch.promote_types(self.up.dtype, torch.float32)
        return (self.alpha * self.scale * self.up.to(precise)) @ self.down.to(precise)


class LowRankLinear(nn.Linear):
    """A linear layer with an update; `weight` reads as the updated matrix, as others may take it.

    nn.MultiheadAttention and some towers of timm read a layer's weight without calling the layer.
    """

    low_rank: Factors

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The updated matrix; the pre-trained one is the parameter of this name."""
        return self.low_rank.added_to(_parameter(self, "weight"))

    def forward(self, x: Tensor) -> Tensor:
        """Add the update to the output, so that no gradient of a whole matrix is ever made."""
        plain = functional.linear(x, _parameter(self, "weight"), self.bias)
        changed: Tensor = plain + self.low_rank(x)
        return changed


class LowRankAttention(nn.MultiheadAttention):
    """Attention whose joint matrix of queries, keys and values (3 d, d) has an update."""

    low_rank: Factors

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The updated matrix; the pre-trained one is the parameter of this name."""
        return self.low_rank.added_to(_parameter(self, "in_proj_weight"))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; where gradients are needed, in a way that makes none of a whole matrix."""
        lean = (
            torch.is_grad_enabled()
            and query is key
            and key is value
            and not args
            and options.keys() <= {"need_weights", "attn_mask"}
            and not options.get("need_weights", True)
            and query.dim() == 3
            and self.batch_first
            and not self.dropout
            and self.bias_k is None
            and not self.add_zero_attn
        )
        if not lean:
            found: tuple[Tensor, Tensor | None] = super().forward(
                query, key, value, *args, **options
            )
            return found
        rows, length, width = query.shape
        x = functional.linear(query, _parameter(self, "in_proj_weight"), self.in_proj_bias)
        x = x + self.low_rank(query)
        # (B, L, 3, heads, d / heads) to three times (B, heads, L, d / heads)
        q, k, v = x.view(rows, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mask = options.get("attn_mask")
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(x.transpose(1, 2).reshape(rows, length, width)), None


def own_weight(module: nn.Module) -> Tensor:
    """Return the pre-trained matrix (out, in) of a layer, live."""
    joint = isinstance(module, nn.MultiheadAttention)
    return _parameter(module, "in_proj_weight" if joint else "weight")


def _parameter(module: nn.Module, name: str) -> Tensor:
    # Reading the attribute would return the updated matrix.
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter
