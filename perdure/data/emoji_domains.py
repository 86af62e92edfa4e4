"""What every split of EmojiShift is drawn from: drawings, scenes and concepts, taken in turn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .render import CORRUPTIONS, PRESET_NAMES
from .sprites import CLASSES, PRETRAINING_ONLY, PRINTS, VENDORS

ARTISTS = ("twemoji", "emojione", "fluent", "fluent-flat")


@dataclass(frozen=True)
class Domain:
    """What the images of a split are drawn from."""

    code: int
    """Part of every image's key; never reused"""
    vendors: tuple[str, ...]
    """Taken in turn"""
    presets: tuple[str, ...]
    """Taken in turn, each for an equal share of a class"""
    per_class: int = 20
    corrupted: bool = False
    concepts: tuple[str, ...] = CLASSES


SPLITS = {
    "train": Domain(1, ("noto",), ("id",), per_class=16),
    "val": Domain(2, ("noto",), ("id",)),
    "val_shift": Domain(3, (*ARTISTS, *PRINTS), ("clean", "hard"), concepts=PRETRAINING_ONLY),
    "id": Domain(4, ("noto",), ("id",)),
    "v2": Domain(5, ("noto-v1",), ("id",)),
    "rendition": Domain(6, ARTISTS, ("clean",)),
    "sketch": Domain(7, PRINTS, ("paper",)),
    "hard": Domain(8, ("noto-v1", "twemoji", "emojione", "fluent"), ("hard",)),
    "corrupt": Domain(9, ("noto",), ("id",), corrupted=True),
}
"""Image `j` of a class is the same picture for ever, whatever number of images is asked for."""

UNTRAINED = {
    "untrained": Domain(51, ("noto",), ("id",), concepts=PRETRAINING_ONLY),
    "untrained_rendition": Domain(52, ARTISTS, ("clean",), concepts=PRETRAINING_ONLY),
    "untrained_sketch": Domain(53, PRINTS, ("paper",), concepts=PRETRAINING_ONLY),
}
"""What pre-training has shown and no task has: whether it is still known is suite `forgetting`.

The concepts are those of `val_shift`, on which choices are made; the pictures are others.
"""

RETRIEVAL = {
    "id": Domain(21, ("noto",), ("id", "plain")),
    "rendition": Domain(22, ARTISTS, ("clean", "plain")),
    "sketch": Domain(23, PRINTS, ("paper",)),
}
"""Whose things stand in pairs, or alone on a plain ground where there is one."""

RETRIEVAL_VAL = {"val": Domain(24, ("noto",), ("id", "plain"))}
"""Pairs for choices, on which nothing is reported; other pictures than those of "id" """


def assign(
    domain: Domain, concepts: NDArray[np.int64], places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return vendor, preset and corruption of every image, taken in turn within its class."""
    turn = places + concepts
    vendors = np.array([VENDORS.index(name) for name in domain.vendors])
    presets = np.array([PRESET_NAMES.index(name) for name in domain.presets])
    part = np.minimum(places * len(presets) // domain.per_class, len(presets) - 1)
    damage = turn % len(CORRUPTIONS) if domain.corrupted else np.full(len(places), -1)
    return vendors[turn % len(vendors)], presets[part], damage
