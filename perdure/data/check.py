"""Look at data without training on them: what is there, what is missing, what is damaged. No torch.

Faults are errors: with them a number would be wrong, or training would stop half-way. Remarks are
what may be wrong, such as a count that nobody has proved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError
from .catalog import Catalog, NotThereError, as_paths
from .layout import find_own
from .published import FINDERS, SPLITS, probe, require_known
from .sentences import pictures_of

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
        if name != "own":
            require_known(name)
    for name in wanted if wanted is not None else (*FINDERS, "own"):
        before = len(found.faults)
        catalogs = _own(root, found, wanted) if name == "own" else _published(name, root, found)
        if not catalogs and wanted is not None and len(found.faults) == before:
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


def _published(name: str, root: Path, found: Findings) -> list[Catalog]:
    """Return the splits that are there; a split that is half there is a fault."""
    catalogs, errors = [], []
    for split in SPLITS[name]:
        one = probe(name, split, root)
        if isinstance(one, Catalog):
            catalogs.append(one)
        elif not isinstance(one, NotThereError):
            errors.append(f"{name}, {split}: {one}")
        elif catalogs or errors:
            found.remarks.append(f"{name} has no {split}: {one}")
    found.faults += errors
    return catalogs


def _own(root: Path, found: Findings, wanted: list[str] | None) -> list[Catalog]:
    """Return a person's own splits as catalogs, unless published data sets are what lies there."""
    if wanted is None and (found.parts or found.faults):
        return []
    catalogs = []
    try:
        own = find_own(root)
        for split in own.splits:
            listing = own.listing(split)
            catalogs.append(
                Catalog(
                    name="own",
                    split=split,
                    root=own.beside,
                    paths=as_paths([str(file.absolute()) for file in listing.files]),
                    labels=np.array(listing.labels, dtype=np.int64),
                    classes=listing.classes,
                    texts=np.array(listing.labels) if listing.captioned else None,
                )
            )
    except DataError as error:
        found.faults.append(f"own: {error}")
    return catalogs


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
    for relative, file in _files(catalog):
        if not file.is_file():
            part.missing.append(relative)
        elif decode and not _decodes(file):
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


def _files(catalog: Catalog) -> Iterator[tuple[str, Path]]:
    """Yield every different file once, in order."""
    seen: set[bytes] = set()
    for index, path in enumerate(catalog.paths.tolist()):
        if path not in seen:
            seen.add(path)
            yield path.decode("utf-8", "surrogateescape"), catalog.file(index)


def _decodes(file: Path) -> bool:
    try:
        with Image.open(file) as picture:
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
    sizes: dict[int, list[tuple[str, Path]]] = {}
    for relative, file in _files(train):
        if file.is_file():
            sizes.setdefault(file.stat().st_size, []).append((relative, file))
    hashes: dict[int, dict[bytes, str]] = {}
    for catalog in catalogs:
        if catalog is train:
            continue
        pairs = []
        for relative, file in _files(catalog):
            if progress is not None:
                progress(1)
            size = file.stat().st_size if file.is_file() else -1
            if size not in sizes:
                continue
            if size not in hashes:
                hashes[size] = {_digest(one): name for name, one in sizes[size]}
            same = hashes[size].get(_digest(file))
            if same is not None:
                pairs.append(f"{relative} = {same}")
        if pairs:
            said = f"pictures are in train and in {catalog.split}"
            faults.append(_listed(f"{name}", pairs, said))
    return faults


def _digest(file: Path) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
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
        each = np.bincount(catalog.labels)
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
