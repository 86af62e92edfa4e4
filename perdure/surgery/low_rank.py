"""Low-rank updates of frozen weights (LoRA), also inside of nn.MultiheadAttention.

An adapted layer keeps its parameters and their names. It gets a child `low_rank` with the factors,
and a class whose forward adds their product; folding writes the product into the weight and gives
the layer its own class back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import SurgeryError
from .operations import check_alpha
from .sites import Site, Tower, check_blocks, find_sites

Target = Literal["in_proj", "out_proj", "mlp_in", "mlp_out"]

TARGETS: tuple[Target, ...] = ("in_proj", "out_proj", "mlp_in", "mlp_out")
"""The linear maps of a block: queries, keys and values; out of the attention; into and out of the
MLP."""

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


@dataclass(frozen=True)
class LowRank:
    """Adds alpha * scale * B A of rank `rank` to linear maps of the towers' blocks.

    A joint map to queries, keys and values gets one pair of factors, as in the peft library.
    Trains rank * (in + out) numbers for every map.

    Raises:
        SurgeryError: If a field is out of range.

    Source: Hu et al. 2022, "LoRA", arXiv 2106.09685.
    """

    name: ClassVar[str] = "low-rank"
    foldable: ClassVar[bool] = True

    rank: int = 4
    """Of every update, at least 1"""
    scale: float = 1.0
    """Fixed factor of every update, above 0; the peft library calls it lora_alpha / r"""
    targets: tuple[Target, ...] = TARGETS
    """Which maps of a block"""
    towers: tuple[Tower, ...] = ("image", "text")
    """Which towers"""
    blocks: tuple[int, ...] | None = None
    """Which blocks of each tower, from 0; None for all. A pool is one more block"""
    alpha: float = 1.0
    """Strength of all updates, >= 0"""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SurgeryError(f"rank is {self.rank}, but must be at least 1.")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise SurgeryError(f"scale is {self.scale}, but must be finite and above 0.")
        check_alpha(self.alpha)
        for name, chosen, known in (
            ("targets", self.targets, TARGETS), ("towers", self.towers, ("image", "text")),
        ):  # fmt: skip
            if not chosen or len(set(chosen)) < len(chosen) or set(chosen) - set(known):
                raise SurgeryError(
                    f"{name} are {list(chosen)}; name some of {', '.join(known)}, each once."
                )
        check_blocks(self.blocks)

    def attach(self, clip: nn.Module) -> None:
        """Add the factors; the model computes what it did, bit for bit.

        Raises:
            SurgeryError: If a tower or block has no such map, or one has an update already.
        """
        paths = self.layers(clip)
        for path in paths:
            _check(clip, path)
        for path in paths:
            module = clip.get_submodule(path)
            factors = Factors(own_weight(module), self.rank, self.scale, self.alpha)
            module.add_module(CHILD, factors.train(module.training))
            joint = isinstance(module, nn.MultiheadAttention)
            vars(module)["plain_class"] = type(module)
            module.__class__ = LowRankAttention if joint else LowRankLinear

    @torch.no_grad()
    def fold(self, clip: nn.Module, alpha: float) -> None:
        """Write the updates into the weights and remove the factors.

        Raises:
            SurgeryError: If there are none, as after a fold, or alpha is out of range.
        """
        self.set_alpha(clip, alpha)
        for module in self._adapted(clip):
            weight = own_weight(module)
            if alpha:  # adding zeros would still turn a -0 into 0
                weight.add_(module.low_rank.product().to(weight.dtype))
            module.__class__ = vars(module).pop("plain_class")
            del module.low_rank

    def set_alpha(self, clip: nn.Module, alpha: float) -> None:
        """Set the strength of all updates.

        Raises:
            SurgeryError: If there are none, or alpha is out of range.
        """
        check_alpha(alpha)
        for module in self._adapted(clip):
            module.low_rank.alpha = alpha

    def layers(self, clip: nn.Module) -> dict[str, Target]:
        """Return path and kind of every layer that gets an update, in forward order.

        The path of a joint map inside nn.MultiheadAttention is that of the whole attention.

        Raises:
            SurgeryError: If there is none, or a block does not exist.
        """
        found = {
            path: target
            for site in find_sites(clip, self.towers, self.blocks)
            for path, target in _layers(clip, site)
            if target in self.targets
        }
        if not found:
            raise SurgeryError(f"this model has no linear map of the kinds {list(self.targets)}.")
        return found

    def _adapted(self, clip: nn.Module) -> list[Any]:
        modules = [clip.get_submodule(path) for path in self.layers(clip)]
        if not all(hasattr(module, CHILD) for module in modules):
            raise SurgeryError(
                "a layer has no low-rank update; the model was folded already, or never adapted."
            )
        return modules


_BESIDE = {
    "attention": ("qkv", "q", "kv", "q_proj", "k_proj", "v_proj"),
    "mlp": ("c_fc", "fc1", "fc1_g", "fc1_x"),
}
"""Maps that an attention or MLP begins with, where they stand beside the one it ends with."""

_BEFORE = {
    "attention": tuple(
        f"{name}.{part}" for name in ("self", "attention") for part in ("query", "key", "value")
    ),
    "mlp": ("intermediate.dense",),
}
"""The same where the last map stands in a module of its own called `output`, as in BERT."""


def _layers(clip: nn.Module, site: Site) -> Iterator[tuple[str, Target]]:
    """Yield the first maps of an attention or MLP, and its last."""
    attention = site.part == "attention"
    path, _, _ = site.linear.rpartition(".")
    names = _BESIDE[site.part]
    if isinstance(clip.get_submodule(path), nn.MultiheadAttention):
        yield path, "in_proj"
    elif path.endswith(".output"):
        path, names = path.removesuffix(".output"), _BEFORE[site.part]
    children = dict(clip.get_submodule(path).named_modules())
    for name in names:
        if isinstance(children.get(name), nn.Linear):
            yield f"{path}.{name}", "in_proj" if attention else "mlp_in"
    yield site.linear, "out_proj" if attention else "mlp_out"


def own_weight(module: nn.Module) -> Tensor:
    """Return the pre-trained matrix (out, in) of a layer, live."""
    joint = isinstance(module, nn.MultiheadAttention)
    return _parameter(module, "in_proj_weight" if joint else "weight")


def _parameter(module: nn.Module, name: str) -> Tensor:
    # Reading the attribute would return the updated matrix.
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter


def _check(clip: nn.Module, path: str) -> None:
    """Refuse a layer that cannot be adapted.

    Raises:
        SurgeryError: If it has an update already, or its class is not known.
    """
    module = clip.get_submodule(path)
    if hasattr(module, CHILD):
        raise SurgeryError(
            f"{path} has a low-rank update already; fold the model before adding others."
        )
    if isinstance(module, nn.MultiheadAttention):
        plain = module._parameters.get("in_proj_weight") is not None
        plain = plain and type(module).forward is nn.MultiheadAttention.forward
    else:
        plain = type(module).forward is nn.Linear.forward
    if not plain:
        raise SurgeryError(
            f"{path} is {type(module).__name__}, which does not hold one plain matrix; name other "
            "targets or towers, or load the model without quantised layers."
        )
