r"""Mask proposals of all images in one file, in the form of COCO's results. Imports no torch.

    [{"image_id": 7, "segmentation": {"size": [H, W], "counts": "..."}, "score": 0.9}, ...]

The file is read once, piece by piece, to see where the masks of every image stand; only these
places are kept, so that memory does not grow with the masks.
"""

from __future__ import annotations

import json
import mmap
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .proposals import as_proposals, glance_at
from .segmented import Proposals

RESULTS = ("results.json", "coco_instances_results.json", "sem_seg_predictions.json")
"""Names of such a file in a folder of proposals; beside the folders it has the data set's name"""

LISTS = "instances_*.json"
"""What says which number which image has, beside the results"""

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_KNOWN = ("annotations", "")
"""Lists of an object that hold masks; "" is a bare list"""


class Piece(NamedTuple):
    """Where one object of a list stands in a file."""

    section: str
    """Key of the list; "" where the whole file is one"""
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Results:
    """Where the masks of every image stand."""

    file: Path
    starts: NDArray[np.int64]
    """(M,), those of one image one after the other, in the order of the file"""
    ends: NDArray[np.int64]
    places: Mapping[str, tuple[int, int]]
    """Name of an image, without its ending, to its first mask and the one behind its last"""

    def entries(self, stem: str) -> list[Any]:
        """Return what the file holds of an image; an empty list if nothing was found in it.

        Raises:
            DataError: If neither the masks nor the list of images know it.
        """
        if stem not in self.places:
            raise DataError(
                f"there are no mask proposals for {stem}: {self.file} has none, and no list of "
                "images says that it was looked at. Make the proposals again, for all images."
            )
        first, behind = self.places[stem]
        found = []
        with self.file.open("rb") as opened:
            for row in range(first, behind):
                opened.seek(int(self.starts[row]))
                found.append(json.loads(opened.read(int(self.ends[row] - self.starts[row]))))
        return found

    def read(self, stem: str, size: tuple[int, int]) -> Proposals:
        """Return the proposals of one image.

        Args:
            stem: Its name, without the ending.
            size: (H, W).

        Raises:
            DataError: If masks are damaged or of another size, or the image is unknown.
        """
        return as_proposals(self.entries(stem), f"{self.file}, image {stem}", size)

    def glance(self, stem: str) -> tuple[int, tuple[int, int], bool]:
        """As `perdure.data.proposals.glance`."""
        return glance_at(self.entries(stem), f"{self.file}, image {stem}")


def find_results(folder: Path, name: str) -> Path | None:
    """Return the file that holds the proposals of all images; None without one.

    Args:
        folder: Of the proposals.
        name: Of the data set.
    """
    beside = (folder.parent if folder.name == name else folder) / f"{name}.json"
    places = (*(folder / one for one in RESULTS), beside)
    return next((place for place in places if place.is_file()), None)


def open_results(file: Path, stems: Iterable[str]) -> Results:
    """See where the masks of every image stand.

    Args:
        file: The results.
        stems: Names of the images of the data set, without their endings. Where no list of images
            lies in or beside the results, their `image_id` is such a name, or its number.

    Raises:
        DataError: If the file is damaged, or has a mask of an image that nobody knows.
    """
    listed = _listed_images(file)
    known = listed or _by_name(stems)
    # An image that is listed and has no mask was looked at all the same.
    numbers = {stem: number for number, stem in enumerate(dict.fromkeys(listed.values()))}
    found = array("q")
    for number, (piece, entry) in enumerate(_objects(file, _KNOWN)):
        stem = _stem(entry, known, f"mask {number} of {file}", bool(listed))
        found.extend((numbers.setdefault(stem, len(numbers)), piece.start, piece.end))
    rows = np.array(found, dtype=np.int64).reshape(-1, 3)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    bounds = np.searchsorted(rows[:, 0], np.arange(len(numbers) + 1)).tolist()
    places = {stem: (bounds[number], bounds[number + 1]) for stem, number in numbers.items()}
    return Results(file, rows[:, 1].copy(), rows[:, 2].copy(), places)


def pieces(file: Path) -> Iterator[Piece]:
    """Yield where the objects of a file's lists stand, without reading them.

    Raises:
        DataError: If the file is missing or cut off.
    """
    depth, section, key = 0, "", b""
    start = -1
    try:
        with (
            file.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as whole,
        ):
            bare = whole[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
            outer = 1 if bare else 2
            for token in _TOKEN.finditer(whole):
                sign = whole[token.start()]
                if sign == ord('"'):
                    key = token[0] if depth == 1 else key
                elif sign in b"[{":
                    if depth == outer - 1 and not bare:
                        section = key.decode("utf-8", "replace").strip('"')
                    if depth == outer and sign == ord("{"):
                        start = token.start()
                    depth += 1
                else:
                    depth -= 1
                    if depth == outer and start >= 0:
                        yield Piece(section, start, token.end())
                        start = -1
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file} ({error}); make it again.") from None
    if depth:
        raise DataError(f"{file} is cut off: {depth} brackets are never closed. Make it again.")


def _objects(file: Path, sections: tuple[str, ...]) -> Iterator[tuple[Piece, dict[str, Any]]]:
    """Yield the objects of some lists of a file, one at a time."""
    with file.open("rb") as opened:
        for piece in pieces(file):
            if piece.section not in sections:
                continue
            opened.seek(piece.start)
            try:
                found = json.loads(opened.read(piece.end - piece.start))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file} is no JSON ({error}); make it again.") from None
            yield piece, found


def _listed_images(file: Path) -> dict[Any, str]:
    """Return the names of images by number, from the results or from lists beside them."""
    found: dict[Any, str] = {}
    beside = [one for where in file.parents[:2] for one in sorted(where.glob(LISTS))]
    for place in (file, *beside):
        for number, (_, entry) in enumerate(_objects(place, ("images",))):
            name = entry.get("file_name")
            if "id" not in entry or not isinstance(name, str):
                raise DataError(f"image {number} of {place} has no id and file_name.")
            stem = Path(name).stem
            if found.setdefault(entry["id"], stem) != stem:
                raise DataError(
                    f"{place} calls image {entry['id']} {stem}, and before it was called "
                    f"{found[entry['id']]}; keep one list of images beside {file}."
                )
        if found:
            break
    return found


def _by_name(stems: Iterable[str]) -> dict[Any, str]:
    """Return names of images by themselves and, where a name is a number, by that."""
    found: dict[Any, str] = {stem: stem for stem in stems}
    return found | {int(stem): stem for stem in found if stem.isdecimal()}


def _stem(entry: Mapping[str, Any], known: Mapping[Any, str], where: str, listed: bool) -> str:
    number = entry.get("image_id", entry.get("file_name"))
    if number is None:
        raise DataError(f"{where} has no image_id; nobody knows which image it is of.")
    for key in (number, Path(number).stem if isinstance(number, str) else number):
        if isinstance(key, (str, int)) and key in known:
            return known[key]
    if listed:
        advice = "the list of images has no such number. Are results and list of the same data?"
    else:
        advice = (
            "no image of the data set has that name. Put the list of images that the numbers come "
            f"from ({LISTS}) beside the results."
        )
    raise DataError(f"{where} is of image {number!r}, and {advice}")
