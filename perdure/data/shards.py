"""Tar files of pictures and texts, as img2dataset and open_clip write them (webdataset).

Every file is indexed once, from its headers, and pictures are then read where they lie. So any
order, any number of processes and workers, and any point of resuming give the same batches,
whatever the number of shards, and nothing but labels, texts and places is in memory.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .class_names import read_list
from .decoding import Transform
from .own import CAPTION_TEMPLATES, TEMPLATES, decode, few
from .shard_index import WDS, Damaged, Index, index_shards


@dataclass(frozen=True, eq=False)
class Shards:
    """One split, or some of its samples."""

    index: Index
    kept: NDArray[np.int64]
    """(N,), rows of the index"""
    name: str = WDS
    transform: Transform = "exact"
    """How pictures are decoded"""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), index into `classes`; of pictures that may have several captions, the picture."""
        return self.index.labels[self.kept]

    @property
    def texts(self) -> NDArray[np.int64]:
        """(N,), what of `classes` each row is trained with."""
        texts = self.index.texts
        return (self.index.labels if texts is None else texts)[self.kept]

    @property
    def pictures(self) -> NDArray[np.int64]:
        """(N,), the number of the picture that each row shows."""
        return np.unique(self.index.places, axis=0, return_inverse=True)[1].ravel()[self.kept]

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files that pictures are read from."""
        return self.index.shards

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, or the distinct captions."""
        return self.index.classes

    @property
    def captioned(self) -> bool:
        """Whether `classes` are captions."""
        return self.index.captioned

    @property
    def skipped(self) -> int:
        """Samples that were left out because they, or the ends of their shards, are damaged."""
        return self.index.skipped

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.kept)

    def image(self, index: int) -> Tensor:
        """Return one picture, (3, H, W), uint8.

        Raises:
            DataError: If it cannot be decoded, or its shard has changed since it was indexed.
        """
        row = int(self.kept[index])
        content = io.BytesIO(self.index.read(row))
        return decode(content, self.index.at(row), self.transform)


def open_shards(
    split: str,
    *,
    root: Path,
    seed: int = 0,
    shots: int | None = None,
    classes: str = "all",
    damaged: Damaged = "error",
) -> Shards:
    """Open the shards of a split.

    Labels are those of `.cls` or `.npy` files, and their names those of `classnames.txt`; without
    any, the `.txt` files are captions: a line each where `dataset_type.txt` says retrieval.

    Args:
        split: Folder below the root; "train" is also the root itself, where shards lie in it.
        root: Directory, or shards: `a/{00000..00012}.tar`, several joined by `::`.
        seed: Chooses the subset where `shots` is given.
        shots: Pictures per class; None for all.
        classes: "all".
        damaged: Whether incomplete samples and cut-off shards are an error, or are left out,
            counted and reported.

    Raises:
        DataError: If there is no shard, one is damaged, or samples have neither label nor caption.
    """
    if classes != "all":
        raise DataError(f"shards have no part {classes!r}; use data.classes=all, base or novel.")
    index = index_shards(split, root, damaged)
    if shots is None:
        return Shards(index, np.arange(len(index.labels)))
    if index.captioned:
        raise DataError(f"data.shots is {shots}, but {root} has captions, no classes.")
    return Shards(index, few(index.labels, len(index.classes), shots, seed))


def shard_templates(root: Path | None) -> tuple[str, ...]:
    """Return the prompts that lie beside shards, whose place for the name is {c}, or plain ones."""
    if root is None:
        return TEMPLATES
    file = root / "zeroshot_classification_templates.txt"
    if file.is_file():
        return tuple(text.replace("{c}", "{}") for text in read_list(file, "templates"))
    return TEMPLATES if (root / "classnames.txt").is_file() else CAPTION_TEMPLATES
