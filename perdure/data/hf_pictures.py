"""Pictures of data sets of the `datasets` library: decoded when looked at."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .decoding import Transform
from .hf_datasets import HF, HfListing, find_hf
from .own import CAPTION_TEMPLATES, TEMPLATES, decode, few


@dataclass(frozen=True, eq=False)
class HfPictures:
    """One split, or some of its rows."""

    listing: HfListing
    kept: NDArray[np.int64]
    """(N,), rows of the listing"""
    split: str
    name: str = HF
    transform: Transform = "exact"
    """How pictures are decoded"""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), index into `classes`; of pictures with several captions, the picture."""
        return self.listing.labels[self.kept]

    @property
    def classes(self) -> tuple[str, ...]:
        """Readable names, or captions."""
        return self.listing.classes

    @property
    def captioned(self) -> bool:
        """Whether `classes` are captions."""
        return self.listing.columns.captioned

    @property
    def texts(self) -> NDArray[np.int64]:
        """(N,), what of `classes` each row is trained with."""
        texts = self.listing.texts
        return (self.listing.labels if texts is None else texts)[self.kept]

    @property
    def pictures(self) -> NDArray[np.int64]:
        """(N,), the number of the picture that each row shows."""
        return self.listing.rows[self.kept]

    @property
    def sources(self) -> tuple[Path, ...] | None:
        """Files that pictures are read from; None where the library does not say."""
        return tuple(Path(one["filename"]) for one in self.listing.table.cache_files) or None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.kept)

    def image(self, index: int) -> Tensor:
        """Return one picture, (3, H, W), uint8.

        Raises:
            DataError: If it is missing or cannot be decoded.
        """
        row = int(self.kept[index])
        where = f"row {int(self.listing.rows[row])} of split {self.split} in {self.listing.base}"
        return decode(io.BytesIO(self.listing.read(row)), where, self.transform)


def open_hf(
    split: str, *, root: Path, seed: int = 0, shots: int | None = None, classes: str = "all"
) -> HfPictures:
    """Open a split of a data set that the library wrote.

    Args:
        split: "train", "val" (also what is called validation there), "test", or another name.
        root: Directory, see `perdure.data.hf_datasets`.
        seed: Chooses the subset where `shots` is given.
        shots: Pictures per class; None for all.
        classes: "all"; other parts are made by `open_dataset`.

    Raises:
        DataError: If data are missing or malformed, or a part is asked for.
        DependencyError: If the library is not installed.
    """
    if classes != "all":
        raise DataError(f"{HF} has no part {classes!r}; use data.classes=all, base or novel.")
    listing = find_hf(root).listing(split)
    if shots is None:
        return HfPictures(listing, np.arange(len(listing.labels)), split)
    if listing.columns.captioned:
        raise DataError(
            f"data.shots is {shots} pictures per class, but {root} has captions, no classes; leave "
            "data.shots away."
        )
    return HfPictures(listing, few(listing.labels, len(listing.classes), shots, seed), split)


def hf_templates(root: Path | None) -> tuple[str, ...]:
    """Return the prompts beside the data (`templates.txt`), or plain ones.

    Raises:
        DataError: If the file is malformed, or there are no data at `root`.
    """
    if root is None:
        return TEMPLATES
    found = find_hf(root)
    return found.templates or (CAPTION_TEMPLATES if found.captioned else TEMPLATES)
