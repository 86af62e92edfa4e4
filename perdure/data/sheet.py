"""Picture sheets: labelled rows of small images in one PNG, to look at data with one's own eyes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import DataError
from ..files import whole_file

TILE, GAP, LABEL = 80, 4, 150
"""Pixels: height of a picture, space between pictures, width of the row's name"""

CAPTION, LINE = 104, 12
"""Pixels: room for a line below a picture"""


def write_sheet(
    rows: Mapping[str, Tensor],
    out: Path,
    captions: Mapping[str, Sequence[tuple[str, ...]]] | None = None,
) -> Path:
    """Write one labelled row of pictures per entry.

    Args:
        rows: Name to images (N, 3, H, W), uint8; scaled to one height without smoothing.
        out: File to write; its folder is made if needed.
        captions: By the same names, the lines below each picture; those of all rows are as many.

    Raises:
        DataError: If there is nothing to show.
        RunError: If the file cannot be written.
    """
    if not rows:
        raise DataError("there is no picture to show: the sheet has no rows.")
    captions = captions or {}
    lines = max((len(text) for row in captions.values() for text in row), default=0)
    narrowest = CAPTION if lines else 0
    sizes = {
        name: max(narrowest, round(TILE * images.shape[-1] / images.shape[-2]))
        for name, images in rows.items()
    }
    widest = max(sizes[name] * len(images) for name, images in rows.items())
    most = max(len(images) for images in rows.values())
    height = TILE + LINE * lines + GAP
    sheet = Image.new("RGB", (LABEL + widest + GAP * (most + 1), len(rows) * height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(rows.items()):
        top, left = GAP + row * height, LABEL
        pen.multiline_text((GAP, top + TILE // 2 - 6), name, fill="black")
        below = captions.get(name, ())
        for number, pixels in enumerate(images.permute(0, 2, 3, 1).numpy()):
            picture = Image.fromarray(pixels)
            width = round(TILE * picture.width / picture.height)
            sheet.paste(picture.resize((width, TILE), Image.Resampling.NEAREST), (left, top))
            for line, text in enumerate(below[number] if number < len(below) else ()):
                place = (left, top + TILE + 1 + LINE * line)
                pen.text(place, _fit(pen, text, sizes[name]), fill="black")
            left += sizes[name] + GAP
    with whole_file(out) as temporary:
        sheet.save(temporary, "PNG")
    return out


def _fit(pen: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """Shorten a text at its end to a width in pixels."""
    if pen.textlength(text) <= width:
        return text
    while text and pen.textlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
