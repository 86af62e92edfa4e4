"""A person's own pictures as a data set: decoded when looked at, upright, RGB."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from ..errors import DataError
from .decoding import Transform, fast_pixels
from .folders import as_paths
from .layout import find_own

TEMPLATES = ("a photo of a {}.",)
"""Prompts where there is no `templates.txt`"""

CAPTION_TEMPLATES = ("{}",)
"""Prompts of captions, which are whole texts"""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is decoded, whatever the file's ending; others have decoders that run programs"""

_SHOTS = 3
"""Name of the random stream that chooses few-shot subsets"""


@dataclass(frozen=True, eq=False)
class OwnPictures:
    """One split. With captions, pictures of the same caption have the same label."""

    files: NDArray[np.bytes_]
    """(N,), as the file system encodes them"""
    labels: NDArray[np.int64]
    """(N,), index into `classes`"""
    classes: tuple[str, ...]
    """Readable names, or the distinct captions"""
    captioned: bool
    """Whether `classes` are captions, which are no classes of a task"""
    name: str = "own"
    groups: NDArray[np.int64] | None = None
    """(N,), index into `group_names`, -1 for none; None where no table has a column `group`"""
    group_names: tuple[str, ...] = ()
    transform: Transform = "exact"
    """How files are decoded"""

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.files)

    def image(self, index: int) -> Tensor:
        """Return one picture, (3, H, W), uint8.

        Raises:
            DataError: If it cannot be decoded.
        """
        return decode(Path(os.fsdecode(self.files[index])), transform=self.transform)


def open_own(
    split: str, *, root: Path, seed: int = 0, shots: int | None = None, classes: str = "all"
) -> OwnPictures:
    """Open a split of a person's own data.

    Args:
        split: "train", "val", "test", "ood_NAME".
        root: Directory or table, see `perdure.data.layout`.
        seed: Chooses the subset where `shots` is given.
        shots: Pictures per class; None for all. Classes that have fewer keep what they have.
        classes: "all"; own data have no other part.

    Raises:
        DataError: If data are missing or malformed, or a part is asked for.
    """
    if classes != "all":
        raise DataError(f"own data have no part {classes!r}; leave data.classes away or 'all'.")
    listing = find_own(root).listing(split)
    if shots is None:
        kept = np.arange(len(listing.files))
    elif listing.captioned:
        raise DataError(
            f"data.shots is {shots} pictures per class, but {root} has captions, no classes; leave "
            "data.shots away."
        )
    else:
        kept = few(listing.labels, len(listing.classes), shots, seed)
    names = tuple(sorted(set(listing.groups) - {""}))
    groups = [names.index(group) if group else -1 for group in listing.groups]
    return OwnPictures(
        listing.files[kept],
        listing.labels[kept],
        listing.classes,
        listing.captioned,
        groups=np.array(groups, dtype=np.int64)[kept] if names else None,
        group_names=names,
    )


def unlabelled(files: Sequence[Path]) -> OwnPictures:
    """Return pictures of which nobody knows the labels: all are 0, and there are no classes."""
    return OwnPictures(
        as_paths(files), np.zeros(len(files), dtype=np.int64), (), captioned=False, name="pictures"
    )


def own_templates(root: Path | None) -> tuple[str, ...]:
    """Return the prompts of own data: those of `templates.txt`, or plain ones.

    Raises:
        DataError: If the file is malformed, or there are no data at `root`.
    """
    if root is None:
        return TEMPLATES
    own = find_own(root)
    return own.templates or (CAPTION_TEMPLATES if own.captioned else TEMPLATES)


def decode(
    file: Path | BinaryIO, name: str | None = None, transform: Transform = "exact"
) -> Tensor:
    """Decode a picture as its camera was held, (3, H, W), uint8, RGB; of several frames the first.

    Args:
        file: On disk, or already read.
        name: What errors call it; the path by default.
        transform: "fast" lets torchvision decode plain JPEG files; what is refused stays the same.

    Raises:
        DataError: If the file is missing, damaged or of another format.
    """
    try:
        with open_picture(file) as opened:
            if transform == "fast" and (found := fast_pixels(opened)) is not None:
                return found
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):  # 16 bits; pillow would cut off, not scale
                picture = _eight_bits(np.asarray(picture))
            elif picture.mode == "F":
                raise ValueError("its pixels are real numbers, whose range nobody knows")
            pixels = np.array(picture.convert("RGB"))
    except FileNotFoundError:
        raise DataError(
            f"the picture {name or file} is not there; complete the data, or take it out of their "
            "list. perdure data check ROOT names all that are missing."
        ) from None
    except Exception as error:  # pillow's decoders raise whatever they meet
        reason = str(error).strip() or type(error).__name__
        raise DataError(
            f"cannot read the picture {name or file} ({reason[:200]}); allowed are whole "
            f"{', '.join(FORMATS)} files. Replace it, or take it out of the data."
        ) from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@contextmanager
def open_picture(file: Path | BinaryIO) -> Iterator[ImageFile.ImageFile]:
    """Open a picture; pillow refuses those of more than 179 million pixels, and is right."""
    with warnings.catch_warnings():
        # From half that size on it warns, with lines that say nothing about the file.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as opened:
            yield opened


def _eight_bits(pixels: NDArray[Any]) -> Image.Image:
    if pixels.size and not 0 <= pixels.min() <= pixels.max() < 1 << 16:
        raise ValueError(f"its pixels go from {pixels.min()} to {pixels.max()}, not 0 to 65535")
    return Image.fromarray((pixels // 256).astype(np.uint8))


def few(labels: NDArray[np.int64], classes: int, shots: int, seed: int) -> NDArray[np.int64]:
    """Return so many random pictures of every class, in their order; other classes change none.

    Raises:
        DataError: If `shots` is not positive.
    """
    if shots < 1:
        raise DataError(f"shots is {shots}; it must be 1 or more images per class.")
    kept = []
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        rng = np.random.default_rng((_SHOTS, seed, label))
        kept.append(rng.permutation(members)[:shots])
    return np.sort(np.concatenate(kept))
