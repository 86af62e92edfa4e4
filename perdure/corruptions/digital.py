"""Losses of processing: each takes an image (H, W, 3) in [0, 1], a severity and a generator.

Source of all values: Hendrycks and Dietterich 2019, arXiv 1903.12261, and its public code.
"""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
from numpy.random import Generator
from numpy.typing import NDArray

from .filters import Image, pick, smooth, warped

_SATURATE = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))
"""Factor and summand on the saturation"""

_SWAY, _SWAY_WIDTH = 0.005, 0.01
"""Of the field that `elastic_transform` moves points by: largest draw as a share of the height, and
standard deviation of its smoothing as a share of each side"""


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
    """Read every point a little beside where it is, by a smooth random field.

    Constants and field are those of the maintained fork of the public code. That code itself, which
    made ImageNet-C, moved the corners of the image as well, and far more at severity 1 and 2.

    Source: imagecorruptions-imaug 1.1.5.
    """
    high, wide = image.shape[:2]
    strength, most = pick(severity, (12.5, 16.25, 21.25, 25.0, 30.0)), _SWAY * high
    right, down = (
        smooth(
            rng.uniform(-most, most, (high, wide))[..., None],
            (_SWAY_WIDTH * high, _SWAY_WIDTH * wide),
            truncate=3.0,
            mode="symmetric",
        )[..., 0]
        for _ in range(2)
    )
    rows, columns = np.indices((high, wide), dtype=np.float64)
    return warped(image, rows + strength * down, columns + strength * right)


def to_picture(image: Image) -> PIL.Image.Image:
    """Return an image of values in [0, 1] as a picture of bytes."""
    whole: NDArray[np.uint8] = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(whole)


def from_picture(picture: PIL.Image.Image) -> Image:
    """Return a picture as values in [0, 1]."""
    return np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
