"""iWildCam and FMoW, from the metadata that WILDS wrote. Imports no torch.

Source: Koh et al. 2021, arXiv 2012.07421, sections 4.1 and 4.6, and its public code for the years
and regions of FMoW.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import DataError
from .catalog import Catalog, find_folder, require_split
from .class_names import read_list
from .folders import as_paths
from .tables import read_lines

SPLITS = ("train", "id_val", "id_test", "val", "test")
"""WILDS' names: `val` and `test` are shifted"""

_IWILDCAM = dict(zip(SPLITS, (129_809, 7_314, 8_154, 14_961, 42_791), strict=True))
_FMOW = dict(zip(SPLITS, (76_863, 11_483, 11_327, 19_915, 22_108), strict=True))
_IWILDCAM_PLACES = ("iwildcam_v2.0", "iwildcam", "")
_FMOW_PLACES = ("fmow_v1.1", "fmow", "")
_VAL_YEAR, _TEST_YEAR = 2013, 2016
_REGIONS = ("Africa", "Americas", "Asia", "Europe", "Oceania")


def find_iwildcam(split: str, root: Path) -> Catalog:
    """Find a split of iWildCam; all its pictures are in `train/`.

    Names are those of a `classes.txt` beside the metadata, one per label; else the English ones of
    a `labels.csv` there, as WiSE-FT's code has it (columns y and english); else those of
    `categories.csv`. Some stand twice, as "unknown bird".
    """
    require_split("iwildcam", split, SPLITS)
    base = find_folder("iwildcam", root, *_IWILDCAM_PLACES, markers=("categories.csv",))
    rows = _records(base / "metadata.csv", ("split", "filename", "y"))
    kept = [row for row in rows if row["split"] == split]
    names = _iwildcam_names(base)
    labels = [_number(base / "metadata.csv", row, "y", len(names)) for row in kept]
    _require_rows(base / "metadata.csv", split, kept)
    return Catalog(
        name="iwildcam",
        split=split,
        root=find_folder("iwildcam's pictures", base, "train"),
        paths=as_paths([row["filename"] for row in kept]),
        labels=np.array(labels, dtype=np.int64),
        classes=names,
        expected=_IWILDCAM[split],
        proved=split == "train",
    )


def find_fmow(split: str, root: Path) -> Catalog:
    """Find a split of FMoW: shifted are pictures of 2013 to 2015 (`val`) and later ones (`test`).

    Groups are regions of the world; pictures of none of the five belong to no group.
    """
    require_split("fmow", split, SPLITS)
    base = find_folder("fmow", root, *_FMOW_PLACES, markers=("rgb_metadata.csv",))
    file = base / "rgb_metadata.csv"
    rows = _records(file, ("split", "category", "timestamp", "country_code"))
    region_of = {
        row["alpha-3"]: row["region"]
        for row in _records(base / "country_code_mapping.csv", ("alpha-3", "region"))
    }
    names = sorted({row["category"] for row in rows if row["category"]})
    place = {name: label for label, name in enumerate(names)}
    paths, labels, groups = [], [], []
    for number, row in enumerate(rows):
        if row["split"] == "seq" or _fmow_split(file, row) != split:
            continue
        # The number counts the left-out sequences as well; counting the kept rows would shift it.
        paths.append(f"rgb_img_{number}.png")
        labels.append(place[row["category"]])
        region = region_of.get(row["country_code"], "")
        groups.append(_REGIONS.index(region) if region in _REGIONS else -1)
    _require_rows(file, split, paths)
    return Catalog(
        name="fmow",
        split=split,
        root=find_folder("fmow's pictures", base, "images"),
        paths=as_paths(paths),
        labels=np.array(labels, dtype=np.int64),
        classes=tuple(name.replace("_", " ") for name in names),
        groups=np.array(groups, dtype=np.int64),
        group_names=_REGIONS,
        expected=_FMOW[split],
    )


def _fmow_split(file: Path, row: Mapping[str, str]) -> str | None:
    """Return WILDS' split of a row of FMoW; None for those that it leaves out."""
    year = row["timestamp"][:4]
    if not year.isdecimal():
        raise DataError(
            f"{file}, line {row['']}: timestamp {row['timestamp']!r} starts with no year."
        )
    own = row["split"]
    if int(year) >= _TEST_YEAR:
        return "test" if own == "test" else None
    if int(year) >= _VAL_YEAR:
        return "val" if own == "val" else None
    return {"train": "train", "val": "id_val", "test": "id_test"}.get(own)


def _iwildcam_names(base: Path) -> tuple[str, ...]:
    if (base / "classes.txt").is_file():
        return read_list(base / "classes.txt", "classes", repeated=True)
    english = base / "labels.csv"
    file, column = (english, "english") if english.is_file() else (base / "categories.csv", "name")
    found: dict[int, str] = {}
    for row in _records(file, ("y", column)):
        label = int(row["y"]) if row["y"].isdecimal() else -1
        if 0 <= label < 99_999:  # WILDS marks unused categories with this number
            found[label] = row[column]
    if sorted(found) != list(range(len(found))) or not found:
        raise DataError(
            f"{file} does not name the labels 0 to {max(found, default=0)} without a gap; download "
            "it again."
        )
    return tuple(found[label] for label in range(len(found)))


def _records(file: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of a comma-separated file by column; "" is the number of their line."""
    reader = csv.DictReader(io.StringIO(read_lines(file)))
    header = reader.fieldnames or []
    missing = [name for name in needed if name not in header]
    if missing:
        separated = " Is it separated by something else than commas?" if len(header) < 2 else ""
        raise DataError(
            f"{file} has no column {missing[0]!r}; its columns are {', '.join(header)[:200]}."
            f"{separated} Download the metadata again."
        )
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{file}, line {reader.line_num}: it has not the {len(header)} values of the "
                    "header; the file is cut off or damaged."
                )
            rows.append({**{name: row[name] for name in needed}, "": str(reader.line_num)})
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}; the file is damaged.") from None
    return rows


def _number(file: Path, row: Mapping[str, str], column: str, count: int) -> int:
    text = row[column]
    if not text.isdecimal() or int(text) >= count:
        raise DataError(
            f"{file}, line {row['']}: {column} is {text!r}; labels are 0 to {count - 1}."
        )
    return int(text)


def _require_rows(file: Path, split: str, rows: object) -> None:
    if not rows:
        raise DataError(f"{file} has no row of split {split!r}; download the metadata again.")
