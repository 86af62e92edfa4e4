"""Pictures and the captions that describe them, as retrieval asks about them.

What belongs together is known by the number of the picture, never by the text: two pictures may
have captions of the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .datasets import open_dataset
from .decoding import Transform
from .emojishift import CaptionPairs, open_retrieval
from .views import Dataset, Part, picture_numbers, texts_of


@dataclass(frozen=True, eq=False)
class Paired:
    """Every picture once, and all its captions."""

    pictures: Dataset
    """N pictures, in the order in which they are first spoken of"""
    labels: NDArray[np.int64]
    """(N,), ascending: the number of each picture"""
    captions: tuple[str, ...]
    """M of them"""
    caption_labels: NDArray[np.int64]
    """(M,), the number of the picture that each describes"""

    def limited(self, limit: int | None) -> Paired:
        """Return at most so many pictures, evenly spread, with all captions of theirs.

        Raises:
            DataError: If the limit is not positive.
        """
        if limit is None or limit >= len(self.labels):
            return self
        if limit < 1:
            raise DataError(f"the limit is {limit} pictures per split; it must be at least 1.")
        return self.part(np.linspace(0, len(self.labels) - 1, limit).round().astype(np.int64))

    def part(self, kept: NDArray[np.int64]) -> Paired:
        """Return some pictures, by ascending places, with all captions of theirs."""
        spoken = np.isin(self.caption_labels, self.labels[kept])
        return Paired(
            Part(self.pictures, kept),
            self.labels[kept],
            tuple(text for text, own in zip(self.captions, spoken, strict=True) if own),
            self.caption_labels[spoken],
        )


def open_paired(
    dataset: str, split: str, root: Path | None = None, transform: Transform = "exact"
) -> Paired:
    """Open the captioned pictures of a split.

    Args:
        dataset: "emojishift", or a captioned one of `perdure.data.datasets.DATASETS`.
        split: As the data set calls it; of emojishift "id", "rendition" or "sketch", and "val" on
            which nothing is reported.
        root: Directory of the files; None for embedded data.
        transform: How pictures are decoded.

    Raises:
        DataError: If data are missing, or have labels and no captions.
    """
    if dataset == "emojishift":
        if transform != "exact":
            raise DataError(
                f"emojishift has no files that could be decoded {transform}; leave --transform "
                "away."
            )
        if root is not None:
            raise DataError(
                f"emojishift comes with perdure, but the data are said to be at {root}; leave "
                "--data away."
            )
        pairs = open_retrieval(split)
        numbers = np.arange(len(pairs.captions))
        return Paired(_Embedded(pairs), numbers, pairs.captions, numbers)
    opened = open_dataset(dataset, split, root, transform=transform)
    if not opened.captioned:
        raise DataError(
            f"split {split} of {dataset} at {root} has labels, no captions, so there is nothing to "
            "search with; retrieval needs a column of captions."
        )
    return pair(opened, picture_numbers(opened), texts_of(opened))


def pair(rows: Dataset, numbers: NDArray[np.int64], texts: NDArray[np.int64]) -> Paired:
    """Turn rows of one caption each into pictures with their captions.

    Args:
        rows: R rows, several of which may show one picture; its `classes` are captions.
        numbers: (R,), of the picture that each row shows.
        texts: (R,), index of each row's caption.
    """
    labels, first = np.unique(numbers, return_index=True)
    return Paired(Part(rows, first), labels, tuple(rows.classes[text] for text in texts), numbers)


@dataclass(frozen=True, eq=False)
class _Embedded:
    """The pictures of EmojiShift's caption pairs as a data set."""

    pairs: CaptionPairs
    name: str = "emojishift"
    captioned: bool = True

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.arange(len(self))

    @property
    def classes(self) -> tuple[str, ...]:
        return self.pairs.captions

    def __len__(self) -> int:
        return len(self.pairs.captions)

    def image(self, index: int) -> Tensor:
        return self.pairs.images[index]
