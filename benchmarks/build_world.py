"""Build EmojiShift's sprite atlas and vocabulary from the published npm artwork packages.

Run once, before the world is frozen; the two files it writes are shipped inside the package:

    pip install -e '.[world]'
    python -m benchmarks.build_world --packages DIR

`DIR` holds the unpacked npm packages, one folder each, named as in `PACKAGES` below
(`npm pack @iconify-json/noto@1.2.9`, then untar).
"""

import argparse
import gzip
import io
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perdure.data.captions import corpus
from perdure.data.sprites import ATLAS, CONCEPTS, SIZE, VENDORS, VOCABULARY
from perdure.extras import require

PACKAGES = {
    "noto": "noto-1.2.9",
    "noto-v1": "noto-v1-1.2.5",
    "twemoji": "twemoji-1.2.5",
    "emojione": "emojione-1.2.3",
    "fluent": "fluent-emoji-1.2.7",
    "fluent-flat": "fluent-emoji-flat-1.2.6",
    "monotone": "emojione-monotone-1.2.1",
    "line": "fluent-emoji-high-contrast-1.2.6",
    "openmoji": "openmoji-1.2.29",
}
RASTER = 96
MERGES = 1200


def read_icons(folder: Path) -> tuple[dict[str, str], int, int]:
    """Return SVG bodies by icon name (aliases resolved) and the view box's width and height."""
    table: dict[str, Any] = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    bodies = {name: icon["body"] for name, icon in table["icons"].items()}
    for name, alias in table.get("aliases", {}).items():
        if alias["parent"] in bodies:
            bodies.setdefault(name, bodies[alias["parent"]])
    return bodies, int(table.get("width", 16)), int(table.get("height", 16))


def rasterise(body: str, width: int, height: int) -> NDArray[np.uint8]:
    """Draw one icon, crop it to its alpha bounding box, pad to a square, reduce to `SIZE`.

    Returns:
        Premultiplied RGBA, (SIZE, SIZE, 4).
    """
    require("resvg_py", "drawing the sprites")
    import resvg_py

    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" color="#000">'
        f"{body}</svg>"
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=RASTER, height=RASTER)
    pixels = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA")).astype(np.float64)
    rows, columns = np.nonzero(pixels[..., 3] > 8)
    crop = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    side = max(crop.shape[:2])
    square = np.zeros((side, side, 4))
    top, left = (side - crop.shape[0]) // 2, (side - crop.shape[1]) // 2
    square[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    square[..., :3] *= square[..., 3:] / 255
    bands = [
        np.asarray(
            Image.fromarray(square[..., band].astype(np.float32), mode="F").resize(
                (SIZE, SIZE), Image.Resampling.BOX
            )
        )
        for band in range(4)
    ]
    small: NDArray[np.uint8] = np.clip(np.rint(np.stack(bands, -1)), 0, 255).astype(np.uint8)
    # A premultiplied colour can never exceed its alpha; rounding may break that by one level.
    small[..., :3] = np.minimum(small[..., :3], small[..., 3:])
    return small


def build_sheet(packages: Path, vendors: tuple[str, ...]) -> NDArray[np.uint8]:
    """Return a sheet with one row per vendor and one column per concept."""
    rows = []
    for vendor in vendors:
        bodies, width, height = read_icons(packages / PACKAGES[vendor])
        row = [rasterise(bodies[name.replace(" ", "-")], width, height) for name in CONCEPTS]
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows, axis=0)


def write_sheet(sheet: NDArray[np.uint8], path: Path) -> None:
    """Write a premultiplied RGBA sheet as lossless WebP, every channel kept as it is."""
    Image.fromarray(sheet, mode="RGBA").save(
        path, "WEBP", lossless=True, quality=100, method=6, exact=True
    )


def learn_merges(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """Learn byte-pair merges in the format of CLIP's tokeniser (`</w>` ends a word).

    Ties go to the lexically smallest pair, so the result does not depend on hashing.
    """
    pieces = {word: (*word[:-1], word[-1] + "</w>") for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            pieces[word] = tuple(merged)
    return merges


def write_vocabulary(packages: Path, path: Path) -> int:
    """Write the vocabulary file and return the number of merges."""
    names = json.loads((packages / PACKAGES["noto"] / "chars.json").read_text(encoding="utf-8"))
    words: Counter[str] = Counter()
    for text in names.values():
        words.update(re.findall(r"[a-z]+", text.lower()))
    # What is said about this world weighs more than names of icons that are not in it.
    for text, weight in corpus():
        for word in re.findall(r"[a-z]+", text.lower()):
            words[word] += weight
    merges = learn_merges(words, MERGES)
    lines = ["#version: perdure emojishift 1", *(" ".join(pair) for pair in merges)]
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(("\n".join(lines) + "\n").encode())
    return len(merges)


def main() -> None:
    """Write the atlas and the vocabulary where the package reads them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True)
    arguments = parser.parse_args()
    write_sheet(build_sheet(arguments.packages, VENDORS), ATLAS)
    merges = write_vocabulary(arguments.packages, VOCABULARY)
    print(f"{ATLAS.name}: {ATLAS.stat().st_size} bytes; {VOCABULARY.name}: {merges} merges")


if __name__ == "__main__":
    main()
