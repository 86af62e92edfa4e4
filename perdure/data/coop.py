"""The small data sets of few-shot tuning, in CoOp's layouts. Imports no torch.

Source: Zhou et al. 2022 (CoOp), arXiv 2109.01134, section 4.1, and the read-me of its public data.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .catalog import Catalog, find_folder
from .folders import as_paths
from .tables import read_lines

_FEW = re.compile(r"shot_(\d+)-seed_(\d+)(/val)?")


@dataclass(frozen=True)
class CoopSet:
    """Where one data set lies below the root, and what it holds."""

    folder: str
    images: str
    """Folder that the paths of the lists are relative to; "" for the data set's own"""
    lists: str | None
    """File of the division; None for FGVC's own lists"""
    classes: int
    counts: tuple[int, int, int]
    """Pictures of train, val and test; source: CoOp's table of data sets"""


SETS: dict[str, CoopSet] = {
    "caltech101": CoopSet(
        "caltech-101", "101_ObjectCategories", "Caltech101", 100, (4128, 1649, 2465)
    ),
    "oxford_pets": CoopSet("oxford_pets", "images", "OxfordPets", 37, (2944, 736, 3669)),
    "stanford_cars": CoopSet("stanford_cars", "", "StanfordCars", 196, (6509, 1635, 8041)),
    "oxford_flowers": CoopSet("oxford_flowers", "jpg", "OxfordFlowers", 102, (4093, 1633, 2463)),
    "food101": CoopSet("food-101", "images", "Food101", 101, (50500, 20200, 30300)),
    "fgvc_aircraft": CoopSet("fgvc_aircraft", "images", None, 100, (3334, 3333, 3333)),
    "sun397": CoopSet("sun397", "SUN397", "SUN397", 397, (15880, 3970, 19850)),
    "dtd": CoopSet("dtd", "images", "DescribableTextures", 47, (2820, 1128, 1692)),
    "eurosat": CoopSet("eurosat", "2750", "EuroSAT", 10, (13500, 5400, 8100)),
    "ucf101": CoopSet("ucf101", "UCF-101-midframes", "UCF101", 101, (7639, 1898, 3783)),
}
"""Ten of the eleven by their names in CoOp's configurations; the eleventh is ImageNet"""

_SPLITS = ("train", "val", "test")


class Datum:
    """What the pickles of few-shot subsets hold: plain attributes, no code of their library."""


class _Restricted(pickle.Unpickler):
    """Builds plain containers and `Datum`, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "Datum" and module.split(".")[0] == "dassl":
            return Datum
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def find_coop(name: str, split: str, root: Path) -> Catalog:
    """Find a split of one of `SETS`: train, val, test, or "shot_16-seed_1" of an old pickle.

    "shot_16-seed_1/val" is the pickle's validation part.

    Raises:
        DataError: If it is not below `root`, or its lists are malformed.
    """
    about = SETS[name]
    few = _FEW.fullmatch(split)
    if split not in _SPLITS and not few:
        raise DataError(
            f"{name} has no split {split!r}. Allowed: {', '.join(_SPLITS)}, or shot_16-seed_1 (and "
            "shot_16-seed_1/val) for a subset that CoOp's code has stored."
        )
    base = find_folder(name, root, about.folder, name)
    source = find_folder(f"{name}'s pictures", base, about.images)
    if few:
        rows = _read_pickle(base / "split_fewshot", few, base / about.images)
    elif about.lists is None:
        rows = _read_aircraft(base, split)
    else:
        rows = _read_json(base / f"split_zhou_{about.lists}.json", split)
    return Catalog(
        name=name,
        split=split,
        root=source,
        paths=as_paths([path for path, _, _ in rows]),
        labels=np.array([label for _, label, _ in rows], dtype=np.int64),
        classes=_names(name, base, rows if few or about.lists is None else None, about, split),
        expected=None if few else about.counts[_SPLITS.index(split)],
    )


Rows = Sequence[tuple[str, int, str]]
"""Path, label, class name"""


def _names(name: str, base: Path, rows: Rows | None, about: CoopSet, split: str) -> tuple[str, ...]:
    """Return the names of labels 0, 1, ..., from the training list, which has all of them."""
    if about.lists is not None:
        rows = _read_json(base / f"split_zhou_{about.lists}.json", "train")
    elif rows is not None and split != "train":
        rows = _read_aircraft(base, "train")
    found: dict[int, str] = {}
    for path, label, text in rows or ():
        if found.setdefault(label, text) != text:
            raise DataError(
                f"{name}: label {label} is {found[label]!r} and, at {path}, {text!r}. The lists "
                "are damaged; download them again."
            )
    if sorted(found) != list(range(len(found))):
        gap = next(label for label in range(len(found) + 1) if label not in found)
        raise DataError(
            f"{name}: no training picture has label {gap}, but others have up to {max(found)}. "
            "The lists are cut off; download them again."
        )
    texts = tuple(found[label].replace("_", " ") for label in range(len(found)))
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise DataError(f"{name}: two classes are called {twice[0]!r}; mend the lists.")
    return texts


def _read_json(file: Path, split: str) -> Rows:
    try:
        found = json.loads(read_lines(file))
        rows = [(str(path), int(label), str(name)) for path, label, name in found[split]]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            f"{file} is not a division as CoOp publishes it ({type(error).__name__}: {error}); "
            'expected {"train": [[path, label, class name], ...], "val": ..., "test": ...}. '
            "Download it again."
        ) from None
    if not rows:
        raise DataError(f"{file} has no picture in {split}; download it again.")
    return rows


def _read_aircraft(base: Path, split: str) -> Rows:
    lines = (line.strip() for line in read_lines(base / "variants.txt").split("\n"))
    variants = [line for line in lines if line]
    places = {name: label for label, name in enumerate(variants)}
    if len(places) < len(variants):
        twice = next(name for name in variants if variants.count(name) > 1)
        raise DataError(f"{base / 'variants.txt'} names {twice!r} twice; download it again.")
    file = base / f"images_variant_{split}.txt"
    rows = []
    for number, line in enumerate(read_lines(file).split("\n"), start=1):
        picture, _, name = line.strip().partition(" ")
        if not picture:
            continue
        if name not in places:
            raise DataError(
                f"{file}, line {number}: {name!r} is no line of {base / 'variants.txt'}; every "
                "line is a picture's number, a space and a variant."
            )
        rows.append((f"{picture}.jpg", places[name], name))
    if not rows:
        raise DataError(f"{file} is empty; download the data set again.")
    return rows


def _read_pickle(folder: Path, asked: re.Match[str], images: Path) -> Rows:
    """Return a stored few-shot subset; its paths are those of another machine."""
    file = folder / f"shot_{asked[1]}-seed_{asked[2]}.pkl"
    try:
        stored = _Restricted(io.BytesIO(file.read_bytes())).load()
        part = [vars(datum) for datum in stored["val" if asked[3] else "train"]]
        rows = [(str(d["_impath"]), int(d["_label"]), str(d["_classname"])) for d in part]
    except OSError as error:
        raise DataError(
            f"cannot read {file} ({error.strerror}); name a subset that is there, or draw the same "
            "one with data.sampling=coop."
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        raise DataError(
            f"{file} is not a few-shot subset of CoOp's code ({error}); nothing of it was run. "
            "Draw the same subset with data.sampling=coop."
        ) from None
    return [(_below(path, images), label, name) for path, label, name in rows]


def _below(path: str, images: Path) -> str:
    """Return the longest end of a foreign path that exists below the folder of pictures."""
    parts = path.replace("\\", "/").split("/")
    for start in range(len(parts)):
        if (images / "/".join(parts[start:])).is_file() and ".." not in parts[start:]:
            return "/".join(parts[start:])
    return parts[-1]
