"""Mask prompts: learned tokens that take the place of the patches outside a region.

Source: Liang et al. 2023, arXiv 2210.04150, section 3.3, and the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import SurgeryError
from .operations import Surgery, check_alpha
from .sites import find_blocks

_STD = 0.02

_PATCHES = {
    "visual.transformer.resblocks": "visual.conv1",
    "visual.trunk.blocks": "visual.trunk.patch_embed.proj",
}
"""By the place of the blocks: the convolution that makes tokens of patches"""


@dataclass(frozen=True)
class MaskPrompts:
    """A token per patch and depth, seen where a patch has no pixel of the region.

    Masks come as a fourth channel of the images, above 0 inside the region. Images of three
    channels are embedded as without the surgery, bit for bit. The first tokens replace those of
    patches, before positions are added; the next ones what the first blocks have made of these.

    Raises:
        SurgeryError: If a field is out of range.
    """

    name: ClassVar[str] = "mask-prompts"
    foldable: ClassVar[bool] = False
    takes_masks: ClassVar[bool] = True

    depth: int | None = None
    """Places that get tokens: the input, and what comes out of the first `depth` - 1 blocks; None
    for 3, as published, or as many as there are blocks"""
    alpha: float = 1.0
    """Factor of the tokens, >= 0: at 0 there is nothing outside the region, tokens of zeros"""

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if self.depth is not None and self.depth < 1:
            raise SurgeryError(f"depth is {self.depth}, but must be at least 1.")

    def attach(self, clip: nn.Module) -> None:
        """Add the tokens, drawn from N(0, 0.02^2), as the authors' code does.

        Raises:
            SurgeryError: If the image tower has no place for them, drops patches, has fewer blocks
                than `depth`, or mask prompts already.
        """
        visual, patches, blocks = _tower(clip)
        if hasattr(visual, "mask_prompts"):
            raise SurgeryError("the image tower has mask prompts already.")
        number = min(3, len(blocks)) if self.depth is None else self.depth
        if number > len(blocks):
            raise SurgeryError(
                f"depth is {number}, but the image tower has {len(blocks)} blocks; allowed are 1 "
                f"to {len(blocks)}."
            )
        tokens = Tokens(number, self.alpha, patches, *_span(clip))
        visual.add_module("mask_prompts", tokens.train(visual.training))
        blocks = blocks[: number - 1]
        for depth, module in enumerate((patches, *blocks)):
            setattr(module, _USED, (tokens, depth))
        patches.register_forward_pre_hook(_split)
        patches.register_forward_hook(_replace_patches)
        for block in blocks:
            block.register_forward_hook(_replace_tokens)

    def fold(self, clip: nn.Module, alpha: float) -> None:
        """Multiply the tokens by a strength; they stay.

        Raises:
            SurgeryError: If there are none, or alpha is out of range.
        """
        check_alpha(alpha)
        tokens = _tokens(clip)
        with torch.no_grad():
            tokens.weight.mul_(alpha)
        tokens.alpha = 1.0

    def set_alpha(self, clip: nn.Module, alpha: float) -> None:
        """Set the factor of the tokens.

        Raises:
            SurgeryError: If there are none, or alpha is out of range.
        """
        check_alpha(alpha)
        _tokens(clip).alpha = alpha


class Tokens(nn.Module):
    """The tokens of all depths, and which patches of the images at hand they replace.

    Args:
        depth: Number of places, n.
        alpha: Their factor.
        patches: The convolution that makes tokens of patches.
        first: Place of the first patch in the sequence of all tokens.
        count: Number of patches, P.
    """

    background: Tensor | None
    """Of the latest images, (B, P), bool; None where they came without masks. It is kept until the
    next images: blocks that are computed again in the backward pass need it once more"""

    def __init__(
        self, depth: int, alpha: float, patches: nn.Conv2d, first: int, count: int
    ) -> None:
        super().__init__()
        like = patches.weight
        start = torch.empty(depth, count, len(like), dtype=like.dtype, device=like.device)
        self.weight = nn.Parameter(nn.init.normal_(start, std=_STD))
        self.alpha = alpha
        self.first = first
        self.background = None

    def see(self, masks: Tensor, patches: nn.Conv2d) -> None:
        """Keep which patches of masks (B, 1, H, W) have no pixel above 0."""
        size, stride = patches.kernel_size, patches.stride
        most = functional.max_pool2d(masks, (size[0], size[1]), (stride[0], stride[1]))
        self.background = most.flatten(1) <= 0

    def replace(self, x: Tensor, depth: int) -> Tensor:
        """Replace tokens of patches (B, P, d) outside the regions by those of a depth."""
        if self.background is None:
            return x
        rows = self.weight[depth]
        if self.alpha != 1.0:
            rows = self.alpha * rows
        return torch.where(self.background[..., None], rows.to(x.dtype), x)


def takes_masks(surgeries: Iterable[Surgery]) -> bool:
    """Return whether images may come with masks as a fourth channel."""
    return any(getattr(surgery, "takes_masks", False) for surgery in surgeries)


_USED = "_mask_prompts"
"""Attribute of hooked modules: tokens and depth. In a tuple, as tokens belong to the tower alone"""


def _split(patches: Any, args: Any) -> Any:
    """Hook of the convolution: take the masks off its input."""
    tokens, _ = getattr(patches, _USED)
    images: Tensor = args[0]
    tokens.background = None
    if images.shape[1] != 4:
        return None
    tokens.see(images[:, 3:], patches)
    return (images[:, :3], *args[1:])


def _replace_patches(patches: nn.Module, _args: Any, output: Tensor) -> Tensor:
    """Hook of the convolution: its output is (B, d, rows, columns)."""
    tokens, depth = getattr(patches, _USED)
    if tokens.background is None:
        return output
    rows: Tensor = tokens.replace(output.flatten(2).transpose(1, 2), depth)
    return rows.transpose(1, 2).reshape(output.shape)


def _replace_tokens(block: nn.Module, _args: Any, output: Any) -> Any:
    """Hook of blocks."""
    tokens, depth = getattr(block, _USED)
    if tokens.background is None:
        return output
    x: Tensor = output[0] if isinstance(output, tuple) else output
    # Towers may turn their attention around for speed.
    turned = not getattr(getattr(block, "attn", None), "batch_first", True)
    rows = x.transpose(0, 1) if turned else x
    start, end = tokens.first, tokens.first + tokens.background.shape[1]
    patches = tokens.replace(rows[:, start:end], depth)
    rows = torch.cat([rows[:, :start], patches, rows[:, end:]], dim=1)
    x = rows.transpose(0, 1) if turned else rows
    return (x, *output[1:]) if isinstance(output, tuple) else x


def _tokens(clip: nn.Module) -> Tokens:
    """Return the live tokens of a model.

    Raises:
        SurgeryError: If there are none.
    """
    found = getattr(clip.get_submodule("visual"), "mask_prompts", None)
    if not isinstance(found, Tokens):
        raise SurgeryError("the image tower has no mask prompts.")
    return found


def _tower(clip: nn.Module) -> tuple[nn.Module, nn.Conv2d, list[nn.Module]]:
    """Return the image tower, the convolution that makes tokens of patches, and the blocks."""
    paths = find_blocks(clip, "image")
    place = _PATCHES.get(paths[0].rpartition(".")[0])
    patches = dict(clip.named_modules()).get(place or "")
    if not isinstance(patches, nn.Conv2d) or patches.in_channels != 3:
        raise SurgeryError(
            f"mask prompts have no place in this image tower ({_kind(clip)}): it must make tokens "
            "of patches by one convolution, as open_clip's ViT and those of timm do."
        )
    return clip.get_submodule("visual"), patches, [clip.get_submodule(path) for path in paths]


def _span(clip: nn.Module) -> tuple[int, int]:
    """Return the place of the first patch in a sequence of tokens, and the number of patches.

    Raises:
        SurgeryError: If the tower does not say, or drops patches while it trains.
    """
    visual: Any = clip.get_submodule("visual")
    trunk = getattr(visual, "trunk", None)
    first: int | None
    count: int | None
    if trunk is None:
        rows, columns = visual.grid_size
        first, count, dropping = 1, rows * columns, visual.patch_dropout
    else:
        first = getattr(trunk, "num_prefix_tokens", None)
        count = getattr(trunk.patch_embed, "num_patches", None)
        dropping = getattr(trunk, "patch_drop", None)
    if first is None or count is None:
        raise SurgeryError(
            f"mask prompts have no place in this image tower ({_kind(clip)}): it does not say "
            "which of its tokens are patches."
        )
    if not isinstance(dropping, (nn.Identity, type(None))):
        raise SurgeryError(
            f"this image tower ({_kind(clip)}) drops patches while it trains, so mask prompts "
            "would not know where they stand; build it without (patch_dropout: 0)."
        )
    return first, count


def _kind(clip: nn.Module) -> str:
    visual = getattr(clip, "visual", clip)
    return type(getattr(visual, "trunk", visual)).__name__
