"""Every published data set that is read in the layouts people have. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..errors import DataError, nearest
from . import coop, imagenet, sentences, wilds
from .catalog import Catalog

Find = Callable[[str, Path], Catalog]
"""From a split and a root to what is there, or a `DataError` that says what is not"""

FINDERS: dict[str, Find] = {
    "imagenet": imagenet.find_imagenet,
    "imagenet-v2": imagenet.find_v2,
    "imagenet-r": imagenet.find_r,
    "imagenet-a": imagenet.find_a,
    "imagenet-sketch": imagenet.find_sketch,
    "objectnet": imagenet.find_objectnet,
    "imagenet-c": imagenet.find_c,
    **{name: partial(coop.find_coop, name) for name in coop.SETS},
    "iwildcam": wilds.find_iwildcam,
    "fmow": wilds.find_fmow,
    "coco": sentences.find_coco,
    "flickr30k": sentences.find_flickr,
}
"""By the names of data sets in recipes"""

SPLITS: dict[str, tuple[str, ...]] = {
    "imagenet": ("train", "test"),
    **dict.fromkeys(
        ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch", "objectnet"), ("test",)
    ),
    "imagenet-c": tuple(
        f"{name}-{level}" for name in imagenet.CORRUPTIONS for level in range(1, 6)
    ),
    **dict.fromkeys(coop.SETS, ("train", "val", "test")),
    **dict.fromkeys(("iwildcam", "fmow"), wilds.SPLITS),
    **dict.fromkeys(("coco", "flickr30k"), sentences.SPLITS),
}
"""The splits that a whole copy of each has"""

TASKS = {"imagenet": None, "iwildcam": "id_val", "fmow": "id_val"}
"""Split on which choices are made, where it is not `val`; None where every other picture is
reported on"""


BY_F1 = ("iwildcam",)
"""Data sets whose published figures are macro-F1; source: Koh et al. 2021, arXiv 2012.07421"""


def require_known(name: str) -> None:
    """Refuse a name of no published data set.

    Raises:
        DataError: Names the nearest.
    """
    if name not in FINDERS:
        raise DataError(
            f"there is no published data set {name!r}. Known: {', '.join(FINDERS)}. "
            f"{nearest(name, FINDERS)}".rstrip()
        )


def find(name: str, split: str, root: Path) -> Catalog:
    """Find a split of a published data set.

    Raises:
        DataError: If the data set is unknown, or not below `root`, or incomplete.
    """
    require_known(name)
    return FINDERS[name](split, root)


def probe(name: str, split: str, root: Path) -> Catalog | DataError:
    """Return what `find` returns, or the error that it raises."""
    try:
        return find(name, split, root)
    except DataError as error:
        return error
