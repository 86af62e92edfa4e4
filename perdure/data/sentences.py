"""COCO and Flickr30k with their captions, in the three formats that people have. No torch.

One row is one caption; rows of one picture have one label, so that they are positives of each
other.

Source of the division: Karpathy and Fei-Fei 2015, arXiv 1412.2306.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .catalog import Catalog, find_folder, require_split
from .folders import as_paths
from .tables import read_lines

SPLITS = ("train", "val", "test")
PER_IMAGE = 5
"""Captions that count in the published tests; more are left out there, not in training"""

Pairs = list[tuple[str, str]]
"""Path of the picture below the root, caption"""


def find_coco(split: str, root: Path) -> Catalog:
    """Find a split of COCO; `train` includes what the division calls `restval`."""
    require_split("coco", split, SPLITS)
    markers = ("dataset_coco.json", "coco_test_karpathy.json", "annotations/coco_train_ids.npy")
    base = find_folder("coco", root, "coco", "", markers=markers)
    silent: list[str] = []
    for karpathy in (base / "dataset_coco.json", base / "annotations" / "dataset_coco.json"):
        if karpathy.is_file():
            images = find_folder("coco's pictures", base, "images", "")
            pairs = _karpathy(karpathy, split, silent)
            return _catalog("coco", split, images, pairs, 113_287, 5_000, silent)
    own = base / f"coco_{split}_karpathy.json"
    if own.is_file():
        pairs = _coco_captions(own, silent)
        return _catalog("coco", split, base, pairs, 113_287, 5_000, silent)
    if (base / "annotations" / "coco_train_ids.npy").is_file():
        images = find_folder("coco's pictures", base, "images")
        pairs = _by_ids(base / "annotations", split)
        return _catalog("coco", split, images, pairs, 113_287, 5_000, silent)
    raise DataError(
        f"{base} holds no captions of coco that perdure reads: neither dataset_coco.json, nor "
        f"coco_{split}_karpathy.json, nor annotations/coco_train_ids.npy. docs/data.md says where "
        "they come from."
    )


def find_flickr(split: str, root: Path) -> Catalog:
    """Find a split of Flickr30k."""
    require_split("flickr30k", split, SPLITS)
    markers = ("dataset_flickr30k.json", "flickr30k_test_karpathy.txt")
    base = find_folder("flickr30k", root, "flickr30k", "f30k", "", markers=markers)
    places = ("images", "flickr30k-images", "flickr30k_images", "Images", "")
    images = find_folder("flickr30k's pictures", base, *places)
    counts = 29_000, 1_014 if split == "val" else 1_000
    silent: list[str] = []
    if (base / "dataset_flickr30k.json").is_file():
        pairs = _karpathy(base / "dataset_flickr30k.json", split, silent)
    elif (base / f"flickr30k_{split}_karpathy.txt").is_file():
        pairs = _lines(base / f"flickr30k_{split}_karpathy.txt")
    else:
        raise DataError(
            f"{base} holds no captions of flickr30k that perdure reads: neither "
            f"dataset_flickr30k.json nor flickr30k_{split}_karpathy.txt."
        )
    return _catalog("flickr30k", split, images, pairs, *counts, silent)


def _catalog(
    name: str, split: str, images: Path, pairs: Pairs, train: int, rest: int, silent: list[str]
) -> Catalog:
    if not pairs:
        raise DataError(f"the captions of {name} have none of split {split}; download them again.")
    rank: dict[str, int] = {}
    seen: dict[str, int] = {}
    kept: Pairs = []
    for path, text in pairs:
        seen[path] = seen.get(path, 0) + 1
        if split == "train" or seen[path] <= PER_IMAGE:
            kept.append((path, text))
            rank.setdefault(path, len(rank))
    return Catalog(
        name=name,
        split=split,
        root=images,
        paths=as_paths([path for path, _ in kept]),
        labels=np.array([rank[path] for path, _ in kept], dtype=np.int64),
        classes=tuple(text for _, text in kept),
        texts=np.arange(len(kept)),
        expected=train if split == "train" else rest,
        silent=tuple(silent),
    )


def pictures_of(catalog: Catalog) -> int:
    """Return the number of different pictures, which known counts of captioned sets count."""
    # Labels may count captions: of a table, or of shards with one each.
    return len(np.unique(catalog.paths)) if catalog.captioned else len(catalog)


def _karpathy(file: Path, split: str, silent: list[str]) -> Pairs:
    """Read the division's own file, with all splits of both data sets; note what has no caption."""
    wanted = ("train", "restval") if split == "train" else (split,)

    def pairs(found: Any) -> Iterable[tuple[str, str]]:
        for image in found["images"]:
            if image["split"] in wanted:
                path = "/".join(filter(None, (image.get("filepath"), image["filename"])))
                if not image["sentences"]:
                    silent.append(path)
                for sentence in image["sentences"]:
                    yield path, sentence["raw"]

    return _read(file, pairs)


def _coco_captions(file: Path, silent: list[str]) -> Pairs:
    """Read a caption file of COCO's own kind; pictures lie in the folders of their years."""

    def pairs(found: Any) -> Iterable[tuple[str, str]]:
        names = {image["id"]: _in_year(image["file_name"]) for image in found["images"]}
        for note in found["annotations"]:
            yield names[note["image_id"]], note["caption"]
        spoken = {note["image_id"] for note in found["annotations"]}
        silent.extend(path for number, path in names.items() if number not in spoken)

    return _read(file, pairs)


def _by_ids(folder: Path, split: str) -> Pairs:
    """Read the lists of caption numbers, five of one picture after another."""
    parts = {"train": ("train", "restval"), "val": ("dev",), "test": ("test",)}[split]
    found: dict[int, tuple[str, str]] = {}
    for year in ("train2014", "val2014"):
        file = folder / f"captions_{year}.json"

        def pairs(document: Any) -> Iterable[tuple[str, str]]:
            names = {image["id"]: _in_year(image["file_name"]) for image in document["images"]}
            for note in document["annotations"]:
                found[note["id"]] = names[note["image_id"]], _plain(note["caption"])
            return ()

        _read(file, pairs)
    numbers: list[int] = []
    for part in parts:
        file = folder / f"coco_{part}_ids.npy"
        try:
            numbers += np.load(file, allow_pickle=False).ravel().tolist()
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {file} ({error}); download it again.") from None
    if split == "val":
        numbers = numbers[: 5_000 * PER_IMAGE]
    missing = [number for number in numbers if number not in found]
    if missing:
        raise DataError(
            f"{folder}: caption {missing[0]} of the lists is in neither captions_train2014.json "
            f"nor captions_val2014.json ({len(missing)} are missing). Download them again."
        )
    return [found[number] for number in numbers]


def _lines(file: Path) -> Pairs:
    """Read "x.jpg,caption" lines below a header; captions hold commas themselves."""
    pairs = []
    for number, line in enumerate(read_lines(file).split("\n"), start=1):
        if number == 1 or not line.strip():
            continue
        path, mark, text = line.partition(".jpg,")
        if not mark or not text.strip():
            raise DataError(
                f"{file}, line {number} is {line[:80]!r}; every line below the header is a "
                "picture's name, a comma and a caption."
            )
        pairs.append((f"{path}.jpg", _plain(text.strip().strip('"'))))
    return pairs


def _read(file: Path, pairs: Any) -> Pairs:
    try:
        return [(str(path), _plain(text)) for path, text in pairs(json.loads(read_lines(file)))]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{file} is no file of captions that perdure reads ({type(error).__name__}: {error}); "
            "download it again."
        ) from None


def _plain(text: str) -> str:
    return " ".join(text.split())


def _in_year(name: str) -> str:
    """Return the path of a picture of COCO: its name says in which folder it lies."""
    if "/" in name:
        return name
    return f"{'val2014' if '_val2014_' in name else 'train2014'}/{name}"
