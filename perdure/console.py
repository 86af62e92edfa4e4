"""What the command line prints: aligned tables, JSON, errors as paragraphs, progress.

Results go to standard output, everything else to standard error, so that pipes stay clean. Nothing
here needs colour or a terminal.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import get_terminal_size
from time import monotonic
from typing import Annotated, Any, Protocol, TypeVar

import typer

from .processes import is_main

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps.")
]
Data = Annotated[Path | None, typer.Option("--data", metavar="ROOT", help="Directory of the data.")]
DataOfRun = Annotated[
    Path | None,
    typer.Option("--data", metavar="ROOT", help="Where the data are; else as in the training."),
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="At most N images.")]
LimitPerSplit = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="At most N images per split.")
]
Transform = Annotated[
    str,
    typer.Option(
        "--transform",
        metavar="exact|fast",
        help="Decode JPEG files exactly, or faster.",
        callback=lambda value: one_of(value, ("exact", "fast")),
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="fp32|bf16",
        help="Of the image tower, while it scores.",
        callback=lambda value: one_of(value, ("fp32", "bf16")),
    ),
]
Workers = Annotated[
    int, typer.Option("--workers", metavar="N", min=0, help="Processes that decode ahead.")
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Keep decoded pictures for the next time."),
]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads.")]
"""Options that several verbs share"""

QUIET = 10.0
"""Seconds between two lines of progress where there is no terminal"""


def one_of(value: str, allowed: Sequence[str]) -> str:
    """Return an option's value.

    Raises:
        typer.BadParameter: If it is none of those that are allowed.
    """
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(allowed)}.")
    return value


def say(text: str) -> None:
    """Print a remark for people."""
    print(text, file=sys.stderr, flush=True)


def emit(text: str) -> None:
    """Print a result."""
    print(text, flush=True)


def emit_json(value: Any) -> None:
    """Print a result for programs: one JSON document."""
    emit(json.dumps(value, indent=2, allow_nan=False))


def print_error(message: str) -> None:
    """Print an error as one paragraph that fits the terminal; its own line breaks are kept."""
    _print_paragraph(f"Error: {message}")


def print_warning(message: Warning | str, *_where: object, **_more: object) -> None:
    """Print a warning like an error, without the line of code that raised it.

    Takes the place of `warnings.showwarning`.
    """
    _print_paragraph(f"Warning: {message}")


def _print_paragraph(text: str) -> None:
    width = max(40, get_terminal_size((100, 24)).columns - 1)
    lines = text.splitlines()
    wrapped = [
        textwrap.fill(
            line,
            width,
            subsequent_indent=" " * (len(line) - len(line.lstrip())),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines
    ]
    say("\n".join(wrapped))


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return aligned columns: the first `left` flush left, the others flush right.

    Cells are never cut, whatever the width of the terminal, so that other programs can read them.
    """
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in per cent, or "-" if there is none."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


Number = TypeVar("Number", int, float)


def numbers(text: str, kind: Callable[[str], Number], option: str) -> list[Number]:
    """Read numbers separated by commas.

    Raises:
        typer.BadParameter: If there is none, or something else among them.
    """
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or (len(set(map(str, found))) < len(found) and kind is int):
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers; separate them by commas, as in 0,1,2.",
            param_hint=option,
        )
    return found


class Meter(Protocol):
    """Shows how far a known amount of work is."""

    def describe(self, phase: str, detail: str = "") -> None:
        """Say what is being done now; the detail may change often."""

    def advance(self, amount: float) -> None:
        """Count finished work."""


class _Lines:
    """Progress as plain lines, for logs and pipes."""

    def __init__(self, total: float) -> None:
        self.total = total
        self.done = 0.0
        self.phase = self.detail = ""
        self.began = self.printed = monotonic()

    def describe(self, phase: str, detail: str = "") -> None:
        changed, self.phase, self.detail = phase != self.phase, phase, detail
        if changed:
            self._print()

    def advance(self, amount: float) -> None:
        self.done += amount
        if monotonic() - self.printed >= QUIET:
            self._print()

    def _print(self) -> None:
        self.printed = monotonic()
        share = min(1.0, self.done / self.total) if self.total else 1.0
        spent = self.printed - self.began
        left = f", {clock(spent / share - spent)} left" if share > 0.02 else ""
        say(f"[{share:4.0%}] {self.phase} {self.detail}".rstrip() + f" ({clock(spent)}{left})")


class _Nothing:
    """No progress, for processes beside the main one."""

    def describe(self, phase: str, detail: str = "") -> None:
        pass

    def advance(self, amount: float) -> None:
        pass


@contextmanager
def meter(total: float) -> Iterator[Meter]:
    """Show progress over `total` units of work: a bar on a terminal, else a line now and then."""
    if not is_main():
        yield _Nothing()
        return
    if not _on_terminal():
        yield _Lines(total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=120,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=total)

        class Bar:
            def describe(self, phase: str, detail: str = "") -> None:
                bar.update(task, description=f"{phase} {detail}")

            def advance(self, amount: float) -> None:
                bar.advance(task, amount)

        yield Bar()


def counter(shown: Meter, phase: str) -> Callable[[Any, int], None]:
    """Return what tells the meter about every training step; one run is one unit."""
    done = 0.0

    def count(tick: Any, total: int) -> None:
        nonlocal done
        shown.describe(phase, f"step {tick.step} of {total}")
        shown.advance(tick.step / total - done)
        done = tick.step / total

    return count


def tally(shown: Meter, phase: str, every: int = 50) -> Callable[[int], None]:
    """Return what tells the meter about things whose number nobody knows yet."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if done % every < more:
            shown.describe(phase, f"{done:,}")
            shown.advance(0)

    return count


def clock(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def readable_size(number: int) -> str:
    """Return a number of bytes in MB or GB."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _on_terminal() -> bool:
    import os

    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
