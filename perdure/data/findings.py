"""What a look at data says, and the small looks that every kind of data shares. No torch."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image

from ..errors import DataError
from .catalog import Catalog

_LISTED = 5
"""Files that a fault names"""

_HASHED = 1 << 20
_SIDEWAYS = (5, 6, 7, 8)
"""Values of EXIF's orientation with which height and width change places"""

Progress = Callable[[int], None]
"""Called with the number of files looked at since the last call"""

Source = Path | Callable[[], bytes]
"""Where a picture's content is: a file, or whatever hands it out"""


@dataclass
class Part:
    """What was found of one split."""

    name: str
    split: str
    rows: int
    """Pictures, captions, regions or questions"""
    pictures: int
    classes: int | None
    """Names, captions or nouns; None of questions"""
    expected: int | None
    missing: list[str] = field(default_factory=list)
    """Relative paths of listed files that are not there"""
    damaged: list[str] = field(default_factory=list)
    """Relative paths of files that no decoder reads"""
    empty_classes: int = 0
    catalog: Catalog | None = field(default=None, repr=False)
    """Of data that are pictures with labels or captions"""
    numbers: dict[str, float | int] = field(default_factory=dict)
    """Statistics of other data"""
    files: Sequence[Path] = field(default=(), repr=False)
    """Pictures of other data, which are compared with those of other splits"""


@dataclass
class Findings:
    """Everything that is said of a root."""

    root: Path
    parts: list[Part] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def fault(self, where: str, files: Sequence[str], what: str) -> None:
        """Add a fault about some files, if there are any."""
        if files:
            self.faults.append(listed(where, files, what))

    def remark(self, where: str, files: Sequence[str], what: str) -> None:
        """Add a remark about some files, if there are any."""
        if files:
            self.remarks.append(listed(where, files, what))

    def counted(self, part: Part, proved: bool = False) -> None:
        """Say whether a part has as many pictures as a whole copy; a fault if that was proved."""
        if part.expected is None or part.pictures == part.expected:
            return
        known = "has" if proved else "is said to have"
        (self.faults if proved else self.remarks).append(
            f"{part.name}, {part.split}: {part.pictures:,} pictures, but a whole copy {known} "
            f"{part.expected:,}."
        )


class How(NamedTuple):
    """How closely data are looked at."""

    decode: bool = False
    """Also open every picture and every proposal"""
    contents: bool = True
    """Read maps and masks, not only lists and headers"""
    needed: bool = False
    """Whether a person named the data set, so that it is a fault if it is not there"""
    progress: Progress | None = None

    def seen(self) -> None:
        """Tell that one more file was looked at."""
        if self.progress is not None:
            self.progress(1)


def listed(where: str, files: Sequence[str], what: str) -> str:
    """Return a sentence that counts files and names the first ones."""
    more = ", ..." if len(files) > _LISTED else ""
    return f"{where}: {len(files):,} {what}: {', '.join(files[:_LISTED])}{more}."


def named_twice(where: str, names: Sequence[str]) -> list[str]:
    """Return a remark about classes of the same name, if there are any."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if not twice:
        return []
    return [
        f"{where}: two classes each are called {', '.join(twice)}; positives are found by "
        "label, so nothing is mixed up, but no prompt tells them apart."
    ]


def opened(source: Source) -> BinaryIO:
    """Open a picture's content, wherever it is."""
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source())


def decodes(source: Source) -> bool:
    """Return whether pillow reads a picture to its end."""
    try:
        with opened(source) as stream, Image.open(stream) as picture:
            picture.load()
    except Exception:  # pillow's decoders raise whatever they meet
        return False
    return True


def upright_size(file: Path) -> tuple[int, int] | None:
    """Return a picture's height and width as its camera was held; None if it is no picture."""
    try:
        with Image.open(file) as picture:
            # Asking a PNG without such a chunk would decode all of it.
            tagged = picture.format != "PNG" or "exif" in picture.info
            held = picture.getexif().get(ExifTags.Base.Orientation) if tagged else None
            width, height = picture.size
    except Exception:  # as above
        return None
    return (width, height) if held in _SIDEWAYS else (height, width)


def shared(
    train: Iterable[tuple[str, Source]],
    others: Iterable[tuple[str, Source]],
    progress: Progress | None = None,
) -> Iterator[str]:
    """Yield "other = trained" for every picture whose bytes are those of one that is trained on."""
    # Files of equal content have equal sizes, so most need not be read.
    sizes: dict[int, list[tuple[str, Source]]] = {}
    for name, source in train:
        sizes.setdefault(_size(source), []).append((name, source))
    sizes.pop(-1, None)
    hashes: dict[int, dict[bytes, str]] = {}
    for name, source in others:
        if progress is not None:
            progress(1)
        size = _size(source)
        if size not in sizes:
            continue
        if size not in hashes:
            hashes[size] = {_digest(one): known for known, one in sizes[size]}
        same = hashes[size].get(_digest(source))
        if same is not None:
            yield f"{name} = {same}"


def _size(source: Source) -> int:
    """Return a picture's length in bytes, -1 if it is not there."""
    try:
        return source.stat().st_size if isinstance(source, Path) else len(source())
    except (OSError, DataError):
        return -1


def _digest(source: Source) -> bytes:
    digest = hashlib.sha256()
    with opened(source) as stream:
        while block := stream.read(_HASHED):
            digest.update(block)
    return digest.digest()
