"""The five open-vocabulary test sets whose pixels have labels.

No torch is imported before a picture is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .label_layouts import LAYOUTS, Located, locate, names_of, proposals_of
from .masks import read_map
from .proposals import find_proposals, own_file, read_fusion, read_proposals
from .results import Results, find_results, open_results
from .segmented import UNKNOWN, Fusion, Proposals

if TYPE_CHECKING:  # checks of files must not import torch
    from torch import Tensor


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
    results: Results | None = None
    """One file with the proposals of all images that have no file of their own"""

    @property
    def source(self) -> str:
        """Where its proposals come from."""
        place = self.proposed if self.results is None else self.results.file
        return str(place.relative_to(place.parents[1]))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def image(self, index: int) -> Tensor:
        """Return one image, (3, H, W), uint8.

        Raises:
            DataError: If it cannot be decoded, or has another size than its labels.
        """
        from .own import decode

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
        labels = as_labels(numbers, self.above, self.void)
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
        stem = self.images[index].stem
        if self.results is not None and own_file(self.proposed, stem) is None:
            return self.results.read(stem, (size[0], size[1]))
        file = find_proposals(self.proposed, stem)
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
    pixels = open_pixels(name, root.expanduser())
    proposed = proposals_of(name, root.expanduser())
    file = find_results(proposed, name)
    return replace(
        pixels,
        proposed=proposed,
        fusion=read_fusion(proposed, pixels.fusion),
        results=open_results(file, [image.stem for image in pixels.images]) if file else None,
    )


def open_pixels(name: str, root: Path) -> LabelledPixels:
    """Open a test set whether or not there are proposals for it.

    Raises:
        DataError: As `open_labelled`.
    """
    layout, located = LAYOUTS[name], locate(name, root)
    found = [_pair(located, stem) for stem in located.stems]
    return LabelledPixels(
        name,
        names_of(name, located.folder),
        tuple(image for image, _ in found),
        tuple(label for _, label in found),
        located.above,
        layout.void,
        root / "proposals" / name,
        Fusion(weight=layout.weight),
    )


def as_labels(numbers: NDArray[Any], above: int, void: int) -> NDArray[np.int64]:
    """Return the labels that a map's numbers stand for, (H, W), `UNKNOWN` where nobody says."""
    labels = np.where(numbers == void, UNKNOWN, numbers.astype(np.int64) - above)
    # The number before that of the first class wraps to the largest where maps are unsigned.
    labels[(labels < 0) | (numbers == np.iinfo(numbers.dtype).max)] = UNKNOWN
    return np.asarray(labels, dtype=np.int64)


def _pair(found: Located, stem: str) -> tuple[Path, Path]:
    image, label = found.image(stem), found.map(stem)
    if image is None or label is None:
        lacks, place = ("image", found.images) if image is None else ("map of labels", found.maps)
        raise DataError(f"{found.name} lacks the {lacks} {stem} in {place}; complete the data set.")
    return image, label
