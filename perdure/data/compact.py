"""Tables with one row per picture and prompt become tables with one row per picture. No torch.

Prompts are drawn when a picture is loaded, which trains on the same distribution: a table of
ImageNet with 80 prompts has 102 million rows, this one 1.28 million.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from ..files import whole_file
from .prompts import SETS
from .tables import CAPTIONS, LABELS, PATHS, number_column, sniff


class Compacted(NamedTuple):
    """What became of a table."""

    rows: int
    """Before"""
    pictures: int
    """After"""
    classes: int


def compact(source: Path, out: Path, progress: Callable[[int], None] | None = None) -> Compacted:
    """Write a table `filepath,label` with every picture of another table once.

    Memory grows with the pictures, not with the rows. Labels are those of a column of labels, with
    the numbers beside them if there are any (`filepath,label_idx,label_name`); where there is
    neither, what stays of the titles when the words of a known prompt are taken away.

    Args:
        source: Table in any of FLYP's, TRACER's or R-Adapter's forms, comma or tab separated.
        out: Written whole or not at all; relative paths are made relative to it.
        progress: Told about rows that were read.

    Raises:
        DataError: If the table would replace itself, columns are missing, a picture has two labels,
            or a title tells no class.
        RunError: If the file cannot be written.
    """
    with suppress(OSError):  # of what is not there, reading and writing say why
        if out.samefile(source):
            raise DataError(
                f"the table {source} would be replaced by its smaller copy; name another file."
            )
    labels: dict[str, str | frozenset[str]] = {}
    numbers: dict[str, str] = {}
    rows = 0
    read: Callable[[str], str | frozenset[str]] | None = None
    for line, path, text, titled, number in _rows(source):
        rows += 1
        if progress is not None and rows % 10_000 == 0:
            progress(10_000)
        read = read or (_names_in if titled else str)
        if number and numbers.setdefault(path, number) != number:
            raise DataError(
                f"{source}, line {line}: {path} has label {number} here and {numbers[path]} "
                "before; a picture has one label."
            )
        found, before = read(text), labels.get(path)
        if isinstance(found, frozenset):
            found = found & before if isinstance(before, frozenset) else found
            if not found:
                raise DataError(
                    f"{source}, line {line}: the title {text[:80]!r} is no known prompt, or names "
                    f"another class than the titles of {path} before; add a column label."
                )
        elif before is not None and before != found:
            raise DataError(
                f"{source}, line {line}: {path} is {found!r} here and {before!r} before; a picture "
                "has one label."
            )
        labels[path] = found
    if not labels:
        raise DataError(f"{source} has a header but no row; it needs one row per picture.")
    final = {path: _shortest(found) for path, found in labels.items()}
    with (
        whole_file(out) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(("filepath", *(("label_idx", "label_name") if numbers else ("label",))))
        for path, label in final.items():
            own = (numbers[path], label) if numbers else (label,)
            writer.writerow((_moved(path, source.parent, out.parent), *own))
    return Compacted(rows, len(final), len(set((numbers or final).values())))


def _rows(source: Path) -> Iterator[tuple[int, str, str, bool, str]]:
    """Yield line, path, label or title, whether it is a title, and the label's number, if any.

    Reads a row at a time.
    """
    try:
        stream = source.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise DataError(f"cannot read {source} ({error.strerror}); check its name.") from None
    with stream:
        try:
            first = stream.readline()
            separator = sniff(source, first.strip("\r\n"))
            header = [
                name.strip().lower() for name in next(csv.reader([first], delimiter=separator))
            ]
            where = _first(header, PATHS)
            label, title = _first(header, LABELS), _first(header, CAPTIONS)
            what = title if label is None else label
            number = number_column(header, label)
            if where is None or what is None:
                raise DataError(
                    f"{source} has the columns {', '.join(header)}; one of {', '.join(PATHS)} and "
                    f"one of {', '.join((*LABELS, *CAPTIONS))} are needed."
                )
            for line, values in enumerate(csv.reader(stream, delimiter=separator), start=2):
                if len(values) != len(header):
                    if not values:
                        continue
                    raise DataError(
                        f"{source}, line {line}: {len(values)} values, but the header has "
                        f"{len(header)}."
                    )
                if number is not None and line == 2 and not values[number].strip().isdecimal():
                    number = None  # something else
                said = "" if number is None else values[number].strip()
                if number is not None and not said.isdecimal():
                    raise DataError(
                        f"{source}, line {line}: {header[number]} is {said!r}; in the rows before "
                        "it is the number of the label. Mend the table."
                    )
                yield line, values[where].strip(), values[what].strip(), label is None, said
        except UnicodeDecodeError:
            raise DataError(f"{source} is not UTF-8 text; save it as UTF-8.") from None
        except csv.Error as error:
            raise DataError(f"{source}: {error}; the file is damaged.") from None


def _first(header: list[str], names: Iterable[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    prompts = {prompt for make in SETS.values() for prompt in make()} - {"{}"}
    return tuple(
        re.compile("(.+)".join(map(re.escape, prompt.split("{}", 1))), re.IGNORECASE | re.DOTALL)
        for prompt in sorted(prompts)
    )


def _names_in(title: str) -> frozenset[str]:
    """Return every class name that a title may hold, by the known prompts."""
    found = (pattern.fullmatch(title) for pattern in _patterns())
    return frozenset(match[1] for match in found if match)


def _shortest(found: str | frozenset[str]) -> str:
    """Return the name that the longest prompt leaves."""
    return found if isinstance(found, str) else min(found, key=lambda name: (len(name), name))


def _moved(path: str, old: Path, new: Path) -> str:
    """Return a path as it reads from another directory; absolute ones stay."""
    if os.path.isabs(path) or old.absolute() == new.absolute():
        return path
    with suppress(ValueError):  # another drive
        return Path(os.path.relpath(old / path, new)).as_posix()
    return str((old / path).absolute())
