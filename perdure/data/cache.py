"""Pictures at the size of a model, kept on disk: decoded once, and then read as they are.

An entry is a directory with the pixels and what they were made from: files with their sizes and
times, rows, damage, decoder and size. Whoever changes one of these gets another entry.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, RunError
from ..files import read_json, whole_directory, write_json
from ..inputs import Preprocess
from .damaged import MADE_ANEW, Damaged
from .hf_columns import files_outside
from .hf_pictures import HfPictures
from .own import OwnPictures
from .pictures import Published
from .shards import Shards
from .views import Half, Part, transform_of

FORMAT = 1
"""Raised when the same pictures become other pixels"""


def made_from(dataset: Any, preprocess: Preprocess) -> dict[str, Any]:
    """Return what the pixels of a data set depend on, as JSON has it.

    Raises:
        DataError: If its pictures are no files.
    """
    return {
        "format": FORMAT,
        "data": dataset.name,
        "images": len(dataset),
        "source": source_of(dataset),
        "transform": transform_of(dataset),
        "size": preprocess.size,
        "interpolation": preprocess.interpolation,
    }


def open_kept(
    folder: Path, dataset: Any, preprocess: Preprocess, batches: Iterable[Tensor]
) -> NDArray[np.uint8]:
    """Return the pixels of all images of a data set, (N, 3, S, S), read-only and on disk.

    Args:
        folder: Of all entries; made if it is missing.
        dataset: Of files.
        preprocess: Of the model.
        batches: Makes them where they are not there: uint8 (B, 3, S, S), in the order of the data.

    Raises:
        DataError: If an entry is damaged, or the pictures of the data set are no files.
        RunError: If they cannot be written.
    """
    key = made_from(dataset, preprocess)
    entry = entry_of(folder, dataset.name, key)
    if not entry.exists():
        with new_entry(entry) as temporary:
            shape = (len(dataset), 3, preprocess.size, preprocess.size)
            pixels = np.lib.format.open_memmap(
                temporary / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape
            )
            start = 0
            for images in batches:
                pixels[start : start + len(images)] = images.numpy()
                start += len(images)
            pixels.flush()
            write_json(temporary / "made-from.json", key)
    try:
        found: NDArray[np.uint8] = np.load(entry / "pixels.npy", mmap_mode="r", allow_pickle=False)
        whole = found.shape == (key["images"], 3, key["size"], key["size"])
        if read_json(entry / "made-from.json") == key and whole and found.dtype == np.uint8:
            return found
    except (OSError, ValueError, RunError):
        pass
    raise DataError(
        f"{entry} does not hold the pictures that its name stands for; it is damaged or was "
        "changed by hand. Delete it, and it is made again."
    )


def entry_of(folder: Path, name: str, key: Mapping[str, Any]) -> Path:
    """Return the directory of the pixels that a key stands for."""
    return folder.expanduser() / f"{name}-{_hash([json.dumps(key).encode()])[:16]}"


def source_of(dataset: Any) -> str:
    """Return what changes with the files of a data set, their sizes and times, and its rows.

    Raises:
        DataError: If its pictures are no files.
    """
    return _hash(_sources(dataset))


@contextmanager
def new_entry(entry: Path) -> Iterator[Path]:
    """Yield a directory that becomes an entry, unless another process has made it meanwhile.

    Raises:
        RunError: If it cannot be written.
    """
    with suppress(_Theirs), whole_directory(entry) as temporary:
        yield temporary
        if entry.exists():
            raise _Theirs


class _Theirs(Exception):
    """Another process was faster; nobody outside sees this."""


def _sources(dataset: Any) -> Iterator[bytes]:
    """Yield what tells the images of a data set from others."""
    if isinstance(dataset, Damaged):
        made = f"{dataset.corruption}-{dataset.severity} {dataset.seed} {MADE_ANEW}"
        yield made.encode()
        yield from _sources(dataset.whole)
    elif isinstance(dataset, Part):
        yield dataset.indices.astype(np.int64).tobytes()
        yield from _sources(dataset.whole)
    elif isinstance(dataset, Half):
        yield dataset.kept.astype(np.int64).tobytes()
        yield from _sources(dataset.whole)
    elif isinstance(dataset, OwnPictures):
        yield from (_state(os.fsdecode(file)) for file in dataset.files)
    elif isinstance(dataset, Published):
        yield str(dataset.catalog.border).encode()
        yield from (_state(dataset.catalog.file(index)) for index in range(len(dataset)))
    elif isinstance(dataset, Shards):
        yield dataset.index.places[dataset.kept].tobytes()
        yield from (_state(shard) for shard in dataset.index.shards)
    elif isinstance(dataset, HfPictures):
        yield from _hf_sources(dataset)
    else:
        raise DataError(
            f"{dataset.name} has no picture files of which pixels could be kept; leave --cache "
            "(in recipes run.cache) away."
        )


def _hf_sources(dataset: HfPictures) -> Iterator[bytes]:
    """Yield what tells the pictures of a table from others: its files, and those it points to."""
    listing = dataset.listing
    tables = [place["filename"] for place in listing.table.cache_files]
    if not tables:
        raise DataError(
            f"split {dataset.split} of {listing.base} was loaded into memory, so that nothing says "
            "whether it has changed; leave --cache (in recipes run.cache) away, or unset "
            "HF_DATASETS_IN_MEMORY_MAX_SIZE."
        )
    yield f"{dataset.split} {listing.columns.image}".encode()
    yield listing.rows[dataset.kept].astype(np.int64).tobytes()
    yield from map(_state, tables)
    yield from map(_state, files_outside(listing.table, listing.columns.image, listing.base))


def _state(file: Path | str) -> bytes:
    """Return where a file is, how large, and when it was written last."""
    try:
        found = os.stat(file)
    except OSError as error:
        raise DataError(f"cannot read the picture {file} ({error.strerror}).") from None
    return f"{os.path.abspath(file)} {found.st_size} {found.st_mtime_ns}".encode(
        errors="surrogateescape"
    )


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
