"""Tables of scores for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .console import columns, percent

if TYPE_CHECKING:
    from .evaluation import Scores


def score_table(scores: Scores) -> str:
    """One line per split and a table per task, then the means over roles."""
    from .records import main_value
    from .tasks import TASKS, UNSCALED

    scaled = scores.conditions["temperature"] is not None
    tables = []
    for task in dict.fromkeys(entry["task"] for entry in scores.splits.values()):
        entries = {name: one for name, one in scores.splits.items() if one["task"] == task}
        known = TASKS[task].columns.items()
        more = {header: key for header, key in known if any(key in one for one in entries.values())}
        if scaled and task == "classify":
            more["ECE scaled"] = "ece_scaled"
        names = dict.fromkeys(one["metric"].replace("_", " ") for one in entries.values())
        rows = []
        for name, entry in entries.items():
            low, high = entry["interval"]
            row = [name, entry["role"], str(entry["n"]), percent(main_value(entry))]
            row.append(f"{percent(low)}-{percent(high)}")
            row += [
                f"{entry[key]:.3f}" if key in UNSCALED else percent(entry.get(key))
                for key in more.values()
            ]
            rows.append(row)
        header = ["split", "role", TASKS[task].counted, " / ".join(names), "95 % interval", *more]
        tables.append(columns(header, rows, left=2))
    words = ", ".join(_word(name, **entry) for name, entry in scores.summary().items())
    return "\n\n".join(tables) + f"\n{words}"


def _word(name: str, value: float, interval: Sequence[float] | None = None) -> str:
    """Name and value of a mean over splits, with its interval if it has one."""
    if interval is None:
        return f"{name} {percent(value)}"
    low, high = interval
    return f"{name} {percent(value)} (95 % interval {percent(low)}-{percent(high)})"


def sweep_table(line: dict[float, Scores]) -> str:
    """One line per alpha."""
    from .records import summary

    values = {alpha: summary(scores.splits) for alpha, scores in sorted(line.items())}
    words = list(next(iter(values.values())))
    rows = [
        [f"{alpha:g}", *(percent(one[word]) for word in words)] for alpha, one in values.items()
    ]
    return columns(["alpha", *words], rows)
