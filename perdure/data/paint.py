"""What EmojiShift's pictures are painted with: random numbers, backgrounds, sprites, colours.

Every random number comes from raw Philox output, which NumPy promises to keep stable, so the same
key is the same picture on every machine up to the rounding of float32 arithmetic.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .captions import COLOURS
from .sprites import atlas

KINDS = ("plain", "gradient", "noise", "stripes")
"""Backgrounds"""

_UNIFORMS = 96
_OCTAVES = (5, 10, 20)


class Draws:
    """Uniform numbers of N images, handed out column by column; the call order is the format."""

    def __init__(self, keys: Sequence[int], size: int) -> None:
        """Expand N keys into the numbers of N images of `size` pixels per side."""
        grid = sum(side * side for side in _OCTAVES)
        count = _UNIFORMS + (grid + 3) // 4 + 3 * size * size
        raw = np.stack([np.random.Philox(key=int(key)).random_raw(count) for key in keys])
        uniforms = (raw[:, :_UNIFORMS] >> np.uint64(11)).astype(np.float64) * 2.0**-53
        self.uniforms = torch.from_numpy(uniforms.astype(np.float32))
        parts = raw[:, _UNIFORMS:].copy().view("<u2").reshape(len(raw), -1, 4)
        cells = parts[:, : (grid + 3) // 4].reshape(len(raw), -1)[:, :grid]
        self.grids = torch.from_numpy(cells.astype(np.float32)) / 65535
        pixels = parts[:, (grid + 3) // 4 :].astype(np.float32) / 65535
        # The sum of four uniforms is close enough to a normal number for pixel noise.
        normal = (pixels.sum(-1) - 2) * math.sqrt(3)
        self.normal = torch.from_numpy(normal).view(-1, 3, size, size)
        self.pepper = torch.from_numpy(pixels[:, : size * size, 0].copy()).view(-1, 1, size, size)
        self._next = 0

    def take(self) -> Tensor:
        """Return the next column of uniform numbers, (N,)."""
        self._next += 1
        return self.uniforms[:, self._next - 1]

    def between(self, low: Tensor | float, high: Tensor | float) -> Tensor:
        """Return the next column, stretched to [low, high)."""
        return low + (high - low) * self.take()

    def colour(self) -> Tensor:
        """Return the next three columns as RGB, (N, 3)."""
        return torch.stack([self.take() for _ in range(3)], dim=1)


def coordinates(size: int) -> tuple[Tensor, Tensor]:
    """Return x and y of the pixel centres in [-1, 1], each (size, size)."""
    line = (torch.arange(size, dtype=torch.float32) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y


def value_noise(draws: Draws, size: int) -> Tensor:
    """Return smooth noise of three octaves in [0, 1], (N, 1, size, size)."""
    fields, start = [], 0
    for side, weight in zip(_OCTAVES, (0.55, 0.3, 0.15), strict=True):
        grid = draws.grids[:, start : start + side * side].view(-1, 1, side, side)
        start += side * side
        smooth = functional.interpolate(grid, (size, size), mode="bilinear", align_corners=True)
        fields.append(weight * smooth)
    # Averages crowd around one half; stretch them again.
    return ((sum(fields[1:], fields[0]) - 0.5) * 2 + 0.5).clamp(0, 1)


def backgrounds(
    draws: Draws, kinds: Tensor, pale: Tensor, size: int
) -> tuple[Tensor, Tensor, list[str | None]]:
    """Draw backgrounds.

    Args:
        draws: Random numbers of N images.
        kinds: Cumulative probabilities of `KINDS`, (N, 4).
        pale: Whether the background is paper, (N,).
        size: Pixels per side.

    Returns:
        Images (N, 3, size, size), the noise field (N, 1, size, size) and the names of plain
        colours.
    """
    x, y = coordinates(size)
    kind = (draws.take()[:, None] >= kinds).sum(1).clamp(max=len(KINDS) - 1)
    names = list(COLOURS)
    named = (draws.take() * len(names)).long()
    palette = torch.tensor(list(COLOURS.values()))
    plain = (palette[named] + 0.2 * (draws.colour() - 0.5)).clamp(0, 1)
    first, last = draws.colour(), draws.colour()
    first = torch.where((kind == 0)[:, None], plain, first)
    first = torch.where(pale[:, None], 0.85 + 0.15 * first, first)
    last = torch.where(pale[:, None], 0.85 + 0.15 * last, last)
    angle = draws.take() * (2 * math.pi)
    along = x * angle.cos()[:, None, None] + y * angle.sin()[:, None, None]
    waves = draws.between(1.0, 2.5)[:, None, None]
    phase = draws.take()[:, None, None] * (2 * math.pi)
    noise = value_noise(draws, size)
    blends = torch.stack(
        [
            torch.zeros_like(along),
            (along / 2.8 + 0.5).clamp(0, 1),
            noise[:, 0],
            ((math.pi * 2 * waves * along + phase).sin() > 0).float(),
        ],
        dim=1,
    )
    blend = blends[torch.arange(len(kind)), kind][:, None]
    images = first[:, :, None, None] + (last - first)[:, :, None, None] * blend
    told = ((kind == 0) & ~pale).tolist()
    colours = [names[n] if tell else None for n, tell in zip(named.tolist(), told, strict=True)]
    return images, noise, colours


def place(
    sprites: Tensor, size: int, scale: Tensor, x: Tensor, y: Tensor, draws: Draws, rotation: Tensor
) -> Tensor:
    """Scale, turn, stretch, shear, flip and shift sprites onto an empty canvas.

    Args:
        sprites: Premultiplied RGBA, (N, 4, S, S).
        size: Pixels per side of the canvas.
        scale: Side of the sprite's box as a share of the canvas, (N,).
        x: Centre in [-1, 1], (N,).
        y: Centre in [-1, 1], (N,).
        draws: Random numbers of N images.
        rotation: Largest angle either way, in radians, (N,).

    Returns:
        Premultiplied RGBA, (N, 4, size, size).
    """
    angle = draws.between(-rotation, rotation)
    stretch = draws.between(-0.1, 0.1).exp()
    shear = draws.between(-0.1, 0.1)
    flip = torch.where(draws.take() < 0.5, -1.0, 1.0)
    across, down = coordinates(size)
    right = (across - x[:, None, None]) / scale[:, None, None]
    below = (down - y[:, None, None]) / scale[:, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    turned_x, turned_y = right * cos + below * sin, below * cos - right * sin
    source_x = (turned_x + shear[:, None, None] * turned_y) * (flip * stretch)[:, None, None]
    source_y = turned_y / stretch[:, None, None]
    grid = torch.stack([source_x, source_y], dim=-1)
    return functional.grid_sample(sprites, grid, mode="bilinear", align_corners=False)


def rotate_hue(colours: Tensor, angle: Tensor) -> Tensor:
    """Turn colours (N, 3, H, W) around the grey axis by angles (N,), in radians."""
    cos, sin = angle.cos(), angle.sin()
    same = cos + (1 - cos) / 3
    ahead = (1 - cos) / 3 - sin / math.sqrt(3)
    behind = (1 - cos) / 3 + sin / math.sqrt(3)
    rows = [same, ahead, behind, behind, same, ahead, ahead, behind, same]
    matrix = torch.stack(rows, dim=1).view(-1, 3, 3)
    return torch.einsum("nij,njhw->nihw", matrix, colours)


def over(front: Tensor, back: Tensor) -> Tensor:
    """Lay premultiplied RGBA (N, 4, H, W) over RGB (N, 3, H, W)."""
    return front[:, :3] + back * (1 - front[:, 3:])


def take_sprites(vendors: NDArray[np.int64], concepts: NDArray[np.int64]) -> Tensor:
    """Return sprites as premultiplied RGBA in [0, 1], (N, 4, 48, 48)."""
    pixels = np.ascontiguousarray(atlas()[vendors, concepts].transpose(0, 3, 1, 2))
    return torch.from_numpy(pixels).float() / 255


def blur(images: Tensor, width: int) -> Tensor:
    """Return the box blur of odd `width`, edges replicated."""
    padded = functional.pad(images, (width // 2,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, width, stride=1)
