"""What captions speak of, and which of that is kept from a training so that it can be tested.

A concept is a word of the training captions that tells pictures apart; where a task has labels, it
is the name of a class. A picture is hidden where any of its captions speaks of a hidden concept, so
no caption that trains holds one, whole pictures go together, and so do equal captions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

_LETTERS = re.compile(r"[^\W\d_]+")

_WORDS = """
a an the this that these those its his her their some other another each all any no not and or but
while as with without of on in at by to from for into over under near next up down out off onto
through between around behind above is are was be being been has have having it he she they there
who which very one photo photograph picture image rendering
"""
_SILENT = frozenset(_WORDS.split())
"""English words that name nothing, or only say that there is a picture"""

_LEAST = 0.25
"""Share of the pictures that must be hidden at least"""


class Division(NamedTuple):
    """Two halves of the captions of a task."""

    hidden: frozenset[str]
    """Concepts that no caption of the first half speaks of"""
    concepts: Callable[[str], frozenset[str]]
    """Caption to what it speaks of"""

    def hides(self, captions: Sequence[str], numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which pictures are hidden, as one value per caption, (R,).

        Args:
            captions: R of them.
            numbers: (R,), of the picture that each describes.
        """
        spoken = [bool(self.hidden & self.concepts(text)) for text in captions]
        found: NDArray[np.bool_] = np.isin(numbers, numbers[np.array(spoken, dtype=bool)])
        return found

    def shared(self, captions: Iterable[str]) -> float:
        """Return how much of what captions speak of is not hidden, in [0, 1]; NaN for nothing."""
        spoken = [concept for text in captions for concept in self.concepts(text)]
        if not spoken:
            return float("nan")
        return sum(concept not in self.hidden for concept in spoken) / len(spoken)


def by_words(
    captions: Sequence[str], numbers: NDArray[np.int64], number: int, name: str = "the data"
) -> Division:
    """Hide random words of training captions, as many as half of the pictures can spare.

    Words of more than half of the pictures tell none apart and are no concepts, nor are articles,
    prepositions and their like, nor numbers. A plural is its singular, where that occurs.

    Args:
        captions: R training captions.
        numbers: (R,), of the picture that each describes.
        number: Of the division; another one hides other words.
        name: Of the data, for the message.

    Raises:
        DataError: If the captions have too few words, or too common ones, to be divided.
    """
    vocabulary = {word for text in captions for word in _LETTERS.findall(text.lower())}

    def spoken(text: str) -> frozenset[str]:
        words = (_singular(word, vocabulary) for word in _LETTERS.findall(text.lower()))
        return frozenset(word for word in words if word not in _SILENT)

    pictures, places = np.unique(numbers, return_inverse=True)
    where: dict[str, set[int]] = {}
    for text, place in zip(captions, places.tolist(), strict=True):
        for word in spoken(text):
            where.setdefault(word, set()).add(place)
    half = len(pictures) // 2
    usual = {word for word, own in where.items() if len(own) > half}
    told = sorted(where.keys() - usual)
    hidden: set[str] = set()
    away: set[int] = set()
    for index in np.random.default_rng((3, number)).permutation(len(told)):
        if len(away | where[told[index]]) <= half:
            away |= where[told[index]]
            hidden.add(told[index])
    if len(told) < 4 or len(away) < _LEAST * len(pictures):
        raise DataError(
            f"the captions of {name} have {len(told)} words that tell some of its {len(pictures)} "
            "pictures apart, which cannot be divided so that half of the pictures share none with "
            "the others; 4 or more words are needed, none of them in most captions."
        )
    return Division(frozenset(hidden), lambda text: spoken(text) - usual)


def by_names(names: Sequence[str], hidden: Iterable[str]) -> Division:
    """Hide captions that name one of some classes; of names within names the longest counts.

    Args:
        names: Of all classes.
        hidden: Of those that are hidden.
    """
    longest = sorted({name.lower() for name in names}, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")
    return Division(
        frozenset(name.lower() for name in hidden),
        lambda text: frozenset(pattern.findall(text.lower())),
    )


def _singular(word: str, vocabulary: set[str]) -> str:
    for ending in ("s", "es"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2 and stem in vocabulary:
            return stem
    return word
