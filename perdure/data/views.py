"""What a data set is, and views of some of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .damaged import Damaged
from .decoding import Transform

if TYPE_CHECKING:  # listing data sets must not import torch
    from torch import Tensor


class Dataset(Protocol):
    """Labelled images. Whatever is random in them is fixed when the data set is opened."""

    @property
    def name(self) -> str:
        """As in recipes."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), index into `classes`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names as they stand in prompts."""

    @property
    def captioned(self) -> bool:
        """Whether `classes` are captions of the images, which are no classes of a task."""

    def __len__(self) -> int:
        """Return the number of images, N."""

    def image(self, index: int) -> Tensor:
        """Return one image, (3, H, W), uint8; callers do not change it."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some images of a data set, in their order."""

    whole: Dataset
    indices: NDArray[np.int64]

    @property
    def name(self) -> str:
        """As the whole."""
        return self.whole.name

    @property
    def classes(self) -> tuple[str, ...]:
        """As the whole."""
        return self.whole.classes

    @property
    def captioned(self) -> bool:
        """As the whole."""
        return self.whole.captioned

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), index into `classes`."""
        return self.whole.labels[self.indices]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def image(self, index: int) -> Tensor:
        """Return one image, (3, H, W), uint8."""
        return self.whole.image(int(self.indices[index]))


@dataclass(frozen=True, eq=False)
class Half:
    """The images of some classes of a data set, in its order; labels count within these classes."""

    whole: Dataset
    kept: NDArray[np.int64]
    """(C,), ascending: the classes, as the whole counts them"""

    @property
    def name(self) -> str:
        """As the whole."""
        return self.whole.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names as they stand in prompts."""
        return tuple(self.whole.classes[label] for label in self.kept)

    @property
    def captioned(self) -> bool:
        """False: captions are not divided."""
        return self.whole.captioned

    @cached_property
    def _indices(self) -> NDArray[np.int64]:
        return np.flatnonzero(np.isin(self.whole.labels, self.kept))

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,), index into `classes`."""
        return np.searchsorted(self.kept, self.whole.labels[self._indices])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._indices)

    def image(self, index: int) -> Tensor:
        """Return one image, (3, H, W), uint8."""
        return self.whole.image(int(self._indices[index]))


def rows_of(dataset: Any, field: str) -> Any:
    """Return something that only some data sets know of every image, or None.

    Args:
        dataset: A `Dataset`, or some images or another view of one.
        field: "groups" (N,), or "accepted", N tuples of labels.
    """
    if isinstance(dataset, Damaged):
        return rows_of(dataset.whole, field)
    if isinstance(dataset, Part):
        rows = rows_of(dataset.whole, field)
        if rows is None or isinstance(rows, np.ndarray):
            return rows if rows is None else rows[dataset.indices]
        return tuple(rows[index] for index in dataset.indices)
    return getattr(dataset, field, None)


def group_names_of(dataset: Any) -> tuple[str, ...]:
    """Return the names of a data set's groups; none where it has no groups."""
    while isinstance(dataset, (Damaged, Part)):
        dataset = dataset.whole
    return tuple(getattr(dataset, "group_names", ()))


def with_masks(dataset: Any) -> Any:
    """Return a data set whose images have their masks as a fourth channel, (4, H, W), 0 or 255.

    Where the images have none, or damage may have moved what is under them, it is the same one.
    """
    if isinstance(dataset, (Part, Half)):
        return replace(dataset, whole=with_masks(dataset.whole))
    return replace(dataset, masked=True) if hasattr(dataset, "masked") else dataset


def channels_of(dataset: Any) -> int:
    """Return how many channels images have: three, and a fourth where there are masks."""
    while isinstance(dataset, (Part, Half)):
        dataset = dataset.whole
    return 4 if getattr(dataset, "masked", False) else 3


def transform_of(dataset: Any) -> Transform:
    """Return how the pictures of a data set, or of a view of one, are decoded."""
    while isinstance(dataset, (Damaged, Part, Half)):
        dataset = dataset.whole
    found: Transform = getattr(dataset, "transform", "exact")
    return found


def texts_of(dataset: Dataset) -> NDArray[np.int64]:
    """Return what of `classes` each image is trained with, (N,): its label, or its caption.

    Captions of one picture differ, but share its label.
    """
    if isinstance(dataset, Part):
        return texts_of(dataset.whole)[dataset.indices]
    if isinstance(dataset, Damaged):
        return texts_of(dataset.whole)
    texts: NDArray[np.int64] | None = getattr(dataset, "texts", None)
    return dataset.labels if texts is None else texts


def picture_numbers(rows: Any) -> NDArray[np.int64]:
    """Return which picture each row of captioned data shows, (R,).

    Pictures are counted in the order of their first row; some rows keep the numbers of the whole.
    """
    if isinstance(rows, Part):
        return picture_numbers(rows.whole)[rows.indices]
    if isinstance(rows, Damaged):
        return picture_numbers(rows.whole)
    numbers: NDArray[np.int64] | None = getattr(rows, "pictures", None)
    if numbers is not None:
        return numbers
    files: Sequence[Path] | None = getattr(rows, "files", None)
    if files is None:  # published sets count pictures in their labels
        labels: NDArray[np.int64] = rows.labels
        return labels
    places: dict[Path, int] = {}
    return np.array([places.setdefault(file, len(places)) for file in files], dtype=np.int64)
