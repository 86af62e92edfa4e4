"""Blur of lenses and movement: each takes an image (H, W, 3) in [0, 1], severity and generator.

Lengths are published for images of 224 pixels and scale with the shorter side.

Source of all values: Hendrycks and Dietterich 2019, arXiv 1903.12261, and its public code.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from .filters import Image, enlarged, filtered, pick, scale_of, smeared, smooth

_GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
"""Smoothing, largest shift and rounds"""

_DEFOCUS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
"""Radius of the disc and smoothing of its border"""

_MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
"""Half the length of the way, and how fast it fades"""

_ZOOM = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
"""End of the enlargements, exclusive, and their steps from 1"""


def gaussian_blur(image: Image, severity: int, rng: Generator) -> Image:
    """Smooth with a Gaussian."""
    return smooth(image, pick(severity, (1, 2, 3, 4, 6)) * scale_of(image))


def defocus_blur(image: Image, severity: int, rng: Generator) -> Image:
    """Spread every point over a disc, as a lens out of focus."""
    radius, soft = (value * scale_of(image) for value in _DEFOCUS[severity - 1])
    reach = max(1, int(np.ceil(radius + 3 * soft)))
    places = np.arange(-reach, reach + 1)
    distance = np.hypot(*np.meshgrid(places, places))
    # Pixels at the border count by the part of them that the disc covers.
    disc = np.clip(radius + 0.5 - distance, 0.0, 1.0)[:, :, None]
    kernel = smooth(disc, soft)[:, :, 0]
    return filtered(image, kernel / kernel.sum())


def glass_blur(image: Image, severity: int, rng: Generator) -> Image:
    """Let neighbouring pixels take each other's place between two smoothings, as frosted glass.

    The public code means to exchange two pixels, but as both are views of one array the second
    receives what it had; so the published images, and these, have pixels twice and lose others.
    """
    sigma, shift, rounds = _GLASS[severity - 1]
    sigma, shift = sigma * scale_of(image), max(1, round(shift * scale_of(image)))
    found = np.floor(np.clip(smooth(image, sigma), 0, 1) * 255) / 255
    high, wide = found.shape[:2]
    rows, columns = np.arange(high - shift, shift, -1), np.arange(wide - shift, shift, -1)
    here = (rows[:, None] * wide + columns).ravel()
    source = list(range(high * wide))
    for _ in range(rounds):
        down, right = rng.integers(-shift, shift, size=(2, len(here)))
        # One after the other: a pixel may travel on with the next.
        for place, other in zip(here.tolist(), (here + down * wide + right).tolist(), strict=True):
            source[place] = source[other]
    return smooth(found.reshape(high * wide, -1)[source].reshape(found.shape), sigma)


def motion_blur(image: Image, severity: int, rng: Generator) -> Image:
    """Smear along a line within 45 degrees of the horizontal."""
    radius, sigma = _MOTION[severity - 1]
    scale = scale_of(image)
    angle = rng.uniform(-45.0, 45.0)
    return smeared(image, max(1, round(radius * scale)), max(0.5, sigma * scale), angle)


def zoom_blur(image: Image, severity: int, rng: Generator) -> Image:
    """Average over enlargements, as when the camera moves towards the scene."""
    end, step = _ZOOM[severity - 1]
    factors = np.arange(1.0, end, step)
    return (image + sum(enlarged(image, factor) for factor in factors)) / (len(factors) + 1)
