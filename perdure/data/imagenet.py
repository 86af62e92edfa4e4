"""ImageNet and its shifts, found in the layouts that people have. Imports no torch.

The label of a picture is the rank of its synset, or the number that is its folder's name; never the
rank of a folder in a listing, which is another one as soon as folders are numbers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import DataError
from . import imagenet_names as known
from .catalog import Catalog, find_folder, list_folders, require_split
from .folders import entries
from .tables import read_lines

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur"),
    *("motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast"),
    *("elastic_transform", "pixelate", "jpeg_compression"),
)
"""Of ImageNet-C's mean; source: Hendrycks and Dietterich 2019, arXiv 1903.12261"""

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
C_SPLITS = tuple(f"{name}-{level}" for name in CORRUPTIONS for level in range(1, 6))
"""Corruptions and severities, as splits"""

_FAMILIES = ("noise", "blur", "weather", "digital", "extra")
_BASES = ("", "imagenet", "ILSVRC2012", "imagenet/images", "imagenet-1k", "ImageNet")
_VAL = ("val_in_folder", "val_dirs", "val")
_V2 = {
    "test": ("matched-frequency", 10_000),
    "threshold0.7": ("threshold0.7", 10_000),
    "top-images": ("top-images", 10_000),
}
_FILE = re.compile(r"ILSVRC2012_val_(\d{8})")


def find_imagenet(split: str, root: Path) -> Catalog:
    """Find ImageNet-1k: "train", or its validation pictures, which are "val" and "test"."""
    require_split("imagenet", split, ("train", "val", "test"))
    folders = ("train",) if split == "train" else _VAL
    # Other people's data have folders train and val as well.
    own = any(_has_synset(root / folder) for folder in ("train", *_VAL))
    bases = _BASES if own else _BASES[1:]
    places = [f"{base}/{folder}".strip("/") for base in bases for folder in folders]
    # A flat val/ may stand beside a sorted one; folders of classes go before it.
    sorted_first = [place for place in places if _has_synset(root / place)] or places
    source = find_folder(f"imagenet's {split} pictures", root, *sorted_first)
    paths, labels = list_folders("imagenet", source, known.synsets())
    accepted = None
    if split != "train":
        numbers = [_FILE.search(path.decode("utf-8", "replace")) for path in paths.tolist()]
        if all(numbers):
            real = known.real_labels()
            places_in = [int(found[1]) - 1 for found in numbers if found]
            if max(places_in) < len(real):
                accepted = tuple(real[place] for place in places_in)
    return Catalog(
        name="imagenet",
        split=split,
        root=source,
        paths=paths,
        labels=labels,
        classes=known.names(),
        accepted=accepted,
        expected=1_281_167 if split == "train" else 50_000,
        proved=split == "train",
    )


def find_v2(split: str, root: Path) -> Catalog:
    """Find ImageNet-V2: "test" is matched-frequency; the others have the names of their files."""
    require_split("imagenet-v2", split, tuple(_V2))
    word, count = _V2[split]
    stems = (f"imagenetv2-{word}-format-val", f"imagenetv2-{word}", f"ImageNetV2-{word}")
    places = [f"{base}{stem}" for stem in stems for base in ("", "imagenetv2/", "imagenet-v2/")]
    source = find_folder(f"imagenet-v2 ({word})", root, *places)
    there = {entry.name for entry in entries(source) if entry.is_dir()}
    numbers = tuple(str(label) for label in range(1000))
    folders = known.synsets() if there & set(known.synsets()) else numbers
    paths, labels = list_folders("imagenet-v2", source, folders)
    return Catalog(
        name="imagenet-v2",
        split=split,
        root=source,
        paths=paths,
        labels=labels,
        classes=known.names(),
        expected=count,
        proved=True,
    )


def find_r(split: str, root: Path) -> Catalog:
    """Find ImageNet-R, 200 classes; its one split is "test"."""
    places = ("imagenet-r", "imagenet-rendition/imagenet-r", "imagenet-rendition")
    return _part("imagenet-r", split, root, places, 30_000, proved=True)


def find_a(split: str, root: Path) -> Catalog:
    """Find ImageNet-A, 200 classes; its one split is "test"."""
    places = ("imagenet-a", "imagenet-adversarial/imagenet-a", "imagenet-adversarial")
    return _part("imagenet-a", split, root, places, 7_500)


def find_sketch(split: str, root: Path) -> Catalog:
    """Find ImageNet-Sketch; its one split is "test"."""
    require_split("imagenet-sketch", split, ("test",))
    places = ("sketch", "imagenet-sketch/images", "imagenet-sketch/sketch", "imagenet-sketch")
    source = find_folder("imagenet-sketch", root, *places)
    paths, labels = list_folders("imagenet-sketch", source, known.synsets())
    return Catalog(
        name="imagenet-sketch",
        split=split,
        root=source,
        paths=paths,
        labels=labels,
        classes=known.names(),
        expected=50_889,
    )


def find_c(split: str, root: Path) -> Catalog:
    """Find one corruption and severity of ImageNet-C, such as "fog-3"."""
    corruption, _, severity = split.rpartition("-")
    allowed = (*CORRUPTIONS, *EXTRA)
    if corruption not in allowed or severity not in tuple("12345"):
        raise DataError(
            f"imagenet-c has no split {split!r}; write a corruption and its severity, as in "
            f"fog-3. Corruptions: {', '.join(allowed)}; severities: 1 to 5."
        )
    inside = f"{corruption}/{severity}"
    bases = [f"{base}/" for base in ("imagenet-c", "ImageNet-C")]
    places = [base + inside for base in bases]
    places += [f"{base}{family}/{inside}" for base in bases for family in _FAMILIES]
    source = find_folder(f"imagenet-c, {corruption} of severity {severity},", root, *places)
    paths, labels = list_folders("imagenet-c", source, known.synsets())
    return Catalog(
        name="imagenet-c",
        split=split,
        root=source,
        paths=paths,
        labels=labels,
        classes=known.names(),
        expected=50_000,
    )


def find_objectnet(split: str, root: Path) -> Catalog:
    """Find ObjectNet's 113 classes that ImageNet knows.

    "test" has the red border of 2 pixels cut off; "uncropped" has not.
    """
    require_split("objectnet", split, ("test", "uncropped"))
    places = ("objectnet-1.0", "objectnet/objectnet-1.0", "objectnet", "ObjectNet")
    base = find_folder("objectnet", root, *places)
    source = find_folder("objectnet's pictures", base, "images")
    mappings = find_folder("objectnet's mappings (they come with it)", base, "mappings")
    columns = _objectnet_columns(mappings)
    labels_of = _json(mappings / "folder_to_objectnet_label.json")
    folders = tuple(sorted(folder for folder, label in labels_of.items() if label in columns))
    paths, labels = list_folders("objectnet", source, folders)
    return Catalog(
        name="objectnet",
        split=split,
        root=source,
        paths=paths,
        labels=labels,
        classes=tuple(str(labels_of[folder]).lower() for folder in folders),
        columns=tuple(columns[labels_of[folder]] for folder in folders),
        border=2 if split == "test" else 0,
        expected=18_574,
        proved=True,
    )


def _part(
    name: str, split: str, root: Path, places: tuple[str, ...], count: int, proved: bool = False
) -> Catalog:
    """Find a set of 200 of ImageNet's classes, counted in the order of their synsets."""
    require_split(name, split, ("test",))
    kept = known.members(name[-1])
    folders = tuple(known.synsets()[label] for label in kept)
    usable = [place for place in places if _has_synset(root / place)] or list(places)
    source = find_folder(name, root, *usable)
    paths, labels = list_folders(name, source, folders)
    return Catalog(
        name=name,
        split=split,
        root=source,
        paths=paths,
        labels=labels,
        classes=tuple(known.names()[label] for label in kept),
        columns=tuple((label,) for label in kept),
        expected=count,
        proved=proved,
    )


def _objectnet_columns(mappings: Path) -> dict[str, tuple[int, ...]]:
    """Return ObjectNet's label to the ImageNet labels that it covers."""
    lines = read_lines(mappings / "imagenet_to_label_2012_v2").split("\n")
    place = {line.strip(): index for index, line in enumerate(lines) if line.strip()}
    ours = {int(v): int(k) for k, v in _json(mappings / "pytorch_to_imagenet_2012_id.json").items()}
    texts = _json(mappings / "objectnet_to_imagenet_1k.json")
    try:
        return {
            label: tuple(sorted(ours[place[name.strip()]] for name in str(names).split(";")))
            for label, names in texts.items()
        }
    except KeyError as error:
        raise DataError(
            f"objectnet's mappings in {mappings} do not fit each other: {error} has no place in "
            "ImageNet. Download them again."
        ) from None


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_lines(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not the JSON of the data set ({error}).") from None
    if not isinstance(found, dict):
        raise DataError(f"{file} holds no JSON object; download the data set again.")
    return found


def _has_synset(folder: Path) -> bool:
    """Return whether a folder holds folders that are named after synsets."""
    return folder.is_dir() and any(
        re.fullmatch(r"n\d{8}", entry.name) and entry.is_dir() for entry in folder.iterdir()
    )
