"""Look at test sets whose pixels have labels, and at the masks proposed for them. No torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .catalog import NotThereError
from .findings import Findings, How, Part, decodes, named_twice, upright_size
from .label_layouts import LAYOUTS, MAPS, Located, locate, names_of, proposals_of
from .labelled import as_labels
from .masks import read_map
from .proposals import ENDINGS, SETTINGS, glance, read_fusion, read_proposals, require_size
from .results import LISTS, RESULTS, Results, find_results, open_results
from .segmented import UNKNOWN, Fusion

Sizes = dict[str, tuple[int, int]]
"""Name of an image, without its ending, to its height and width"""


def look_at_pixels(name: str, root: Path, how: How) -> Findings:
    """Look at one test set.

    Args:
        name: One of `LAYOUTS`.
        root: Directory below which it and its proposals lie.
        how: How closely.
    """
    found = Findings(root)
    try:
        located = locate(name, root)
    except NotThereError:
        return found
    except DataError as error:
        found.faults.append(f"{name}: {error}")
        return found
    where, layout = f"{name}, test", LAYOUTS[name]
    try:
        classes = names_of(name, located.folder)
        found.remarks += named_twice(where, classes)
    except DataError as error:
        found.faults.append(f"{where}: {error}")
    stems = list(dict.fromkeys(located.stems))
    part = Part(name, "test", len(located.stems), len(stems), layout.classes, layout.expected)
    found.parts.append(part)
    found.counted(part)
    twice = [stem for stem, count in Counter(located.stems).items() if count > 1]
    found.fault(where, twice, "images are listed twice")
    if layout.listing is None:
        bare = sorted({file.stem for file in _files(located.images)} - set(stems))
        found.fault(where, bare, f"images have no map of labels in {located.maps}")
    if how.contents:
        sizes = _maps(located, stems, found, part, how)
        _proposals(located, stems, sizes, found, how)
    return found


def _maps(located: Located, stems: list[str], found: Findings, part: Part, how: How) -> Sizes:
    """Look at every image and its map; return the sizes of those that fit together."""
    where, layout = f"{part.name}, {part.split}", LAYOUTS[located.name]
    sizes: Sizes = {}
    other: list[str] = []
    coloured: list[str] = []
    outside: list[str] = []
    blank: list[str] = []
    files: list[Path] = []
    pixels = np.zeros(layout.classes, dtype=np.int64)
    all_pixels, kinds = 0, 0
    for stem in stems:
        how.seen()
        image, file = located.image(stem), located.map(stem)
        if image is None:
            part.missing.append(f"{layout.images}/{stem}.jpg")
        if file is None:
            part.missing.append(f"{located.maps.relative_to(located.folder)}/{stem}{MAPS[0]}")
        if image is None or file is None:
            continue
        files.append(image)
        size = upright_size(image)
        if size is None or (how.decode and not decodes(image)):
            part.damaged.append(str(image.relative_to(located.folder)))
            continue
        try:
            numbers = read_map(file, str(file))
        except DataError:
            part.damaged.append(str(file.relative_to(located.folder)))
            continue
        if numbers.ndim != 2:
            coloured.append(stem)
            continue
        if numbers.shape != size:
            shown = f"{numbers.shape[0]} x {numbers.shape[1]}, image {size[0]} x {size[1]}"
            other.append(f"{stem} ({shown})")
            continue
        sizes[stem] = size
        labels = as_labels(numbers, located.above, layout.void)
        if labels.max() >= layout.classes:
            outside.append(f"{stem} (label {labels.max()})")
            continue
        known = labels[labels != UNKNOWN]
        if not len(known):
            blank.append(stem)
        each = np.bincount(known, minlength=layout.classes)
        pixels += each
        all_pixels += labels.size
        kinds += int((each > 0).sum())
    found.fault(where, part.missing, "files are not there")
    found.fault(where, part.damaged, "files are damaged")
    found.fault(where, coloured, "maps have colours; expected one number of a label per pixel")
    found.fault(where, other, "maps have another size than their image")
    allowed = f"labels above those of the {layout.classes} classes (0 to {layout.classes - 1})"
    found.fault(where, outside, f"maps hold {allowed}")
    found.remark(where, blank, "maps label no pixel at all")
    part.files = files
    part.empty_classes = int((pixels == 0).sum())
    if part.empty_classes:
        found.remarks.append(f"{where}: {part.empty_classes} classes occur in no image.")
    part.numbers = _numbers(part, pixels, all_pixels, kinds)
    return sizes


def _numbers(
    part: Part, pixels: NDArray[np.int64], all_pixels: int, kinds: int
) -> dict[str, float | int]:
    return {
        "pictures": part.pictures,
        "classes": part.classes or 0,
        "classes_seen": int((pixels > 0).sum()),
        "classes_per_picture_mean": kinds / max(1, part.pictures),
        "pixels_labelled": float(pixels.sum() / max(1, all_pixels)),
        "pixels_of_largest_class": float(pixels.max() / max(1, pixels.sum())),
    }


def _proposals(located: Located, stems: list[str], sizes: Sizes, found: Findings, how: How) -> None:
    """Look at the masks that were proposed for the images."""
    where, layout = f"{located.name}, test", LAYOUTS[located.name]
    try:
        folder = proposals_of(located.name, found.root)
    except NotThereError as error:
        (found.faults if how.needed else found.remarks).append(f"{where}: {error}")
        return
    try:
        read_fusion(folder, Fusion())
    except DataError as error:
        found.faults.append(f"{where}: {error}")
    there: dict[str, Path] = {}
    for ending in reversed(ENDINGS):  # of two the first ending counts
        there.update((one.stem, one) for one in _files(folder) if one.suffix == ending)
    results = None
    if whole := find_results(folder, located.name):
        there.pop(whole.stem, None)
        how.seen()
        try:
            results = open_results(whole, stems)
        except DataError as error:
            found.faults.append(f"{where}: {error}")
            return
    known = set(there) | set(results.places if results is not None else ())
    absent = [stem for stem in stems if stem not in known]
    found.fault(where, absent, f"images have no proposals in {whole or folder}")
    empty: list[str] = []
    wrong: list[str] = []
    reason = ""
    for stem in stems:
        if stem not in known:
            continue
        how.seen()
        name = there[stem].name if stem in there else stem
        try:
            number = _masks(there.get(stem), results, stem, sizes.get(stem), layout.classes, how)
        except DataError as error:
            reason = reason or str(error)
            wrong.append(name)
            continue
        if not number:
            empty.append(name)
    if wrong:
        found.fault(where, wrong, "images have proposals that cannot be used")
        found.faults[-1] += f" The first: {reason}"
    found.remark(where, empty, "images have been given no mask")
    # Other sets may share a folder that bears no set's name.
    if folder.name == located.name:
        orphans = sorted(set(there) - set(stems))
        found.remark(where, orphans, f"files in {folder} are proposals for no image of the set")


def _masks(
    file: Path | None,
    results: Results | None,
    stem: str,
    size: tuple[int, int] | None,
    classes: int,
    how: How,
) -> int:
    """Return how many masks an image has.

    Raises:
        DataError: If they are damaged or of another size.
    """
    if file is not None:
        number, found, whole = glance(file)
    else:
        assert results is not None
        number, found, whole = results.glance(stem)
    if number and size is not None:
        require_size(file or f"{stem}", found, whole, size)
        if how.decode and file is not None:
            read_proposals(file, size, classes)
        elif how.decode and results is not None:
            results.read(stem, size)
    return number


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    others = (SETTINGS, *RESULTS)
    return [
        one
        for one in folder.iterdir()
        if one.is_file() and one.name not in others and not one.match(LISTS)
    ]
