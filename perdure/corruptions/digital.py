"""Losses of processing: each takes an image (H, W, 3) in [0, 1], a severity and a generator.

Source of all values: Hendrycks and Dietterich 2019, arXiv 1903.12261, and its public code.
"""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
from numpy.random import Generator
from numpy.typing import NDArray

from .filters import Image, pick, scale_of, smooth, warped

_SATURATE = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))
"""Factor and summand on the saturation"""

_ELASTIC = (
    (488.0, 170.8, 24.4), (488.0, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88),
    (29.28, 2.44, 4.88),
)  # fmt: skip
"""Strength and smoothness of the displacement, and shift of the corners"""


def contrast(image: Image, severity: int, rng: Generator) -> Image:
    """Draw all values of a channel towards its mean."""
    middle = image.mean(axis=(0, 1), keepdims=True)
    return np.asarray(middle + (image - middle) * pick(severity, (0.4, 0.3, 0.2, 0.1, 0.05)))


def saturate(image: Image, severity: int, rng: Generator) -> Image:
    """Make colours paler (severity 1 and 2) or stronger, at their hue and value."""
    factor, more = _SATURATE[severity - 1]
    value = image.max(axis=2, keepdims=True)
    span = value - image.min(axis=2, keepdims=True)
    before = np.divide(span, value, out=np.zeros_like(span), where=value > 0)
    after = np.clip(before * factor + more, 0.0, 1.0)
    # Black and grey have no hue; with a summand they turn red, as hue 0 does.
    place = np.divide(
        value - image, span, out=np.tile([0.0, 1.0, 1.0], (*span.shape[:2], 1)), where=span > 0
    )
    return np.asarray(value - value * after * place)


def jpeg_compression(image: Image, severity: int, rng: Generator) -> Image:
    """Store the image as JPEG of low quality."""
    kept = io.BytesIO()
    quality = int(pick(severity, (25, 18, 15, 10, 7)))
    to_picture(image).save(kept, "JPEG", quality=quality)
    return from_picture(PIL.Image.open(kept))


def pixelate(image: Image, severity: int, rng: Generator) -> Image:
    """Shrink the image to few pixels, and enlarge these."""
    share = pick(severity, (0.6, 0.5, 0.4, 0.3, 0.25))
    picture = to_picture(image)
    small = [max(1, int(side * share)) for side in picture.size]
    shrunk = picture.resize((small[0], small[1]), PIL.Image.Resampling.BOX)
    return from_picture(shrunk.resize(picture.size, PIL.Image.Resampling.BOX))


def elastic_transform(image: Image, severity: int, rng: Generator) -> Image:
    """Move the corners of the middle, and every point by a smooth random field."""
    strength, sigma, corners = (value * scale_of(image) for value in _ELASTIC[severity - 1])
    high, wide = image.shape[:2]
    middle = np.array([wide, high]) / 2
    third = min(high, wide) // 3
    before = middle + third * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    after = before + rng.uniform(-corners, corners, before.shape)
    # Where each pixel of the result is read: the map from `after` back to `before`.
    known = np.linalg.solve(np.c_[after, np.ones(3)], before)
    rows, columns = np.indices((high, wide), dtype=np.float64)
    places = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ known
    moved = warped(image, places[..., 1], places[..., 0])
    fields = rng.uniform(-1.0, 1.0, (high, wide, 2))
    fields = smooth(fields, sigma, truncate=3.0, mode="symmetric") * strength
    return warped(moved, rows + fields[..., 0], columns + fields[..., 1])


def to_picture(image: Image) -> PIL.Image.Image:
    """Return an image of values in [0, 1] as a picture of bytes."""
    whole: NDArray[np.uint8] = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(whole)


def from_picture(picture: PIL.Image.Image) -> Image:
    """Return a picture as values in [0, 1]."""
    return np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
