"""Walk folders of pictures, one folder per class. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
"""Endings of files that count as pictures in folders; one that is named itself may have another"""


def class_folders(source: Path) -> list[Path]:
    """Return the folders of classes, by name; those that start with a dot are not meant.

    Raises:
        DataError: If there is none, or the directory cannot be read.
    """
    found = [entry for entry in entries(source) if entry.is_dir()]
    if not found:
        raise DataError(
            f"{source} is empty: it holds no folder of a class. Expected are folders "
            f"{source}/<class>/*.jpg, or train/<class>/*.jpg and so on in the root, or a table."
        )
    return found


def pictures(folder: Path) -> list[Path]:
    """Return the pictures in a class' folder and below, by name.

    Raises:
        DataError: If there is none, or a directory cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename} ({error.strerror}); check its rights.")

    found: list[Path] = []
    others: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if ending in PICTURES:
                found.append(Path(place, name))
            else:
                others.add(ending or name)
    if not found:
        held = f"only {', '.join(sorted(others)[:5])} files" if others else "no files"
        raise DataError(
            f"class {folder.name!r} is empty: {folder} holds {held}; allowed pictures are "
            f"{', '.join(PICTURES)}. Add pictures or remove the folder."
        )
    return found


def entries(directory: Path) -> list[Path]:
    """Return what lies in a directory, by name, without what starts with a dot.

    Raises:
        DataError: If there is no such directory, or it cannot be read.
    """
    try:
        found = sorted(directory.iterdir())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"cannot read the directory {directory} ({reason}); name the directory or the table "
            "that holds your data, and check its rights."
        ) from None
    return [entry for entry in found if not entry.name.startswith(".")]


def may_be_split(folder: Path) -> bool:
    """Return whether folders lie in a folder, or nothing at all."""
    inside = entries(folder)
    return not inside or any(entry.is_dir() for entry in inside)


def as_paths(paths: Sequence[bytes] | Sequence[str] | Sequence[Path]) -> NDArray[np.bytes_]:
    """Return paths as one array of bytes."""
    return np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
