"""Where the five open-vocabulary test sets whose pixels have labels lie, in detectron2's layout.

Proposals lie below the same root, `proposals/NAME/` or `proposals/`. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from ..errors import DataError
from .catalog import NotThereError, find_folder
from .class_names import read_list
from .tables import read_lines

IMAGES = (".jpg", ".jpeg", ".png", ".JPG")
MAPS = (".png", ".tif", ".tiff")


class Layout(NamedTuple):
    """Where a data set's files are, below the root."""

    folders: tuple[str, ...]
    """The data set's own, first that exists"""
    images: str
    """Below that"""
    labels: tuple[tuple[str, int], ...]
    """Folders of maps below it, first that exists, and how much their numbers exceed labels"""
    void: int
    """Number of pixels that nobody labelled, as detectron2's maps have it"""
    classes: int
    weight: float
    """Of CLIP beside the classes of a proposing model"""
    listing: str | None = None
    """Names of the images that count, below the folder; None for all that have a map"""
    names: tuple[str, ...] = ()
    """The data set's own file of class names, below the folder"""
    expected: int | None = None
    """Images of a whole copy, as published; not counted by us"""


LAYOUTS: dict[str, Layout] = {
    "a150": Layout(
        ("ADEChallengeData2016", ""),
        "images/validation",
        (("annotations_detectron2/validation", 0), ("annotations/validation", 1)),
        255,
        150,
        0.7,
        names=("objectInfo150.txt",),
        expected=2000,
    ),
    "a847": Layout(
        ("ADE20K_2021_17_01",),
        "images_detectron2/validation",
        (("annotations_detectron2/validation", 0),),
        65535,
        847,
        0.7,
        expected=2000,
    ),
    "pc59": Layout(
        ("VOCdevkit/VOC2010", "VOC2010"),
        "JPEGImages",
        (("annotations_detectron2/pc59_val", 0),),
        255,
        59,
        0.6,
        listing="pascalcontext_val.txt",
        expected=5105,
    ),
    "pc459": Layout(
        ("VOCdevkit/VOC2010", "VOC2010"),
        "JPEGImages",
        (("annotations_detectron2/pc459_val", 0),),
        65535,
        459,
        0.6,
        listing="pascalcontext_val.txt",
        names=("labels.txt",),
        expected=5105,
    ),
    "pas20": Layout(
        ("VOCdevkit/VOC2012", "VOC2012"),
        "JPEGImages",
        (("annotations_detectron2/val", 0), ("SegmentationClass", 1)),
        255,
        20,
        0.45,
        listing="ImageSets/Segmentation/val.txt",
        expected=1449,
    ),
}
"""By name in suites. Weights: Liang et al. 2023, arXiv 2210.04150."""


class Located(NamedTuple):
    """Where the files of a test set are, and which of them count."""

    name: str
    folder: Path
    """The data set's own"""
    images: Path
    maps: Path
    above: int
    """How much the numbers of maps exceed labels"""
    stems: list[str]
    """Names of the images that count, without their endings"""

    def image(self, stem: str) -> Path | None:
        """Return an image's file; None if it is not there."""
        return _first(self.images, stem, IMAGES)

    def map(self, stem: str) -> Path | None:
        """Return the file of an image's labels; None if it is not there."""
        return _first(self.maps, stem, MAPS)


def locate(name: str, root: Path) -> Located:
    """Find a test set without asking whether all of its files are there.

    Raises:
        DataError: If there is no folder of it, or no list of its images.
    """
    layout = LAYOUTS[name]
    folder = find_folder(name, root, *layout.folders, markers=(layout.images,))
    maps, above = _maps(name, folder, layout)
    stems = _listed(folder, layout, maps)
    return Located(name, folder, folder / layout.images, maps, above, stems)


def present(root: Path) -> list[str]:
    """Return the names of the test sets that lie below a root with maps of labels."""
    found = []
    for name, layout in LAYOUTS.items():
        places = [root.expanduser() / one for one in layout.folders]
        if any((place / maps).is_dir() for place in places for maps, _ in layout.labels):
            found.append(name)
    return found


def _maps(name: str, folder: Path, layout: Layout) -> tuple[Path, int]:
    for place, above in layout.labels:
        if (folder / place).is_dir():
            return folder / place, above
    raise DataError(
        f"{name} has no maps of labels: none of the folders "
        f"{', '.join(place for place, _ in layout.labels)} is in {folder}. They are made from the "
        "data set's own by the usual preparation for detectron2; docs/segmentation.md."
    )


def _listed(folder: Path, layout: Layout, maps: Path) -> list[str]:
    listing = folder / layout.listing if layout.listing else None
    if listing is not None and listing.is_file():
        stems = [Path(line).stem for line in read_lines(listing).split() if line]
    else:
        stems = sorted(file.stem for file in maps.iterdir() if file.suffix in MAPS)
    if not stems:
        raise DataError(f"{listing or maps} names no image; complete the data set.")
    return stems


def _first(folder: Path, stem: str, endings: Sequence[str]) -> Path | None:
    return next(
        (folder / f"{stem}{end}" for end in endings if (folder / f"{stem}{end}").is_file()), None
    )


def proposals_of(name: str, root: Path) -> Path:
    """Return the folder of the proposals for a test set.

    Raises:
        NotThereError: If there is none.
    """
    for place in (root / "proposals" / name, root / "proposals"):
        if place.is_dir():
            return place
    raise NotThereError(
        f"there are no mask proposals for {name}: neither {root / 'proposals' / name} nor "
        f"{root / 'proposals'} is a folder. Write one file per image there "
        "(docs/segmentation.md), or let perdure do it: perdure propose MODEL PICTURES --out "
        f"{root / 'proposals' / name}"
    )


def names_of(name: str, folder: Path) -> tuple[str, ...]:
    """Return class names: those somebody wrote, else the data set's own, else those shipped.

    Args:
        name: Of the test set.
        folder: Its own.

    Raises:
        DataError: If there are none, or not as many as classes.
    """
    layout = LAYOUTS[name]
    places = [folder / f"{name}.txt", folder.parent / f"{name}.txt"]
    own = next((place for place in places if place.is_file()), None)
    shipped = Path(__file__).parent / "names" / f"{name}.yaml"
    if own is not None:
        names, where = read_list(own, "classes"), str(own)
    elif layout.names and (folder / layout.names[0]).is_file():
        where = str(folder / layout.names[0])
        names = _own_names(read_lines(folder / layout.names[0]))
    elif shipped.is_file():
        where = shipped.name
        names = tuple(yaml.safe_load(shipped.read_text(encoding="utf-8"))["names"])
    else:
        wanted = ", ".join((*layout.names, f"{name}.txt"))
        raise DataError(
            f"{name} has no names of its {layout.classes} classes: none of {wanted} is in "
            f"{folder}. Write them into {places[0]}, one per line, in the order of the labels."
        )
    if len(names) != layout.classes:
        raise DataError(
            f"{where} has {len(names)} class names, but {name} has {layout.classes} classes; "
            "one per line is needed, in the order of the labels."
        )
    return names


def _own_names(text: str) -> tuple[str, ...]:
    """Return the names in a table with a column Name, or in lines such as `12: name`.

    Of several synonyms the first counts.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and "\t" in lines[0]:
        lines = [line.split("\t")[-1] for line in lines[1:]]
    else:
        lines = [line.partition(":")[2] or line for line in lines]
    return tuple(line.split(",")[0].split(";")[0].strip() for line in lines)
