"""Low-rank updates of frozen weights (LoRA), also inside of nn.MultiheadAttention.

Attaching gives layers the factors and the classes of `factors`; folding writes the product into the
weight and gives the layer its own class back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ..errors import SurgeryError
from .factors import CHILD, Factors, LowRankAttention, LowRankLinear, own_weight
from .operations import check_alpha
from .sites import Site, Tower, check_blocks, find_sites

Target = Literal["in_proj", "out_proj", "mlp_in", "mlp_out"]

TARGETS: tuple[Target, ...] = ("in_proj", "out_proj", "mlp_in", "mlp_out")
"""The linear maps of a block: queries, keys and values; out of the attention; into and out of the
MLP."""


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
