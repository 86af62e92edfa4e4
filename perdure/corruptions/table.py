"""The corruptions by name, and what applies one. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, nearest

SEVERITIES = (1, 2, 3, 4, 5)
_STREAM = 5
"""Name of the random stream, which no other part of perdure draws from"""


class Corruption(NamedTuple):
    """A line of the table."""

    module: str
    """Within this package"""
    common: bool
    """Whether it belongs to the fifteen that are averaged, and not to the four for choosing"""


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption("noise", True),
    "shot_noise": Corruption("noise", True),
    "impulse_noise": Corruption("noise", True),
    "defocus_blur": Corruption("blur", True),
    "glass_blur": Corruption("blur", True),
    "motion_blur": Corruption("blur", True),
    "zoom_blur": Corruption("blur", True),
    "snow": Corruption("weather", True),
    "rime": Corruption("weather", True),
    "fog": Corruption("weather", True),
    "brightness": Corruption("weather", True),
    "contrast": Corruption("digital", True),
    "elastic_transform": Corruption("digital", True),
    "pixelate": Corruption("digital", True),
    "jpeg_compression": Corruption("digital", True),
    "speckle_noise": Corruption("noise", False),
    "gaussian_blur": Corruption("blur", False),
    "splatter": Corruption("weather", False),
    "saturate": Corruption("digital", False),
}
"""Every corruption, in the published order; `rime` and `splatter` are perdure's own (see there)"""

OTHER_NAMES = {"frost": "rime", "spatter": "splatter"}


def require_corruption(name: str, severity: int) -> None:
    """Refuse what is not in the table.

    Raises:
        DataError: If there is no such corruption or severity.
    """
    if name in OTHER_NAMES:
        raise DataError(
            f"there is no corruption {name!r}: perdure draws its own instead, under another name "
            f"because numbers do not compare; use {OTHER_NAMES[name]!r}."
        )
    if name not in CORRUPTIONS:
        raise DataError(
            f"there is no corruption {name!r}. Known: {', '.join(CORRUPTIONS)}. "
            f"{nearest(name, CORRUPTIONS)}".rstrip()
        )
    if severity not in SEVERITIES:
        raise DataError(f"the severity is {severity}; allowed are 1 (light) to 5 (heavy).")


def corrupt(
    image: NDArray[np.uint8], name: str, severity: int, seed: int = 0, index: int = 0
) -> NDArray[np.uint8]:
    """Return a damaged copy of an image.

    Published lengths are meant for images whose shorter side has 224 pixels; they scale with it.

    Args:
        image: (H, W, 3).
        name: One of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Of the damage.
        index: Number of the image, so that every image is damaged in its own way, always the same.

    Raises:
        DataError: If there is no such corruption or severity, or the image has another shape.

    Source: Hendrycks and Dietterich 2019, arXiv 1903.12261.
    """
    require_corruption(name, severity)
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 2:
        raise DataError(
            f"the image has shape {image.shape}; a corruption takes (H, W, 3) with at least 2 "
            "pixels each way."
        )
    module = import_module(f".{CORRUPTIONS[name].module}", __package__)
    damage: Callable[..., NDArray[np.float64]] = getattr(module, name)
    rng = np.random.default_rng((_STREAM, seed, list(CORRUPTIONS).index(name), severity, index))
    found = damage(image.astype(np.float64) / 255, severity, rng)
    return np.clip(found * 255, 0, 255).astype(np.uint8)
