"""Grids of recipes: axes of alternatives, their product, and the grids that papers print. No torch.

The axis `alpha` is not part of a recipe: it is the place between zero-shot and the finished run
at which this is scored, so that it needs no training of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product

from .errors import RecipeError

ALPHA = "alpha"
"""Name of the axis that only changes what is scored"""

BARE: Mapping[str, Mapping[str, object]] = {
    "tracer": {"serve": "student"},
    "radapter": {"momentum": 0.0},
}
"""Method to option to the value with which a run keeps less than with any other, and does the same

A run with another value can therefore also deliver what this one would.
"""

FREE: Mapping[str, tuple[str, ...]] = {"radapter": ("alpha",), "lora": ("alpha",)}
"""Method to the options that change nothing but what a finished run delivers"""


@dataclass(frozen=True)
class Choice:
    """One alternative of an axis."""

    label: str
    """In tables"""
    assignments: tuple[str, ...] = ()
    """Overrides of the recipe such as "method.drop=0"; none leaves it as it is"""
    alpha: float | None = None
    """Share of the tuned weights in [0, 1]; None for what the run delivers"""


@dataclass(frozen=True)
class Axis:
    """Alternatives of which every cell of a grid takes one; the first is the reference."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Cell:
    """One point of a grid."""

    label: str
    assignments: tuple[str, ...]
    alpha: float | None

    @property
    def folder(self) -> str:
        """Name of a directory, for what its recipe gives; the same for every alpha."""
        text = "+".join(self.assignments) or "as-is"
        name = re.sub(r"[^\w.=+-]+", "_", text)[:100]
        return name if name == text else f"{name}-{sha256(text.encode()).hexdigest()[:8]}"


def parse_axis(text: str) -> Axis:
    """Read an axis such as "method.drop=0,.2" or "alpha=0.5,1"; commas in brackets do not divide.

    Raises:
        RecipeError: If it is not of the form a.b=value,value, or an alpha is out of range.
    """
    key, equals, values = (part.strip() for part in text.partition("="))
    parts = _divide(values)
    if not equals or not key or not all(parts) or len(set(parts)) < len(parts):
        raise RecipeError(
            f"{text!r} is not an axis of a grid; write a key of the recipe and different values, "
            "method.drop=0,.2, or places between zero-shot and the run, alpha=0.5,1."
        )
    if key != ALPHA:
        short = key.rpartition(".")[2]
        return Axis(key, tuple(Choice(f"{short}={part}", (f"{key}={part}",)) for part in parts))
    try:
        alphas = [float(part) for part in parts]
    except ValueError:
        alphas = [-1.0]
    if not all(0.0 <= alpha <= 1.0 for alpha in alphas):
        raise RecipeError(
            f"alpha is {values}; every place must be a number in [0, 1]: 0 is zero-shot, 1 the run."
        )
    return Axis(ALPHA, tuple(Choice(f"alpha={alpha:g}", (), alpha) for alpha in alphas))


def cells(axes: Sequence[Axis]) -> list[Cell]:
    """Return the product of axes; the last one varies fastest, and the first cell is the reference.

    Raises:
        RecipeError: If there is no axis, or two have one name.
    """
    names = [axis.name for axis in axes]
    if not names or len(set(names)) < len(names):
        raise RecipeError(
            f"the axes of the grid are {', '.join(names) or 'missing'}; give at least one, and "
            "each once: --grid method.drop=0,.2"
        )
    found = []
    for combination in product(*(axis.choices for axis in axes)):
        alphas = [choice.alpha for choice in combination if choice.alpha is not None]
        found.append(
            Cell(
                ", ".join(choice.label for choice in combination if choice.label),
                tuple(text for choice in combination for text in choice.assignments),
                alphas[0] if alphas else None,
            )
        )
    return found


def _divide(text: str) -> list[str]:
    """Divide text at commas, except those inside brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if letter == "," and not depth and not quote:
            parts.append("")
            continue
        if letter in "'\"" and letter == (quote or letter):
            quote = "" if quote else letter
        depth += not quote and (letter in "[{") - (letter in "]}")
        parts[-1] += letter
    return [part.strip() for part in parts]


def _switch(name: str, *off: str) -> Axis:
    """Return an axis of a part of a method, first as the recipe has it, then without."""
    return Axis(name, (Choice(name), Choice(f"no {name}", off)))


PRESETS: dict[str, tuple[Axis, ...]] = {
    "radapter": (
        Axis(
            "loss",
            (
                Choice("MPM-NCE"),
                Choice("no margin", ("method.margin=0",)),
                Choice("no smoothing", ("method.smoothing=0",)),
                Choice("no margin or smoothing", ("method.margin=0", "method.smoothing=0")),
                Choice(
                    "InfoNCE",
                    ("method.contrastive=info_nce", "method.margin=0", "method.smoothing=0"),
                ),
            ),
        ),
        _switch("dropping", "method.drop=0"),
        _switch("accumulation", "method.momentum=0"),
        Axis(ALPHA, (Choice("alpha=0.5", (), 0.5), Choice("alpha=1", (), 1.0))),
    ),
    "tracer": (
        _switch("feature", "method.feature_weight=0"),
        _switch("cross", "method.cross_weight=0"),
        _switch("interactive", "method.interactive_weight=0"),
        _switch("relational", "method.relational_weight=0"),
    ),
    "tracer-beta": (parse_axis("method.beta=0.5,0.2,0.7,0.9,1,1.5"),),
    "tracer-every": (parse_axis("method.teacher_every=1,2,5,10,50,100"),),
    "tracer-strength": (parse_axis("method.strength=0.9,0.1,0.2,0.5,0.7,1.2,1.5,2,3,5,10"),),
}
"""Grids by name: the self-ensembles and loss of R-Adapter, the terms of TRACER and its knobs

Sources: Kim et al. 2024, arXiv 2408.05749; Asadollahzadeh et al. 2026, arXiv 2605.29380, tables 8
to 11.
"""
