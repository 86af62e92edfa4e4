"""A data set whose images are damaged as they are read: shifted data for people who have none.

A split is written `test@fog-3`: the split, a corruption, and its severity. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..corruptions.table import CORRUPTIONS, SEVERITIES, corrupt, require_corruption
from ..errors import DataError
from .splits import Split, Suite

if TYPE_CHECKING:
    from torch import Tensor

DAMAGED = "corrupt"
"""Suite of damaged images of another suite's task: this, a hyphen and that suite's name"""

COMMON = tuple(name for name, entry in CORRUPTIONS.items() if entry.common)
"""The fifteen corruptions that are reported"""

SIDE = 224
"""Larger images are shrunk to this shorter side first, for which the damage is meant"""


MADE_ANEW = 1
"""How often damage has changed its pixels under its name: scores of before do not compare"""


@dataclass(frozen=True, eq=False)
class Damaged:
    """A data set with one corruption at one severity, drawn anew for every image."""

    whole: Any
    """A `Dataset` of `datasets`, which opens this one"""
    corruption: str
    severity: int
    seed: int = 0

    @property
    def name(self) -> str:
        """As the whole."""
        return str(self.whole.name)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), index into `classes`."""
        labels: NDArray[np.int64] = self.whole.labels
        return labels

    @property
    def classes(self) -> tuple[str, ...]:
        """As the whole."""
        return tuple(self.whole.classes)

    @property
    def captioned(self) -> bool:
        """As the whole."""
        return bool(self.whole.captioned)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.whole)

    def image(self, index: int) -> Tensor:
        """Return one image, (3, H, W), uint8, at most `SIDE` pixels on its shorter side."""
        import torch

        pixels = _shrunk(self.whole.image(index).permute(1, 2, 0).numpy())
        found = corrupt(pixels, self.corruption, self.severity, self.seed, index)
        return torch.from_numpy(found).permute(2, 0, 1)


def read_split(name: str) -> tuple[str, tuple[str, int] | None]:
    """Return a split's own name and, where it is a damaged one, corruption and severity.

    Raises:
        DataError: If what follows the "@" is not a corruption and a severity.
    """
    split, marked, damage = name.partition("@")
    if not marked:
        return split, None
    corruption, _, severity = damage.rpartition("-")
    if not severity.isdecimal():
        raise DataError(
            f"split {name!r} names no damage after the @; write a corruption, a hyphen and a "
            f"severity from 1 to 5, as in {split}@fog-3."
        )
    require_corruption(corruption, int(severity))
    return split, (corruption, int(severity))


def damaged_suite(
    suite: Suite,
    corruptions: Iterable[str] = COMMON,
    severities: Sequence[int] = SEVERITIES,
) -> Suite:
    """Return the suite of a task as it is and with its images damaged.

    The word `ood` in reports is the unweighted mean over corruptions and severities.

    Args:
        suite: Whose split of the task itself is damaged.
        corruptions: The fifteen common ones by default.
        severities: 1 to 5.

    Raises:
        DataError: If the suite has no split of the task itself.

    Source: Hendrycks and Dietterich 2019, arXiv 1903.12261.
    """
    inside = next((split for split in suite.splits if split.role == "id"), None)
    if inside is None:
        raise DataError(
            f"suite {suite.name} has no split of the task itself that could be damaged; take "
            f"{DAMAGED}-own or {DAMAGED}-emojishift."
        )
    found = [f"{name}-{severity}" for name in corruptions for severity in severities]
    shifted: list[Split] = [
        replace(inside, name=each, role="ood", split=f"{inside.split}@{each}") for each in found
    ]
    return Suite(
        name=f"{DAMAGED}-{suite.name}",
        summary=f"the task of {suite.name}, and its images damaged in {len(found)} ways",
        splits=(inside, *shifted),
        templates=suite.templates,
        version=suite.version + MADE_ANEW,
    )


def _shrunk(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image with its shorter side at most `SIDE`."""
    shorter = min(pixels.shape[:2])
    if shorter <= SIDE:
        return pixels
    from PIL import Image

    size = [round(side * SIDE / shorter) for side in pixels.shape[:2]]
    small = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(small)
