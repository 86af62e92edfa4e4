"""Sheets of pictures, to look at data with one's own eyes before anything is trained on them."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data.augment import fit
from .data.check import OTHERS
from .data.check_regions import REGIONS
from .data.datasets import open_dataset
from .data.findings import Part
from .data.label_layouts import LAYOUTS
from .data.labelled import open_pixels
from .data.sheet import TILE, write_sheet
from .data.views import texts_of
from .data.vqa import read_questions
from .errors import DataError
from .prediction import spread, spread_rows

Shown = tuple[Tensor, tuple[str, ...]]
"""A picture, (3, H, W), uint8, and the lines below it"""

_GOLDEN = 0.618034
"""Of the circle of hues, from one label's colour to the next one's: neighbours differ most"""

_COVER = 0.55
"""How much of a pixel is the colour of its label"""


def sheet_of(parts: Sequence[Part], root: Path, out: Path, columns: int = 12) -> Path:
    """Write a row of pictures per split, spread over it.

    Args:
        parts: Splits below `root`, as `perdure.data.check` finds them.
        root: Where they are.
        out: PNG to write.
        columns: Most pictures of a row.

    Raises:
        DataError: If there is no split, or a picture is damaged.
        RunError: If the file cannot be written.
    """
    rows: dict[str, Tensor] = {}
    texts: dict[str, list[tuple[str, ...]]] = {}
    for part in parts:
        row = f"{part.name} {part.split}"
        pictures = []
        texts[row] = []
        for picture, lines in _drawers(part)(part, root, columns):
            pictures.append(fit(picture, TILE, "bicubic"))
            texts[row].append(lines)
        if pictures:
            rows[row] = torch.stack(pictures)
    return write_sheet(rows, out, texts)


def _drawers(part: Part) -> Callable[[Part, Path, int], Iterator[Shown]]:
    if part.name in LAYOUTS:
        return _labelled
    return _asked if part.name in OTHERS and part.name != REGIONS else _pictures


def _pictures(part: Part, root: Path, columns: int) -> Iterator[Shown]:
    """Yield pictures, with their captions or nouns where they have such."""
    dataset = spread(open_dataset(part.name, part.split, root), columns)
    texts = texts_of(dataset)
    told = dataset.captioned or part.name == REGIONS
    for index in range(len(dataset)):
        yield dataset.image(index), (dataset.classes[texts[index]],) if told else ()


def _labelled(part: Part, root: Path, columns: int) -> Iterator[Shown]:
    """Yield images with their labels drawn over them, and the name of the largest one."""
    pixels = open_pixels(part.name, root.expanduser())
    for row in spread_rows(len(pixels), columns):
        image, truth = pixels.image(int(row)), pixels.truth(int(row))
        known = truth[truth >= 0]
        largest = pixels.classes[int(np.bincount(known).argmax())] if len(known) else "no label"
        yield paint_labels(image, truth), (largest,)


def _asked(part: Part, root: Path, columns: int) -> Iterator[Shown]:
    """Yield pictures with what is asked about them and the right answer."""
    found = read_questions(part.name, root)
    for row in spread_rows(len(found.questions), columns):
        one = found.questions[int(row)]
        yield found.pictures.image(one.picture), (one.text, one.candidates[one.answer])


def paint_labels(image: Tensor, labels: NDArray[np.int64]) -> Tensor:
    """Return an image with a colour per label laid over it.

    Args:
        image: (3, H, W), uint8.
        labels: (H, W); pixels of negative ones stay as they are.

    Raises:
        DataError: If the two are of different sizes.
    """
    if tuple(image.shape[1:]) != labels.shape:
        raise DataError(
            f"the image has {image.shape[1]} x {image.shape[2]} pixels, but its labels are of "
            f"{labels.shape[0]} x {labels.shape[1]}; they must be of one size."
        )
    most = int(labels.max(initial=0)) + 1
    palette = 255 * np.array([colorsys.hsv_to_rgb(n * _GOLDEN % 1, 0.9, 1) for n in range(most)])
    colours = torch.from_numpy(palette[np.maximum(labels, 0)]).permute(2, 0, 1)
    mixed = (1 - _COVER) * image.double() + _COVER * colours
    known = torch.from_numpy(labels >= 0)
    return torch.where(known, mixed.round().to(torch.uint8), image)
