"""EmojiShift: tell 80 things apart in one artist's drawings, and do not forget the other artists'.

The downstream task is one vendor's drawings (`train`, `val`, `id`); the shifts are other vendors'
drawings, hard scenes and corruptions of the same 80 classes. `docs/benchmark.md` has the design
and says what the bundled model has seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, nearest
from .captions import TEMPLATES as TEMPLATES
from .emoji_domains import RETRIEVAL, RETRIEVAL_VAL, SPLITS, UNTRAINED, assign
from .render import PRESET_NAMES, Scenes, render
from .scenes import DOMAINS, open_scenes
from .sheet import write_sheet
from .sprites import BASE, CLASSES, CONCEPTS, VENDORS, covered

VERSION = 1
"""Changes whenever any test image may change"""

_BLOCK = 256
_PAIRS, _ALONE = 160, 96


def half_names(which: str) -> tuple[str, ...]:
    """Return the class names of "all", "base" or "novel", or of a second division, "…-2".

    Raises:
        DataError: If `which` is none of these.
    """
    order = np.argsort(np.asarray(np.random.Philox(key=2).random_raw(len(CLASSES))))
    second = {CLASSES[index] for index in order[: len(CLASSES) // 2]}
    halves = {
        "all": CLASSES,
        "base": tuple(name for name in CLASSES if name in BASE),
        "novel": tuple(name for name in CLASSES if name not in BASE),
        "base-2": tuple(name for name in CLASSES if name in second),
        "novel-2": tuple(name for name in CLASSES if name not in second),
    }
    if which not in halves:
        raise DataError(
            f"unknown set of classes {which!r} of emojishift. Allowed: {', '.join(halves)}."
            f"{nearest(which, halves)}"
        )
    return halves[which]


@dataclass(frozen=True, eq=False)
class EmojiShift:
    """One split, rendered when first looked at."""

    split: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    """(N,), index into `classes`"""
    vendors: NDArray[np.int64]
    """(N,), index into the atlas' vendors"""
    seen: NDArray[np.bool_]
    """(N,), whether pre-training has seen this drawing (under other nuisances)"""
    draw: Callable[[Sequence[int]], Tensor]
    """Renders the images of some indices"""
    name: str = "emojishift"
    captioned: bool = False

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @cached_property
    def images(self) -> Tensor:
        """All images, (N, 3, 40, 40), uint8."""
        return self.draw(range(len(self)))

    def image(self, index: int) -> Tensor:
        """Return one image, (3, 40, 40), uint8."""
        return self.images[index]


def open_emojishift(
    split: str, *, seed: int = 0, shots: int | None = None, classes: str = "all"
) -> EmojiShift:
    """Open a split of the embedded benchmark.

    Args:
        split: One of `SPLITS` or `UNTRAINED`.
        seed: Makes other renders of `train`; every other split is fixed.
        shots: Images per class; None for the split's own number.
        classes: "all", "base", "novel", "base-2" or "novel-2"; labels count within the selection.

    Raises:
        DataError: If the split or the selection is unknown, or `shots` is not positive.
    """
    known = SPLITS | UNTRAINED
    if split not in known:
        raise DataError(
            f"emojishift has no split {split!r}. Allowed: {', '.join(known)}."
            f"{nearest(split, known)}"
        )
    if shots is not None and shots < 1:
        raise DataError(f"shots is {shots}; it must be 1 or more images per class.")
    domain = known[split]
    names = domain.concepts
    if classes != "all":
        kept = half_names(classes)
        names = tuple(name for name in domain.concepts if name in kept)
        if not names:
            raise DataError(
                f"split {split!r} of emojishift has other classes than the 80 of the task, so "
                f"classes={classes!r} selects nothing. Use classes=all."
            )
    per_class = shots or domain.per_class
    concepts = np.repeat([CONCEPTS.index(name) for name in names], per_class)
    places = np.tile(np.arange(per_class), len(names))
    vendors, presets, corruptions = assign(domain, concepts, places)
    origin = seed if split == "train" else 0
    keys = tuple(
        (domain.code << 64) + (origin << 32) + (int(concept) << 16) + int(place)
        for concept, place in zip(concepts, places, strict=True)
    )

    def draw(rows: Sequence[int]) -> Tensor:
        columns = (keys, vendors, concepts, presets, corruptions)
        return _render_all(*(tuple(column[row] for row in rows) for column in columns))

    return EmojiShift(
        split=split,
        classes=names,
        labels=np.repeat(np.arange(len(names)), per_class),
        vendors=vendors,
        seen=covered()[vendors, concepts],
        draw=draw,
    )


@lru_cache(maxsize=32)
def _render_all(
    keys: tuple[int, ...],
    vendors: tuple[int, ...],
    concepts: tuple[int, ...],
    presets: tuple[int, ...],
    corruptions: tuple[int, ...],
) -> Tensor:
    """Render in blocks, once per process; the tensor is shared, so callers must not change it."""
    blocks = []
    for start in range(0, len(keys), _BLOCK):
        rows = slice(start, start + _BLOCK)
        scenes = Scenes(
            keys[rows],
            np.array(vendors[rows]),
            np.array(concepts[rows]),
            np.array(presets[rows]),
            np.full(len(keys[rows]), -1),
            np.array(corruptions[rows]),
        )
        blocks.append(render(scenes).images)
    return torch.cat(blocks)


@dataclass(frozen=True, eq=False)
class CaptionPairs:
    """Images with one unique caption each, for retrieval."""

    images: Tensor
    """(N, 3, 40, 40), uint8"""
    captions: tuple[str, ...]
    """(N,), no two equal"""


@lru_cache(maxsize=len(RETRIEVAL | RETRIEVAL_VAL))
def open_retrieval(domain: str) -> CaptionPairs:
    """Open the caption retrieval pairs of "id", "rendition" or "sketch", or of "val" for choices.

    A picture shows two things ("a rat and a ring") or one thing on a plain named background
    ("a rat on a red background"; not on `sketch`, whose paper has no named colour).

    Raises:
        DataError: If the domain is unknown.
    """
    known = RETRIEVAL | RETRIEVAL_VAL
    if domain not in known:
        raise DataError(
            f"emojishift has no retrieval domain {domain!r}. Allowed: {', '.join(known)}."
            f"{nearest(domain, known)}"
        )
    spec = known[domain]
    alone = _ALONE if "plain" in spec.presets else 0
    count = _PAIRS + alone
    raw = np.asarray(np.random.Philox(key=spec.code).random_raw(2 * count)).reshape(2, count)
    first, second = (raw % np.uint64(len(CLASSES))).astype(np.int64)
    seconds = np.where(np.arange(count) < _PAIRS, second, -1)
    presets = [spec.presets[0]] * _PAIRS + [spec.presets[-1]] * alone
    vendors = np.array([VENDORS.index(name) for name in spec.vendors])
    rendered = render(
        Scenes(
            [(spec.code << 64) + index for index in range(count)],
            vendors[np.arange(count) % len(vendors)],
            first,
            np.array([PRESET_NAMES.index(name) for name in presets]),
            seconds,
            np.full(count, -1),
        )
    )
    kept: dict[tuple[str, ...], int] = {}
    for index, colour in enumerate(rendered.colours):
        here, other = CLASSES[first[index]], CLASSES[second[index]]
        if index >= _PAIRS:
            kept.setdefault((here, f"on a {colour} background"), index)
        elif here != other and tuple(sorted((here, other))) not in kept:
            kept[tuple(sorted((here, other)))] = index
    rows = sorted(kept.values())
    captions = tuple(
        f"a {CLASSES[first[row]]} and a {CLASSES[second[row]]}"
        if row < _PAIRS
        else f"a {CLASSES[first[row]]} on a {rendered.colours[row]} background"
        for row in rows
    )
    return CaptionPairs(rendered.images[torch.tensor(rows)], captions)


def picture_sheet(out: Path, columns: int = 16) -> Path:
    """Write one row of pictures per split, and per retrieval and segmentation set, as a PNG.

    Raises:
        RunError: If the file cannot be written.
    """
    rows: dict[str, Tensor] = {}
    for split, domain in SPLITS.items():
        data = open_emojishift(split)
        chosen = np.linspace(0, len(data) - 1, columns).astype(int)
        # Steps of a round number would always meet the same vendor.
        chosen = np.minimum(chosen + np.arange(columns) % len(domain.vendors), len(data) - 1)
        rows[split] = data.draw(chosen.tolist())
    for name in RETRIEVAL:
        pairs = open_retrieval(name).images
        rows[f"retrieval {name}"] = pairs[torch.linspace(0, len(pairs) - 1, columns).long()]
    for name in DOMAINS:
        rows[f"segmentation {name}"] = open_scenes(name).images[: columns // 2]
    return write_sheet(rows, out)
