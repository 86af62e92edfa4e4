"""The form of a report: its rows, and how they are written as Markdown, CSV and JSON. No torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .comparison import Difference, Reading
from .groups import Knob

WORDS = (
    *("id", "ood", "art", "base", "novel", "harmonic", "mean_harmonic"),
    *("base_ood", "novel_ood", "harmonic_ood", "mean_harmonic_ood", "target"),
    *("ece_id", "ece_ood", "forgetting"),
)
"""In the order of columns"""


class Row(NamedTuple):
    """Runs that differ only in seed."""

    label: str
    method: str
    alpha: float | None
    seeds: tuple[int | None, ...]
    splits: dict[str, Reading]
    """Main metric, such as accuracy, per split"""
    values: dict[str, Reading]
    """The words of `perdure.reporting` that the suite allows"""
    trainable: int | None
    seconds: Reading
    """Training time"""
    views: tuple[int, ...] = ()
    """Numbers of cached views of each image, where augmentation was not new in every epoch"""
    view_seconds: Reading | None = None
    """To embed these, before training; None where nothing was embedded"""


class Pair(NamedTuple):
    """The main metric of the first row minus that of the second, on the same examples."""

    first: str
    second: str
    values: dict[str, Difference]
    """Role of the splits ("id", "ood", ...), which are averaged, or word of a harmonic mean of two
    such averages, to the difference"""


class Equal(NamedTuple):
    """OOD accuracy of one method's curve at one ID accuracy."""

    label: str
    knob: Knob
    grid: tuple[float, ...]
    id: float
    ood: Reading


class Above(NamedTuple):
    """How far a row lies above another method's curve, at the row's own ID accuracy."""

    label: str
    rival: str
    knob: Knob
    ood: Reading


@dataclass(frozen=True)
class Report:
    """What the scores of several runs say together; rows and pairs are in a fixed order."""

    suite: str
    definition: str
    images: Mapping[str, int]
    """Split to number of images, or of queries or questions"""
    roles: Mapping[str, str]
    """Split to role"""
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...] = ()
    equal: tuple[Equal, ...] = ()
    above: tuple[Above, ...] = ()
    notes: tuple[str, ...] = ()
    """What must be known of some rows"""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Split to its main metric, whose values the rows and pairs have"""
    counted: str = "images"
    """What the numbers in `images` count"""
    paired: str = "images"
    """What differences are paired by"""

    def _words(self) -> list[str]:
        """Return the words that any row has, those of `WORDS` first."""
        found = dict.fromkeys(word for row in self.rows for word in row.values)
        return sorted(found, key=lambda word: WORDS.index(word) if word in WORDS else len(WORDS))

    def _measured(self) -> str:
        """Return what the numbers of splits are."""
        names = [name.replace("_", " ") for name in dict.fromkeys(self.metrics.values())]
        what = ", ".join(names or ["accuracy"])
        ece = " and 15-bin ECE" if any("ece_id" in row.values for row in self.rows) else ""
        return what[:1].upper() + what[1:] + ece

    def to_markdown(self) -> str:
        """Return the report as Markdown tables, shares in per cent."""
        words = self._words()
        # A role with a single split has that split's accuracy as its word.
        roles = list(self.roles.values())
        split_names = [
            name
            for name, role in self.roles.items()
            if roles.count(role) > 1 or (role not in words and len(roles) > 1)
        ]
        sections = [
            f"# {self.suite}\n\n"
            f"{self._measured()} in per cent, mean ± standard deviation over seeds; "
            f"definition {self.definition[:12]}. {self.counted.capitalize()} per split: "
            + ", ".join(f"{name} {n}" for name, n in self.images.items())
            + ".",
            table(
                ["run", "seeds", *words, *split_names, "trainable", "seconds"],
                [
                    [
                        row.label,
                        str(len(row.seeds)),
                        *(cell(row.values.get(word)) for word in words),
                        *(cell(row.splits.get(name)) for name in split_names),
                        "n/a" if row.trainable is None else f"{row.trainable:,}",
                        "n/a" if row.seconds.mean is None else f"{row.seconds.mean:.0f}",
                    ]
                    for row in self.rows
                ],
            ),
        ]
        sections += [_views_of(row) for row in self.rows if row.views]
        if self.notes:
            sections.append("\n".join(f"- {note}" for note in self.notes))
        if self.pairs:
            sections += [
                "## Differences\n\nFirst minus second in points, with the 95 % interval of a "
                f"bootstrap over paired {self.paired}; it does not cover the choice of seeds.",
                table(
                    ["first", "second", *self.pairs[0].values],
                    [[one.first, one.second, *map(gap, one.values.values())] for one in self.pairs],
                ),
            ]
        if self.equal:
            targets = sorted({one.id for one in self.equal})
            by_row: dict[tuple[str, Knob, tuple[float, ...]], dict[float, Reading]] = {}
            for one in self.equal:
                by_row.setdefault((one.label, one.knob, one.grid), {})[one.id] = one.ood
            sections += [
                "## OOD accuracy at equal ID accuracy\n\nRead per seed between neighbouring "
                "points of the knob, never extrapolated (n/a).",
                table(
                    ["run", "knob", "points", *(f"ID {100 * target:g}" for target in targets)],
                    [
                        [label, knob, ", ".join(f"{at:g}" for at in grid)]
                        + [cell(read_at.get(target), of=True) for target in targets]
                        for (label, knob, grid), read_at in by_row.items()
                    ],
                ),
            ]
        if self.above:
            sections += [
                "## Above the rival's curve\n\nPoints of OOD accuracy, at the run's own ID "
                "accuracy, seed by seed.",
                table(
                    ["run", "rival", "knob", "above"],
                    [
                        [one.label, one.rival, one.knob, cell(one.ood, of=True, sign=True)]
                        for one in self.above
                    ],
                ),
            ]
        return "\n\n".join(sections) + "\n"

    def to_csv(self) -> str:
        """Return the rows as CSV: mean and sd of every value as shares, one line per row."""
        words = self._words()
        names = [*words, *(f"split:{name}" for name in self.images)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        header = [f"{name}_{part}" for name in names for part in ("mean", "sd")]
        last = ("trainable", "seconds_mean", "cached_views")
        writer.writerow(["run", "method", "alpha", "n", *header, *last])
        for row in self.rows:
            readings = [row.values.get(word) for word in words]
            readings += [row.splits.get(name) for name in self.images]
            cells = [part for one in readings for part in ((one.mean, one.sd) if one else ("", ""))]
            start = (row.label, row.method, row.alpha, len(row.seeds))
            views = " ".join(map(str, row.views))
            writer.writerow([*start, *cells, row.trainable, row.seconds.mean, views])
        return text.getvalue()

    def to_json(self) -> str:
        """Return the whole report as one JSON object, values as shares."""
        document: dict[str, Any] = {
            "suite": self.suite,
            "definition": self.definition,
            "images": dict(self.images),
            "roles": dict(self.roles),
            "metrics": dict(self.metrics),
        }
        for name in ("rows", "pairs", "equal", "above"):
            document[name] = [_plain(one) for one in getattr(self, name)]
        if self.notes:
            document["notes"] = list(self.notes)
        return json.dumps(document, indent=2)


def _views_of(row: Row) -> str:
    """Return a remark on a row that was not trained on new augmentation in every epoch."""
    numbers = " and ".join(map(str, row.views))
    took = (
        ""
        if row.view_seconds is None
        else (
            f"; embedding them took {row.view_seconds.mean:.1f} s, which its seconds do not include"
        )
    )
    return f"{row.label}: {numbers} cached views of each image, not a new one in every epoch{took}."


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


def _plain(value: Any) -> Any:
    """Return named tuples as dictionaries, for JSON."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
