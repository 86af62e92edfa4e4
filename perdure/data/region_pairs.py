"""Pairs of a region and a noun to train on, as OVSeg makes them from captions.

    ROOT/train.jsonl, ROOT/val.jsonl, or one FILE.jsonl that is all `train`; one object per line:
    {"image": "a.jpg", "noun": "dog", "rle": {"size": [H, W], "counts": "..."}}
    {"image": "a.jpg", "noun": "dog", "mask": "a.png", "instance": 3}
    {"image": "a.jpg", "noun": "dog", "box": [left, top, right, bottom]}

Paths are relative to the file. Only where lines begin is kept, so that hundreds of thousands of
masks need no memory, and no torch is imported before a picture is decoded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .masks import decode_rle, read_map

if TYPE_CHECKING:  # checks of files must not import torch
    from torch import Tensor

SIDE = 224
"""Pixels per side of a region: what CLIP's towers see; others resize it once more"""

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""OpenAI's mean colour, which takes the place of what is outside a mask"""

SPLITS = ("train", "val")
_KINDS = ("rle", "mask", "box")


@dataclass(frozen=True, eq=False)
class RegionPairs:
    """Regions with their nouns; equal nouns are positives of each other."""

    file: Path
    starts: NDArray[np.int64]
    """(N,), where the line of each region begins"""
    labels: NDArray[np.int64]
    """(N,), index into `classes`"""
    classes: tuple[str, ...]
    """Distinct nouns, sorted"""
    name: str = "regions"
    captioned: bool = False
    masked: bool = False
    """Whether images have their masks as a fourth channel, 0 or 255; `with_masks` decides it"""

    def __len__(self) -> int:
        """Return the number of regions."""
        return len(self.starts)

    def image(self, index: int) -> Tensor:
        """Return one region, (3, 224, 224), uint8, with the mean colour outside its mask.

        Where they are `masked`, (4, 224, 224).

        Raises:
            DataError: If image or mask cannot be read, are of two sizes, or the region is empty.
        """
        import torch

        from ..regions import region_pixels
        from .own import decode

        with self.file.open("rb") as lines:
            lines.seek(int(self.starts[index]))
            row = json.loads(lines.readline())
        where = f"region {index + 1} of {self.file}"
        image = decode(self.file.parent / row["image"])
        mask = _mask(row, (image.shape[1], image.shape[2]), self.file.parent, where)
        if tuple(mask.shape) != tuple(image.shape[1:]):
            raise DataError(
                f"{where} has a mask of {mask.shape[0]} x {mask.shape[1]} pixels, but its image "
                f"{row['image']} has {image.shape[1]} x {image.shape[2]}."
            )
        if not mask.any():
            raise DataError(f"{where} is empty; leave out regions without pixels.")
        return region_pixels(image, torch.from_numpy(mask), SIDE, MEAN, masked=self.masked)


def open_region_pairs(
    split: str, *, root: Path, seed: int = 0, shots: int | None = None, classes: str = "all"
) -> RegionPairs:
    """Open a file of pairs.

    Args:
        split: One of `SPLITS`.
        root: Folder of the files, or one file, which is all `train`.
        seed: Chooses where `shots` is given.
        shots: Regions per noun; None for all.
        classes: "all"; other parts are made by `open_dataset`.

    Raises:
        DataError: If the file is missing, or a line is not what it should be; names the line.
    """
    if split not in SPLITS or (root.is_file() and split != "train"):
        allowed = "train" if root.is_file() else ", ".join(SPLITS)
        raise DataError(f"regions have no split {split!r} at {root}. Allowed: {allowed}.")
    if classes != "all":
        raise DataError(f"regions have no part {classes!r}; use data.classes=all, base or novel.")
    file = root if root.is_file() else root / f"{split}.jsonl"
    starts, nouns = _index(file)
    names, labels = np.unique(np.array(nouns), return_inverse=True)
    whole = RegionPairs(
        file,
        np.array(starts, dtype=np.int64),
        labels.astype(np.int64),
        tuple(str(name) for name in names),
    )
    if shots is None:
        return whole
    from .own import few

    kept = few(whole.labels, len(names), shots, seed)
    return RegionPairs(file, whole.starts[kept], whole.labels[kept], whole.classes)


def _index(file: Path) -> tuple[list[int], list[str]]:
    """Read every line once; keep where it begins and its noun."""
    starts: list[int] = []
    nouns: list[str] = []
    try:
        with file.open("rb") as lines:
            place = 0
            for number, line in enumerate(lines, 1):
                if line.strip():
                    nouns.append(noun_of(line, f"line {number} of {file}"))
                    starts.append(place)
                place += len(line)
    except OSError as error:
        raise DataError(
            f"cannot read the pairs {file} ({error.strerror or error}); expected one object per "
            "line with image, noun, and rle, mask or box."
        ) from None
    if not nouns:
        raise DataError(f"{file} holds no pair of a region and a noun.")
    return starts, nouns


def noun_of(line: bytes, where: str) -> str:
    """Return the noun of a line, in lower case with single spaces.

    Raises:
        DataError: If the line has not what every pair has.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON ({error}); is the file cut off?") from None
    if not isinstance(row, Mapping) or not isinstance(row.get("image"), str):
        raise DataError(f"{where} has no 'image'; expected an object with the path of a picture.")
    noun = row.get("noun")
    if not isinstance(noun, str) or not noun.strip():
        raise DataError(f"{where} has the noun {noun!r}; expected a word.")
    given = [kind for kind in _KINDS if kind in row]
    if len(given) != 1:
        raise DataError(
            f"{where} has {' and '.join(given) or 'no region'}; expected one of "
            f"{', '.join(_KINDS)}."
        )
    return " ".join(noun.lower().split())


def _mask(
    row: Mapping[str, Any], size: tuple[int, int], folder: Path, where: str
) -> NDArray[np.bool_]:
    if "rle" in row:
        return decode_rle(row["rle"], where)
    if "mask" in row:
        numbers = read_map(folder / str(row["mask"]), f"the mask of {where}")
        if numbers.ndim != 2:
            raise DataError(f"the mask of {where} has colours; expected numbers of instances.")
        instance = row.get("instance")
        return np.asarray(numbers > 0 if instance is None else numbers == instance)
    return box_mask(row["box"], size, where)


def box_mask(box: Any, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """Return the pixels that a box touches.

    Args:
        box: [left, top, right, bottom].
        size: Of the image, (H, W).
        where: What errors call it.

    Raises:
        DataError: If it is empty or goes beyond the image.
    """
    good = isinstance(box, list) and len(box) == 4 and all(isinstance(x, (int, float)) for x in box)
    left, top, right, bottom = box if good else (0, 0, 0, 0)
    if not (0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]):
        raise DataError(
            f"{where} has the box {box!r}; expected left < right and top < bottom within its "
            f"image of {size[1]} x {size[0]} (width x height)."
        )
    mask = np.zeros(size, dtype=bool)
    mask[int(top) : -int(-bottom // 1), int(left) : -int(-right // 1)] = True
    return mask
