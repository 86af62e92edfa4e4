"""Where shards are, and what is said about them beside them. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from .catalog import NotThereError
from .class_names import read_list
from .folders import entries
from .tables import read_lines

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


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
        files = [
            Path(one) for part in str(root).split("::") for one in dict.fromkeys(_expand(part))
        ]
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
    """Return the names that a range or a list in braces stands for."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    if found[3] is not None:
        middles = found[3].split(",")
    else:
        width = len(found[1])
        middles = [f"{number:0{width}d}" for number in range(int(found[1]), int(found[2]) + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [name for middle in middles for name in _expand(before + middle + after)]


def _by_number(file: Path) -> tuple[int, str]:
    return (int(file.stem), file.stem) if file.stem.isdecimal() else (-1, file.stem)


def names_beside(root: Path) -> tuple[str, ...] | None:
    """Return the names of labels that lie beside shards; None without any."""
    file = _beside(root) / "classnames.txt"
    return read_list(file, "classes", repeated=True) if file.is_file() else None


def _beside(root: Path) -> Path:
    """Return the directory of what is said about shards."""
    return root.parent if ".tar" in root.name else root


def holds_lines(root: Path) -> bool:
    """Return whether every line of a `.txt` file is a caption, as in sets made for retrieval.

    `dataset_type.txt` beside the shards says so, as clip_benchmark writes it.

    Raises:
        DataError: If it says that pictures have several labels.
    """
    file = _beside(root) / "dataset_type.txt"
    said = read_lines(file).strip().lower() if file.is_file() else ""
    if said == "multilabel":
        raise DataError(
            f"{file} says multilabel: pictures have several labels, which perdure does not score. "
            "Use shards with one label (.cls) per picture."
        )
    return said == "retrieval"


def fingerprint(root: Path, splits: Iterable[str]) -> int:
    """Return a number that changes with names and sizes of the splits' shards, and with classes."""
    digest = hashlib.sha256("\n".join(names_beside(root) or ()).encode())
    for split in splits:
        for shard in find_shards(root, split):
            digest.update(f"{split} {shard.name} {shard.stat().st_size}\n".encode())
    return int.from_bytes(digest.digest()[:6], "big")
