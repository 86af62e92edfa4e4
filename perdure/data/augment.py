"""Sizes and random changes of images: uint8 tensors in, uint8 tensors of the model's size out.

A fourth channel, a mask, moves with its image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

Augment = Literal["none", "flip-shift", "crop", "crop-flip", "wide-crop-flip"]
"""Nothing; mirror and shift by up to 2 pixels; crop of .9 to 1 of the area, resized (FLYP, CaRot);
that and mirror (TRACER); crop of .08 to 1 and mirror (CoOp and its descendants)."""

_SHIFT = 2
_CROP_AREA = (0.9, 1.0)
_WIDE_CROP_AREA = (0.08, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)


def fit(image: Tensor, size: int, mode: str) -> Tensor:
    """Resize the shorter side of a uint8 image (3, H, W) to `size` and cut out the centre."""
    height, width = image.shape[1:]
    if height == width == size:
        return image
    short = min(height, width)
    resized = _resize(image, (size * height // short, size * width // short), mode)
    top = round((resized.shape[1] - size) / 2)
    left = round((resized.shape[2] - size) / 2)
    return resized[:, top : top + size, left : left + size]


def _keep(image: Tensor, size: int, mode: str, rng: np.random.Generator) -> Tensor:
    return fit(image, size, mode)


def _flip_shift(image: Tensor, size: int, mode: str, rng: np.random.Generator) -> Tensor:
    down, right = rng.integers(-_SHIFT, _SHIFT + 1, size=2)
    return _mirror(fit(image, size, mode), rng).roll((int(down), int(right)), dims=(1, 2))


def _crop(
    image: Tensor,
    size: int,
    mode: str,
    rng: np.random.Generator,
    share: tuple[float, float] = _CROP_AREA,
) -> Tensor:
    """As torchvision's RandomResizedCrop: ten tries for a box of random area and aspect."""
    height, width = image.shape[1:]
    for _ in range(10):
        area = height * width * rng.uniform(*share)
        aspect = math.exp(rng.uniform(*np.log(_CROP_ASPECT)))
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top = int(rng.integers(height - rows + 1))
            left = int(rng.integers(width - columns + 1))
            box = image[:, top : top + rows, left : left + columns]
            return _resize(box, (size, size), mode)
    return fit(image, size, mode)


def _crop_flip(image: Tensor, size: int, mode: str, rng: np.random.Generator) -> Tensor:
    return _mirror(_crop(image, size, mode, rng), rng)


def _wide_crop_flip(image: Tensor, size: int, mode: str, rng: np.random.Generator) -> Tensor:
    return _mirror(_crop(image, size, mode, rng, _WIDE_CROP_AREA), rng)


def _mirror(image: Tensor, rng: np.random.Generator) -> Tensor:
    return image.flip(2) if rng.random() < 0.5 else image


def _resize(image: Tensor, shape: tuple[int, int], mode: str) -> Tensor:
    """Resize uint8 (3, H, W) as PIL does, to within one level; a mask behind it, to 0 or 255."""
    resized = interpolate(image[None, :3], shape, mode=mode, antialias=True)[0]
    if len(image) == 3:
        return resized
    return torch.cat([resized, interpolate(image[None, 3:], shape, mode="nearest")[0]])


AUGMENTS: dict[str, Callable[[Tensor, int, str, np.random.Generator], Tensor]] = {
    "none": _keep,
    "flip-shift": _flip_shift,
    "crop": _crop,
    "crop-flip": _crop_flip,
    "wide-crop-flip": _wide_crop_flip,
}
"""From an image, the model's size and interpolation, and random numbers, to the image to use."""
