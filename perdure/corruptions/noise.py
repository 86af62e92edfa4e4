"""Noise of sensors: each takes an image (H, W, 3) in [0, 1], a severity and a random generator.

Source of all values: Hendrycks and Dietterich 2019, arXiv 1903.12261, and its public code.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from .filters import Image, pick


def gaussian_noise(image: Image, severity: int, rng: Generator) -> Image:
    """Add normal noise, as in low light."""
    return image + rng.normal(0.0, pick(severity, (0.08, 0.12, 0.18, 0.26, 0.38)), image.shape)


def shot_noise(image: Image, severity: int, rng: Generator) -> Image:
    """Count photons, of which few arrive."""
    photons = pick(severity, (60, 25, 12, 5, 3))
    return rng.poisson(image * photons) / photons


def impulse_noise(image: Image, severity: int, rng: Generator) -> Image:
    """Turn a share of all values black or white, with equal chance."""
    share = pick(severity, (0.03, 0.06, 0.09, 0.17, 0.27))
    draw = rng.random(image.shape)
    damaged = image.copy()
    damaged[draw < share] = 0.0
    damaged[draw < share / 2] = 1.0
    return np.asarray(damaged)


def speckle_noise(image: Image, severity: int, rng: Generator) -> Image:
    """Add normal noise that grows with brightness."""
    sigma = pick(severity, (0.15, 0.2, 0.35, 0.45, 0.6))
    return image + image * rng.normal(0.0, sigma, image.shape)
