"""Look at data without training on them: what is there, what is missing, what is damaged. No torch.

Faults are errors: with them a number would be wrong, or training would stop half-way. Remarks are
what may be wrong, such as a count that nobody has proved.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..errors import DataError
from .catalog import Catalog
from .published import FINDERS, require_known
from .sentences import pictures_of
from .survey import FOUND, survey_found, survey_published

_LISTED = 5
"""Files that a fault names"""

_HASHED = 1 << 20

Progress = Callable[[int], None]
"""Called with the number of files looked at since the last call"""


@dataclass
class Part:
    """What was found of one split."""

    name: str
    split: str
    rows: int
    """Pictures, or captions"""
    pictures: int
    classes: int
    expected: int | None
    missing: list[str] = field(default_factory=list)
    """Relative paths of listed files that are not there"""
    damaged: list[str] = field(default_factory=list)
    """Relative paths of files that no decoder reads"""
    empty_classes: int = 0
    catalog: Catalog | None = field(default=None, repr=False)


@dataclass
class Findings:
    """Everything that is said of a root."""

    root: Path
    parts: list[Part] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def check(
    root: Path,
    names: Iterable[str] | None = None,
    *,
    decode: bool = False,
    duplicates: bool = False,
    progress: Progress | None = None,
) -> Findings:
    """Look for published data sets and for a person's own data below a root.

    Args:
        root: Directory, or a table.
        names: Data sets that must be there; None for all that are found, own data included.
        decode: Also open every picture; takes about a minute per 100,000.
        duplicates: Also compare contents of training and test pictures.
        progress: Told about files that were looked at.

    Raises:
        DataError: If there is nothing at the root that perdure reads.
    """
    found = Findings(root)
    wanted = list(names) if names is not None else None
    for name in wanted or ():
        if name not in FOUND:
            require_known(name)
    for name in wanted if wanted is not None else (*FINDERS, *FOUND):
        if name in FOUND:
            if wanted is None and (found.parts or found.faults):
                break  # a known data set is what lies there
            catalogs, faults, remarks = survey_found(name, root, needed=wanted is not None)
        else:
            catalogs, faults, remarks = survey_published(name, root)
        found.faults += faults
        found.remarks += remarks
        if not catalogs and not faults and wanted is not None:
            found.faults.append(f"{name}: nothing of it is below {root}.")
        for catalog in catalogs:
            found.parts.append(_look(catalog, found, decode=decode, progress=progress))
        if duplicates:
            found.faults += _shared(name, catalogs, progress)
    if not found.parts and not found.faults:
        raise DataError(
            f"{root} holds no data set that perdure reads; docs/data.md lists every layout, and "
            "docs/own-data.md how pictures of your own may lie."
        )
    return found


def _look(catalog: Catalog, found: Findings, *, decode: bool, progress: Progress | None) -> Part:
    where = f"{catalog.name}, {catalog.split}"
    pictures = pictures_of(catalog)
    part = Part(
        catalog.name,
        catalog.split,
        len(catalog),
        pictures,
        len(catalog.classes),
        catalog.expected,
        catalog=catalog,
    )
    for relative, row in _different(catalog):
        if catalog.read is None and not catalog.file(row).is_file():
            part.missing.append(relative)
        elif decode and not _decodes(catalog, row):
            part.damaged.append(relative)
        if progress is not None:
            progress(1)
    if part.missing:
        found.faults.append(_listed(where, part.missing, "files are not there"))
    if part.damaged:
        found.faults.append(_listed(where, part.damaged, "files are damaged"))
    if catalog.expected is not None and pictures != catalog.expected:
        known = "has" if catalog.proved else "is said to have"
        said = f"{where}: {pictures:,} pictures, but a whole copy {known} {catalog.expected:,}."
        (found.faults if catalog.proved else found.remarks).append(said)
    if not catalog.captioned:
        part.empty_classes = len(catalog.classes) - len(np.unique(catalog.labels))
        if part.empty_classes:
            found.remarks.append(f"{where}: {part.empty_classes} classes have no picture.")
        names = catalog.classes
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            found.remarks.append(
                f"{where}: two classes each are called {', '.join(twice)}; positives are found by "
                "label, so nothing is mixed up, but no prompt tells them apart."
            )
    return part


def _different(catalog: Catalog) -> Iterator[tuple[str, int]]:
    """Yield name and row of every different picture once, in order."""
    seen: set[bytes] = set()
    for row, path in enumerate(catalog.paths.tolist()):
        if path not in seen:
            seen.add(path)
            yield path.decode("utf-8", "surrogateescape"), row


def _open(catalog: Catalog, row: int) -> BinaryIO:
    """Open a picture's content, wherever it is."""
    return catalog.file(row).open("rb") if catalog.read is None else io.BytesIO(catalog.read(row))


def _size(catalog: Catalog, row: int) -> int:
    """Return a picture's length in bytes, -1 if it is not there."""
    try:
        if catalog.read is None:
            return catalog.file(row).stat().st_size
        return len(catalog.read(row))
    except (OSError, DataError):
        return -1


def _decodes(catalog: Catalog, row: int) -> bool:
    try:
        with _open(catalog, row) as stream, Image.open(stream) as picture:
            picture.load()
    except Exception:  # pillow's decoders raise whatever they meet
        return False
    return True


def _shared(name: str, catalogs: list[Catalog], progress: Progress | None) -> list[str]:
    """Return a fault for every split that holds pictures of the training split, byte by byte."""
    train = next((one for one in catalogs if one.split == "train"), None)
    if train is None:
        return []
    faults = []
    # Files of equal content have equal sizes, so most need not be read.
    sizes: dict[int, list[tuple[str, int]]] = {}
    for relative, row in _different(train):
        sizes.setdefault(_size(train, row), []).append((relative, row))
    sizes.pop(-1, None)
    hashes: dict[int, dict[bytes, str]] = {}
    for catalog in catalogs:
        if catalog is train:
            continue
        pairs = []
        for relative, row in _different(catalog):
            if progress is not None:
                progress(1)
            size = _size(catalog, row)
            if size not in sizes:
                continue
            if size not in hashes:
                hashes[size] = {_digest(train, one): name for name, one in sizes[size]}
            same = hashes[size].get(_digest(catalog, row))
            if same is not None:
                pairs.append(f"{relative} = {same}")
        if pairs:
            said = f"pictures are in train and in {catalog.split}"
            faults.append(_listed(f"{name}", pairs, said))
    return faults


def _digest(catalog: Catalog, row: int) -> bytes:
    digest = hashlib.sha256()
    with _open(catalog, row) as stream:
        while block := stream.read(_HASHED):
            digest.update(block)
    return digest.digest()


def _listed(where: str, files: list[str], what: str) -> str:
    more = ", ..." if len(files) > _LISTED else ""
    return f"{where}: {len(files):,} {what}: {', '.join(files[:_LISTED])}{more}."


def statistics(catalog: Catalog) -> dict[str, float | int]:
    """Return numbers about a split: pictures, classes, pictures of the smallest and largest class.

    Of captions the same per picture, and characters instead of classes.
    """
    if catalog.captioned:
        each = np.unique(catalog.paths, return_counts=True)[1]
        lengths = [len(text) for text in catalog.classes]
        return {
            "captions": len(catalog),
            "pictures": pictures_of(catalog),
            "captions_min": int(each.min()),
            "captions_max": int(each.max()),
            "characters_mean": float(np.mean(lengths)),
            "characters_max": int(max(lengths)),
        }
    each = np.bincount(catalog.labels, minlength=len(catalog.classes))
    share = each[each > 0] / each.sum()
    return {
        "pictures": len(catalog),
        "classes": len(catalog.classes),
        "pictures_min": int(each.min()),
        "pictures_median": float(np.median(each)),
        "pictures_max": int(each.max()),
        # As many equally large classes would be as hard to guess.
        "classes_effective": float(np.exp(-(share * np.log(share)).sum())),
    }
