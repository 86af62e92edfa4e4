"""What lies in tar files of pictures and texts, and where. Imports no torch.

Every file is read once, from its headers. What stays in memory are places, texts and labels: two
hundred bytes for a picture and its caption, and nothing of the pictures.
"""

from __future__ import annotations

import io
import tarfile
import warnings
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .folders import as_paths
from .shard_files import find_shards, holds_lines, names_beside

Damaged = Literal["error", "skip"]

WDS = "wds"
"""Name of these data sets in recipes"""

_IMAGES = ("jpg", "jpeg", "png", "webp")
_BLOCK = 512


class Sample(NamedTuple):
    """One picture of one shard."""

    key: str
    offset: int
    """Of its bytes in the shard"""
    size: int
    texts: tuple[str, ...]
    """Label or caption, or several captions"""
    labelled: bool


@dataclass(frozen=True, eq=False)
class Index:
    """The samples of one split."""

    shards: tuple[Path, ...]
    places: NDArray[np.int64]
    """(N, 3): shard, offset, size"""
    keys: NDArray[np.bytes_]
    """(N,), as the shards call the samples"""
    labels: NDArray[np.int64]
    """(N,), index into `classes`, or the number of the picture"""
    classes: tuple[str, ...]
    """Names, or the distinct captions"""
    captioned: bool
    texts: NDArray[np.int64] | None
    """(N,), index into `classes` of each row's caption, where pictures may have several, so that
    labels are their numbers; None where labels say all"""
    skipped: int
    """Samples that were left out because they, or the ends of their shards, are damaged"""

    def at(self, row: int) -> str:
        """Return which picture a row is, for errors."""
        return f"{self.keys[row].decode()} in {self.shards[self.places[row, 0]]}"

    def read(self, row: int) -> bytes:
        """Return the content of one picture.

        Raises:
            DataError: If its shard cannot be read, or has changed since it was indexed.
        """
        shard, offset, size = self.places[row].tolist()
        file = self.shards[shard]
        try:
            with file.open("rb") as stream:
                stream.seek(offset)
                content: bytes = stream.read(size)
        except OSError as error:
            raise DataError(f"cannot read the shard {file} ({error.strerror}).") from None
        if len(content) < size:
            raise DataError(f"the shard {file} is shorter than when training began; restore it.")
        return content


def index_shards(split: str, root: Path, damaged: Damaged = "error") -> Index:
    """Read the headers, labels and texts of a split's shards.

    Args:
        split: Folder below the root; "train" is also the root itself, where shards lie in it.
        root: Directory, or shards: `a/{00000..00012}.tar`, several joined by `::`.
        damaged: Whether incomplete samples and cut-off shards are an error, or are left out,
            counted and reported.

    Raises:
        DataError: If there is no shard, one is damaged, or samples have neither label nor caption.
    """
    shards = find_shards(root, split)
    places, labels = array("q"), array("q")
    keys: list[bytes] = []
    rank: dict[str, int] = {}
    captioned: bool | None = None
    names, several = names_beside(root), holds_lines(root)
    texts = array("q")
    pictures = skipped = 0
    for number, shard in enumerate(shards):
        for found in _samples(shard, several):
            if isinstance(found, str):
                if damaged == "error":
                    raise DataError(f"{found} Replace it, or leave such out: data.damaged=skip.")
                skipped += 1
                continue
            if captioned is None:
                captioned = not found.labelled
            if captioned == found.labelled:
                raise DataError(
                    f"{found.key} in {shard} has a {'label' if captioned else 'caption'}, but the "
                    "samples before it have none; all samples need the same kind of text."
                )
            for text in found.texts:
                places.extend((number, found.offset, found.size))
                keys.append(found.key.encode("utf-8", "surrogateescape"))
                place = rank.setdefault(text, len(rank)) if captioned else -1
                texts.append(place)
                own = place if captioned else _label(found, names, root)
                labels.append(pictures if several else own)
            pictures += 1
    if captioned is None:
        raise DataError(f"the {len(shards)} shards of {root} hold no whole sample.")
    if skipped:
        warnings.warn(
            f"{skipped} damaged samples or ends of shards of {root} are left out; {len(keys)} "
            "pictures stay.",
            stacklevel=3,
        )
    return Index(
        shards,
        np.array(places, dtype=np.int64).reshape(-1, 3),
        as_paths(keys),
        np.array(labels, dtype=np.int64),
        tuple(rank) if captioned else names or (),
        captioned,
        np.array(texts, dtype=np.int64) if captioned and several else None,
        skipped,
    )


def are_captioned(root: Path, split: str) -> bool:
    """Return whether the first whole sample of a split has a caption instead of a label.

    Raises:
        DataError: If there is no shard.
    """
    found = (one for shard in find_shards(root, split) for one in _samples(shard))
    return not next((one.labelled for one in found if isinstance(one, Sample)), False)


def _samples(file: Path, several: bool = False) -> Iterator[Sample | str]:
    """Yield the samples of a shard, and a sentence for everything in it that is damaged."""
    parts: dict[str, bytes | tuple[int, int]] = {}
    key = None
    try:
        with tarfile.open(file, "r:") as archive:
            end = 0
            for member in archive:
                vars(archive)["members"].clear()  # else it remembers all, a kilobyte each
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                own = f"{folder}/{stem}" if folder else stem
                if own != key:
                    if key is not None:
                        yield _sample(file, key, parts, several)
                    key, parts = own, {}
                kind = kind.lower()
                if kind in _IMAGES:
                    parts["image"] = (member.offset_data, member.size)
                elif kind in ("txt", "cls", "npy"):
                    content = archive.extractfile(member)
                    parts[kind] = content.read() if content else b""
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
            whole = file.stat().st_size >= end + _BLOCK
        if key is not None:
            yield _sample(file, key, parts, several)
        if not whole:
            yield f"the shard {file} is cut off: it ends behind {key} without the mark of an end."
    except (tarfile.TarError, OSError, EOFError) as error:
        yield f"the shard {file} is damaged behind {key or 'its start'} ({error})."


def _sample(
    file: Path, key: str, parts: dict[str, bytes | tuple[int, int]], several: bool
) -> Sample | str:
    place = parts.get("image")
    kind = next((one for one in ("cls", "npy") if one in parts), "txt")
    text = parts.get(kind)
    if not isinstance(place, tuple):
        return f"{key} in {file} has no picture ({', '.join(_IMAGES)})."
    if not isinstance(text, bytes) or not text.strip():
        return f"{key} in {file} has neither a label (.cls, .npy) nor a caption (.txt)."
    if kind == "npy":
        try:
            number = np.load(io.BytesIO(text), allow_pickle=False)
            if number.size != 1 or number.dtype.kind not in "iu":
                raise ValueError(f"{number.dtype} of shape {number.shape}")
        except (ValueError, EOFError, OSError) as error:
            return f"the label {key}.npy in {file} is no whole number ({error})."
        return Sample(key, *place, (str(int(number.item())),), labelled=True)
    try:
        whole = text.decode("utf-8")
    except UnicodeDecodeError:
        return f"the text of {key} in {file} is not UTF-8."
    lines = whole.splitlines() if several and kind == "txt" else [whole]
    words = tuple(" ".join(line.split()) for line in lines if line.strip())
    return Sample(key, *place, words, kind == "cls")


def _label(sample: Sample, names: tuple[str, ...] | None, root: Path) -> int:
    if names is None:
        raise DataError(
            f"{sample.key} has a label (.cls), but there is no classnames.txt beside the shards of "
            f"{root}; write one name per line there, in the order of the labels from 0."
        )
    text = sample.texts[0]
    if not text.isdecimal() or int(text) >= len(names):
        raise DataError(
            f"the label of {sample.key} is {text[:40]!r}; classnames.txt of {root} has "
            f"{len(names)} names, so labels are 0 to {len(names) - 1}."
        )
    return int(text)
