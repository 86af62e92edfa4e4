"""Picture sheets: labelled rows of small images in one PNG, to look at data with one's own eyes."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import DataError
from ..files import whole_file

TILE, GAP, LABEL = 80, 4, 150
"""Pixels: height of a picture, space between pictures, width of the row's name"""


def write_sheet(rows: Mapping[str, Tensor], out: Path) -> Path:
    """Write one labelled row of pictures per entry.

    Args:
        rows: Name to images (N, 3, H, W), uint8; scaled to one height without smoothing.
        out: File to write; its folder is made if needed.

    Raises:
        DataError: If there is nothing to show.
        RunError: If the file cannot be written.
    """
    if not rows:
        raise DataError("there is no picture to show: the sheet has no rows.")
    widest = max(
        len(images) * round(TILE * images.shape[-1] / images.shape[-2]) for images in rows.values()
    )
    most = max(len(images) for images in rows.values())
    size = (LABEL + widest + GAP * (most + 1), len(rows) * (TILE + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(rows.items()):
        top, left = GAP + row * (TILE + GAP), LABEL
        pen.text((GAP, top + TILE // 2 - 6), name, fill="black")
        for pixels in images.permute(0, 2, 3, 1).numpy():
            picture = Image.fromarray(pixels)
            width = round(TILE * picture.width / picture.height)
            sheet.paste(picture.resize((width, TILE), Image.Resampling.NEAREST), (left, top))
            left += width + GAP
    with whole_file(out) as temporary:
        sheet.save(temporary, "PNG")
    return out
