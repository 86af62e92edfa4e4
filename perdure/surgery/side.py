"""Side adapters: small networks beside the upper blocks of both towers, joined in their middle.

Source: MMA (Yang et al., CVPR 2024, "MMA: Multi-Modal Adapter for Vision-Language Models").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import SurgeryError
from .operations import check_alpha
from .sites import Tower, check_blocks, find_blocks, first_norm

_SHARED = "side_shared"
"""Name, in the model, of the middle layers, which belong to neither tower"""


class Place(NamedTuple):
    """A block that gets an adapter."""

    block: str
    """Path in the model"""
    norm: str
    """Name in the block of the layer norm that the adapter reads through"""
    depth: int
    """Which middle layer it goes through"""


@dataclass(frozen=True)
class Side:
    """block(x) + alpha eta up(ReLU(shared(ReLU(down(norm(x)))))) in the upper blocks of the towers.

    `down` and `up` are each tower's own; `shared` is one layer for both towers at the same depth.
    Depth is counted from the top: the last blocks of the towers share, then the last but one, and
    so on. A tower's lower blocks that have no partner get no adapter.

    Adapters start from random numbers, so that a model with fresh ones is near the plain one and
    not equal to it; at alpha 0 it is equal. They are not linear and stay where they are.

    Raises:
        SurgeryError: If a field is out of range.
    """

    name: ClassVar[str] = "side"
    foldable: ClassVar[bool] = False

    rank: int = 32
    """Width of the branch"""
    eta: float = 0.001
    """Fixed factor of the branch, > 0"""
    towers: tuple[Tower, ...] = ("image", "text")
    """Which towers get adapters; where it is one, nothing is shared"""
    blocks: tuple[int, ...] | None = None
    """Which blocks, from 0, of the tower that has fewer; None for its upper two thirds"""
    scale_gradients: bool = True
    """Whether adapters get the gradients that they would have at eta = 1"""
    alpha: float = 1.0
    """Strength of all adapters, >= 0"""

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_blocks(self.blocks)
        if self.rank < 1:
            raise SurgeryError(f"rank is {self.rank}, but must be at least 1.")
        if not (math.isfinite(self.eta) and self.eta > 0.0):
            raise SurgeryError(f"eta is {self.eta}, but must be finite and above 0.")
        if not self.towers or len(set(self.towers)) < len(self.towers):
            raise SurgeryError(
                f"towers are {list(self.towers)}; name image, text or both, each once."
            )

    def attach(self, clip: nn.Module) -> None:
        """Add the adapters.

        Raises:
            SurgeryError: If a tower or block has no place for them, or there are adapters already.
        """
        towers = self._places(clip)
        for place in (place for places in towers for place in places):
            if hasattr(clip.get_submodule(place.block), "side"):
                raise SurgeryError(f"{place.block} has a side adapter already.")
        depths = range(len(towers[0]))
        # Of the type and on the device of a weight of the model.
        like = _norm_weight(clip, towers[0][0])
        shared = nn.ModuleList(_linear(self.rank, self.rank, like) for _ in depths)
        clip.add_module(_SHARED, shared)
        for places in towers:
            for place in places:
                block, weight = clip.get_submodule(place.block), _norm_weight(clip, place)
                branch = Branch(weight.shape[0], self, shared[place.depth], place.norm, weight)
                block.add_module("side", branch.train(block.training))
                block.register_forward_hook(_add)

    def fold(self, clip: nn.Module, alpha: float) -> None:
        """Write a strength into the last layers of the adapters, which stay.

        Raises:
            SurgeryError: If there are none, or alpha is out of range.
        """
        check_alpha(alpha)
        for branch in self._branches(clip):
            with torch.no_grad():
                for parameter in branch.up.parameters():
                    parameter.mul_(alpha)
            branch.alpha = 1.0

    def set_alpha(self, clip: nn.Module, alpha: float) -> None:
        """Set the strength of all adapters.

        Raises:
            SurgeryError: If there are none, or alpha is out of range.
        """
        check_alpha(alpha)
        for branch in self._branches(clip):
            branch.alpha = alpha

    def _branches(self, clip: nn.Module) -> list[Branch]:
        blocks = [clip.get_submodule(p.block) for places in self._places(clip) for p in places]
        found = [getattr(block, "side", None) for block in blocks]
        branches = [branch for branch in found if isinstance(branch, Branch)]
        if len(branches) < len(found):
            raise SurgeryError("the model has no side adapters where this surgery puts them.")
        return branches

    def _places(self, clip: nn.Module) -> list[list[Place]]:
        """Return the blocks of each tower, in the same order of depths."""
        towers = [find_blocks(clip, tower) for tower in self.towers]
        count = min(map(len, towers))
        blocks = sorted(set(self.blocks)) if self.blocks is not None else range(count // 3, count)
        if max(blocks) >= count:
            raise SurgeryError(
                f"blocks are {list(blocks)}, but the tower that has fewer has {count}; allowed are "
                f"0 to {count - 1}, or null for its upper two thirds."
            )
        return [
            [
                Place(path, first_norm(clip, path), depth)
                for depth, path in enumerate(paths[len(paths) - count + index] for index in blocks)
            ]
            for paths in towers
        ]


class Branch(nn.Module):
    """The adapter of one block.

    Args:
        width: d, of the block.
        side: The settings.
        shared: The middle layer, which the model holds and this module only uses: so it has one
            name in a state dict.
        norm: Name in the block of the layer norm that it reads through.
        like: A weight of the block, for type and device.
    """

    def __init__(self, width: int, side: Side, shared: nn.Module, norm: str, like: Tensor) -> None:
        super().__init__()
        self.down = _linear(width, side.rank, like)
        self.up = _linear(side.rank, width, like)
        self.eta, self.scale_gradients, self.norm = side.eta, side.scale_gradients, norm
        self.alpha = side.alpha
        self._shared = (shared,)  # a tuple: a module as attribute would be registered

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised inputs of the block (..., d) to what is added to its output."""
        boost = 1.0 / self.eta if self.scale_gradients else 1.0
        x = scale_gradient(x, 1.0 / boost)
        (shared,) = self._shared
        h = functional.relu(shared(functional.relu(self.down(x))))
        return scale_gradient(self.alpha * self.eta * self.up(h), boost)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x itself; its gradient is multiplied by a factor on the way back."""
    if factor == 1.0:
        return x
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grads[0], None


def _add(block: nn.Module, args: Any, output: Any) -> Any:
    """Hook of blocks; finds the adapter by its block, so that copies are whole."""
    branch: Any = block.get_submodule("side")
    if branch.alpha == 0.0:
        return output
    added = branch(block.get_submodule(branch.norm)(args[0]))
    if isinstance(output, tuple):
        return (output[0] + added.to(output[0].dtype), *output[1:])
    return output + added.to(output.dtype)


def _linear(width_in: int, width_out: int, like: Tensor) -> nn.Linear:
    """Return a layer that starts as published: Kaiming normal by its outputs, biases zero."""
    layer = nn.Linear(width_in, width_out, device="meta", dtype=like.dtype)
    layer.to_empty(device=like.device)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def _norm_weight(clip: nn.Module, place: Place) -> Tensor:
    weight = clip.get_submodule(f"{place.block}.{place.norm}").weight
    assert isinstance(weight, Tensor)
    return weight
