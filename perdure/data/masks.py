"""Masks in the forms that programs write: COCO's run lengths, and maps with a number per instance.

Imports no torch and no pycocotools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError

Mask = NDArray[np.bool_]

_FIRST, _BITS, _MORE, _SIGN = 48, 5, 32, 16
"""Of compressed run lengths: character of 0, bits per character, marks of more and of minus"""


def decode_rle(rle: Any, where: str) -> Mask:
    """Return the mask of COCO's run lengths, (H, W).

    Args:
        rle: {"size": [H, W], "counts": ...}, counts being numbers of pixels without and with the
            mask in turns, down the columns, or their compressed text.
        where: What errors call it.

    Raises:
        DataError: If it is damaged or the runs do not fill the size.
    """
    (height, width), counts = _runs(rle, where)
    values = np.arange(len(counts)) % 2 == 1
    flat = np.repeat(values, np.asarray(counts, dtype=np.int64))
    return np.ascontiguousarray(flat.reshape(width, height).T)


def require_rle(rle: Any, where: str) -> tuple[int, int]:
    """Return the size (H, W) that run lengths say they have, without looking at the runs.

    Raises:
        DataError: If these are no run lengths.
    """
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        raise DataError(
            f"{where} is no run-length mask; expected an object with 'size' [H, W] and 'counts'. "
            "Polygons must be converted first (pycocotools: frPyObjects, merge)."
        )
    size = rle["size"]
    if not (isinstance(size, Sequence) and len(size) == 2 and all(map(_is_count, size))):
        raise DataError(f"{where} has the size {size!r}; expected [height, width].")
    return size[0], size[1]


def rle_area(rle: Any, where: str) -> tuple[tuple[int, int], int]:
    """Return the size (H, W) of run lengths and how many pixels they mask, without the mask.

    Raises:
        DataError: As `decode_rle`.
    """
    size, counts = _runs(rle, where)
    return size, sum(counts[1::2])


def _runs(rle: Any, where: str) -> tuple[tuple[int, int], Sequence[int]]:
    height, width = require_rle(rle, where)
    counts = rle["counts"]
    if isinstance(counts, (str, bytes)):
        counts = expand_counts(counts, where)
    elif not (isinstance(counts, Sequence) and all(map(_is_count, counts))):
        raise DataError(f"{where} has counts that are neither text nor numbers of pixels.")
    if sum(counts) != height * width:
        raise DataError(
            f"{where} is damaged: its runs cover {sum(counts):,} pixels, but {height} x {width} "
            f"are {height * width:,}. Make the masks again."
        )
    return (height, width), counts


def expand_counts(text: str | bytes, where: str) -> list[int]:
    """Return the run lengths that a compressed text stands for.

    A number is written five bits at a time, lowest first, and from the fourth on as the difference
    to the number two before it.

    Raises:
        DataError: If the text is cut off, or has characters or runs that cannot be.

    Source: the description of run lengths in COCO's API (github.com/cocodataset/cocoapi).
    """
    raw = text.encode("ascii", "replace") if isinstance(text, str) else text
    counts: list[int] = []
    value = shift = 0
    for place, character in enumerate(raw):
        bits = character - _FIRST
        if not 0 <= bits < 2 * _MORE:
            raise DataError(
                f"{where} is damaged: character {place} of its counts is {chr(character)!r}, "
                "which no compressed run length has. Make the masks again."
            )
        value |= (bits & (_MORE - 1)) << shift
        shift += _BITS
        if bits & _MORE:
            continue
        if bits & _SIGN:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        if value < 0:
            raise DataError(f"{where} is damaged: run {len(counts)} has {value} pixels.")
        counts.append(value)
        value = shift = 0
    if shift:
        raise DataError(f"{where} is damaged: its counts end inside a number. Make it again.")
    return counts


def instance_masks(numbers: NDArray[Any]) -> NDArray[np.bool_]:
    """Return one mask per number of a map, in ascending order; 0 is no instance.

    Args:
        numbers: (H, W), or (H, W, 3) where red + 256 green + 65536 blue is the number, as in
            COCO's panoptic maps.

    Returns:
        (Q, H, W).
    """
    if numbers.ndim == 3:
        numbers = numbers[..., :3].astype(np.int64) @ np.array([1, 256, 65536])
    found = np.unique(numbers)
    masks: NDArray[np.bool_] = numbers[None] == found[found != 0][:, None, None]
    return masks


def read_map(file: Any, where: str) -> NDArray[Any]:
    """Return the numbers of a PNG or TIFF of labels or instances, (H, W) or, of colours, (H, W, 3).

    Palettes are not looked at: what counts is the number of a colour.

    Raises:
        DataError: If it is missing or damaged.
    """
    try:
        with Image.open(file, formats=("PNG", "TIFF")) as picture:
            if picture.mode in ("RGBA", "CMYK", "LAB", "F"):
                raise ValueError(f"its pixels are {picture.mode}, not numbers of labels")
            found = np.array(picture)
            return found.astype(np.uint8) if found.dtype == np.bool_ else found
    except Exception as error:  # pillow's decoders raise whatever they meet
        reason = str(error).strip() or type(error).__name__
        raise DataError(
            f"cannot read {where} ({reason[:200]}); allowed are whole PNG and TIFF files of "
            "numbers. Make it again."
        ) from None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
