"""Data sets of Hugging Face's `datasets` library, as they lie on a disk. Imports no torch.

    ROOT/dataset_dict.json            written by DatasetDict.save_to_disk
    ROOT/state.json                   written by Dataset.save_to_disk
    ROOT/data/train-00000-of-00009.parquet, ...     a copy of a repository of the hub

Nothing is downloaded. Arrow files are mapped into memory where they lie; Parquet, which cannot be
read at random, is unpacked once into the library's own cache (HF_DATASETS_CACHE), as always there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, nearest
from ..extras import require
from .catalog import NotThereError
from .class_names import Names, read_names, read_templates
from .dividing import HELD_OUT, hold_out
from .hf_columns import Columns, captions_of, columns_of, contents_of, labels_of, pick_columns
from .hf_files import DICT, STATE, Parts, find_parts, load_table

HF = "hf"
"""Name of these data sets in recipes and suites"""

_NAMED = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class HfListing:
    """The pictures of one split, in the order of its rows."""

    table: Any
    """A `datasets.Dataset` whose pictures are not decoded"""
    columns: Columns
    rows: NDArray[np.int64]
    """(N,), row of the table; several captions of one picture share it"""
    labels: NDArray[np.int64]
    """(N,), index into `classes`; of rows with several captions, the number of the picture"""
    classes: tuple[str, ...]
    """Readable names, or captions"""
    texts: NDArray[np.int64] | None
    """(N,), index into `classes` where these are captions; None for labels"""
    base: Path
    """What paths in the table are relative to"""

    def read(self, index: int) -> bytes:
        """Return the file of one picture.

        Raises:
            DataError: If the row has none, or its file is not there.
        """
        return contents_of(self.table, self.columns.image, int(self.rows[index]), self.base)


@dataclass(frozen=True, eq=False)
class HfFolder:
    """What is found under a root; nothing is opened before it is asked for."""

    root: Path
    parts: Parts
    divided: bool = True
    """Whether the data say which split they are; where not, a part is held out as `val`"""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: train, val, test, then others by name."""
        rank = {name: place for place, name in enumerate(_NAMED)}
        return tuple(sorted(self.parts, key=lambda name: (rank.get(name, len(rank)), name)))

    @cached_property
    def _opened(self) -> dict[str, tuple[Any, Columns]]:
        return {}

    def _open(self, split: str) -> tuple[Any, Columns]:
        """Return the table of a split and which of its columns are meant."""
        if split not in self.parts:
            raise DataError(
                f"{self.root} has no split {split!r}; found: {', '.join(self.splits)}. "
                f"{nearest(split, self.splits)}".rstrip()
            )
        if split not in self._opened:
            table = load_table(self.parts[split], split)
            where = f"{self.root}, split {split}"
            self._opened[split] = pick_columns(table, columns_of(table, where))
        return self._opened[split]

    @cached_property
    def captioned(self) -> bool:
        """Whether the pictures have captions instead of labels."""
        return self._open(self.splits[0])[1].captioned

    @cached_property
    def names(self) -> Names:
        """Classes of the task: those that the label column declares, or the values of `train`.

        Raises:
            DataError: If there are fewer than two, two are equal, or they are bare numbers.
        """
        table, columns = self._open(self.splits[0])
        file = self.root / "classes.txt"
        if columns.names is not None:
            # One name per line stands for the declared names in their order.
            names = read_names(file, columns.names, self.root)
        else:
            found = sorted(set(labels_of(table, columns, f"{self.root}, split {self.splits[0]}")))
            names = read_names(file, found, Path(f"{self.root} (column {columns.text})"))
        if len(names.readable) < 2:
            raise DataError(
                f"{self.root} has one class, {names.readable[0]!r}; a task needs two or more."
            )
        return names

    @property
    def templates(self) -> tuple[str, ...] | None:
        """Prompts of `templates.txt` beside the data; None without that file."""
        return read_templates(self.root / "templates.txt")

    def knows(self, split: str) -> bool:
        """Return whether a split is there and its labels are; hidden ones are all -1."""
        if split not in self.parts:
            return False
        table, columns = self._open(split)
        if columns.names is None:
            return True
        return bool((table.data.column(columns.text).to_numpy() >= 0).any())

    def listing(self, split: str) -> HfListing:
        """List a split.

        Raises:
            DataError: If there is none, or a column, a label or a caption of it is wrong.
        """
        table, columns = self._open(split)
        where = f"{self.root}, split {split}"
        if columns.captioned != self.captioned:
            raise DataError(
                f"{where}, has {'captions' if columns.captioned else 'labels'}, but split "
                f"{self.splits[0]} has not; all splits need the same kind of column."
            )
        if columns.captioned:
            rows, labels, classes, texts = captions_of(table, columns, where)
            return self._side(
                HfListing(table, columns, rows, labels, classes, texts, self.root), split
            )
        names = self.names
        values = labels_of(table, columns, where)
        places = {value: names.find(value, where) for value in sorted(set(values))}
        labels = np.array([places[value] for value in values], dtype=np.int64)
        missing = sorted(set(range(len(names.readable))) - set(labels.tolist()))
        if split == "train" and missing and columns.names is None:
            raise DataError(
                f"{where}: class {names.readable[missing[0]]!r} has no picture to train on; every "
                "class of classes.txt needs one."
            )
        rows = np.arange(len(labels))
        whole = HfListing(table, columns, rows, labels, names.readable, None, self.root)
        return self._side(whole, split)

    def _side(self, whole: HfListing, split: str) -> HfListing:
        """Return what is trained on, or what is held out, of data that are not divided."""
        if self.divided:
            return whole
        groups: dict[int, list[tuple[str, int]]] = {}
        for place, row in enumerate(whole.rows.tolist()):
            group = groups.setdefault(
                -1 if whole.texts is not None else int(whole.labels[place]), []
            )
            group.append((f"row {row}", place))
        kept = np.sort([place for group in groups.values() for place in hold_out(group, split)])
        if not len(kept):
            raise DataError(
                f"split {split!r} of {self.root} is empty: each class holds out one picture in "
                f"{HELD_OUT}, but none has two. Save a DatasetDict with splits instead."
            )
        texts = whole.texts if whole.texts is None else whole.texts[kept]
        return replace(whole, rows=whole.rows[kept], labels=whole.labels[kept], texts=texts)


def find_hf(root: Path) -> HfFolder:
    """Look which splits are under a root.

    Raises:
        NotThereError: If nothing there was written by the library.
        DataError: If what it wrote is not whole.
        DependencyError: If the library is not installed.
    """
    root = root.expanduser()
    parts, divided = find_parts(root)
    if not parts:
        raise NotThereError(
            f"{root} holds no data set of the datasets library; expected is a directory that "
            f"save_to_disk wrote ({DICT} or {STATE}), or a copy of a repository with Parquet "
            "files (data/train-00000-of-00001.parquet). For folders of pictures or tables: "
            "data.name=own."
        )
    require("datasets", f"the data set at {root}")
    return HfFolder(root, parts, divided)


def fingerprint(folder: HfFolder, splits: Iterable[str]) -> int:
    """Return a number that changes with names, labels and files of the splits."""
    digest = hashlib.sha256()
    for split in splits:
        listing = folder.listing(split)
        digest.update("\n".join((split, *listing.classes)).encode("utf-8", "surrogateescape"))
        digest.update(listing.labels.tobytes())
        for part in folder.parts[split]:
            files = sorted(part.glob("*.arrow")) if part.is_dir() else [part]
            for file in files:
                digest.update(f"{file.name} {file.stat().st_size}".encode())
    return int.from_bytes(digest.digest()[:6], "big")
