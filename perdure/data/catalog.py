"""What is known of a split without opening a picture: paths, labels, names, groups. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, nearest
from .folders import PICTURES, as_paths, entries

_SHOWN = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalog:
    """The pictures of one split of a published data set, in a fixed order."""

    name: str
    """Of the data set, as in recipes"""
    split: str
    root: Path
    """What `paths` are relative to"""
    paths: NDArray[np.bytes_]
    """(N,), as the file system encodes them: a fifth of the memory of texts"""
    labels: NDArray[np.int64]
    """(N,), index into `classes`; of captions, the index of the picture that they describe"""
    classes: tuple[str, ...]
    """Names as they stand in prompts, or captions"""
    texts: NDArray[np.int64] | None = None
    """(N,), index into `classes` where these are captions; None for labels"""
    groups: NDArray[np.int64] | None = None
    """(N,), index into `group_names`, -1 for those that belong to none"""
    group_names: tuple[str, ...] = ()
    accepted: tuple[tuple[int, ...], ...] | None = None
    """(N,), labels that count as right under a second reading; none where a picture is left out"""
    columns: tuple[tuple[int, ...], ...] | None = None
    """Per class, the classes of the task (ImageNet's) that it stands for"""
    border: int = 0
    """Pixels cut off on every side before anything else"""
    expected: int | None = None
    """Number of pictures of a whole copy; None if unknown"""
    read: Callable[[int], bytes] | None = None
    """From a row to its picture's content, where pictures are in no files of their own, and `paths`
    only say which is meant"""
    silent: tuple[str, ...] = ()
    """Paths of pictures that lists name without a caption; they are no rows"""
    proved: bool = False
    """Whether `expected` was counted on a real copy, not only written somewhere"""

    @property
    def captioned(self) -> bool:
        """Whether `classes` are captions."""
        return self.texts is not None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.paths)

    def file(self, index: int) -> Path:
        """Return where a picture is."""
        return self.root / os.fsdecode(self.paths[index])


class NotThereError(DataError):
    """A data set that is not below a root at all, unlike one of which a part is."""


def find_folder(
    what: str, root: Path, *candidates: str, markers: Sequence[str] | None = None
) -> Path:
    """Return the first of some directories that exists below a root.

    Args:
        what: Data set, for the error.
        root: As the user names it.
        candidates: Relative paths; "" for the root itself.
        markers: The root itself only counts if one of these is in it; None asks for nothing.

    Raises:
        NotThereError: If there is none; names every place that was looked at.
    """
    for candidate in candidates:
        here = root / candidate
        marked = candidate or markers is None or any((here / one).exists() for one in markers)
        if marked and here.is_dir():
            return here
    places = ", ".join(candidate or "." for candidate in candidates)
    if not root.is_dir():
        raise NotThereError(
            f"cannot find {what}: the directory {root} does not exist. Name the one that holds it."
        )
    raise NotThereError(
        f"cannot find {what} below {root}; looked for the folders {places}. Name the directory "
        "that holds one of them; docs/data.md lists every layout."
    )


def require_split(name: str, split: str, known: Sequence[str]) -> None:
    """Refuse a split that a data set does not have.

    Raises:
        DataError: Names those it has.
    """
    if split not in known:
        raise DataError(
            f"{name} has no split {split!r}. Allowed: {', '.join(known)}. "
            f"{nearest(split, known)}".rstrip()
        )


def list_folders(
    what: str, source: Path, folders: Sequence[str]
) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    """List the pictures of class folders, (N,) relative to `source` and (N,) the folder's rank.

    Raises:
        DataError: If folders are missing, as in half a download, or one is empty.
    """
    there = {entry.name for entry in entries(source) if entry.is_dir()}
    missing = [folder for folder in folders if folder not in there]
    if missing:
        loose = [entry for entry in entries(source) if entry.suffix.lower() in PICTURES]
        if loose and not there & set(folders):
            raise DataError(
                f"{source} holds {len(loose):,} pictures and no folders of classes, so their "
                f"labels are unknown. Sort them into {len(folders)} folders ({folders[0]}, ...), "
                "as the usual preparation script of the data set does."
            )
        raise DataError(
            f"{what} at {source} lacks {len(missing)} of {len(folders)} class folders: "
            f"{', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}. Is it half "
            "a download? Complete it, or use data.name=own for a part of the classes."
        )
    paths: list[bytes] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        names = sorted(
            entry.name
            for entry in os.scandir(source / folder)
            if not entry.name.startswith(".")
            and os.path.splitext(entry.name)[1].lower() in PICTURES
        )
        if not names:
            raise DataError(
                f"class folder {source / folder} of {what} holds no picture; complete it."
            )
        paths += [os.fsencode(f"{folder}/{name}") for name in names]
        labels += [label] * len(names)
    return as_paths(paths), np.array(labels, dtype=np.int64)


def pick(catalog: Catalog, kept: NDArray[Any]) -> dict[str, Any]:
    """Return the fields of a catalog that change when only some rows are kept."""
    changed: dict[str, Any] = {"paths": catalog.paths[kept], "labels": catalog.labels[kept]}
    if catalog.texts is not None:
        changed["texts"] = catalog.texts[kept]
    if catalog.groups is not None:
        changed["groups"] = catalog.groups[kept]
    if catalog.accepted is not None:
        changed["accepted"] = tuple(catalog.accepted[index] for index in kept)
    return changed
