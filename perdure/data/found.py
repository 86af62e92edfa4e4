"""Data whose splits are whatever is found: folders, tables, Hugging Face's, shards. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from . import hf_datasets, layout, shard_files
from .catalog import NotThereError
from .hf_datasets import HF
from .shard_index import WDS, are_captioned

OWN = "own"


@dataclass(frozen=True)
class Found:
    """What lies at a root."""

    name: str
    """Data set, as in recipes"""
    splits: tuple[str, ...]
    captioned: Callable[[str], bool]
    """Whether the pictures of a split have captions instead of labels"""
    knows: Callable[[str], bool]
    """Whether the labels of a split are there"""
    version: Callable[[Iterable[str]], int]
    """A number that changes with the pictures and labels of some splits"""


def _own(root: Path) -> Found:
    own = layout.find_own(root)
    return Found(
        OWN,
        own.splits,
        captioned=lambda _: own.captioned,
        knows=lambda split: split in own.splits,
        version=lambda splits: layout.fingerprint(own, splits),
    )


def _hf(root: Path) -> Found:
    folder = hf_datasets.find_hf(root)
    return Found(
        HF,
        folder.splits,
        captioned=lambda _: folder.captioned,
        knows=folder.knows,
        version=lambda splits: hf_datasets.fingerprint(folder, splits),
    )


def _wds(root: Path) -> Found:
    root = root.expanduser()
    splits = shard_files.split_folders(root)
    return Found(
        WDS,
        splits,
        captioned=lambda split: are_captioned(root, split),
        knows=lambda split: split in splits,
        version=lambda kept: shard_files.fingerprint(root, kept),
    )


KINDS: dict[str, Callable[[Path], Found]] = {WDS: _wds, HF: _hf, OWN: _own}
"""By the names of data sets in recipes, in the order in which they are looked for"""


def find_found(root: Path, name: str | None = None) -> Found:
    """Look which splits are at a root.

    Args:
        root: Directory, table or shards.
        name: One of `KINDS`; None for whichever is there, own data last.

    Raises:
        DataError: If there is nothing, or it is malformed.
    """
    if name is not None:
        return KINDS[name](root)
    return _there(_wds, root) or _there(_hf, root) or _own(root)


def _there(find: Callable[[Path], Found], root: Path) -> Found | None:
    try:
        return find(root)
    except NotThereError:
        return None


def tested(found: Found, root: Path, hint: str) -> str:
    """Return the split that is scored: test, or val where that has no labels.

    Args:
        found: What is there.
        root: Where, for the error.
        hint: What to do, for the error.

    Raises:
        DataError: If there is neither.
    """
    inside = next((one for one in ("test", "val") if found.knows(one)), None)
    if inside is None:
        raise DataError(
            f"{root} has neither split test nor val to evaluate on; found: "
            f"{', '.join(found.splits)}.{hint}"
        )
    return inside
