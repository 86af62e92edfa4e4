"""Find splits, classes and prompts in a person's own directory or table. Imports no torch.

    ROOT/train/<class>/*.jpg   ROOT/val/...   ROOT/test/...   ROOT/ood_<name>/...
    ROOT/train.csv             ROOT/val.csv   ...             (.csv, .tsv or .jsonl)
    ROOT/<class>/*.jpg         divided into `train` and `val` by a hash of the names
    FILE.csv                   divided by its column `split`, else by a hash as well

`classes.txt` and `templates.txt` beside the data are optional. Classes go by name, never by the
rank of a folder, so a shifted set may hold a part of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, nearest
from .class_names import Names, names_of_numbers, read_names, read_templates
from .dividing import HELD_OUT, NAMED, OTHER_NAMES, SHIFTED, digest, hold_out, is_split, split_of
from .folders import as_paths, class_folders, entries, may_be_split, pictures
from .tables import TABLES, Row, Table, read_table


@dataclass(frozen=True, eq=False)
class Listing:
    """The pictures of one split, in a fixed order."""

    files: NDArray[np.bytes_]
    """(N,), as the file system encodes them: a fifth of the memory of paths"""
    labels: NDArray[np.int64]
    """(N,), index into `classes`"""
    classes: tuple[str, ...]
    """Readable class names, or the distinct captions"""
    captioned: bool
    groups: tuple[str, ...] = ()
    """Of each picture, empty for none; nothing where no table has the column"""


@dataclass(frozen=True)
class Own:
    """What is found under a root; nothing is listed before it is asked for."""

    root: Path
    parts: dict[str, Path]
    """Split to its folder or table; empty where the data are not divided into such"""

    @property
    def beside(self) -> Path:
        """Directory in which `classes.txt` and `templates.txt` are."""
        return self.root if self.root.is_dir() else self.root.parent

    @cached_property
    def table(self) -> Table | None:
        """The root itself, where it is a table."""
        return None if self.root.is_dir() else read_table(self.root)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: train, val, test, then the shifted ones by name."""
        found: Iterable[str] = self.parts
        if self.table is not None and self.table.divided:
            found = {split_of(self.table, row) for row in self.table.rows}
        elif not self.parts:
            found = ("train", "val")
        rank = {name: index for index, name in enumerate(NAMED)}
        return tuple(sorted(found, key=lambda name: (rank.get(name, len(rank)), name)))

    @cached_property
    def captioned(self) -> bool:
        """Whether the pictures have captions instead of labels."""
        if self.parts.get(self.splits[0], self.root).is_dir():
            return False
        return self._table(self.splits[0]).captioned

    @cached_property
    def names(self) -> Names:
        """Classes of the task: those of `train`, or of the first split there is."""
        source = self.parts.get(self.splits[0], self.root)
        if source.is_dir():
            found = [folder.name for folder in class_folders(source)]
        else:
            rows = self._rows(self.splits[0])[1]
            found = sorted({row.text for row in rows})
            found = sorted(self.numbered, key=int) or found
        names = read_names(self.beside / "classes.txt", found, source, self.numbered)
        if len(names.readable) < 2:
            raise DataError(
                f"{source} has one class, {names.readable[0]!r}; a task needs two or more. Classes "
                "are the folders right below it, or the values of the column of labels."
            )
        return names

    @cached_property
    def numbered(self) -> dict[str, str]:
        """From the number of a label to its name, where the first split has both; else empty."""
        if self.parts.get(self.splits[0], self.root).is_dir():
            return {}
        return names_of_numbers(*self._rows(self.splits[0]))

    @property
    def templates(self) -> tuple[str, ...] | None:
        """Prompts of `templates.txt`; None without that file."""
        return read_templates(self.beside / "templates.txt")

    def listing(self, split: str) -> Listing:
        """List a split.

        Raises:
            DataError: If there is none, or a class, a label or a file of it is wrong.
        """
        if split not in self.splits:
            raise DataError(
                f"{self.root} has no split {split!r}; found: {', '.join(self.splits)}. Splits are "
                f"folders or tables named {', '.join(NAMED)} or {SHIFTED}NAME, or values of a "
                f"column 'split'. {nearest(split, self.splits)}".rstrip()
            )
        source = self.parts.get(split, self.root)
        if source.is_dir():
            listing = self._folders(source, None if self.parts else split)
        else:
            listing = self._pictures(split)
        if not len(listing.files):
            raise DataError(
                f"split {split!r} of {self.root} is empty: each class holds out one picture in "
                f"{HELD_OUT}, but none has two. Add pictures, or folders train and val."
            )
        missing = sorted(set(range(len(listing.classes))) - set(listing.labels.tolist()))
        if split == "train" and missing:
            raise DataError(
                f"class {listing.classes[missing[0]]!r} has no picture in {source} to train on; "
                "every class needs one. Add pictures, or take the class out of classes.txt."
            )
        return listing

    def _folders(self, source: Path, held: str | None) -> Listing:
        """List folders of classes; `held` says which side of an undivided set is wanted."""
        files, labels = [], []
        for folder in class_folders(source):
            label = self.names.find(folder.name, str(folder))
            found = pictures(folder)
            if held:
                named = [(file.relative_to(source).as_posix(), file) for file in found]
                found = hold_out(named, held)
            files += found
            labels += [label] * len(found)
        return Listing(
            as_paths(files), np.array(labels, dtype=np.int64), self.names.readable, False
        )

    def _pictures(self, split: str) -> Listing:
        """List the rows of a table; captions are their own classes."""
        table, rows = self._rows(split)
        if table.captioned != self.captioned:
            raise DataError(
                f"{table.file} has {'captions' if table.captioned else 'labels'}, but split "
                f"{self.splits[0]!r} has not; all splits need the same kind of column."
            )
        if table.captioned:
            classes = tuple(dict.fromkeys(row.text for row in rows))
            places = {name: index for index, name in enumerate(classes)}
            labels = [places[row.text] for row in rows]
        else:
            classes = self.names.readable
            if split != "train":  # tables with a row per prompt repeat their pictures
                rows = list({(row.path, row.text, row.number): row for row in rows}.values())
            numbered = bool(self.numbered and names_of_numbers(table, rows, self.numbered))
            said = ((numbered and row.number) or row.text for row in rows)
            labels = [
                self.names.find(text, table.at(row)) for text, row in zip(said, rows, strict=True)
            ]
        files = as_paths([os.path.join(table.file.parent, row.path) for row in rows])
        gone = [index for index, file in enumerate(files.tolist()) if not os.path.isfile(file)]
        if gone:
            raise DataError(
                f"{table.at(rows[gone[0]])}: there is no file "
                f"{os.fsdecode(files[gone[0]])} ({len(gone)} of "
                f"{len(files)} are missing). Paths are relative to the table, {table.file.parent}."
            )
        groups = tuple(row.group for row in rows)
        return Listing(
            files,
            np.array(labels, dtype=np.int64),
            classes,
            table.captioned,
            groups if any(groups) else (),
        )

    def _table(self, split: str) -> Table:
        """Return the table that holds a split."""
        return self.table or read_table(self.parts[split])

    def _rows(self, split: str) -> tuple[Table, list[Row]]:
        """Return the rows of a split in the order of their table."""
        table = self._table(split)
        if split in self.parts:
            for row in table.rows if table.divided else ():
                if split_of(table, row) != split:
                    raise DataError(
                        f"{table.at(row)}: split is {row.split!r}, but the name of the file says "
                        f"{split}. Rename the column or the file, or name the file as root."
                    )
            return table, list(table.rows)
        if table.divided:
            return table, [row for row in table.rows if split_of(table, row) == split]
        groups: dict[str, list[tuple[str, Row]]] = {}
        for row in table.rows:
            # Captions are all different, so they are divided as one group, picture by picture.
            group = groups.setdefault("" if table.captioned else row.number or row.text, [])
            group.append((row.path if table.captioned else f"{row.path}\n{row.text}", row))
        kept = [row for group in groups.values() for row in hold_out(group, split)]
        return table, sorted(kept)


def find_own(root: Path) -> Own:
    """Look which splits are under a root, a directory or a table.

    Raises:
        DataError: If there is nothing at `root`, nothing in it, or a split's name is misspelt.
    """
    with suppress(RuntimeError):  # of a user without home; nothing will be found there
        root = root.expanduser()
    if _is_file(root):
        if root.suffix.lower() not in TABLES:
            raise DataError(
                f"{root} is no table that perdure reads; allowed endings: {', '.join(TABLES)}. "
                "For folders of pictures, name the directory."
            )
        return Own(root, {})
    parts: dict[str, Path] = {}
    near, tables = [], []
    for entry in entries(root):
        is_folder = entry.is_dir()
        if not is_folder and entry.suffix.lower() not in TABLES:
            continue
        stem = entry.name if is_folder else entry.stem
        name = OTHER_NAMES.get(stem, stem)
        similar = name.lower().startswith("ood") or nearest(name, NAMED)
        if is_folder and (not similar or not may_be_split(entry)):
            continue  # pictures lie in it: a class, even if it is called "train"
        if name in parts:
            raise DataError(
                f"{root} has split {name!r} twice: {parts[name].name} and {entry.name}. Keep one."
            )
        if is_split(name):
            parts[name] = entry
        elif similar:
            near.append(entry.name)
        else:
            tables.append(entry)
    if near:
        raise DataError(
            f"{root} holds {near[0]!r}, which is no name of a split; allowed are "
            f"{', '.join(NAMED)} and {SHIFTED}NAME. Rename it, or move it elsewhere."
        )
    if not parts and tables:
        raise DataError(
            f"{root} holds the table {tables[0].name}, which has not the name of a split "
            f"({', '.join(NAMED)}, {SHIFTED}NAME). Name the table itself, {tables[0]}, or rename "
            "it, or move it elsewhere if the folders are the data."
        )
    if not parts:
        class_folders(root)  # which refuses a directory without any
    return Own(root, parts)


def fingerprint(own: Own, splits: Iterable[str]) -> int:
    """Return a number that changes with the names, labels and order of the splits' pictures."""
    parts = []
    for split in splits:
        listing = own.listing(split)
        parts += [split, *listing.classes]
        for file, label in zip(listing.files.tolist(), listing.labels.tolist(), strict=True):
            parts.append(f"{os.path.relpath(os.fsdecode(file), own.beside)}\t{label}")
    return int.from_bytes(digest("\n".join(parts))[:6], "big")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # names that no file can have, or rights
        return False
