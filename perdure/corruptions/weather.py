"""Weather and light: each takes an image (H, W, 3) in [0, 1], a severity and a random generator.

`rime` stands where the published set has frost, which pastes photographs of ice that perdure does
not have, and `splatter` where it has spatter, whose drops are drawn with other filters: numbers on
these two do not compare with published ones.

Source of all values: Hendrycks and Dietterich 2019, arXiv 1903.12261, and its public code.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from .filters import Image, enlarged, grey, pick, scale_of, smeared, smooth

_SNOW = (
    (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8), (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)  # fmt: skip
"""Mean and deviation of flakes, size, least brightness, length and fading of the fall, clearness"""

_FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
"""Thickness, and how much smoother large clouds are than small ones"""

_RIME = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
"""Shares of the image and of the ice"""

_DROPS = (
    (0.65, 0.3, 4.0, 0.69, 0.6), (0.65, 0.3, 3.0, 0.68, 0.6), (0.65, 0.3, 2.0, 0.68, 0.5),
    (0.65, 0.3, 1.0, 0.65, 1.5), (0.67, 0.4, 1.0, 0.65, 1.5),
)  # fmt: skip
"""Mean and deviation of the liquid, size, least amount, and strength of water or softness of mud"""

_WATER = np.array([175, 238, 238]) / 255
_MUD = np.array([63, 42, 20]) / 255
_ICE = np.array([0.82, 0.9, 0.97])


def brightness(image: Image, severity: int, rng: Generator) -> Image:
    """Raise the value of every colour, at its hue and saturation."""
    return _with_value(image, lambda value: value + pick(severity, (0.1, 0.2, 0.3, 0.4, 0.5)))


def fog(image: Image, severity: int, rng: Generator) -> Image:
    """Lay clouds of all sizes over the image."""
    thickness, decay = _FOG[severity - 1]
    brightest = image.max()
    high, wide = image.shape[:2]
    clouds = plasma(max(high, wide), decay, rng)[:high, :wide, None]
    return np.asarray((image + thickness * clouds) * brightest / (brightest + thickness))


def snow(image: Image, severity: int, rng: Generator) -> Image:
    """Let bright flakes fall over a whitened image."""
    mean, deviation, size, least, length, fading, visible = _SNOW[severity - 1]
    scale = scale_of(image)
    flakes = rng.normal(mean, deviation, (*image.shape[:2], 1))
    flakes = enlarged(flakes, max(1.0, size * scale))
    flakes[flakes < least] = 0.0
    angle = rng.uniform(-135.0, -45.0)
    falling = smeared(
        np.clip(flakes, 0, 1), max(1, round(length * scale)), max(0.5, fading * scale), angle
    )
    white = np.maximum(image, grey(image) * 1.5 + 0.5)
    whole = visible * image + (1 - visible) * white
    return whole + falling + np.rot90(falling, 2)


def rime(image: Image, severity: int, rng: Generator) -> Image:
    """Lay needles of ice over the image; of perdure's own making, instead of frost."""
    seen, ice = _RIME[severity - 1]
    scale = scale_of(image)
    crystals = np.zeros((*image.shape[:2], 1))
    for angle in rng.uniform(0.0, 180.0, 3):
        seeds = np.where(rng.random(crystals.shape) > 0.97, 1.0, 0.0)
        needles = smeared(seeds, max(2, round(14 * scale)), max(1.0, 8 * scale), angle)
        crystals = np.maximum(crystals, needles / max(needles.max(), 1e-12))
    patches = plasma(max(image.shape[:2]), 1.8, rng)[: image.shape[0], : image.shape[1], None]
    return np.asarray(seen * image + ice * (0.35 + 0.65 * crystals) * patches * _ICE)


def splatter(image: Image, severity: int, rng: Generator) -> Image:
    """Throw water (severity 1 to 3) or mud at the lens; instead of spatter."""
    mean, deviation, size, least, last = _DROPS[severity - 1]
    scale = scale_of(image)
    # Smoothing shrinks the noise, so that few places stay above the threshold at large sizes.
    liquid = smooth(rng.normal(mean, deviation, (*image.shape[:2], 1)), max(0.5, size * scale))
    amount = np.where(liquid > least, liquid, 0.0)
    if severity <= 3:
        down, right = np.gradient(smooth(amount, 1.0)[:, :, 0])
        rims = np.maximum(down + right, 0.0)[:, :, None] + 0.2 * amount
        rims = rims / max(rims.max(), 1e-12) * last
        return np.asarray(image + rims * _WATER)
    mud = smooth((amount > 0).astype(float), last * scale)
    mud[mud < 0.8] = 0.0
    return image * (1 - mud) + _MUD * mud


def plasma(size: int, decay: float, rng: Generator) -> Image:
    """Return a cloudy field in [0, 1], (n, n) with n >= size a power of two, by midpoints.

    Args:
        size: Least side.
        decay: By which randomness shrinks as the grid gets finer.
        rng: Of the randomness.
    """
    side = 1 << max(1, (size - 1).bit_length())
    field = np.zeros((side, side))
    step, spread = side, 100.0
    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        field[half::step, half::step] = _jitter(pairs + np.roll(pairs, -1, axis=1), spread, rng)
        middles = field[half::step, half::step]
        beside = middles + np.roll(middles, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        field[::step, half::step] = _jitter(beside, spread, rng)
        below = middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        field[half::step, ::step] = _jitter(below, spread, rng)
        step, spread = half, spread / decay
    field -= field.min()
    return np.asarray(field / max(field.max(), 1e-12))


def _jitter(four: Image, spread: float, rng: Generator) -> Image:
    """Return the mean of four neighbours, moved at random."""
    return four / 4 + spread * rng.uniform(-spread, spread, four.shape)


def _with_value(image: Image, change: Callable[[Image], Image]) -> Image:
    """Return an image whose largest channel changes while the channels' ratios stay."""
    value = image.max(axis=2, keepdims=True)
    wanted = np.clip(change(value), 0.0, 1.0)
    # Black has no hue; it becomes grey.
    ratio = np.divide(image, value, out=np.ones_like(image), where=value > 0)
    return np.asarray(ratio * wanted)
