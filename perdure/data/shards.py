"""Tar files of pictures and texts, as img2dataset and open_clip write them (webdataset).

Every file is indexed once, from its headers, and pictures are then read where they lie. So any
order, any number of processes and workers, and any point of resuming give the same batches,
whatever the number of shards, and nothing but labels, texts and places is in memory.
"""

from __future__ import annotations

import io
import re
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .class_names import read_list
from .decoding import Transform
from .own import CAPTION_TEMPLATES, TEMPLATES, decode, few
from .tables import read_lines

Damaged = Literal["error", "skip"]

_IMAGES = ("jpg", "jpeg", "png", "webp")
_BLOCK = 512
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Sample(NamedTuple):
    """One picture of one shard."""

    key: str
    shard: int
    offset: int
    """Of its bytes in the shard"""
    size: int
    text: str
    """Label or caption"""
    labelled: bool


@dataclass(frozen=True, eq=False)
class Shards:
    """One split."""

    shards: tuple[Path, ...]
    places: NDArray[np.int64]
    """(N, 3): shard, offset, size"""
    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    """(N,), index into `classes`"""
    classes: tuple[str, ...]
    """Names, or the distinct captions"""
    captioned: bool
    skipped: int = 0
    """Samples that were left out because they, or the ends of their shards, are damaged"""
    name: str = "wds"
    transform: Transform = "exact"
    """How pictures are decoded"""

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.places)

    def image(self, index: int) -> Tensor:
        """Return one picture, (3, H, W), uint8.

        Raises:
            DataError: If it cannot be decoded, or its shard has changed since it was indexed.
        """
        shard, offset, size = self.places[index].tolist()
        file = self.shards[shard]
        try:
            with file.open("rb") as stream:
                stream.seek(offset)
                content = stream.read(size)
        except OSError as error:
            raise DataError(f"cannot read the shard {file} ({error.strerror}).") from None
        if len(content) < size:
            raise DataError(f"the shard {file} is shorter than when training began; restore it.")
        name = f"{self.keys[index]} in {file}"
        return decode(io.BytesIO(content), name, self.transform)


def open_shards(
    split: str,
    *,
    root: Path,
    seed: int = 0,
    shots: int | None = None,
    classes: str = "all",
    damaged: Damaged = "error",
) -> Shards:
    """Open the shards of a split.

    Labels are those of `.cls` files, and their names those of `classnames.txt`; without any, the
    `.txt` files are captions.

    Args:
        split: Folder below the root; "train" is also the root itself, where shards lie in it.
        root: Directory, or shards: `a/{00000..00012}.tar`, several joined by `::`.
        seed: Chooses the subset where `shots` is given.
        shots: Pictures per class; None for all.
        classes: "all".
        damaged: Whether incomplete samples and cut-off shards are an error, or are left out,
            counted and reported.

    Raises:
        DataError: If there is no shard, one is damaged, or samples have neither label nor caption.
    """
    if classes != "all":
        raise DataError(f"shards have no part {classes!r}; use data.classes=all, base or novel.")
    shards = find_shards(root, split)
    samples: list[Sample] = []
    skipped = 0
    for number, shard in enumerate(shards):
        for found in _samples(shard, number):
            if isinstance(found, Sample):
                samples.append(found)
                continue
            if damaged == "error":
                raise DataError(f"{found} Replace it, or leave such out: data.damaged=skip.")
            skipped += 1
    if not samples:
        raise DataError(f"the {len(shards)} shards of {root} hold no whole sample.")
    if skipped:
        warnings.warn(
            f"{skipped} damaged samples or ends of shards of {root} are left out; {len(samples)} "
            "pictures stay.",
            stacklevel=2,
        )
    captioned = not samples[0].labelled
    mixed = next((one for one in samples if one.labelled == captioned), None)
    if mixed is not None:
        raise DataError(
            f"{mixed.key} in {shards[mixed.shard]} has a {'label' if captioned else 'caption'}, "
            f"but {samples[0].key} has none; all samples need the same kind of text."
        )
    names, labels = _labelled(samples, root) if not captioned else _captions(samples)
    kept = np.arange(len(samples))
    if shots is not None:
        if captioned:
            raise DataError(f"data.shots is {shots}, but {root} has captions, no classes.")
        kept = few(labels, len(names), shots, seed)
    return Shards(
        shards,
        np.array([samples[index][1:4] for index in kept], dtype=np.int64),
        tuple(samples[index].key for index in kept),
        labels[kept],
        names,
        captioned,
        skipped,
    )


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


def shard_templates(root: Path | None) -> tuple[str, ...]:
    """Return the prompts that lie beside shards, whose place for the name is {c}, or plain ones."""
    if root is None:
        return TEMPLATES
    file = root / "zeroshot_classification_templates.txt"
    if file.is_file():
        return tuple(text.replace("{c}", "{}") for text in read_list(file, "templates"))
    return TEMPLATES if (root / "classnames.txt").is_file() else CAPTION_TEMPLATES


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


def _samples(file: Path, shard: int) -> Iterator[Sample | str]:
    """Yield the samples of a shard, and a sentence for everything in it that is damaged."""
    parts: dict[str, bytes | tuple[int, int]] = {}
    key = None
    try:
        with tarfile.open(file, "r:") as archive:
            end = 0
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                own = f"{folder}/{stem}" if folder else stem
                if own != key:
                    if key is not None:
                        yield _sample(file, shard, key, parts)
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
            yield _sample(file, shard, key, parts)
        if not whole:
            yield f"the shard {file} is cut off: it ends behind {key} without the mark of an end."
    except (tarfile.TarError, OSError, EOFError) as error:
        yield f"the shard {file} is damaged behind {key or 'its start'} ({error})."


def _sample(
    file: Path, shard: int, key: str, parts: dict[str, bytes | tuple[int, int]]
) -> Sample | str:
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
    return Sample(key, shard, *place, words, kind == "cls")


def _labelled(samples: list[Sample], root: Path) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    base = root.parent if ".tar" in root.name else root
    names = read_list(base / "classnames.txt", "classes")
    for one in samples:
        if not one.text.isdecimal() or int(one.text) >= len(names):
            raise DataError(
                f"the label of {one.key} is {one.text[:40]!r}; {base / 'classnames.txt'} has "
                f"{len(names)} names, so labels are 0 to {len(names) - 1}."
            )
    return names, np.array([int(one.text) for one in samples], dtype=np.int64)


def _captions(samples: list[Sample]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    texts = tuple(dict.fromkeys(one.text for one in samples))
    rank = {text: place for place, text in enumerate(texts)}
    return texts, np.array([rank[one.text] for one in samples], dtype=np.int64)
