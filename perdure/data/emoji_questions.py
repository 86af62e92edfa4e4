"""EmojiShift's questions: which thing, how often, and where, on pictures of one or two things.

Every kind is balanced, so that no answer is right more often than others and knowing the question
alone is worth nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, nearest
from .questions import Question, QuestionSet, read_rules
from .render import PRESET_NAMES, Scenes, render
from .sprites import CLASSES, PRINTS, VENDORS

VERSION = 1
"""Changes whenever any question or picture may change"""

KINDS = ("which", "count", "where")

DOMAINS: dict[str, tuple[int, tuple[str, ...], str]] = {
    "id": (41, ("noto",), "id"),
    "rendition": (42, ("twemoji", "emojione", "fluent", "fluent-flat"), "clean"),
    "sketch": (43, PRINTS, "paper"),
}
"""Part of every picture's key, vendors, and preset"""

COUNT = 240
"""Questions of a kind in a domain, each about a picture of its own"""

OFTEN = ("once", "twice")
CHOICES = 4


@lru_cache(maxsize=len(KINDS) * len(DOMAINS))
def open_emoji_questions(split: str) -> QuestionSet:
    """Open the questions of one kind in one domain, such as "rendition/where".

    A picture shows two things; where things are counted it shows one thing once or twice, and half
    of those that show it once show another thing too.

    Raises:
        DataError: If there are none of that name.
    """
    domain, _, kind = split.partition("/")
    known = [f"{one}/{two}" for one in DOMAINS for two in KINDS]
    if split not in known:
        raise DataError(
            f"emojishift has no questions {split!r}. Allowed: {', '.join(known)}. "
            f"{nearest(split, known)}".rstrip()
        )
    code, names, preset = DOMAINS[domain]
    source = np.random.Philox(key=1000 * code + KINDS.index(kind))
    # Raw numbers are used because NumPy promises them to stay the same for ever.
    orders = np.asarray(source.random_raw(COUNT * len(CLASSES))).reshape(COUNT, len(CLASSES))
    things = orders.argsort(axis=1, kind="stable").astype(np.int64)
    turn = np.arange(COUNT)
    first, second = things[:, 0], things[:, 1]
    if kind == "count":
        second = np.choose(turn % CHOICES, [np.full(COUNT, -1), second, first, first])
    vendors = np.array([VENDORS.index(name) for name in names])
    scenes = Scenes(
        [(code << 64) + (KINDS.index(kind) << 32) + index for index in range(COUNT)],
        vendors[turn // CHOICES % len(vendors)],
        first,
        np.full(COUNT, PRESET_NAMES.index(preset)),
        second,
        np.full(COUNT, -1),
    )
    questions = tuple(_ask(kind, index, things[index]) for index in range(COUNT))
    return QuestionSet(_Pictures(render(scenes).images), questions, read_rules())


def _ask(kind: str, index: int, things: NDArray[np.int64]) -> Question:
    """Ask about a picture; of `things` the first two are in it, and no others."""
    here = CLASSES[things[0]]
    if kind == "count":
        text = f"how often is a {here} in the picture?"
        return Question(index, text, OFTEN, index % CHOICES // 2, kind)
    # The right answer takes every place in turn.
    place = index % CHOICES
    right, *others = [CLASSES[things[0 if kind == "which" else 1]]] + [
        CLASSES[one] for one in things[2 : 1 + CHOICES]
    ]
    choices = [*others[:place], right, *others[place:]]
    if kind == "which":
        return Question(index, "which of these is in the picture?", tuple(choices), place, kind)
    beside = tuple(f"next to a {one}" for one in choices)
    return Question(index, f"where is the {here}?", beside, place, kind)


@dataclass(frozen=True, eq=False)
class _Pictures:
    """Pictures of questions as a data set."""

    images: Tensor
    name: str = "emojishift"
    classes: tuple[str, ...] = ()
    captioned: bool = False

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.zeros(len(self), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Tensor:
        return self.images[index]
