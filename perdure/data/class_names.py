"""Class names and prompts from files beside a person's own data. Imports no torch.

`classes.txt` holds `folder name<TAB>readable name` per line, or names alone in the order of the
sorted folders (or of the numbers that are labels). `templates.txt` holds one prompt per line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import DataError, nearest
from .tables import Row, Table, read_lines

LISTS = (".txt", ".json")
"""Endings of files of names or prompts"""

_SHOWN = 10
"""Names that an error repeats"""


@dataclass(frozen=True)
class Names:
    """What data call their classes, and what prompts call them."""

    keys: tuple[str, ...]
    """Folder names or labels"""
    readable: tuple[str, ...]
    """In the same order"""
    origin: str
    """Where they come from, for errors"""

    @cached_property
    def places(self) -> dict[str, int]:
        """From whatever the data may say to the index of a class; keys go before names."""
        found = {name: index for index, name in enumerate(self.readable)}
        return found | {key: index for index, key in enumerate(self.keys)}

    @cached_property
    def _twice(self) -> frozenset[str]:
        """Names of two classes, which are no keys."""
        often = Counter(self.readable)
        return frozenset(name for name, count in often.items() if count > 1) - set(self.keys)

    @cached_property
    def _counted(self) -> bool:
        """Whether a number that is no key is the place of a class."""
        every = tuple(str(place) for place in range(len(self.keys)))
        return self.keys == every or not any(map(_is_number, self.keys))

    def find(self, text: str, where: str) -> int:
        """Return the class of a folder's name or a label: a key, a name or a number.

        Args:
            text: What the data say.
            where: Where they say it, for errors.

        Raises:
            DataError: If it is none of the classes, or a number out of range.
        """
        if text in self.places:
            if text in self._twice:
                raise DataError(
                    f"{where}: two classes of {self.origin} are called {text!r}, so the name alone "
                    "says nothing; write the number of the label as well, in a column label_idx."
                )
            return self.places[text]
        count = len(self.readable)
        if _is_number(text) and self._counted:
            if 0 <= int(text) < count:
                return int(text)
            raise DataError(
                f"{where}: label {text} is out of range; {self.origin} has {count} classes, so "
                f"labels are 0 to {count - 1}. Mend the label or complete classes.txt."
            )
        more = ", ..." if len(self.keys) > _SHOWN else ""
        raise DataError(
            f"{where}: {text!r} is no class of {self.origin}; known: "
            f"{', '.join(self.keys[:_SHOWN])}{more}. {nearest(text, self.places)}".rstrip()
        )


def read_names(
    file: Path, found: Sequence[str], source: Path, known: Mapping[str, str] | None = None
) -> Names:
    """Return the classes of a task.

    Args:
        file: `classes.txt`; need not exist.
        found: Folder names or labels of the training data, sorted, no two equal.
        source: The training data, a directory or a table.
        known: Names that the data themselves have for the numbers that are `found`; the file's go
            before them.

    Raises:
        DataError: If names are missing or say nothing about a picture, or two classes have one
            name and no numbers that tell them apart.
    """
    lines = _lines(file)
    if lines is None and known:
        return _unique(Names(tuple(found), tuple(_words(known[key]) for key in found), str(source)))
    if lines is None:
        if all(map(_is_number, found)):
            raise DataError(
                f"the classes of {source} are numbers ({', '.join(found[:3])}), which say nothing "
                f"to a model that reads. Write their names into {file}, one per line, in the order "
                "of the numbers from 0, or as 'number<TAB>name'."
            )
        return _unique(Names(tuple(found), tuple(map(_words, found)), str(source)))
    if not lines:
        raise DataError(f"{file} is empty; expected one class name per line.")
    if any("\t" in line for _, line in lines):
        return _unique(_pairs(file, lines))
    names = tuple(line for _, line in lines)
    if set(names) == set(found):
        return _unique(Names(names, tuple(map(_words, names)), str(file)))
    if not source.is_dir() and all(map(_is_number, found)):
        keys = found if known and len(found) == len(names) else map(str, range(len(names)))
        return _unique(Names(tuple(keys), names, str(file)))
    if not source.is_dir():
        return _unique(Names(names, names, str(file)))
    if len(names) != len(found):
        raise DataError(
            f"{file} has {len(names)} names, but {source} has {len(found)} folders of classes "
            f"({', '.join(found[:_SHOWN])}). Write one name per folder in the sorted order of the "
            "folders, or 'folder<TAB>name'."
        )
    return _unique(Names(tuple(found), names, str(file)))


def names_of_numbers(
    table: Table, rows: Iterable[Row], known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return what the numbers of labels are called; nothing where rows have no numbers.

    Args:
        table: Of the rows, for errors.
        rows: Some of it.
        known: What other rows say.

    Raises:
        DataError: If a number has two names.
    """
    found = dict(known or {})
    for row in rows:
        if row.number and found.setdefault(row.number, row.text) != row.text:
            raise DataError(
                f"{table.at(row)}: label {row.number} is {row.text!r} here and "
                f"{found[row.number]!r} before; a label has one name. Mend the table."
            )
    return found


def read_templates(file: Path) -> tuple[str, ...] | None:
    """Return the prompts of `templates.txt`; None if there is no such file.

    Raises:
        DataError: If there is none in it, or one has no {} for the class name.
    """
    lines = _lines(file)
    if lines is None:
        return None
    wrong = next(((number, line) for number, line in lines if "{}" not in line), None)
    if not lines or wrong:
        found = "is empty" if wrong is None else f"line {wrong[0]} is {wrong[1]!r}"
        raise DataError(
            f"{file}: {found}; every line is a prompt with {{}} for the class name, such as "
            "'a photo of a {}.'."
        )
    return tuple(line for _, line in lines)


def read_prompts(file: Path) -> tuple[str, ...]:
    """Return the prompts that somebody lists: one per line, or JSON; see `read_list`.

    Raises:
        DataError: As `read_list`, or one has no {} for the class name.
    """
    texts = read_list(file, "templates")
    wrong = next((text for text in texts if "{}" not in text), None)
    if wrong is not None:
        raise DataError(
            f"the prompt {wrong!r} of {file} has no {{}} for the class name; write it as in "
            "'a photo of a {}.'."
        )
    return texts


def read_list(file: Path, what: str, *, repeated: bool = False) -> tuple[str, ...]:
    """Read class names or templates that somebody lists, whatever their data are.

    Args:
        file: As `classes.txt`, where of 'folder<TAB>name' the name counts; one template per line;
            or JSON: a list of texts, or an object that holds one under `what`, such as
            model/classes.json of a run.
        what: "classes" or "templates".
        repeated: Whether a text may stand twice, because its place tells which is meant.

    Raises:
        DataError: If it cannot be read, is empty, or a text stands twice.
    """
    if file.suffix.lower() == ".json":
        texts = _json_list(file, what)
    else:
        lines = _numbered(file)
        tabs = what == "classes" and any("\t" in line for _, line in lines)
        texts = list(_pairs(file, lines).readable) if tabs else [line for _, line in lines]
    texts = [text.strip() for text in texts if text.strip()]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if not texts or (twice and not repeated):
        fault = f"names {', '.join(map(repr, twice[:3]))} more than once" if twice else "is empty"
        raise DataError(f"the file of {what} {file} {fault}; write each of them on its own line.")
    return tuple(texts)


def _json_list(file: Path, what: str) -> list[str]:
    try:
        found = json.loads(read_lines(file))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"cannot read {what} from {file} ({error}); expected a JSON list of texts."
        ) from None
    found = found.get(what) if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise DataError(
            f"{file} holds no list of {what}; expected a JSON list of texts, or an object with one "
            f"under {what!r}."
        )
    return found


def _pairs(file: Path, lines: Sequence[tuple[int, str]]) -> Names:
    keys, readable = [], []
    for number, line in lines:
        key, _, name = (part.strip() for part in line.partition("\t"))
        if not key or not name or "\t" in name:
            raise DataError(
                f"{file}, line {number} is {line!r}; where one line has a tab, every line is "
                "'folder<TAB>name'."
            )
        keys.append(key)
        readable.append(name)
    return Names(tuple(keys), tuple(readable), str(file))


def _unique(names: Names) -> Names:
    """Refuse two equal names; letters of either case are equal to most vocabularies.

    Classes that have numbers are told apart by these, as ImageNet's, of which two pairs share a
    name.
    """
    numbered = all(map(_is_number, names.keys))
    for what, values in (("key", names.keys), ("name", names.readable)):
        seen: dict[str, str] = {}
        if what == "name" and numbered:
            break
        for value in values:
            plain = value if what == "key" else value.lower()
            if plain in seen:
                raise DataError(
                    f"two classes of {names.origin} have the {what} {value!r} (the other is "
                    f"{seen[plain]!r}); a model cannot tell them apart. Rename one in classes.txt, "
                    "or join them."
                )
            seen[plain] = value
    return names


def _lines(file: Path) -> list[tuple[int, str]] | None:
    """Return numbers and contents of the lines that are not blank; None without the file."""
    return _numbered(file) if file.exists() else None


def _numbered(file: Path) -> list[tuple[int, str]]:
    lines = enumerate(read_lines(file).split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _words(key: str) -> str:
    return " ".join(key.replace("_", " ").split())


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 19
