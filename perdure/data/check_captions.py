"""Look at captions: pictures that have none, too few or empty ones. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .catalog import Catalog
from .findings import Findings
from .folders import PICTURES
from .sentences import PER_IMAGE
from .uses import SEARCHED


def look_at_captions(catalogs: Sequence[Catalog], found: Findings) -> None:
    """Add what is wrong with the captions of the splits of one data set; nothing of labels."""
    for catalog in catalogs:
        if catalog.captioned and catalog.texts is not None:
            _of_split(catalog, catalog.texts, found)
    whole = bool(catalogs) and catalogs[0].name in SEARCHED and catalogs[0].read is None
    if whole and {one.split for one in catalogs} >= {"train", "val", "test"}:
        bare = _strangers(catalogs)
        where = catalogs[0].name
        found.remark(where, bare, f"pictures below {catalogs[0].root} have no caption in any split")


def _of_split(catalog: Catalog, texts: NDArray[np.int64], found: Findings) -> None:
    where, published = f"{catalog.name}, {catalog.split}", catalog.name in SEARCHED
    found.fault(where, catalog.silent, "pictures have no caption")
    empty = [row for row, text in enumerate(texts) if not catalog.classes[text].strip()]
    paths = sorted({os.fsdecode(catalog.paths[row]) for row in empty})
    found.fault(where, paths, "pictures have an empty caption")
    if catalog.read is not None:
        return
    names, each = np.unique(catalog.paths, return_counts=True)
    if published:
        few = [os.fsdecode(name) for name in names[each < PER_IMAGE]]
        many = [os.fsdecode(name) for name in names[each > PER_IMAGE]]
        said = f"pictures have fewer than {PER_IMAGE} captions"
        if catalog.split == "train":
            found.remark(where, few, said)
        else:
            found.fault(where, few, said)
        if catalog.name == "flickr30k":  # some of COCO's have six or seven
            found.remark(where, many, f"pictures have more than {PER_IMAGE} captions")
    elif each.min() < each.max():
        found.remarks.append(
            f"{where}: pictures have {each.min()} to {each.max()} captions, most "
            f"{np.bincount(each).argmax()}."
        )


def _strangers(catalogs: Sequence[Catalog]) -> list[str]:
    """Return pictures in the folders of the listed ones that no split lists."""
    known: set[bytes] = set()
    folders: set[Path] = set()
    for catalog in catalogs:
        for path in (*np.unique(catalog.paths), *catalog.silent):
            file = catalog.root / os.fsdecode(path)
            known.add(os.fsencode(file))
            folders.add(file.parent)
    return [
        str(file.relative_to(catalogs[0].root))
        for folder in sorted(folders)
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in PICTURES and os.fsencode(file) not in known
    ]
