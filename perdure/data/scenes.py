"""EmojiShift's segmentation scenes: four sprites on one canvas, with their exact masks."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, nearest
from .paint import Draws, backgrounds, over, place, take_sprites
from .render import PRESETS
from .sprites import CLASSES, VENDORS

CANVAS = 96
"""Pixels per side of a scene"""

CELLS = ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5))
"""Centres of the four cells in [-1, 1]"""


class Domain(NamedTuple):
    """What the scenes of a domain are drawn from."""

    code: int
    """Part of every scene's key; never reused"""
    vendors: tuple[str, ...]
    """Taken in turn"""
    preset: str
    """Whose backgrounds are used"""
    scenes: int = 60


DOMAINS = {
    "id": Domain(31, ("noto",), "id"),
    "rendition": Domain(32, ("twemoji", "emojione", "fluent", "fluent-flat"), "clean"),
    "sketch": Domain(33, ("monotone", "line"), "paper"),
}
"""Those that are scored"""

LEARNT = {
    "train": Domain(34, ("noto",), "id", scenes=320),
    "val": Domain(35, ("noto",), "id", scenes=100),
}
"""Those whose regions are trained and chosen on; they share no scene with `DOMAINS`"""


class SceneSet(NamedTuple):
    """Scenes of one domain."""

    images: Tensor
    """(N, 3, 96, 96), uint8"""
    masks: Tensor
    """(N, 4, 96, 96), bool; the masks of a scene never overlap"""
    labels: NDArray[np.int64]
    """(N, 4), class index of each mask; the four differ"""


@lru_cache(maxsize=4)
def open_scenes(domain: str, seed: int = 0) -> SceneSet:
    """Draw the scenes of a domain.

    Args:
        domain: One of `DOMAINS` or `LEARNT`.
        seed: Makes other scenes of "train"; every other domain is fixed.

    Raises:
        DataError: If the domain is unknown.
    """
    known = {**DOMAINS, **LEARNT}
    if domain not in known:
        raise DataError(
            f"emojishift has no segmentation domain {domain!r}. Allowed: {', '.join(known)}."
            f"{nearest(domain, known)}"
        )
    code, names, preset_name, count = known[domain]
    origin = seed << 32 if domain == "train" else 0
    preset = PRESETS[preset_name]
    draws = Draws([(code << 64) + origin + index for index in range(count)], CANVAS)
    kinds = torch.tensor([preset.kinds] * count).cumsum(1)
    canvas, _, _ = backgrounds(draws, kinds, torch.full((count,), preset.pale), CANVAS)
    order = np.asarray(np.random.Philox(key=code + origin).random_raw(count * len(CLASSES)))
    labels = order.reshape(count, len(CLASSES)).argsort(1)[:, : len(CELLS)].astype(np.int64)
    vendors = np.array([VENDORS.index(name) for name in names])
    masks = torch.zeros(count, len(CELLS), CANVAS, CANVAS, dtype=torch.bool)
    rotation = torch.full((count,), math.radians(preset.rotation))
    for cell, (x, y) in enumerate(CELLS):
        layer = place(
            take_sprites(vendors[(np.arange(count) + cell) % len(vendors)], labels[:, cell]),
            CANVAS,
            draws.between(0.3, 0.45),
            x + draws.between(-0.1, 0.1),
            y + draws.between(-0.1, 0.1),
            draws,
            rotation,
        )
        canvas = over(layer, canvas)
        solid = layer[:, 3] > 0.5
        # What lies in front takes its pixels away from what lies behind.
        masks &= ~solid[:, None]
        masks[:, cell] = solid
    sigma = draws.take()[:, None, None, None] * preset.noise
    canvas = (canvas + sigma * draws.normal).clamp(0, 1)
    return SceneSet((canvas * 255).round().to(torch.uint8), masks, labels)
