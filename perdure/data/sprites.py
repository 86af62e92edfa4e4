"""EmojiShift's sprites: who drew what, which drawings pre-training has seen, and their pixels.

The artwork is eight openly licensed emoji sets (see NOTICE), drawn by different artists: the same
label set under a real, human-made shift. `benchmarks/build_world.py` made the atlas.
"""

from functools import cache
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

SIZE = 48
"""Pixels per side of a stored sprite"""

VENDORS = (
    "noto",
    "noto-v1",
    "twemoji",
    "emojione",
    "fluent",
    "fluent-flat",
    "monotone",
    "line",
)
"""Row order of the atlas"""

PRINTS = ("monotone", "line")
"""Vendors whose drawings are black on nothing"""

ATLAS = Path(__file__).parent.parent / "assets" / "emojishift.webp"
VOCABULARY = Path(__file__).parent.parent / "assets" / "emojishift-bpe.txt.gz"

_names = yaml.safe_load((Path(__file__).parent / "names" / "emojishift.yaml").read_text("utf-8"))

CLASSES: tuple[str, ...] = tuple(name for group in _names["classes"].values() for name in group)
"""The 80 benchmark classes; position = class index"""

PRETRAINING_ONLY: tuple[str, ...] = tuple(
    name for group in _names["pretraining"].values() for name in group
)
"""60 concepts that occur in pre-training and in `val_shift`, never in a task"""

BASE: tuple[str, ...] = tuple(_names["base"])
"""The 40 base classes; the other 40 are novel"""

CONCEPTS: tuple[str, ...] = CLASSES + PRETRAINING_ONLY
"""Column order of the atlas"""

GROUPS: dict[str, str] = {
    name: group
    for part in ("classes", "pretraining")
    for group, members in _names[part].items()
    for name in members
}
"""Concept to the kind of thing it is"""

COVERAGE_KEY = 20261121
COVERAGE = {vendor: 0.6 if vendor.startswith("noto") else 0.9 for vendor in VENDORS}
"""Share of the 80 classes' drawings that pre-training has seen, by vendor"""


@cache
def covered() -> NDArray[np.bool_]:
    """Return which (vendor, concept) drawings occur in pre-training, (8, 140).

    One uniform draw per vendor and benchmark class decides, in vendor-major order; the
    pre-training-only concepts are always covered. Raw Philox output is used because NumPy promises
    it to stay the same for ever.
    """
    raw = np.random.Philox(key=COVERAGE_KEY).random_raw(len(VENDORS) * len(CLASSES))
    draws = (np.asarray(raw) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    shares = np.array([COVERAGE[vendor] for vendor in VENDORS])[:, None]
    table = np.ones((len(VENDORS), len(CONCEPTS)), dtype=np.bool_)
    table[:, : len(CLASSES)] = draws.reshape(len(VENDORS), len(CLASSES)) < shares
    return table


@cache
def atlas() -> NDArray[np.uint8]:
    """Return all sprites, premultiplied RGBA, (8, 140, 48, 48, 4), indexed [vendor, concept]."""
    sheet = np.asarray(Image.open(ATLAS).convert("RGBA"))
    cells = sheet.reshape(len(VENDORS), SIZE, len(CONCEPTS), SIZE, 4)
    return np.ascontiguousarray(cells.transpose(0, 2, 1, 3, 4))
