"""Every split below a root as a catalog, whatever kind of data it is. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import PerdureError
from .catalog import Catalog, NotThereError
from .folders import as_paths
from .hf_datasets import HF, find_hf
from .layout import find_own
from .published import SPLITS, probe
from .shard_files import split_folders
from .shard_index import WDS, index_shards


class Survey(NamedTuple):
    """The splits of one data set, and what is wrong with those that are not among them."""

    catalogs: list[Catalog]
    faults: list[str]
    remarks: list[str]


def survey_published(name: str, root: Path) -> Survey:
    """Look for a published data set; a split that is half there is a fault."""
    found = Survey([], [], [])
    for split in SPLITS[name]:
        one = probe(name, split, root)
        if isinstance(one, Catalog):
            found.catalogs.append(one)
        elif not isinstance(one, NotThereError):
            found.faults.append(f"{name}, {split}: {one}")
        elif found.catalogs or found.faults:
            found.remarks.append(f"{name} has no {split}: {one}")
    return found


def survey_found(name: str, root: Path, *, needed: bool) -> Survey:
    """Look for data whose splits are whatever is found.

    Args:
        name: One of `FOUND`.
        root: Where they are looked for.
        needed: Whether it is a fault if there is nothing of the kind.
    """
    found = Survey([], [], [])
    try:
        found.catalogs.extend(FOUND[name](root))  # keeps those before one that is wrong
    except NotThereError as error:
        if needed:
            found.faults.append(f"{name}: {error}")
    except PerdureError as error:
        found.faults.append(f"{name}: {error}")
    return found


def _own(root: Path) -> Iterator[Catalog]:
    own = find_own(root)
    for split in own.splits:
        listing = own.listing(split)
        yield Catalog(
            name="own",
            split=split,
            root=own.beside,
            paths=as_paths([os.path.abspath(file) for file in listing.files.tolist()]),
            labels=listing.labels,
            classes=listing.classes,
            texts=listing.labels if listing.captioned else None,
        )


def _hf(root: Path) -> Iterator[Catalog]:
    folder = find_hf(root)
    for split in folder.splits:
        if folder.knows(split):
            listing = folder.listing(split)
            yield Catalog(
                name=HF,
                split=split,
                root=root,
                paths=as_paths([f"row {row}" for row in listing.rows.tolist()]),
                labels=listing.labels,
                classes=listing.classes,
                texts=listing.texts,
                read=listing.read,
            )


def _wds(root: Path) -> Iterator[Catalog]:
    for split in split_folders(root):
        index = index_shards(split, root)
        yield Catalog(
            name=WDS,
            split=split,
            root=root,
            # Other shards may have the same keys.
            paths=np.char.add(
                np.array([f"{one.name}/" for one in index.shards], np.bytes_)[index.places[:, 0]],
                index.keys,
            ),
            labels=index.labels,
            classes=index.classes,
            texts=index.labels if index.captioned and index.texts is None else index.texts,
            read=index.read,
        )


FOUND: dict[str, Callable[[Path], Iterator[Catalog]]] = {WDS: _wds, HF: _hf, "own": _own}
"""Data sets whose splits are whatever is found"""
