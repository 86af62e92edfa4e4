"""Look at pairs of a region and a noun. No torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .findings import Findings, How, Part, decodes, upright_size
from .masks import read_map, rle_area
from .region_pairs import SPLITS, box_mask, noun_of

REGIONS = "regions"
"""Name of these data in recipes"""


def is_there(root: Path) -> bool:
    """Return whether a file of pairs lies at a root: its first line has a noun."""
    return any(_speaks_of_nouns(file) for file in _files(root).values())


def look_at_regions(name: str, root: Path, how: How) -> Findings:
    """Look at every split of pairs.

    Args:
        name: `REGIONS`.
        root: Folder of the files, or one file.
        how: How closely.
    """
    found = Findings(root)
    for split, file in _files(root).items():
        _Look(name, split, file, found, how).all_rows()
    if found.parts and found.parts[0].split != "train":
        found.remarks.append(f"{name}: there is no train.jsonl, so nothing can be trained on.")
    return found


def _files(root: Path) -> dict[str, Path]:
    if root.is_file():
        return {"train": root} if root.suffix.lower() == ".jsonl" else {}
    files = {split: root / f"{split}.jsonl" for split in SPLITS}
    return {split: file for split, file in files.items() if file.is_file()}


def _speaks_of_nouns(file: Path) -> bool:
    try:
        with file.open("rb") as lines:
            row = json.loads(next((line for line in lines if line.strip()), b"null"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "noun" in row


class _Look:
    """What is gathered while the lines of one file go by."""

    def __init__(self, name: str, split: str, file: Path, found: Findings, how: How) -> None:
        self.file, self.found, self.how = file, found, how
        self.part = Part(name, split, 0, 0, 0, None)
        self.sizes: dict[str, tuple[int, int] | None] = {}
        self.areas: list[float] = []
        self.nouns: Counter[str] = Counter()
        self.wrong: dict[str, list[str]] = {}
        self.map: tuple[str, NDArray[Any] | str] = ("", "")

    def all_rows(self) -> None:
        """Look at every line, then say what was found."""
        part, where = self.part, f"{self.part.name}, {self.part.split}"
        try:
            for number, line in self._lines():
                part.rows += 1
                self._line(number, line)
        except OSError as error:
            self.found.faults.append(f"{where}: cannot read {self.file} ({error.strerror}).")
            return
        part.classes, part.pictures = len(self.nouns), len(self.sizes)
        part.files = [self.file.parent / one for one, size in self.sizes.items() if size]
        self.found.parts.append(part)
        self.found.fault(where, part.missing, "files are not there")
        self.found.fault(where, part.damaged, "files are damaged")
        for what, lines in self.wrong.items():
            self.found.fault(where, lines, what)
        if not part.rows:
            self.found.faults.append(f"{where}: {self.file} holds no pair of a region and a noun.")
        each = np.array(list(self.nouns.values()) or [0])
        part.numbers = {
            "regions": part.rows,
            "pictures": part.pictures,
            "nouns": len(self.nouns),
            "regions_min": int(each.min()),
            "regions_median": float(np.median(each)),
            "regions_max": int(each.max()),
            "area_mean": float(np.mean(self.areas or [0.0])),
        }

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with self.file.open("rb") as lines:
            yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())

    def _line(self, number: int, line: bytes) -> None:
        try:
            self.nouns[noun_of(line, f"line {number} of {self.file.name}")] += 1
        except DataError as error:
            self._say("lines are no pairs", str(error))
            return
        self._row(number, json.loads(line))

    def _say(self, what: str, line: str) -> None:
        self.wrong.setdefault(what, []).append(line)

    def _row(self, number: int, row: dict[str, Any]) -> None:
        size = self._size(row["image"])
        if size is None or not self.how.contents:
            return
        try:
            masked, area = self._mask(row, size, f"line {number}")
        except DataError as error:
            self._say("regions are wrong", str(error))
            return
        shown = f"line {number} ({masked[0]} x {masked[1]}, picture {size[0]} x {size[1]})"
        if masked != size:
            self._say("masks have another size than their picture", shown)
        elif not area:
            self._say("masks are empty", f"line {number}")
        else:
            self.areas.append(area / (size[0] * size[1]))

    def _size(self, path: str) -> tuple[int, int] | None:
        """Return the size of a picture; None if it is not there or damaged, which is noted."""
        if path not in self.sizes:
            self.how.seen()
            file = self.file.parent / path
            self.sizes[path] = upright_size(file)
            if not file.is_file():
                self.part.missing.append(path)
            elif self.sizes[path] is None or (self.how.decode and not decodes(file)):
                self.part.damaged.append(path)
                self.sizes[path] = None
        return self.sizes[path]

    def _mask(
        self, row: dict[str, Any], size: tuple[int, int], where: str
    ) -> tuple[tuple[int, int], int]:
        """Return the size of a mask, and how many pixels it has."""
        if "rle" in row:
            return rle_area(row["rle"], where)
        if "box" in row:
            return size, int(box_mask(row["box"], size, where).sum())
        numbers = self._map(str(row["mask"]))
        if numbers.ndim != 2:
            raise DataError(f"the mask of {where} has colours; expected numbers of instances")
        instance = row.get("instance")
        kept = numbers > 0 if instance is None else numbers == instance
        return (numbers.shape[0], numbers.shape[1]), int(np.count_nonzero(kept))

    def _map(self, path: str) -> NDArray[Any]:
        """Return a map of instances; regions of one picture follow each other and share it."""
        if self.map[0] != path:
            try:
                self.map = path, read_map(self.file.parent / path, path)
            except DataError as error:
                self.map = path, str(error)
        found = self.map[1]
        if isinstance(found, str):
            raise DataError(found)
        return found
