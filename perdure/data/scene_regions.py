"""EmojiShift's scenes as images with exact masks, and their regions as a data set to train on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, nearest
from ..regions import region_pixels
from .own import few
from .render import CANVAS as SIDE
from .scenes import DOMAINS, LEARNT, SceneSet, open_scenes
from .segmented import UNKNOWN, Fusion, Proposals
from .sprites import CLASSES

GREY = (0.5, 0.5, 0.5)
"""Mean colour of the models of this world, which takes the place of what is outside a mask"""


@dataclass(frozen=True, eq=False)
class ScenesWithMasks:
    """Scenes; the proposals are the true masks."""

    scenes: SceneSet
    name: str = "emojishift"
    classes: tuple[str, ...] = CLASSES
    fusion: Fusion = field(default_factory=Fusion)
    source: str = "true masks"

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.scenes.labels)

    def image(self, index: int) -> Tensor:
        """Return one scene, (3, 96, 96), uint8."""
        return self.scenes.images[index]

    def truth(self, index: int) -> NDArray[np.int64]:
        """Return the label of every pixel, (96, 96); that of the background is unknown."""
        masks = self.scenes.masks[index].numpy()
        labels = self.scenes.labels[index]
        there = np.where(masks, labels[:, None, None], UNKNOWN)
        return np.asarray(there.max(axis=0), dtype=np.int64)

    def proposals(self, index: int) -> Proposals:
        """Return the true masks, (4, 96, 96)."""
        return Proposals(self.scenes.masks[index].numpy())


def open_scenes_with_masks(name: str, split: str, root: Path | None = None) -> ScenesWithMasks:
    """Open the scenes of "id", "rendition" or "sketch".

    Raises:
        DataError: If the split is unknown, or a directory is named for embedded data.
    """
    if root is not None:
        raise DataError(
            f"the scenes of {name} come with perdure, but a directory is named ({root}); "
            "leave --data away."
        )
    if split not in DOMAINS:
        raise DataError(
            f"emojishift has no scored scenes {split!r}. Allowed: {', '.join(DOMAINS)}."
            f"{nearest(split, DOMAINS)}"
        )
    return ScenesWithMasks(open_scenes(split))


@dataclass(frozen=True, eq=False)
class SceneRegions:
    """Every region of some scenes with its noun."""

    scenes: SceneSet
    rows: NDArray[np.int64]
    """(N,), number of the region: four to a scene"""
    name: str = "emojishift-regions"
    classes: tuple[str, ...] = CLASSES
    captioned: bool = False
    masked: bool = False
    """Whether images have their masks as a fourth channel, 0 or 255; `with_masks` decides it"""

    def __len__(self) -> int:
        """Return the number of regions."""
        return len(self.rows)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), index into `classes`; regions of the same noun are positives of each other."""
        return self.scenes.labels.ravel()[self.rows]

    @cached_property
    def images(self) -> Tensor:
        """All regions, (N, 3, 40, 40), or (N, 4, 40, 40) where they are masked, uint8."""
        found = torch.empty(len(self), 3 + self.masked, SIDE, SIDE, dtype=torch.uint8)
        for place, row in enumerate(self.rows):
            scene, mask = divmod(int(row), self.scenes.masks.shape[1])
            image, region = self.scenes.images[scene], self.scenes.masks[scene, mask]
            found[place] = region_pixels(image, region, SIDE, GREY, masked=self.masked)
        return found

    def image(self, index: int) -> Tensor:
        """Return one region, (3, 40, 40), uint8, with grey outside its mask; or (4, 40, 40)."""
        return self.images[index]


def open_scene_regions(
    split: str, *, seed: int = 0, shots: int | None = None, classes: str = "all"
) -> SceneRegions:
    """Open the regions of "train" or "val" scenes, which are no scenes of any suite.

    Args:
        split: One of `scenes.LEARNT`.
        seed: Makes other scenes of "train", and chooses where `shots` is given.
        shots: Regions per class; None for all. Classes that have fewer keep what they have.
        classes: "all"; other parts are made by `open_dataset`.

    Raises:
        DataError: If the split or the part is unknown.
    """
    if split not in LEARNT:
        raise DataError(
            f"emojishift-regions has no split {split!r}. Allowed: {', '.join(LEARNT)}. Its scored "
            "scenes are suite emojishift-segmentation."
        )
    if classes != "all":
        raise DataError(
            f"emojishift-regions has no part {classes!r}; use data.classes=all, base or novel."
        )
    scenes = open_scenes(split, seed)
    rows = np.arange(scenes.labels.size)
    if shots is not None:
        rows = few(scenes.labels.ravel(), len(CLASSES), shots, seed)
    return SceneRegions(scenes, rows)
