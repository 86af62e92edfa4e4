"""The five open-vocabulary test sets whose pixels have labels, in detectron2's layout.

Proposals lie below the same root, `proposals/NAME/` or `proposals/`, one file per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .catalog import find_folder
from .class_names import read_list
from .masks import read_map
from .own import decode
from .proposals import find_proposals, read_fusion, read_proposals
from .segmented import UNKNOWN, Fusion, Proposals
from .tables import read_lines

_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG")


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


@dataclass(frozen=True, eq=False)
class LabelledPixels:
    """One data set's test images."""

    name: str
    classes: tuple[str, ...]
    images: tuple[Path, ...]
    """(N,)"""
    maps: tuple[Path, ...]
    """(N,), numbers of labels"""
    above: int
    """How much these exceed labels; 0 is then unknown"""
    void: int
    proposed: Path
    """Folder of the proposals"""
    fusion: Fusion

    @property
    def source(self) -> str:
        """Where its proposals come from."""
        return f"{self.proposed.parent.name}/{self.proposed.name}"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def image(self, index: int) -> Tensor:
        """Return one image, (3, H, W), uint8.

        Raises:
            DataError: If it cannot be decoded, or has another size than its labels.
        """
        image = decode(self.images[index])
        height, width = self._map(index).shape[:2]
        if tuple(image.shape[1:]) != (height, width):
            raise DataError(
                f"the image {self.images[index]} has {image.shape[1]} x {image.shape[2]} pixels, "
                f"but its labels {self.maps[index]} are of {height} x {width}; they must be of one "
                "size. Prepare the data set again."
            )
        return image

    def _map(self, index: int) -> NDArray[Any]:
        return read_map(self.maps[index], str(self.maps[index]))

    def truth(self, index: int) -> NDArray[np.int64]:
        """Return the label of every pixel, (H, W).

        Raises:
            DataError: If the map is damaged or holds other classes.
        """
        file, numbers = self.maps[index], self._map(index)
        if numbers.ndim != 2:
            raise DataError(f"{file} has colours; expected one number of a label per pixel.")
        labels = np.where(numbers == self.void, UNKNOWN, numbers.astype(np.int64) - self.above)
        # The number before that of the first class wraps to the largest where maps are unsigned.
        labels[(labels < 0) | (numbers == np.iinfo(numbers.dtype).max)] = UNKNOWN
        if labels.max() >= len(self.classes):
            raise DataError(
                f"{file} has label {labels.max()}, but {self.name} has {len(self.classes)} classes "
                f"(0 to {len(self.classes) - 1}, unknown {self.void}); is it the map of another "
                "division?"
            )
        return labels

    def proposals(self, index: int) -> Proposals:
        """Return what was proposed for one image.

        Raises:
            DataError: If there is nothing, or it is damaged or of another size.
        """
        size = self.truth(index).shape
        file = find_proposals(self.proposed, self.images[index].stem)
        return read_proposals(file, (size[0], size[1]), len(self.classes))


def open_labelled(name: str, split: str, root: Path | None) -> LabelledPixels:
    """Open a test set.

    Args:
        name: One of `LAYOUTS`.
        split: "test"; published results are on what these sets call validation.
        root: Directory below which it lies.

    Raises:
        DataError: If files are missing; says which and where they were looked for.
    """
    if split != "test":
        raise DataError(f"{name} has no split {split!r}. Allowed: test.")
    if root is None:
        raise DataError(f"{name} needs the directory of its files; add --data ROOT.")
    root, layout = root.expanduser(), LAYOUTS[name]
    folder = find_folder(name, root, *layout.folders, markers=(layout.images,))
    maps, above = _maps(name, folder, layout)
    stems = _listed(folder, layout, maps)
    found = [_pair(name, folder / layout.images, maps, stem) for stem in stems]
    proposed = _proposed(name, root)
    return LabelledPixels(
        name,
        _names(name, folder, layout),
        tuple(image for image, _ in found),
        tuple(label for _, label in found),
        above,
        layout.void,
        proposed,
        read_fusion(proposed, Fusion(weight=layout.weight)),
    )


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
        stems = sorted(
            file.stem for file in maps.iterdir() if file.suffix in (".png", ".tif", ".tiff")
        )
    if not stems:
        raise DataError(f"{listing or maps} names no image; complete the data set.")
    return stems


def _pair(name: str, images: Path, maps: Path, stem: str) -> tuple[Path, Path]:
    image = _first(images, stem, _ENDINGS)
    label = _first(maps, stem, (".png", ".tif", ".tiff"))
    if image is None or label is None:
        lacks, place = ("image", images) if image is None else ("map of labels", maps)
        raise DataError(f"{name} lacks the {lacks} {stem} in {place}; complete the data set.")
    return image, label


def _first(folder: Path, stem: str, endings: Sequence[str]) -> Path | None:
    return next(
        (folder / f"{stem}{end}" for end in endings if (folder / f"{stem}{end}").is_file()), None
    )


def _proposed(name: str, root: Path) -> Path:
    for place in (root / "proposals" / name, root / "proposals"):
        if place.is_dir():
            return place
    raise DataError(
        f"there are no mask proposals for {name}: neither {root / 'proposals' / name} nor "
        f"{root / 'proposals'} is a folder. Write one file per image there "
        "(docs/segmentation.md), or let perdure do it: perdure propose MODEL PICTURES --out "
        f"{root / 'proposals' / name}"
    )


def _names(name: str, folder: Path, layout: Layout) -> tuple[str, ...]:
    """Return class names: those somebody wrote, else the data set's own, else those shipped."""
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
