"""Look at data without training on them: what is there, what is missing, what is damaged. No torch.

Faults are errors: with them a number would be wrong, or training would stop half-way. Remarks are
what may be wrong, such as a count that nobody has proved.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import DataError, nearest
from . import check_pixels, check_questions, check_regions
from .catalog import Catalog
from .check_captions import look_at_captions
from .findings import (
    Findings,
    How,
    Part,
    Progress,
    Source,
    decodes,
    listed,
    named_twice,
    shared,
)
from .label_layouts import LAYOUTS, present
from .published import FINDERS
from .sentences import pictures_of
from .survey import FOUND, survey_found, survey_published
from .tables import TABLES
from .vqa import SETS

OTHERS: dict[str, Callable[[str, Path, How], Findings]] = {
    **dict.fromkeys(LAYOUTS, check_pixels.look_at_pixels),
    check_regions.REGIONS: check_regions.look_at_regions,
    **dict.fromkeys(SETS, check_questions.look_at_questions),
}
"""Data that are no pictures with labels or captions, and what looks at them"""


def check(
    root: Path,
    names: Iterable[str] | None = None,
    *,
    decode: bool = False,
    duplicates: bool = False,
    contents: bool = True,
    progress: Progress | None = None,
) -> Findings:
    """Look for published data sets and for a person's own data below a root.

    Args:
        root: Directory, or a table.
        names: Data sets that must be there; None for all that are found, own data included.
        decode: Also open every picture; takes about a minute per 100,000.
        duplicates: Also compare contents of training and test pictures.
        contents: Also read maps of labels and masks; without, only lists and headers.
        progress: Told about files that were looked at.

    Raises:
        DataError: If there is nothing at the root that perdure reads, or it may not be read.
    """
    require_root(root)
    try:
        return _checked(root, names, How(decode, contents, names is not None, progress), duplicates)
    except OSError as error:  # a folder somewhere below that may not be looked into
        raise DataError(
            f"cannot read {error.filename or root} ({error.strerror or error}); check its rights."
        ) from None


def require_root(root: Path) -> None:
    """Refuse a place that cannot hold data.

    Raises:
        DataError: If there is nothing, it may not be read, or it is a file of another kind.
    """
    if ".tar" in root.name:  # names shards, several at once perhaps
        return
    try:
        folder = stat.S_ISDIR(root.stat().st_mode)
        readable = os.access(root, os.R_OK | (os.X_OK if folder else 0))
        reason = "" if readable else "Permission denied"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise DataError(
            f"cannot read {root} ({reason}); name the directory or the table that holds your data, "
            "and check its rights."
        )
    if not folder and root.suffix.lower() not in (*TABLES, ".json"):
        raise DataError(
            f"{root} is no directory and no table that perdure reads; allowed endings: "
            f"{', '.join(TABLES)}, and .json of questions. For folders of pictures, name the "
            "directory."
        )


def _checked(root: Path, names: Iterable[str] | None, how: How, duplicates: bool) -> Findings:
    found = Findings(root)
    wanted = list(names) if names is not None else None
    _require_known(wanted or ())
    here = wanted if wanted is not None else [*FINDERS, *others_at(root), *FOUND]
    for name in here:
        if name in FOUND and wanted is None and (found.parts or found.faults):
            break  # a known data set is what lies there
        one = OTHERS[name](name, root, how) if name in OTHERS else _look(name, root, how)
        if wanted is not None and not one.parts and not one.faults:
            one.faults.append(f"{name}: nothing of it is below {root}.")
        found.parts += one.parts
        found.faults += one.faults
        found.remarks += one.remarks
    if duplicates:
        found.faults += _trained_on(found.parts, how.progress)
    if not found.parts and not found.faults:
        raise DataError(
            f"{root} holds no data set that perdure reads; docs/data.md lists every layout, and "
            "docs/own-data.md how pictures of your own may lie."
        )
    return found


def others_at(root: Path) -> list[str]:
    """Return the names of those `OTHERS` that lie below a root."""
    regions = [check_regions.REGIONS] if check_regions.is_there(root) else []
    return [*present(root), *regions, *check_questions.present(root)]


def _require_known(names: Iterable[str]) -> None:
    known = (*FINDERS, *OTHERS, *FOUND)
    for name in names:
        if name not in known:
            raise DataError(
                f"there is no published data set {name!r}. Known: {', '.join(known)}. "
                f"{nearest(name, known)}".rstrip()
            )


def _look(name: str, root: Path, how: How) -> Findings:
    """Look at pictures with labels or captions."""
    found = Findings(root)
    if name in FOUND:
        catalogs, found.faults, found.remarks = survey_found(name, root, needed=how.needed)
    else:
        catalogs, found.faults, found.remarks = survey_published(name, root)
    for catalog in catalogs:
        found.parts.append(_part(catalog, found, how))
    look_at_captions(catalogs, found)
    return found


def _part(catalog: Catalog, found: Findings, how: How) -> Part:
    where = f"{catalog.name}, {catalog.split}"
    part = Part(
        catalog.name,
        catalog.split,
        len(catalog),
        pictures_of(catalog),
        len(catalog.classes),
        catalog.expected,
        catalog=catalog,
    )
    for relative, source in _sources(catalog):
        if isinstance(source, Path) and not source.is_file():
            part.missing.append(relative)
        elif how.decode and not decodes(source):
            part.damaged.append(relative)
        how.seen()
    found.fault(where, part.missing, "files are not there")
    found.fault(where, part.damaged, "files are damaged")
    found.counted(part, catalog.proved)
    if not catalog.captioned:
        part.empty_classes = len(catalog.classes) - len(np.unique(catalog.labels))
        if part.empty_classes:
            found.remarks.append(f"{where}: {part.empty_classes} classes have no picture.")
        found.remarks += named_twice(where, catalog.classes)
    return part


def _sources(catalog: Catalog) -> Iterator[tuple[str, Source]]:
    """Yield name and content of every different picture once, in order."""
    seen: set[bytes] = set()
    for row, path in enumerate(catalog.paths.tolist()):
        if path not in seen:
            seen.add(path)
            name = path.decode("utf-8", "surrogateescape")
            read = catalog.read
            yield name, catalog.file(row) if read is None else partial(read, row)


def _pictures(part: Part) -> Iterator[tuple[str, Source]]:
    if part.catalog is not None:
        yield from _sources(part.catalog)
    yield from ((file.name, file) for file in part.files)


def _trained_on(parts: list[Part], progress: Progress | None) -> list[str]:
    """Return a fault for every split that holds pictures of a training split, byte by byte."""
    faults = []
    for train in parts:
        for part in parts:
            # Regions are trained on and labelled pixels are their test, whatever they are called.
            tested = train.name == check_regions.REGIONS and part.name in LAYOUTS
            if train.split == "train" and part is not train and (part.name == train.name or tested):
                pairs = list(shared(_pictures(train), _pictures(part), progress))
                other = part.name if tested else part.split
                if pairs:
                    said = f"pictures are in train and in {other}"
                    faults.append(listed(train.name, pairs, said))
    return faults


def statistics(part: Part) -> dict[str, float | int]:
    """Return numbers about a split: pictures, classes, pictures of the smallest and largest class.

    Of captions the same per picture, and characters instead of classes; of labelled pixels, regions
    and questions what is counted while they are looked at.
    """
    catalog = part.catalog
    if catalog is None:
        return part.numbers
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
