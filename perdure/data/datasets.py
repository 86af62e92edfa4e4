"""Data sets by name: labelled images with class names, and the prompts that suit them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, nearest
from .concepts import by_words
from .damaged import Damaged, read_split
from .decoding import TRANSFORMS, Transform
from .prompts import SET_OF, SETS
from .protocols import few_shot, halves
from .published import FINDERS, TASKS
from .views import Dataset as Dataset
from .views import Half as Half
from .views import Part as Part
from .views import channels_of as channels_of
from .views import group_names_of as group_names_of
from .views import picture_numbers as picture_numbers
from .views import rows_of as rows_of
from .views import texts_of as texts_of
from .views import transform_of as transform_of
from .views import with_masks as with_masks

Sampling = Literal["own", "coop"]
"""How few-shot subsets are chosen"""

_HALVES = ("seen", "hidden")


@dataclass(frozen=True)
class Reader:
    """How the data sets of one name are opened. Targets are "module:attribute"."""

    opener: str
    """Called as opener(split, root=..., seed=..., shots=..., classes=...), or without `root`"""
    templates: str
    """A tuple of prompts with {} for the class name, or a function from the root to one; or
    "set:NAME" of `prompts.SETS`"""
    embedded: bool = False
    """Whether the data come with perdure, so that there is no `root`"""
    halves: bool = False
    """Whether the opener knows "base" and "novel"; where not, they are `protocols.halves`"""
    named: bool = False
    """Whether the opener serves several data sets and is told the name"""
    sentences: bool = False
    """Whether its texts are whole captions, longer ones of which are cut and put into no prompt"""
    skips: bool = False
    """Whether the opener knows `damaged`"""
    validation: str | None = "val"
    """Split of the task that choices may be made on; None where there is none"""


DATASETS: dict[str, Reader] = {
    "emojishift": Reader(
        "perdure.data.emojishift:open_emojishift",
        "perdure.data.captions:TEMPLATES",
        embedded=True,
        halves=True,
    ),
    "emojishift-regions": Reader(
        "perdure.data.scene_regions:open_scene_regions",
        "perdure.data.captions:TEMPLATES",
        embedded=True,
    ),
    "regions": Reader("perdure.data.region_pairs:open_region_pairs", "set:photo"),
    "own": Reader("perdure.data.own:open_own", "perdure.data.own:own_templates"),
    "hf": Reader(
        "perdure.data.hf_pictures:open_hf", "perdure.data.hf_pictures:hf_templates", sentences=True
    ),
    "wds": Reader(
        "perdure.data.shards:open_shards",
        "perdure.data.shards:shard_templates",
        sentences=True,
        skips=True,
    ),
    **{
        name: Reader(
            "perdure.data.pictures:open_published",
            f"set:{SET_OF[name]}",
            named=True,
            sentences=name in ("coco", "flickr30k"),
            validation=TASKS.get(name, "val"),
        )
        for name in FINDERS
    },
}
"""Every known data set by its name in recipes and suites; imported on first use."""


def open_dataset(
    name: str,
    split: str,
    root: Path | None = None,
    *,
    seed: int = 0,
    shots: int | None = None,
    classes: str = "all",
    sampling: Sampling = "own",
    damaged: str = "error",
    transform: Transform = "exact",
) -> Dataset:
    """Open a split of a data set.

    Args:
        name: One of `DATASETS`.
        split: As the data set calls it; with "@fog-3" behind it, its images damaged by that
            corruption at that severity.
        root: Directory of the files; None for embedded data.
        seed: Of whatever the data set draws: few-shot subsets, rendered training images.
        shots: Images per class; None for all.
        classes: "all", "base" or "novel" for halves of the classes, or another part that the data
            set defines; followed by "/seen-0" or "/hidden-0" for one of two random halves of it
            (1, 2, ... divide anew). Captions are divided by the words of `train`: see `concepts`.
        sampling: How `shots` images are chosen: "own" as the data set does, or "coop", the
            published subsets of `protocols.few_shot`: from `train`, and from `val` at most 4 of a
            class, before classes are divided. Other splits stay whole under "coop".
        damaged: "error", or "skip" for shards whose damaged samples are left out and counted.
        transform: "fast" decodes JPEG files in less time, to within one level of "exact".

    Raises:
        DataError: If name, split or part are unknown, or files are missing under `root`.
    """
    reader = _reader(name)
    split, damage = read_split(split)
    part, divided, half = classes.partition("/")
    options: dict[str, Any] = {}
    if reader.embedded:
        if root is not None:
            raise DataError(
                f"{name} comes with perdure, but data.root is {str(root)!r}; leave data.root away."
            )
    else:
        if root is None:
            raise DataError(f"{name} needs the directory of its files; set data.root.")
        options["root"] = root.expanduser()
    if reader.named:
        options["name"] = name
    if reader.skips:
        options["damaged"] = damaged
    elif damaged != "error":
        raise DataError(f"only shards (wds) can leave damaged samples out; {name} cannot.")
    opener: Callable[..., Dataset] = partial(_target(reader.opener), **options)
    if transform not in TRANSFORMS:
        allowed = " and ".join(TRANSFORMS)
        raise DataError(f"the transform is {transform!r}; allowed are {allowed}.")
    if transform != "exact":
        opener = partial(_transformed, opener, transform)
    if sampling == "own":
        opened = _open_part(reader, opener, split, part, seed=seed, shots=shots)
    else:
        opened = _open_sampled(reader, opener, split, part, seed=seed, shots=shots)
    if divided:
        if opened.captioned and split != "train":
            opened = _half(opened, half, opener("train", classes="all"))
        else:
            opened = _half(opened, half, opened)
    return opened if damage is None else Damaged(opened, *damage, seed=seed)


def templates_for(name: str, root: Path | None = None) -> tuple[str, ...]:
    """Return the prompts that suit a data set, each with {} for the class name.

    Args:
        name: One of `DATASETS`, or of `prompts.SETS`.
        root: Where the files of the data set are, which may bring prompts of their own.

    Raises:
        DataError: If there is neither, or the prompts are malformed.
    """
    if name in SETS:
        return SETS[name]()
    if name not in DATASETS:
        known = ", ".join((*SETS, *DATASETS))
        raise DataError(
            f"there are no templates {name!r}. Known: {known}. "
            f"{nearest(name, (*SETS, *DATASETS))}".rstrip()
        )
    target = _reader(name).templates
    if target.startswith("set:"):
        return SETS[target.removeprefix("set:")]()
    found = _target(target)
    templates: tuple[str, ...] = found(root) if callable(found) else found
    return templates


def validation_of(name: str) -> str | None:
    """Return the split of a data set that choices are made on; None where there is none."""
    return _reader(name).validation


def is_of_sentences(name: str) -> bool:
    """Return whether the texts of a data set are captions that go into no prompt."""
    return _reader(name).sentences


def _transformed(
    opener: Callable[..., Any], transform: Transform, *split: str, **options: Any
) -> Dataset:
    """Open a data set whose pictures are decoded in another way."""
    found = opener(*split, **options)
    if not hasattr(found, "transform"):
        raise DataError(
            f"{found.name} has no files that could be decoded {transform}; leave data.transform "
            "(--transform) away."
        )
    opened: Dataset = replace(found, transform=transform)
    return opened


def _open_part(
    reader: Reader, opener: Callable[..., Dataset], split: str, part: str, **options: Any
) -> Dataset:
    """Open the images of some classes, in the reader's own halves or in those of `protocols`."""
    if reader.halves or part not in ("base", "novel"):
        return opener(split, classes=part, **options)
    whole = opener(split, classes="all", **options)
    if whole.captioned:
        raise DataError(
            f"{whole.name} has captions, no classes that could be divided in base and novel ones; "
            "use data.classes=all."
        )
    return Half(whole, getattr(halves(range(len(whole.classes))), part))


def _open_sampled(
    reader: Reader,
    opener: Callable[..., Dataset],
    split: str,
    part: str,
    *,
    seed: int,
    shots: int | None,
) -> Dataset:
    """Open a published few-shot subset: drawn from all classes, and only then divided."""
    chosen = whole = opener(split, classes="all", seed=seed, shots=None)
    if shots is not None and split in ("train", "val"):
        if whole.captioned:
            raise DataError(
                f"data.shots is {shots} images per class, but {whole.name} has captions, no "
                "classes; leave data.shots away."
            )
        first = opener("train", classes="all", seed=seed, shots=None)
        drawn = few_shot(first.labels, whole.labels if split == "val" else (), shots, seed)
        chosen = Part(whole, drawn.val if split == "val" else drawn.train)
    if part == "all":
        return chosen
    if not reader.halves and part in ("base", "novel"):  # names may stand twice, labels do not
        return Half(chosen, getattr(halves(range(len(whole.classes))), part))
    names = _open_part(reader, opener, split, part, seed=seed, shots=None).classes
    places = {name: label for label, name in enumerate(whole.classes)}
    return Half(chosen, np.sort([places[name] for name in names]))


def _half(whole: Dataset, name: str, trained: Dataset) -> Dataset:
    """Return one of two halves of the classes; which classes, depends on their number alone.

    Of captions it is some of the pictures, and depends on the captions that are trained.
    """
    which, _, number = name.partition("-")
    if which not in _HALVES or not number.isdecimal():
        raise DataError(
            f"there is no half {name!r} of the classes; write seen-0 or hidden-0, with any number "
            "for 0: data.classes=all/seen-0."
        )
    if whole.captioned:
        division = by_words(*captions_of(trained), int(number), whole.name)
        hides = division.hides(*captions_of(whole))
        return Part(whole, np.flatnonzero(hides == (which == "hidden")))
    count = len(whole.classes)
    if count < 4:
        raise DataError(
            f"{whole.name} has {count} classes, which cannot be divided in halves that are tasks "
            "of their own; 4 or more classes are needed."
        )
    order = np.random.default_rng((3, int(number))).permutation(count)
    middle = (count + 1) // 2
    return Half(whole, np.sort(order[:middle] if which == "seen" else order[middle:]))


def captions_of(rows: Dataset) -> tuple[list[str], NDArray[np.int64]]:
    """Return the captions of captioned rows, and the number of the picture that each describes."""
    names = rows.classes
    return [names[text] for text in texts_of(rows)], picture_numbers(rows)


def _reader(name: str) -> Reader:
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise DataError(
            f"there is no data set {name!r}. Known: {known}. {nearest(name, DATASETS)}".rstrip()
        )
    return DATASETS[name]


def _target(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)
