"""EmojiShift's segmentation scenes: four sprites on one canvas, with their exact masks."""

import math
from dataclasses import dataclass
from functools import lru_cache

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

COUNT = 60
"""Scenes per domain"""

CELLS = ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5))
"""Centres of the four cells in [-1, 1]"""

DOMAINS = {
    "id": (31, ("noto",), "id"),
    "rendition": (32, ("twemoji", "emojione", "fluent", "fluent-flat"), "clean"),
    "sketch": (33, ("monotone", "line"), "paper"),
}
"""Part of the key, vendors, and the preset whose backgrounds are used"""


@dataclass(frozen=True, eq=False)
class SceneSet:
    """Scenes of one domain."""

    images: Tensor
    """(N, 3, 96, 96), uint8"""
    masks: Tensor
    """(N, 4, 96, 96), bool; the masks of a scene never overlap"""
    labels: NDArray[np.int64]
    """(N, 4), class index of each mask; the four differ"""


@lru_cache(maxsize=len(DOMAINS))
def open_scenes(domain: str) -> SceneSet:
    """Open the segmentation scenes of "id", "rendition" or "sketch".

    Raises:
        DataError: If the domain is unknown.
    """
    if domain not in DOMAINS:
        raise DataError(
            f"emojishift has no segmentation domain {domain!r}. Allowed: {', '.join(DOMAINS)}."
            f"{nearest(domain, DOMAINS)}"
        )
    code, names, preset_name = DOMAINS[domain]
    preset = PRESETS[preset_name]
    draws = Draws([(code << 64) + index for index in range(COUNT)], CANVAS)
    kinds = torch.tensor([preset.kinds] * COUNT).cumsum(1)
    canvas, _, _ = backgrounds(draws, kinds, torch.full((COUNT,), preset.pale), CANVAS)
    order = np.asarray(np.random.Philox(key=code).random_raw(COUNT * len(CLASSES)))
    labels = order.reshape(COUNT, len(CLASSES)).argsort(1)[:, : len(CELLS)].astype(np.int64)
    vendors = np.array([VENDORS.index(name) for name in names])
    masks = torch.zeros(COUNT, len(CELLS), CANVAS, CANVAS, dtype=torch.bool)
    rotation = torch.full((COUNT,), math.radians(preset.rotation))
    for cell, (x, y) in enumerate(CELLS):
        layer = place(
            take_sprites(vendors[(np.arange(COUNT) + cell) % len(vendors)], labels[:, cell]),
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
