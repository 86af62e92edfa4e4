"""Every kind of merge by name, and how its options are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from math import isfinite
from typing import Any

from ..errors import RunError, WeightsError, nearest
from .means import Fisher, RegMean, Slerp, Soup, WiseFT
from .rules import Merger
from .vectors import Dare, ModelStock, TaskArithmetic, Ties

MERGERS: dict[str, Callable[..., Merger]] = {
    cls.kind: cls
    for cls in (
        WiseFT, Soup, TaskArithmetic, Ties, Dare, Slerp, Fisher, RegMean, ModelStock,
    )
}  # fmt: skip
"""Every kind by name"""


def make(kind: str, options: Mapping[str, Any]) -> Merger:
    """Return a merger; options that are None are left to their defaults.

    Raises:
        RunError: If there is no such kind, or it has no such option.
        WeightsError: If a value is out of range.
    """
    if kind not in MERGERS:
        hint = nearest(kind, MERGERS)
        raise RunError(f"no merge is called {kind!r}; {hint} allowed: {', '.join(MERGERS)}.")
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in options_of(kind):
            others = [other for other in MERGERS if name in options_of(other)]
            whose = f"is an option of {', '.join(others)}" if others else "is no option of any kind"
            own = ", ".join(options_of(kind)) or "none"
            raise RunError(f"{name} {whose}; {kind} has these: {own}.")
    for name, value in given.items():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, float) and not isfinite(part):
                raise WeightsError(f"{name} is {part}; it must be a finite number.")
    return MERGERS[kind](**given)


def options_of(kind: str) -> tuple[str, ...]:
    """Return the names of a kind's options."""
    return tuple(field.name for field in fields(MERGERS[kind]))  # type: ignore[arg-type]
