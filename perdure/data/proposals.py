"""Mask proposals on disk, a file per image. Imports no torch.

PROPOSALS/NAME.npz    masks (Q, H, W), bool or probabilities; class_logits (Q, C + 1); scores (Q,)
PROPOSALS/NAME.json   a list of run-length masks, as Segment Anything's generator writes them
PROPOSALS/NAME.png    a number per instance, 0 for none; colours as in COCO's panoptic maps
PROPOSALS/results.json     all images in one file (perdure.data.results)
PROPOSALS/proposals.yaml   how they are used: weight, threshold, expand; all may be left out
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..documents import parse_yaml
from ..errors import DataError, RecipeError, nearest
from .masks import decode_rle, instance_masks, read_map, require_rle
from .segmented import Fusion, Proposals
from .tables import read_lines

SETTINGS = "proposals.yaml"
ENDINGS = (".npz", ".json", ".png")
_CERTAINTIES = ("score", "predicted_iou", "stability_score")
"""What programs call how sure they are of a mask; the first that is there counts"""


def read_fusion(folder: Path, default: Fusion) -> Fusion:
    """Return how the proposals of a folder are used: `proposals.yaml`, else the default.

    Raises:
        DataError: If a key is unknown or a value is out of range.
    """
    file = folder / SETTINGS
    if not file.is_file():
        return default
    try:
        found = dict(parse_yaml(read_lines(file), str(file)))
    except RecipeError as error:
        raise DataError(str(error)) from None
    known = {item.name for item in fields(Fusion)}
    found.pop("made_by", None)
    for key, value in found.items():
        if key not in known:
            raise DataError(
                f"{file} has the key {key!r}; allowed are {', '.join(sorted(known))}. "
                f"{nearest(key, known)}".rstrip()
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DataError(f"{file}: {key} is {value!r}; it must be a number.")
    try:
        return replace(default, **found)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def find_proposals(folder: Path, name: str) -> Path:
    """Return the file of proposals for an image.

    Args:
        folder: Of the proposals.
        name: Of the image, without its ending.

    Raises:
        DataError: If there is none.
    """
    file = own_file(folder, name)
    if file is not None:
        return file
    raise DataError(
        f"there are no mask proposals for {name}: none of {', '.join(ENDINGS)} in {folder}. "
        "Write one file per image there (docs/segmentation.md), or let perdure do it: "
        f"perdure propose MODEL PICTURES --out {folder}"
    )


def own_file(folder: Path, name: str) -> Path | None:
    """Return the file of proposals for an image alone; None without one."""
    places = (folder / f"{name}{ending}" for ending in ENDINGS)
    return next((place for place in places if place.is_file()), None)


def read_proposals(file: Path, size: tuple[int, int], classes: int) -> Proposals:
    """Read the proposals of one image.

    Args:
        file: As the head of this module says.
        size: Of the image, (H, W). Probabilities in npz files may be smaller, with the same aspect.
        classes: C, for the shape of `class_logits`.

    Raises:
        DataError: If the file is damaged, or belongs to another image or other classes.
    """
    if file.suffix == ".npz":
        found = _from_npz(file, classes)
    elif file.suffix == ".json":
        return as_proposals(_entries(file), str(file), size)
    else:
        found = Proposals(instance_masks(read_map(file, str(file))))
    if len(found.masks):
        whole = found.masks.dtype == np.bool_
        require_size(file, (found.masks.shape[1], found.masks.shape[2]), whole, size)
    return found


def require_size(
    file: Path | str, masks: tuple[int, int], whole: bool, size: tuple[int, int]
) -> None:
    """Refuse masks of another image.

    Args:
        file: For the error.
        masks: Their height and width.
        whole: Whether they are masks, not probabilities, which may be smaller.
        size: Of the image, (H, W).

    Raises:
        DataError: If they are not of the image's size.
    """
    if masks == size or (not whole and abs(masks[0] * size[1] - masks[1] * size[0]) <= max(size)):
        return
    raise DataError(
        f"the masks of {file} have {masks[0]} x {masks[1]} pixels, but the image has {size[0]} x "
        f"{size[1]}; masks must be those of the image as it is on disk"
        + ("." if whole else ", or probabilities of the same aspect.")
    )


def glance(file: Path) -> tuple[int, tuple[int, int], bool]:
    """Return how many masks a file has, their size, and whether they are no probabilities.

    Only headers are read, of lists of run-length masks their sizes.

    Raises:
        DataError: If these are damaged.
    """
    if file.suffix == ".npz":
        shape, kind = _npz_header(file)
        return shape[0], (shape[1], shape[2]), kind in "biu"
    if file.suffix == ".json":
        return glance_at(_entries(file), str(file))
    try:
        with Image.open(file) as picture:
            return 1, (picture.height, picture.width), True
    except Exception as error:  # pillow's decoders raise whatever they meet
        raise DataError(f"cannot read the proposals {file} ({error}); make it again.") from None


def glance_at(entries: Sequence[Any], where: str) -> tuple[int, tuple[int, int], bool]:
    """As `glance`, of run-length masks that were read."""
    sizes = [require_rle(_rle_of(one), f"mask {n} of {where}") for n, one in enumerate(entries)]
    return len(sizes), sizes[0] if sizes else (0, 0), True


def _npz_header(file: Path) -> tuple[tuple[int, ...], str]:
    try:
        with zipfile.ZipFile(file) as stored, stored.open("masks.npy") as array:
            version = np.lib.format.read_magic(array)
            reader = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                reader = np.lib.format.read_array_header_2_0
            shape, _, kind = reader(array)
    except Exception as error:  # zip, zlib and numpy each raise their own
        raise DataError(_unreadable(file, error)) from None
    if len(shape) != 3:
        raise DataError(f"{file} must hold `masks` of shape (Q, H, W); it has {shape}.")
    return shape, kind.kind


def _from_npz(file: Path, classes: int) -> Proposals:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except Exception as error:  # zip, zlib and numpy each raise their own
        raise DataError(_unreadable(file, error)) from None
    masks = arrays.get("masks")
    if masks is None or masks.ndim != 3:
        has = ", ".join(f"{key} {value.shape}" for key, value in arrays.items()) or "nothing"
        raise DataError(f"{file} must hold `masks` of shape (Q, H, W); it has {has}.")
    if masks.dtype.kind in "iu" and np.isin(masks, (0, 1)).all():
        masks = masks.astype(bool)
    if masks.dtype != np.bool_:
        masks = _within(file, "masks", masks)
    logits = arrays.get("class_logits")
    if logits is not None:
        if logits.shape != (len(masks), classes + 1) or not np.isfinite(logits).all():
            raise DataError(
                f"`class_logits` of {file} have the shape {logits.shape}; expected finite numbers "
                f"of {len(masks)} masks for {classes} classes and, last, no object: "
                f"({len(masks)}, {classes + 1})."
            )
        logits = logits.astype(np.float32)
    scores = arrays.get("scores")
    if scores is not None:
        if scores.shape != (len(masks),):
            raise DataError(f"`scores` of {file} are {scores.shape}; expected ({len(masks)},).")
        scores = _within(file, "scores", scores)
    return Proposals(masks, logits, scores)


def _unreadable(file: Path, error: Exception) -> str:
    return (
        f"cannot read the proposals {file} ({str(error)[:200] or type(error).__name__}); "
        "expected a whole npz file of plain arrays. Make it again."
    )


def _within(file: Path | str, name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    wrong = values.dtype.kind not in "fiu" or not np.isfinite(values).all()
    if wrong or (values.size and not 0 <= values.min() <= values.max() <= 1):
        span = "" if wrong else f" from {values.min()} to {values.max()}"
        raise DataError(
            f"`{name}` of {file} hold {values.dtype}{span}; expected probabilities in [0, 1] "
            "(of logits: 1 / (1 + exp(-x)))."
        )
    return values.astype(np.float32)


def _entries(file: Path) -> list[Any]:
    """Return the masks of a JSON file, each with what is said of it."""
    try:
        found = json.loads(read_lines(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot read the proposals {file} ({error}); make it again.") from None
    found = found.get("annotations", found.get("masks")) if isinstance(found, dict) else found
    if not isinstance(found, list):
        raise DataError(
            f"{file} holds no list of masks; expected [{{'segmentation': {{'size', 'counts'}}, "
            "'score'}}, ...], or such a list under 'annotations'."
        )
    return found


def _rle_of(entry: Any) -> Any:
    inner = isinstance(entry, dict) and "segmentation" in entry
    return entry["segmentation"] if inner else entry


def as_proposals(entries: Sequence[Any], where: str, size: tuple[int, int]) -> Proposals:
    """Return run-length masks as proposals.

    Args:
        entries: Masks, or objects with a mask under `segmentation` and how sure it is.
        where: What errors call them.
        size: Of the image, (H, W).

    Raises:
        DataError: If one is damaged, or they are of another image.
    """
    masks, scores = [], []
    for number, entry in enumerate(entries):
        masks.append(decode_rle(_rle_of(entry), f"mask {number} of {where}"))
        certain = [entry[key] for key in _CERTAINTIES if key in entry]
        scores.append(certain[0] if certain else None)
    sizes = {mask.shape for mask in masks}
    if len(sizes) > 1:
        raise DataError(f"the masks of {where} differ in size: {sorted(sizes)}; make them again.")
    if not masks:
        return Proposals(np.zeros((0, 0, 0), dtype=bool))
    require_size(where, (masks[0].shape[0], masks[0].shape[1]), True, size)
    numbers = None
    if all(isinstance(score, (int, float)) for score in scores):
        # Predicted overlaps go a little above 1.
        numbers = _within(where, "score", np.clip(np.array(scores, dtype=np.float64), None, 1))
    return Proposals(np.stack(masks), None, numbers)
