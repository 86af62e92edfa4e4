"""Pictures of published data sets: decoded when looked at, everything else known before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .catalog import Catalog, pick
from .decoding import Transform
from .own import decode, few
from .published import find


@dataclass(frozen=True, eq=False)
class Published:
    """One split."""

    catalog: Catalog
    transform: Transform = "exact"
    """How files are decoded"""

    @property
    def name(self) -> str:
        """As in recipes."""
        return self.catalog.name

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), index into `classes`; of captions, the number of the picture."""
        return self.catalog.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, or captions."""
        return self.catalog.classes

    @property
    def captioned(self) -> bool:
        """Whether `classes` are captions."""
        return self.catalog.captioned

    @property
    def texts(self) -> NDArray[np.int64]:
        """(N,), what of `classes` each row is trained with."""
        texts = self.catalog.texts
        return self.catalog.labels if texts is None else texts

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """(N,), index into `group_names`, -1 for none; None without groups."""
        return self.catalog.groups

    @property
    def group_names(self) -> tuple[str, ...]:
        """Such as regions."""
        return self.catalog.group_names

    @property
    def accepted(self) -> tuple[tuple[int, ...], ...] | None:
        """(N,), labels that people accept; None without a second reading."""
        return self.catalog.accepted

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.catalog)

    def image(self, index: int) -> Tensor:
        """Return one picture, (3, H, W), uint8, without its border.

        Raises:
            DataError: If it cannot be decoded, or is all border.
        """
        pixels = decode(self.catalog.file(index), transform=self.transform)
        cut = self.catalog.border
        if not cut:
            return pixels
        inner = pixels[:, cut:-cut, cut:-cut]
        if not inner.numel():
            raise DataError(
                f"{self.catalog.file(index)} is no larger than its border of {cut} pixels."
            )
        return inner.contiguous()


def open_published(
    split: str,
    *,
    name: str,
    root: Path,
    seed: int = 0,
    shots: int | None = None,
    classes: str = "all",
) -> Published:
    """Open a split of a published data set.

    Args:
        split: As the data set calls it.
        name: One of `published.FINDERS`.
        root: Directory below which it is looked for.
        seed: Chooses the subset where `shots` is given.
        shots: Pictures per class; None for all.
        classes: "all"; other parts are made by `open_dataset`.

    Raises:
        DataError: If it is not there or incomplete, or a part is asked for that it does not have.
    """
    if classes != "all":
        raise DataError(f"{name} has no part {classes!r}; use data.classes=all, base or novel.")
    catalog = find(name, split, root)
    if shots is None:
        return Published(catalog)
    if catalog.captioned:
        raise DataError(
            f"data.shots is {shots} pictures per class, but {name} has captions, no classes; leave "
            "data.shots away."
        )
    kept = few(catalog.labels, len(catalog.classes), shots, seed)
    return Published(replace(catalog, **pick(catalog, kept)))
