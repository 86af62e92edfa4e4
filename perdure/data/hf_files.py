"""Files that the `datasets` library wrote: which splits they are, and how they open. No torch."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ..errors import DataError
from .tables import read_lines

DICT, STATE = "dataset_dict.json", "state.json"
"""What `save_to_disk` writes beside several splits, and beside one"""

_OTHER_NAMES = {"validation": "val", "valid": "val", "dev": "val"}
_SHARD = re.compile(r"^(?P<split>.+?)(-\d+-of-\d+(-[0-9a-f]+)?)?$")
_SIDES = ("train", "val")

Parts = dict[str, tuple[Path, ...]]
"""Split to its directory of Arrow files, or to its Parquet files"""


def find_parts(root: Path) -> tuple[Parts, bool]:
    """Return the splits below a root, and whether the data say themselves which they are.

    Raises:
        DataError: If files are missing that others name.
    """
    parts = _saved(root) or _parquet(root)
    undivided = len(parts) == 2 and len(set(parts.values())) == 1
    return parts, not undivided


def load_table(place: tuple[Path, ...], split: str) -> Any:
    """Open the Arrow files of a directory, or Parquet files, as a `datasets.Dataset`.

    Raises:
        DataError: If they are damaged.
    """
    import datasets

    try:
        if place[0].is_dir():
            return datasets.load_from_disk(os.fspath(place[0]))
        files = [os.fspath(file.absolute()) for file in place]
        return datasets.Dataset.from_parquet(files, split=split.replace("-", "_"))
    except Exception as error:  # pyarrow, fsspec and the library each raise their own
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        raise DataError(
            f"cannot read split {split} at {place[0]} ({reason}); it is damaged, or written by a "
            "newer version of the datasets library. Copy it again, or update the library."
        ) from None


def _saved(root: Path) -> Parts:
    """Return the splits that `save_to_disk` wrote."""
    if (root / STATE).is_file():
        declared = _declared(root)
        return {_split_name(declared): (root,)} if declared else dict.fromkeys(_SIDES, (root,))
    if not (root / DICT).is_file():
        return {}
    found: Parts = {}
    for name in _document(root / DICT).get("splits") or ():
        if not (root / str(name) / STATE).is_file():
            raise DataError(
                f"{root} lacks split {name}, which {DICT} lists: there is no {name}/{STATE}. Is "
                "it half a copy? Complete it."
            )
        _add(found, _split_name(str(name)), (root / str(name),), root)
    return found


def _parquet(root: Path) -> Parts:
    """Return the splits of a copy of a repository: by the files' names, or by their folders'."""
    for folder in (root / "data", root / "default", root):
        files = sorted(folder.glob("*.parquet"))
        inside = sorted(folder.glob("*/*.parquet"))
        found: dict[str, list[Path]] = {}
        for file in files:
            match = _SHARD.match(file.stem)
            found.setdefault(match["split"] if match else file.stem, []).append(file)
        for file in inside if not files else ():
            found.setdefault(file.parent.name, []).append(file)
        if not found:
            continue
        parts: Parts = {}
        for name, shards in found.items():
            _require_whole(name, shards)
            _add(parts, _split_name(name), tuple(shards), folder)
        return parts
    return {}


def _require_whole(name: str, shards: list[Path]) -> None:
    """Refuse files of which the names count more than there are."""
    counts = {int(said) for file in shards for said in re.findall(r"-of-(\d+)", file.stem)[-1:]}
    if counts and counts != {len(shards)}:
        raise DataError(
            f"{shards[0].parent} holds {len(shards)} Parquet files of split {name}, but their "
            f"names count {max(counts)}. Is it half a download? Complete it."
        )


def _add(parts: Parts, name: str, place: tuple[Path, ...], root: Path) -> None:
    if name in parts:
        raise DataError(
            f"{root} has split {name!r} twice: {parts[name][0].name} and {place[0].name}. Keep one."
        )
    parts[name] = place


def _split_name(name: str) -> str:
    return _OTHER_NAMES.get(name, name)


def _declared(folder: Path) -> str | None:
    """Return the split that a saved `Dataset` says it is."""
    said = _document(folder / STATE).get("_split")
    return str(said) if said else None


def _document(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_lines(file))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{file} is not the JSON that save_to_disk writes; copy the data again.")
    return found
