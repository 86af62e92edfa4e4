"""Which split a person's pictures belong to: names that splits have, and a hash without them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from ..errors import DataError, nearest
from .tables import Row, Table

HELD_OUT = 5
"""One picture in so many is `val` where the data are not divided"""

SHIFTED = "ood_"
"""Start of the names of shifted test sets"""

NAMED = ("train", "val", "test")
OTHER_NAMES = {"valid": "val", "validation": "val"}
"""What others call them"""

Item = TypeVar("Item")


def is_split(name: str) -> bool:
    """Return whether a name is one that a split may have."""
    return name in NAMED or (name.startswith(SHIFTED) and name != SHIFTED)


def split_of(table: Table, row: Row) -> str:
    """Return the split of a row.

    Raises:
        DataError: If it is no name of a split.
    """
    name = OTHER_NAMES.get(row.split or "", row.split or "")
    if is_split(name):
        return name
    raise DataError(
        f"{table.at(row)}: {row.split!r} is no split; allowed are {', '.join(NAMED)} and "
        f"{SHIFTED}NAME. {nearest(name, NAMED)}".rstrip()
    )


def hold_out(found: Sequence[tuple[str, Item]], split: str) -> list[Item]:
    """Return one side of a class that is divided by a hash of its pictures' names.

    Every class with two pictures or more has some on either side. What has one name stays together.
    """
    ranked = sorted({name for name, _ in found}, key=digest)
    count = max(len(ranked) // HELD_OUT, 1) if len(ranked) > 1 else 0
    held = set(ranked[:count])
    return [item for name, item in found if (name in held) == (split == "val")]


def digest(text: str) -> bytes:
    """Return a hash of a text that may hold bytes of the file system."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
