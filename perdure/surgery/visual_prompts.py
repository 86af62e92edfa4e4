"""Visual prompts: learned tokens that an image tower sees beside the patches of a picture.

Source: deep visual prompts as in PromptKD (Li et al., CVPR 2024, arXiv 2403.02781), which took them
from VPT (Jia et al. 2022, arXiv 2203.12119).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import SurgeryError
from .operations import require_whole
from .sites import find_blocks, find_sites

_STD = 0.02

_EXTRA = "extra_tokens"
"""Attribute of the last block: how many tokens it drops"""

_ENTRIES = {
    "visual.transformer.resblocks": "visual.ln_pre",
    "visual.trunk.blocks": "visual.trunk.norm_pre",
}
"""By the place of the blocks: what all tokens pass just before the first of them"""


@dataclass(frozen=True)
class VisualPrompts:
    """Tokens behind the patches, at the input and anew before each of the next blocks.

    Before block 2 to `depth` they replace what the block before has made of them; what the last
    block makes of them is dropped, so that no kind of pooling sees them. Positions are not added.

    Raises:
        SurgeryError: If a field is out of range.
    """

    name: ClassVar[str] = "visual-prompts"
    foldable: ClassVar[bool] = False

    tokens: int = 4
    """Per block"""
    depth: int | None = None
    """Blocks that get tokens of their own, the first included; None for three quarters of all"""
    alpha: float = 1.0
    """Always 1: tokens are there or not"""

    def __post_init__(self) -> None:
        require_whole(self.alpha, "visual prompts have")
        for name, value in (("tokens", self.tokens), ("depth", self.depth)):
            if value is not None and value < 1:
                raise SurgeryError(f"{name} is {value}, but must be at least 1.")

    def attach(self, clip: nn.Module) -> None:
        """Add the tokens, drawn from N(0, 0.02^2).

        Raises:
            SurgeryError: If the image tower has no place for them, fewer blocks than `depth`, or
                tokens already.
        """
        entry, blocks = _tower(clip)
        depth = self._depth(len(blocks))
        if hasattr(entry, "prompts"):
            raise SurgeryError("the image tower has visual prompts already.")
        like = next(blocks[0].parameters())
        width = find_sites(clip, ("image",), (0,))[0].width
        for place in (entry, *blocks[1:depth]):
            place.add_module("prompts", Prompts(self.tokens, width, like))
        entry.register_forward_pre_hook(_append)
        for block in blocks[1:depth]:
            block.register_forward_pre_hook(_replace)
        setattr(blocks[-1], _EXTRA, self.tokens)
        blocks[-1].register_forward_hook(_drop)

    def fold(self, clip: nn.Module, alpha: float) -> None:
        """Do nothing: the tokens stay.

        Raises:
            SurgeryError: If there are none, or alpha is not 1.
        """
        self.set_alpha(clip, alpha)

    def set_alpha(self, clip: nn.Module, alpha: float) -> None:
        """Do nothing.

        Raises:
            SurgeryError: If there are none, or alpha is not 1.
        """
        require_whole(alpha, "visual prompts have")
        if not hasattr(_tower(clip)[0], "prompts"):
            raise SurgeryError("the image tower has no visual prompts.")

    def _depth(self, blocks: int) -> int:
        depth = max(1, 3 * blocks // 4) if self.depth is None else self.depth
        if depth > blocks:
            raise SurgeryError(
                f"depth is {depth}, but the image tower has {blocks} blocks; allowed are 1 to "
                f"{blocks}, or null for three quarters of them."
            )
        return depth


class Prompts(nn.Module):
    """Tokens (n, d) of one place."""

    def __init__(self, tokens: int, width: int, like: Tensor) -> None:
        super().__init__()
        first = torch.empty(tokens, width, dtype=like.dtype, device=like.device)
        self.weight = nn.Parameter(nn.init.normal_(first, std=_STD))


def _append(entry: nn.Module, args: Any) -> Any:
    """Hook of the entry, whose input is always (B, L, d)."""
    return (_join(args[0], entry.get_submodule("prompts"), 1), *args[1:])


def _replace(block: nn.Module, args: Any) -> Any:
    """Hook of later blocks."""
    prompts: Any = block.get_submodule("prompts")
    axis = _axis(block)
    x: Tensor = args[0]
    kept = x.narrow(axis, 0, x.shape[axis] - len(prompts.weight))
    return (_join(kept, prompts, axis), *args[1:])


def _drop(block: nn.Module, _args: Any, output: Any) -> Any:
    """Hook of the last block."""
    x: Tensor = output[0] if isinstance(output, tuple) else output
    axis = _axis(block)
    x = x.narrow(axis, 0, x.shape[axis] - getattr(block, _EXTRA))
    return (x, *output[1:]) if isinstance(output, tuple) else x


def _join(x: Tensor, prompts: Any, axis: int) -> Tensor:
    """Append the prompts to tokens (B, L, d), or (L, B, d) where axis is 0."""
    rows = prompts.weight.to(x.dtype).unsqueeze(1 - axis)
    shape = list(x.shape)
    shape[axis] = rows.shape[axis]
    return torch.cat([x, rows.expand(shape)], dim=axis)


def _axis(block: nn.Module) -> int:
    """Return the axis of tokens: towers may turn their attention around for speed."""
    return 1 if getattr(getattr(block, "attn", None), "batch_first", True) else 0


def _tower(clip: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """Return the module that all tokens pass before the first block, and the blocks."""
    paths = find_blocks(clip, "image")
    home = paths[0].rpartition(".")[0]
    tower = clip.get_submodule(home.rpartition(".")[0])
    names = [name for name, _ in clip.named_modules() if name == _ENTRIES.get(home)]
    if not names or getattr(tower, "rope", None) is not None:
        raise SurgeryError(
            f"visual prompts have no place in this image tower ({type(tower).__name__}): its "
            "blocks must take tokens that carry no position, as those of open_clip's ViT and "
            "timm's VisionTransformer do. Leave the prompts out (prompts: 0)."
        )
    return clip.get_submodule(names[0]), [clip.get_submodule(path) for path in paths]
