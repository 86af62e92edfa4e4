"""Small copies of test sets whose pixels have labels, and of pairs of a region and a noun."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perdure.data.label_layouts import LAYOUTS
from perdure.data.segmented import UNKNOWN

SIZE = (12, 16)
STEMS = ("first", "second")


def truth(classes: int, number: int = 0) -> NDArray[np.int64]:
    """Left half one class, right half another, unknown above."""
    labels = np.full(SIZE, number % classes)
    labels[:, 8:] = classes - 1
    labels[:3] = UNKNOWN
    return labels


def write(root: Path, name: str, variant: int = 0) -> Path:
    """Write a small copy of a test set, with true masks as proposals."""
    layout = LAYOUTS[name]
    base = root / layout.folders[0]
    images, (maps, above) = base / layout.images, layout.labels[variant]
    for folder in (images, base / maps, root / "proposals" / name):
        folder.mkdir(parents=True, exist_ok=True)
    deep = layout.void > 255
    for number, stem in enumerate(STEMS):
        labels = truth(layout.classes, number)
        pixels = np.zeros((*SIZE, 3), np.uint8)
        pixels[:, 8:] = 200
        Image.fromarray(pixels).save(images / f"{stem}.jpg")
        stored = np.where(labels == UNKNOWN, 0 if above else layout.void, labels + above)
        stored = stored.astype(np.uint16 if deep else np.uint8)
        Image.fromarray(stored).save(base / maps / f"{stem}.{'tif' if deep else 'png'}")
        masks = np.stack([labels == number, labels == layout.classes - 1])
        np.savez(root / "proposals" / name / f"{stem}.npz", masks=masks)
    if layout.listing:
        (base / layout.listing).parent.mkdir(parents=True, exist_ok=True)
        (base / layout.listing).write_text("\n".join(STEMS) + "\n")
    return base


def names_of(base: Path, name: str) -> None:
    """Write names as the data set itself has them, or as a person writes them."""
    number = LAYOUTS[name].classes
    if name == "a150":
        rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
        rows += [f"{i + 1}\t0.1\t9\t9\t0\tthing {i}, object {i}" for i in range(number)]
        (base / "objectInfo150.txt").write_text("\n".join(rows))
    elif name == "pc459":
        (base / "labels.txt").write_text("\n".join(f"{i + 1}: thing {i}" for i in range(number)))
    elif name != "pas20":
        (base / f"{name}.txt").write_text("\n".join(f"thing {i}" for i in range(number)))


REGION_SIZE = (20, 30)


def regions(root: Path, split: str = "train", seed: int = 0) -> list[dict[str, object]]:
    """Write three regions of one picture in the three forms; two have the same noun."""
    root.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*REGION_SIZE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(root / f"{split}.png")
    numbers = np.zeros(REGION_SIZE, np.uint8)
    numbers[5:15, 5:20] = 3
    numbers[16:, 25:] = 4
    Image.fromarray(numbers).save(root / f"{split}-numbers.png")
    runs = [20 * 5 + 5, 10] + [10, 10] * 14 + [20 * 10 + 5]  # down the columns
    rows: list[dict[str, object]] = [
        {"noun": "Big  Dog", "mask": f"{split}-numbers.png", "instance": 3},
        {"noun": "cat", "box": [2, 3, 12, 18]},
        {"noun": "big dog ", "rle": {"size": list(REGION_SIZE), "counts": runs}},
    ]
    rows = [{"image": f"{split}.png", **row} for row in rows]
    lines(root, *rows, split=split)
    return rows


def lines(root: Path, *rows: object, split: str = "train") -> None:
    """Write pairs as they are; texts are written as they stand."""
    text = "\n\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (root / f"{split}.jsonl").write_text(text + "\n")
