"""Pictures of training as decoders give them, kept on disk: decoded once, cropped anew every time.

Random crops need a picture at its own size, so that is what is kept: three bytes per pixel, many
times as much as JPEG files take. How much is said, and whether there is room, before it is written.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, RunError
from ..files import read_json, reported, write_json
from .cache import entry_of, new_entry, source_of
from .views import Dataset, transform_of

FORMAT = 1
"""Raised when the same pictures become other pixels"""

_ORDERS = tuple(permutations(range(3)))
"""Of dimensions in memory: a resized picture depends on whether its channels come first or last"""

_LOOKS = 64
"""Pictures by which the need for space is judged"""

_PIXELS, _PLACES, _RECORD = "pixels.bin", "places.npy", "made-from.json"

_FIELDS = ("start", "order", "height", "width", "checksum")


class Decoded:
    """Pictures of a data set, read from an entry; workers may have copies of it.

    Args:
        entry: Directory that `keep` wrote.
        places: Where every picture is, (N, 5).
    """

    def __init__(self, entry: Path, places: NDArray[np.int64]) -> None:
        self.entry = entry
        self.places = places
        self._looked = np.zeros(len(places), dtype=bool)
        self._pixels = self._map()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the file to whoever opens it again: a map of it would become a copy."""
        return {**self.__dict__, "_pixels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the file again."""
        self.__dict__.update(state)
        self._pixels = self._map()

    def image(self, index: int) -> Tensor:
        """Return one picture, (3, H, W), uint8, also in memory as the decoder gave it.

        Raises:
            DataError: If its bytes are no longer those that were written.
        """
        start, order, height, width, checksum = self.places[index].tolist()
        raw = np.array(self._pixels[start : start + 3 * height * width])
        if not self._looked[index]:
            if zlib.crc32(raw.data) != checksum:
                raise damaged(self.entry)
            self._looked[index] = True
        axes = _ORDERS[order]
        sizes = [(3, height, width)[axis] for axis in axes]
        return torch.from_numpy(raw).view(sizes).permute(*np.argsort(axes).tolist())

    def _map(self) -> NDArray[np.uint8]:
        try:
            return np.memmap(self.entry / _PIXELS, dtype=np.uint8, mode="r")
        except (OSError, ValueError):
            raise damaged(self.entry) from None


def find(folder: Path, dataset: Dataset) -> Decoded | None:
    """Return the kept pictures of a data set; None where they are not kept yet.

    Raises:
        DataError: If they are damaged, or the pictures of the data set are no files.
    """
    key = _key(dataset)
    entry = entry_of(folder, dataset.name, key)
    if not entry.exists():
        return None
    try:
        places = np.load(entry / _PLACES, allow_pickle=False)
        fits = places.shape == (len(dataset), len(_FIELDS)) and places.dtype == np.int64
        if read_json(entry / _RECORD) == key and fits:
            start, order, height, width, _ = places.T
            end = int((start + 3 * height * width).max())
            known = (places.min() >= 0) & (order.max() < len(_ORDERS))
            if known and end == (entry / _PIXELS).stat().st_size:
                return Decoded(entry, places)
    except (OSError, ValueError, EOFError, RunError):
        pass
    raise damaged(entry)


def need(dataset: Dataset) -> int:
    """Return about how many bytes the pictures of a data set take, from a look at some of them.

    Raises:
        DataError: If one cannot be read.
    """
    rows = np.unique(np.linspace(0, len(dataset) - 1, _LOOKS).astype(np.int64))
    return round(len(dataset) * float(np.mean([dataset.image(int(i)).numel() for i in rows])))


def require_room(folder: Path, needed: int) -> None:
    """Refuse to fill a disk.

    Raises:
        DataError: If a file system has not that many bytes left.
        RunError: If there is no such place.
    """
    with reported(folder):
        there = next(place for place in folder.absolute().parents if place.is_dir())
        free = shutil.disk_usage(there).free
    if needed > free:
        raise DataError(
            f"run.cache would need about {needed / 1e9:,.1f} GB at {folder}, where "
            f"{free / 1e9:,.1f} GB are free; pictures are kept as decoded, three bytes per pixel. "
            "Name a directory on a larger disk, make the pictures smaller once, or leave it away."
        )


class Packed(NamedTuple):
    """A picture as its bytes lie in memory."""

    raw: bytes
    order: int
    """Of its dimensions, a number of `_ORDERS`"""
    height: int
    width: int


def pack(image: Tensor) -> Packed:
    """Return the bytes of a picture (3, H, W), uint8, without rearranging them."""
    strides = image.stride()
    axes = tuple(sorted(range(3), key=lambda axis: -strides[axis]))
    raw = image.permute(axes).contiguous().numpy().tobytes()
    return Packed(raw, _ORDERS.index(axes), image.shape[1], image.shape[2])


def keep(folder: Path, dataset: Dataset, pictures: Iterable[Packed]) -> None:
    """Write the pictures of a data set, whole or not at all.

    Two processes may do so at the same time; the pictures of one of them stay.

    Args:
        folder: Of all entries; made if it is missing.
        dataset: Of files.
        pictures: All of them, in their order.

    Raises:
        DataError: If one cannot be read.
        RunError: If they cannot be written.
    """
    key = _key(dataset)
    places, end, last = [], 0, b""
    with new_entry(entry_of(folder, dataset.name, key)) as temporary:
        with (temporary / _PIXELS).open("wb") as file:
            for raw, order, height, width in pictures:
                if raw != last:  # another caption of the same picture takes no more space
                    file.write(raw)
                    end, last = end + len(raw), raw
                places.append((end - len(raw), order, height, width, zlib.crc32(raw)))
        np.save(temporary / _PLACES, np.array(places, dtype=np.int64))
        write_json(temporary / _RECORD, key)


def damaged(entry: Path) -> DataError:
    """Return the error about pictures that are not what was written."""
    return DataError(
        f"{entry} does not hold the pictures that its name stands for; it is damaged or was "
        "changed by hand. Delete it, and it is made again."
    )


def _key(dataset: Dataset) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "data": dataset.name,
        "images": len(dataset),
        "source": source_of(dataset),
        "transform": transform_of(dataset),
        "size": "decoded",
    }
