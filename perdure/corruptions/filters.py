"""What several corruptions do to an image: smoothing, shifting, enlarging. Images are (H, W, C)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Image = NDArray[np.float64]
"""(H, W, C) in [0, 1]"""

REFERENCE = 224
"""Side, in pixels, of the images for which the published lengths are meant"""


def scale_of(image: Image) -> float:
    """Return the factor from published lengths to those of an image, by its shorter side."""
    return float(min(image.shape[:2])) / REFERENCE


def smooth(
    image: Image, sigma: float | tuple[float, float], *, truncate: float = 4.0, mode: str = "edge"
) -> Image:
    """Return an image after a Gaussian filter.

    Args:
        image: Any number of channels.
        sigma: Standard deviation in pixels, or one down and one to the right; 0 changes nothing.
        truncate: Where the kernel ends, in standard deviations.
        mode: How the image goes on beyond its borders, as in `numpy.pad`.
    """
    for axis, width in enumerate(sigma if isinstance(sigma, tuple) else (sigma, sigma)):
        radius = int(truncate * width + 0.5)
        if radius < 1:
            continue
        places = np.arange(-radius, radius + 1)
        kernel = np.exp(-0.5 * (places / width) ** 2)
        image = _along(image, kernel / kernel.sum(), axis, mode)
    return image


def filtered(image: Image, kernel: NDArray[np.float64]) -> Image:
    """Return an image after a filter (k, l) of odd sizes; mirrored at the borders."""
    high, wide = (size // 2 for size in kernel.shape)
    padded = np.pad(image, ((high, high), (wide, wide), (0, 0)), mode="reflect")
    # Bytes come in and go out, so float32 is exact enough, and ten times faster.
    planes = torch.from_numpy(padded).float().permute(2, 0, 1)[:, None]
    found = functional.conv2d(planes, torch.from_numpy(kernel).float()[None, None])
    return found[:, 0].permute(1, 2, 0).double().numpy()


def smeared(image: Image, radius: int, sigma: float, angle: float) -> Image:
    """Return an image as if the camera had moved along a line while it was taken.

    Args:
        image: Any number of channels.
        radius: Half the length of the line, in pixels.
        sigma: How fast what was seen later fades.
        angle: Of the line, in degrees.
    """
    width = 2 * radius + 1
    weights = np.exp(-0.5 * (np.arange(width) / sigma) ** 2)
    weights /= weights.sum()
    turn = math.radians(angle)
    total = np.zeros_like(image)
    for place, weight in enumerate(weights):
        down = -math.ceil(place * math.sin(turn) - 0.5)
        right = -math.ceil(place * math.cos(turn) - 0.5)
        if abs(down) >= image.shape[0] or abs(right) >= image.shape[1]:
            total += (1.0 - weights[:place].sum()) * total / max(weights[:place].sum(), 1e-12)
            break
        total += weight * _shifted(image, down, right)
    return total


def enlarged(image: Image, factor: float) -> Image:
    """Return the middle of an image, enlarged to its size; factor >= 1."""
    high, wide = image.shape[:2]
    kept = [max(1, math.ceil(size / factor)) for size in (high, wide)]
    top, left = (high - kept[0]) // 2, (wide - kept[1]) // 2
    inside = image[top : top + kept[0], left : left + kept[1]]
    planes = torch.from_numpy(np.ascontiguousarray(inside)).permute(2, 0, 1)[None]
    size = [round(kept[0] * factor), round(kept[1] * factor)]
    found = functional.interpolate(planes, size=size, mode="bilinear", align_corners=True)
    top, left = (size[0] - high) // 2, (size[1] - wide) // 2
    return found[0, :, top : top + high, left : left + wide].permute(1, 2, 0).numpy()


def warped(image: Image, rows: Image, columns: Image) -> Image:
    """Return an image read at other places, bilinear and mirrored at the borders.

    Args:
        image: (H, W, C).
        rows: (H, W), where each pixel is read, in pixels from the top.
        columns: (H, W), likewise from the left.
    """
    high, wide = image.shape[:2]
    places = np.stack([(2 * columns + 1) / wide - 1, (2 * rows + 1) / high - 1], axis=-1)
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    found = functional.grid_sample(
        planes, torch.from_numpy(places)[None], padding_mode="reflection", align_corners=False
    )
    return found[0].permute(1, 2, 0).numpy()


def grey(image: Image) -> Image:
    """Return the luminance of an RGB image, (H, W, 1)."""
    return np.asarray(image @ np.array([[0.299], [0.587], [0.114]]))


def pick(severity: int, values: Sequence[float]) -> float:
    """Return the published value of a severity, 1 to 5."""
    return values[severity - 1]


def _along(image: Image, kernel: NDArray[np.float64], axis: int, mode: str) -> Image:
    radius = len(kernel) // 2
    margins = [(radius, radius) if place == axis else (0, 0) for place in range(3)]
    padded = np.moveaxis(np.pad(image, margins, mode=mode), axis, -1)  # type: ignore[call-overload]
    rows = torch.from_numpy(np.ascontiguousarray(padded)).float().flatten(0, 1)[:, None]
    found = functional.conv1d(rows, torch.from_numpy(kernel).float()[None, None])
    return np.moveaxis(found[:, 0].view(*padded.shape[:2], -1).double().numpy(), -1, axis)


def _shifted(image: Image, down: int, right: int) -> Image:
    """Return an image moved by whole pixels; what comes in repeats the border."""
    rows = np.clip(np.arange(image.shape[0]) - down, 0, image.shape[0] - 1)
    columns = np.clip(np.arange(image.shape[1]) - right, 0, image.shape[1] - 1)
    moved: Image = image[rows][:, columns]
    return moved
