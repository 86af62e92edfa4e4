"""Read tables of pictures that people wrote: CSV, TSV or JSON lines. Imports no torch.

Whatever the file holds, the answer is a table or a `DataError` that names file and line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, nearest

TABLES = (".csv", ".tsv", ".jsonl")
"""Endings of files that are read as tables"""

PATHS = (
    "filepath",
    "file_path",
    "path",
    "filename",
    "file_name",
    "file",
    "image_path",
    "image",
)
"""Accepted names of the column that says where a picture is; the earlier one wins"""

LABELS = ("label_name", "label", "class", "class_name", "category", "target")
"""Accepted names of the column that says what a picture shows"""

NAMED = ("label_name", "class_name")
"""Of these, the columns of names, beside which another may say the number of the label"""

NUMBERS = ("label_idx", "label_id", "class_idx", "class_id", "label", "class", "target")
"""Accepted names of that column; the earlier one wins, and only whole numbers are meant"""

CAPTIONS = ("caption", "text", "title")
"""Accepted names of the column that describes a picture in a sentence of its own"""

SPLIT = "split"
"""Name of the column that says which split a row belongs to"""

GROUP = "group"
"""Name of the column that says which group of interest a picture belongs to; may be empty"""

_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_SHOWN = 80
"""Characters of a user's line that an error repeats"""


class Row(NamedTuple):
    """One picture of a table."""

    line: int
    """In the file, counting from 1"""
    path: str
    """As it stands in the file"""
    text: str
    """The label or the caption"""
    split: str | None
    """None where the table has no such column"""
    group: str = ""
    """Empty for no group"""
    number: str = ""
    """Of the label, where the table has names and numbers; two labels may have one name"""


@dataclass(frozen=True)
class Table:
    """A whole table."""

    file: Path
    captioned: bool
    """Whether `text` of the rows is a caption, because there is no column of labels"""
    divided: bool
    """Whether every row says which split it belongs to"""
    rows: tuple[Row, ...]

    def at(self, row: Row) -> str:
        """Return where a row stands, for errors."""
        return f"{self.file}, line {row.line}"


def read_table(file: Path) -> Table:
    """Read a table with one picture per row.

    The separator is found by looking which one makes a header with known names. A column of labels
    goes before one of captions.

    Raises:
        DataError: If the file cannot be read, is no such table, lacks a column, or has a row that
            is incomplete.
    """
    text = read_lines(file)
    if file.suffix.lower() == ".jsonl":
        records = _json_records(file, text)
    else:
        records = _csv_records(file, text)
    header = next(records, (0, []))[1]
    where, what, captioned, split = _columns(file, header)
    group = next((place for place, name in enumerate(header) if _plain(name) == GROUP), None)
    number = number_column([_plain(name) for name in header], None if captioned else what)
    rows = []
    same: dict[str, str] = {}  # labels, splits and groups that many rows share are kept once
    for line, values in records:
        text = values[what]
        row = Row(
            line,
            values[where],
            text if captioned else same.setdefault(text, text),
            None if split is None else same.setdefault(values[split], values[split]),
            "" if group is None else same.setdefault(values[group], values[group]),
            "" if number is None else same.setdefault(values[number], values[number]),
        )
        missing = [
            header[column]
            for column in (where, what, split)
            if column is not None and not values[column]
        ]
        if missing:
            raise DataError(
                f"{file}, line {line}: {missing[0]} is empty; every row needs "
                f"{header[where]} and {header[what]}{' and split' if split is not None else ''}. "
                "Fill it in or take the row out."
            )
        if "\0" in row.path:
            raise DataError(
                f"{file}, line {line}: {header[where]} {row.path!r} holds a zero byte, which no "
                "file name has; write the path of a picture."
            )
        rows.append(row)
    if not rows:
        raise DataError(f"{file} has a header but no row; it needs one row per picture.")
    if number is not None and not all(row.number.isdecimal() for row in rows):
        rows = [row._replace(number="") for row in rows]
    return Table(file, captioned, split is not None, tuple(rows))


def number_column(header: Sequence[str], label: int | None) -> int | None:
    """Return the column of the numbers of labels beside one of their names; None without it.

    Args:
        header: In lower case.
        label: The column of labels; None for captions.
    """
    if label is None or header[label] not in NAMED:
        return None
    return next((header.index(name) for name in NUMBERS if name in header), None)


def read_lines(file: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        DataError: If it cannot be read or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}. "
            "Save it as UTF-8 (in spreadsheets: 'CSV UTF-8')."
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read {file} ({reason}); check its name and its rights.") from None


def _csv_records(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and stripped values, the header first; blank lines are left out."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    separator = sniff(file, first)
    reader = csv.reader(_lines(text), delimiter=separator, strict=True)
    width = None
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if width is None:
                width = len(values)
            if len(values) != width:
                raise DataError(
                    f"{file}, line {reader.line_num}: {len(values)} values, but the header has "
                    f'{width}, divided by {_SEPARATORS[separator]}. Put quotes (") around values '
                    f"that hold a {_SEPARATORS[separator]}, or use another separator."
                )
            yield reader.line_num, [value.strip() for value in values]
    except csv.Error as error:
        raise DataError(
            f"{file}, line {reader.line_num}: {error}. Values that hold quotes or separators "
            'stand between quotes ("), and a quote inside them is doubled ("").'
        ) from None


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a text with their ends; a copy of it would take four bytes a character."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def sniff(file: Path, header: str) -> str:
    """Return the separator that makes a known column appear, and then the most columns.

    Raises:
        DataError: If none makes columns.
    """
    if not header:
        raise DataError(f"{file} is empty; expected a header and one row per picture.")
    best: list[tuple[bool, int, str]] = []
    for separator in _SEPARATORS:
        try:
            names = next(csv.reader([header], delimiter=separator))
        except csv.Error:
            continue
        known = any(_plain(name) in PATHS for name in names)
        best.append((known, len(names), separator))
    # max takes the first of equals, so the comma goes before the others.
    known, count, separator = max(best, key=lambda one: one[:2], default=(False, 0, ","))
    if not known and count < 2:
        raise DataError(
            f"{file} has no separator that perdure knows: its first line is {_short(header)}. "
            f"Allowed are {', '.join(_SEPARATORS.values())}, with a header such as "
            "'filepath,label' or 'filepath,caption'."
        )
    return separator


def _json_records(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the keys of the first object, then line number and values of every object."""
    header: list[str] | None = None
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise DataError(
                f"{file}, line {line}: {_short(content)} is not a JSON object; every line is one, "
                'such as {"filepath": "cats/1.jpg", "label": "cat"}.'
            )
        if header is None:
            header = list(found)
            yield line, header
        yield line, [_json_value(file, line, name, found) for name in header]
    if header is None:
        raise DataError(f"{file} is empty; expected one JSON object per picture and line.")


def _json_value(file: Path, line: int, name: str, found: dict[str, object]) -> str:
    """Return a text or whole number as text; keys that perdure does not read may be anything."""
    if _plain(name) not in {*PATHS, *LABELS, *CAPTIONS, *NUMBERS, SPLIT, GROUP}:
        return ""
    value = found.get(name, "" if _plain(name) == GROUP else None)
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18
    if isinstance(value, str) or whole:
        text = str(value).strip()
        if not any("\ud800" <= character <= "\udfff" for character in text):
            return text
    raise DataError(
        f"{file}, line {line}: {name} is {_short(str(type(value).__name__))} "
        f"{_short(ascii(value)) if name in found else '(missing)'}; it must be text, or a whole "
        "number for labels."
    )


def _columns(file: Path, header: Sequence[str]) -> tuple[int, int, bool, int | None]:
    """Return the columns of path, text and split, and whether the text is a caption."""
    names = [_plain(name) for name in header]
    shown = _short(", ".join(header))
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise DataError(f"{file} has the column {twice[0]!r} twice ({shown}); rename one of them.")
    where = next((names.index(name) for name in PATHS if name in names), None)
    if where is None:
        raise DataError(_unknown(file, names, shown, "the picture's path", PATHS))
    label = next((names.index(name) for name in LABELS if name in names), None)
    caption = next((names.index(name) for name in CAPTIONS if name in names), None)
    split = names.index(SPLIT) if SPLIT in names else None
    if label is not None:
        return where, label, False, split
    if caption is None:
        raise DataError(_unknown(file, names, shown, "a label or caption", (*LABELS, *CAPTIONS)))
    return where, caption, True, split


def _unknown(
    file: Path, names: Sequence[str], shown: str, what: str, allowed: Sequence[str]
) -> str:
    hints = (nearest(name, allowed) for name in names if name)
    hint = next((hint for hint in hints if hint), "rename a column.")
    return (
        f"{file} has no column for {what}: its columns are {shown}. Accepted names: "
        f"{', '.join(allowed)}; {hint}"
    )


def _plain(name: str) -> str:
    return name.strip().lower()


def _short(text: str) -> str:
    """Return printable text of bounded length, in quotes."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
