"""How much goes through a tower at a time: what costs least, whatever the batches of a caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import towers

TEXTS = 256
"""Embedded at a time, of similar length; more are slower on a CPU, whose cache they leave"""

TOKENS = 1024
"""Of pictures at a time, per thread of a CPU. Activations of more are so large that the system
clears fresh memory for every one of them; fewer make the products of matrices slower."""

FEWEST = 4
"""Pictures at a time; products of fewer rows may be added up in another order"""


def parts(clip: Any, images: Tensor) -> tuple[Tensor, ...]:
    """Split images (B, 3, H, W) into what should go through the image tower at a time.

    On a CPU alone, and for open_clip's transformers, whose number of tokens can be seen.
    """
    positions = getattr(clip.visual, "positional_embedding", None)
    if images.device.type != "cpu" or not isinstance(positions, Tensor) or positions.ndim != 2:
        return (images,)
    tokens = len(images) * len(positions)
    count = min(tokens // (TOKENS * torch.get_num_threads()), len(images) // FEWEST)
    return images.tensor_split(max(count, 1))


def embedded(encode: Callable[[Tensor], Tensor], clip: Any, images: Tensor) -> Tensor:
    """Embed images (B, 3, H, W) part by part, (B, D), where no gradient is wanted.

    Args:
        encode: Embeds images.
        clip: Whose image tower does.
        images: Of any number.
    """
    found = [encode(part) for part in parts(clip, images)]
    return found[0] if len(found) == 1 else torch.cat(found)


def embedded_texts(encode: Callable[[Tensor], Tensor], clip: Any, tokens: Tensor) -> Tensor:
    """Embed tokens (N, L), those of similar length together, (N, D); differentiable.

    Args:
        encode: Embeds tokens.
        clip: Whose text tower does.
        tokens: On the host; they are embedded where the model is.
    """
    device = clip.logit_scale.device
    order = towers.lengths(clip, tokens).argsort(stable=True)
    groups = torch.split(tokens[order], TEXTS)
    found = [encode(towers.trim(clip, group).to(device)) for group in groups]
    return torch.cat(found)[order.argsort()]
