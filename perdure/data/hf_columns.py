"""Which columns of a table of the `datasets` library are pictures, labels, captions. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

IMAGES = ("image", "img", "jpg", "png", "webp", "picture", "photo", "image_path", "file_name")
"""Names of columns of pictures: the earlier one wins, and goes before others of the same type"""

LABELS = (
    "label",
    "labels",
    "label_name",
    "fine_label",
    "class",
    "class_name",
    "category",
    "target",
)
"""Names of columns of labels, the earlier one wins"""

CAPTIONS = ("caption", "captions", "text", "texts", "sentences", "sentences_raw", "title", "raw")
"""Names of columns of captions, or of lists of them; the earlier one wins"""


@dataclass(frozen=True)
class Columns:
    """What a table's columns are to perdure."""

    image: str
    text: str
    """Labels or captions"""
    captioned: bool
    names: tuple[str, ...] | None = None
    """Of a declared `ClassLabel`, in the order of its numbers"""


def columns_of(table: Any, where: str) -> Columns:
    """Return which columns of a table are meant.

    Args:
        table: A `datasets.Dataset`.
        where: What it is, for errors.

    Raises:
        DataError: If none, or more than one, can be the pictures or the labels.
    """
    import datasets

    features: dict[str, Any] = dict(table.features)
    image = _one(
        where,
        "pictures",
        [name for name, kind in features.items() if _may_be_image(name, kind)],
        [name for name, kind in features.items() if isinstance(kind, datasets.Image)],
        IMAGES,
    )
    declared = [
        name
        for name, kind in features.items()
        if isinstance(kind, datasets.ClassLabel) and name != image
    ]
    plain = [
        name for name in LABELS if name != image and name in features and _is_plain(features[name])
    ]
    label = _one(where, "labels", [*declared, *plain], declared, LABELS)
    caption = next(
        (name for name in CAPTIONS if name in features and _is_text(features[name])), None
    )
    shown = ", ".join(f"{name} ({_kind(kind)})" for name, kind in features.items())[:400]
    if image is None:
        raise DataError(
            f"{where}: no column holds pictures; its columns are {shown}. Expected is one of type "
            f"Image, or one called {', '.join(IMAGES)} of bytes or paths. Addresses on the web are "
            "not downloaded."
        )
    if label is not None:
        kind = features[label]
        names = getattr(kind, "names", None)
        return Columns(image, label, False, tuple(names) if names else None)
    if caption is None:
        raise DataError(
            f"{where}: no column holds labels or captions; its columns are {shown}. Expected is "
            f"one of type ClassLabel, or called {', '.join((*LABELS, *CAPTIONS))}; use "
            "rename_column of the datasets library."
        )
    return Columns(image, caption, True)


def pick_columns(table: Any, columns: Columns) -> tuple[Any, Columns]:
    """Return a table of the meant columns alone, whose pictures stay as they are stored."""
    import datasets

    kept = table.select_columns([columns.image, columns.text])
    if isinstance(kept.features[columns.image], datasets.Image):
        kept = kept.cast_column(columns.image, datasets.Image(decode=False))
    return kept, columns


def labels_of(table: Any, columns: Columns, where: str) -> list[str]:
    """Return the label of every row as the name, or the number, that stands for it.

    Raises:
        DataError: If a row has none.
    """
    values = table.data.column(columns.text).to_pylist()
    for row, value in enumerate(values):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise DataError(
                f"{where}, row {row}: {columns.text} is empty; every row needs a label."
            )
    if columns.names is None:
        return [str(value).strip() for value in values]
    count = len(columns.names)
    wrong = next((row for row, value in enumerate(values) if not 0 <= value < count), None)
    if wrong is not None:
        hidden = all(value == -1 for value in values)
        raise DataError(
            f"{where}: its labels are hidden (all are -1), so nothing can be scored on it; use "
            "another split."
            if hidden
            else f"{where}, row {wrong}: {columns.text} is {values[wrong]}; {count} classes are "
            f"declared, so labels are 0 to {count - 1}."
        )
    return [columns.names[value] for value in values]


def captions_of(
    table: Any, columns: Columns, where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[str, ...], NDArray[np.int64]]:
    """Return rows, labels, captions and the index of each row's caption.

    Pictures of the same single caption have the same label. Where a picture has several, each of
    them is a row, and the picture is the label.

    Raises:
        DataError: If a row has no caption.
    """
    rows: list[int] = []
    texts: list[str] = []
    several = False
    for row, value in enumerate(table.data.column(columns.text).to_pylist()):
        found = [value] if isinstance(value, str) or value is None else value
        words = [" ".join(one.split()) for one in found if isinstance(one, str) and one.strip()]
        if not words:
            raise DataError(
                f"{where}, row {row}: {columns.text} is empty; every picture needs a caption."
            )
        several |= len(words) > 1
        rows += [row] * len(words)
        texts += words
    places = np.array(rows, dtype=np.int64)
    if several:
        return places, places, tuple(texts), np.arange(len(texts))
    rank: dict[str, int] = {}
    labels = np.array([rank.setdefault(text, len(rank)) for text in texts], dtype=np.int64)
    return places, labels, tuple(rank), labels


def contents_of(table: Any, column: str, row: int, base: Path) -> bytes:
    """Return the file of a row's picture.

    Raises:
        DataError: If there is none, or it is not where the row says.
    """
    value: Any = table[row][column]
    path = value if isinstance(value, str) else None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not path:
        raise DataError(f"{base}, row {row}: {column} is empty; every row needs a picture.")
    if "://" in path:
        raise DataError(
            f"{base}, row {row}: {column} is the address {path[:200]}, and perdure downloads "
            "nothing. Store the pictures themselves: cast_column(..., Image()), save_to_disk."
        )
    try:
        return (base / path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{base}, row {row}: cannot read the picture {path} ({reason}); paths are relative to "
            f"{base}."
        ) from None


def files_outside(table: Any, column: str, base: Path) -> Iterator[Path]:
    """Yield the files of pictures that a table does not hold itself but names."""
    for chunk in table.data.column(column).chunks:
        names = chunk
        if str(chunk.type).startswith("struct"):
            names = chunk.field("path").filter(chunk.field("bytes").is_null())
        if str(names.type) in ("string", "large_string"):
            yield from (base / name for name in names.to_pylist() if name and "://" not in name)


def _one(
    where: str, what: str, found: Sequence[str], typed: Sequence[str], names: Sequence[str]
) -> str | None:
    """Return the column of the first known name, or the only one of its type."""
    named = next((name for name in names if name in found), None)
    if named is not None or not typed:
        return named
    if len(typed) > 1:
        raise DataError(
            f"{where}: {' and '.join(typed)} may all be the {what}; rename the one that is meant "
            f"to {names[0]!r} (rename_column of the datasets library), or remove the others."
        )
    return typed[0]


def _may_be_image(name: str, kind: Any) -> bool:
    import datasets

    if isinstance(kind, datasets.Image):
        return True
    if name not in IMAGES:
        return False
    if isinstance(kind, dict):  # a picture as the library stores it, without its declaration
        return {"bytes", "path"} & set(kind) != set()
    return getattr(kind, "dtype", None) in ("binary", "large_binary", "string", "large_string")


def _is_plain(kind: Any) -> bool:
    dtype = str(getattr(kind, "dtype", ""))
    return dtype in ("string", "large_string", "bool") or "int" in dtype


def _is_text(kind: Any) -> bool:
    """Return whether a column holds a text, or a list of them."""
    inner = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", kind)
    return getattr(inner, "dtype", None) in ("string", "large_string")


def _kind(kind: Any) -> str:
    dtype = getattr(kind, "dtype", None)
    return type(kind).__name__ if type(kind).__name__ != "Value" else str(dtype)
