"""What pydantic finds wrong in a table, as lines for people."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

from pydantic_core import ErrorDetails

from .errors import nearest


def explain(errors: Sequence[ErrorDetails], spec: type) -> list[str]:
    """Return one line per key: its dotted path, what was found, what is allowed.

    Args:
        errors: Of pydantic.
        spec: The dataclass that was parsed; its fields may be dataclasses.
    """
    lines: dict[str, str] = {}
    for error in errors:
        key, names = _locate(error["loc"], spec)
        found, kind = error["input"], error["type"]
        message = error["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
        if kind in {"unexpected_keyword_argument", "extra_forbidden"}:
            hint = nearest(key.rpartition(".")[2], names)
            text = f"unknown key{'; ' + hint if hint else ''} Allowed: {', '.join(names)}."
        elif kind == "missing":
            text = "missing; it must be given."
        elif kind == "value_error":
            text = f"{message}."
        else:
            hint = nearest(str(found), re.findall(r"'([^']*)'", message))
            text = f"{found!r} is not allowed; {message[:1].lower()}{message[1:]}. {hint}".rstrip()
        # What concerns several tables has no place of its own, and names its keys.
        text = f"{key}: {text}" if key else text
        lines[key] = f"{lines[key]} Or: {message}." if key in lines else text
    return list(lines.values())


def _locate(location: tuple[int | str, ...], spec: Any) -> tuple[str, list[str]]:
    """Return the dotted key without pydantic's names of union members, and the keys beside it."""
    path: list[str] = []
    names: list[str] = []
    for part in location:
        if not dataclasses.is_dataclass(spec):
            if isinstance(part, int):
                path.append(str(part))
            continue
        names = [item.name for item in dataclasses.fields(spec)]
        path.append(str(part))
        spec = _table(get_type_hints(spec).get(str(part)))
    return ".".join(path), names


def _table(hint: Any) -> Any:
    """Return the dataclass in a type, such as that of `GuardSpec | None`."""
    return next((one for one in (hint, *get_args(hint)) if dataclasses.is_dataclass(one)), None)
