"""What lies in tar files of pictures and texts, and where. Imports no torch.

Every file is read once, from its headers. What stays in memory are places, texts and labels: two
hundred bytes for a picture and its caption, and nothing of the pictures.
"""

from __future__ import annotations

import re
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
from .catalog import NotThereError
from .class_names import read_list
from .folders import as_paths, entries
from .tables import read_lines

Damaged = Literal["error", "skip"]

WDS = "wds"
"""Name of these data sets in recipes"""

_IMAGES = ("jpg", "jpeg", "png", "webp")
_BLOCK = 512
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Sample(NamedTuple):
    """One picture of one shard."""

    key: str
    offset: int
    """Of its bytes in the shard"""
    size: int
    text: str
    """Label or caption"""
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
    """(N,), index into `classes`"""
    classes: tuple[str, ...]
    """Names, or the distinct captions"""
    captioned: bool
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
    names = _names(root)
    skipped = 0
    for number, shard in enumerate(shards):
        for found in _samples(shard):
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
            places.extend((number, found.offset, found.size))
            keys.append(found.key.encode("utf-8", "surrogateescape"))
            labels.append(
                rank.setdefault(found.text, len(rank)) if captioned else _label(found, names, root)
            )
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
        skipped,
    )


def split_folders(root: Path) -> tuple[str, ...]:
    """Return the splits below a root.

    Raises:
        NotThereError: If there is no shard.
    """
    if ".tar" in root.name:
        return ("train",)
    if root.is_dir():
        folders = [entry.name for entry in entries(root) if any(entry.glob("*.tar"))]
        found = ("train",) if any(root.glob("*.tar")) else ()
        if folders or found:
            return tuple(dict.fromkeys((*found, *folders)))
    raise NotThereError(f"there is no shard (*.tar) in {root}, or in a folder of it.")


def find_shards(root: Path, split: str) -> tuple[Path, ...]:
    """Return the tar files of a split in the order of their names.

    Raises:
        DataError: If there is none, one of a range is missing, or fewer than `nshards.txt` says.
    """
    if ".tar" in root.name:
        if split != "train":
            raise DataError(
                f"{root} names shards, which are split train; name a directory for {split}."
            )
        files = [Path(one) for part in str(root).split("::") for one in _expand(part)]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(files)} shards are not there; the first is {missing[0]}."
            )
        return tuple(files)
    for folder in (root / split, *((root,) if split == "train" else ())):
        found = tuple(sorted(folder.glob("*.tar"), key=_by_number))
        if not found:
            continue
        said = folder / "nshards.txt"
        if said.is_file() and read_lines(said).strip() != str(len(found)):
            raise DataError(
                f"{folder} holds {len(found)} shards, but {said.name} says "
                f"{read_lines(said).strip()[:20]}. Is it half a download?"
            )
        return found
    raise DataError(
        f"there is no shard of split {split!r} below {root}; expected {root / split}/*.tar, or a "
        "root such as shards/{00000..00012}.tar."
    )


def _expand(pattern: str) -> list[str]:
    """Return the names that a range in braces stands for."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found[1], found[2]
    numbers = range(int(first), int(last) + 1)
    return [
        name
        for number in numbers
        for name in _expand(
            pattern[: found.start()] + f"{number:0{len(first)}d}" + pattern[found.end() :]
        )
    ]


def _by_number(file: Path) -> tuple[int, str]:
    return (int(file.stem), file.stem) if file.stem.isdecimal() else (-1, file.stem)


def _samples(file: Path) -> Iterator[Sample | str]:
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
                        yield _sample(file, key, parts)
                    key, parts = own, {}
                kind = kind.lower()
                if kind in _IMAGES:
                    parts["image"] = (member.offset_data, member.size)
                elif kind in ("txt", "cls"):
                    content = archive.extractfile(member)
                    parts[kind] = content.read() if content else b""
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
            whole = file.stat().st_size >= end + _BLOCK
        if key is not None:
            yield _sample(file, key, parts)
        if not whole:
            yield f"the shard {file} is cut off: it ends behind {key} without the mark of an end."
    except (tarfile.TarError, OSError, EOFError) as error:
        yield f"the shard {file} is damaged behind {key or 'its start'} ({error})."


def _sample(file: Path, key: str, parts: dict[str, bytes | tuple[int, int]]) -> Sample | str:
    place = parts.get("image")
    kind = "cls" if "cls" in parts else "txt"
    text = parts.get(kind)
    if not isinstance(place, tuple):
        return f"{key} in {file} has no picture ({', '.join(_IMAGES)})."
    if not isinstance(text, bytes) or not text.strip():
        return f"{key} in {file} has neither a label (.cls) nor a caption (.txt)."
    try:
        words = " ".join(text.decode("utf-8").split())
    except UnicodeDecodeError:
        return f"the text of {key} in {file} is not UTF-8."
    return Sample(key, *place, words, kind == "cls")


def _names(root: Path) -> tuple[str, ...] | None:
    """Return the names of labels that lie beside shards; None without any."""
    file = (root.parent if ".tar" in root.name else root) / "classnames.txt"
    return read_list(file, "classes") if file.is_file() else None


def _label(sample: Sample, names: tuple[str, ...] | None, root: Path) -> int:
    if names is None:
        raise DataError(
            f"{sample.key} has a label (.cls), but there is no classnames.txt beside the shards of "
            f"{root}; write one name per line there, in the order of the labels from 0."
        )
    if not sample.text.isdecimal() or int(sample.text) >= len(names):
        raise DataError(
            f"the label of {sample.key} is {sample.text[:40]!r}; classnames.txt of {root} has "
            f"{len(names)} names, so labels are 0 to {len(names) - 1}."
        )
    return int(sample.text)
