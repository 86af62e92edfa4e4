"""Markdown tables and the printed form of shares: per cent with one digit."""

from __future__ import annotations

from collections.abc import Sequence

from .comparison import Difference, Reading


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(reading: Reading | None, *, of: bool = False, sign: bool = False) -> str:
    """Print a share in per cent with its spread; `of` adds how many seeds have it, if not all."""
    if reading is None or reading.mean is None:
        return "n/a"
    text = f"{100 * reading.mean:{'+' if sign else ''}.1f}"
    if reading.sd is not None:
        text += f" ± {100 * reading.sd:.1f}"
    return f"{text} ({reading.n} of {reading.of})" if of and reading.n < reading.of else text


def gap(difference: Difference) -> str:
    """Print a difference of shares in points with its interval."""
    value, low, high = (100 * part for part in difference)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
