"""Images with a label per pixel and masks that were proposed for them. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, nearest

if TYPE_CHECKING:
    from torch import Tensor

UNKNOWN = -1
"""Label of pixels that nobody labelled, which no metric counts"""


class Proposals(NamedTuple):
    """What was proposed for one image; Q may be 0."""

    masks: NDArray[np.bool_] | NDArray[np.float32]
    """(Q, H, W), or probabilities (Q, h, w), which may be smaller than the image"""
    class_logits: NDArray[np.float32] | None = None
    """(Q, C + 1) of the proposing model, "no object" last; None if it knows no classes"""
    scores: NDArray[np.float32] | None = None
    """(Q,), in [0, 1]: how sure the proposing model is of each mask; None if it does not say"""


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """How masks become regions, and their classes become labels of pixels."""

    weight: float = 0.7
    """Of CLIP beside the proposing model's classes, in [0, 1]; without those CLIP decides alone"""
    threshold: float = 0.5
    """Probability above which a pixel belongs to a region"""
    expand: float = 1.0
    """Sides of the box that CLIP sees, as a multiple of the tight one's"""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name, low, high in (("weight", 0, 1), ("threshold", 0, 1), ("expand", 1, 10)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise DataError(f"{name} is {value}; it must lie in [{low}, {high}].")


class Segmented(Protocol):
    """Images, the label of every pixel, and proposals."""

    @property
    def name(self) -> str:
        """As in suites."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names as they stand in prompts."""

    @property
    def fusion(self) -> Fusion:
        """How its proposals are used."""

    @property
    def source(self) -> str:
        """Where its proposals come from, for score files."""

    def __len__(self) -> int:
        """Return the number of images."""

    def image(self, index: int) -> Tensor:
        """Return one image, (3, H, W), uint8."""

    def truth(self, index: int) -> NDArray[np.int64]:
        """Return the label of every pixel, (H, W), in [0, C) or `UNKNOWN`."""

    def proposals(self, index: int) -> Proposals:
        """Return what was proposed for one image."""


PUBLISHED = ("a150", "a847", "pc59", "pc459", "pas20")
"""Test sets of the open-vocabulary papers, as `labelled.LAYOUTS` has them"""

OPENERS: dict[str, str] = {
    "emojishift": "perdure.data.scene_regions:open_scenes_with_masks",
    **dict.fromkeys(PUBLISHED, "perdure.data.labelled:open_labelled"),
}
"""Data set to "module:attribute", called as opener(name, split, root)"""


def open_segmented(name: str, split: str, root: Path | None = None) -> Segmented:
    """Open a split whose pixels have labels.

    Args:
        name: One of `OPENERS`.
        split: As the data set calls it.
        root: Directory of the files; None for embedded data.

    Raises:
        DataError: If it is unknown, or files are missing or malformed.
    """
    if name not in OPENERS:
        raise DataError(
            f"there is no data set {name!r} with labelled pixels. Known: {', '.join(OPENERS)}. "
            f"{nearest(name, OPENERS)}".rstrip()
        )
    module, _, attribute = OPENERS[name].partition(":")
    opener: Callable[[str, str, Path | None], Segmented]
    opener = getattr(import_module(module), attribute)
    return opener(name, split, root)


def label_of(mask: NDArray[np.bool_], truth: NDArray[np.int64]) -> int:
    """Return the label of most pixels under a mask; `UNKNOWN` if that is it, or it is empty."""
    under = truth[mask]
    if not len(under):
        return UNKNOWN
    # Of equally many, the first class; that nobody knows comes last.
    counts = np.bincount(np.where(under < 0, under.max() + 1, under))
    best = int(counts.argmax())
    return UNKNOWN if best > under.max() else best
