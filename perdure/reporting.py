"""Tables over runs and seeds, read from run directories. No torch.

Words: `id` is the accuracy on the split of role "id"; `ood` the unweighted mean accuracy over the
splits of role "ood"; `art` the same without `corrupt`, whose pictures come from the training
domain; `ece` the expected calibration error with 15 equal-width bins over a whole set; `ece_ood`
the unweighted mean of the shifted sets' errors; `forgetting` the OOD accuracy of the zero-shot
model minus that of the run. Values are shares in [0, 1]; only Markdown prints per cent.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .comparison import (
    Difference,
    Reading,
    above_curve,
    at_equal_id,
    over_seeds,
    paired_difference,
)
from .errors import RunError
from .groups import Family, Group, Knob, check_comparable, families, group, zero_shot
from .records import Record, expand, hint, point, read, summary
from .tables import cell, gap, table

WORDS = ("id", "ood", "art", "ece_id", "ece_ood", "forgetting")


class Row(NamedTuple):
    """Runs that differ only in seed."""

    label: str
    method: str
    alpha: float | None
    seeds: tuple[int | None, ...]
    splits: dict[str, Reading]
    """Accuracy per split"""
    values: dict[str, Reading]
    """The words of this module that the suite allows"""
    trainable: int | None
    seconds: Reading
    """Training time"""


class Pair(NamedTuple):
    """The accuracy of the first row minus that of the second, on the same images."""

    first: str
    second: str
    id: Difference
    ood: Difference


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
    """Split to number of images"""
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...] = ()
    equal: tuple[Equal, ...] = ()
    above: tuple[Above, ...] = ()

    def to_markdown(self) -> str:
        """Return the report as Markdown tables, accuracies in per cent."""
        words = [word for word in WORDS if any(word in row.values for row in self.rows)]
        split_names = list(self.images)
        sections = [
            f"# {self.suite}\n\n"
            f"Accuracy and 15-bin ECE in per cent, mean ± standard deviation over seeds; "
            f"definition {self.definition[:12]}. Images per split: "
            + ", ".join(f"{name} {n}" for name, n in self.images.items())
            + ".",
            table(
                ["run", "seeds", *split_names, *words, "trainable", "seconds"],
                [
                    [
                        row.label,
                        str(len(row.seeds)),
                        *(cell(row.splits.get(name)) for name in split_names),
                        *(cell(row.values.get(word)) for word in words),
                        "n/a" if row.trainable is None else f"{row.trainable:,}",
                        "n/a" if row.seconds.mean is None else f"{row.seconds.mean:.0f}",
                    ]
                    for row in self.rows
                ],
            ),
        ]
        if self.pairs:
            sections += [
                "## Differences\n\nFirst minus second in points, with the 95 % interval of a "
                "bootstrap over images, paired by image; it does not cover the choice of seeds.",
                table(
                    ["first", "second", "ID", "OOD"],
                    [[one.first, one.second, gap(one.id), gap(one.ood)] for one in self.pairs],
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
        words = [word for word in WORDS if any(word in row.values for row in self.rows)]
        names = [*words, *(f"split:{name}" for name in self.images)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        header = [f"{name}_{part}" for name in names for part in ("mean", "sd")]
        writer.writerow(["run", "method", "alpha", "n", *header, "trainable", "seconds_mean"])
        for row in self.rows:
            readings = [row.values.get(word) for word in words]
            readings += [row.splits.get(name) for name in self.images]
            cells = [part for one in readings for part in ((one.mean, one.sd) if one else ("", ""))]
            start = (row.label, row.method, row.alpha, len(row.seeds))
            writer.writerow([*start, *cells, row.trainable, row.seconds.mean])
        return text.getvalue()

    def to_json(self) -> str:
        """Return the whole report as one JSON object, values as shares."""
        document: dict[str, Any] = {
            "suite": self.suite,
            "definition": self.definition,
            "images": dict(self.images),
        }
        for name in ("rows", "pairs", "equal", "above"):
            document[name] = [_plain(one) for one in getattr(self, name)]
        return json.dumps(document, indent=2)


def report(
    runs: Sequence[Path | str],
    *,
    suite: str | None = None,
    at_id: Sequence[float] = (),
    against: str | None = None,
) -> Report:
    """Compare evaluated runs.

    Args:
        runs: Run directories, or directories of `seed-N` runs; their order does not matter.
        suite: Which scores to read; may be None where all runs have scores of one suite only.
        at_id: ID accuracies, shares in [0, 1], at which curves are compared.
        against: Label of the row that differences and curves are taken against; all pairs and no
            curves where None.

    Raises:
        RunError: If runs are missing, unscored, scored on different tests, or `against` is unknown.
    """
    if not runs:
        raise RunError("No runs given. Name at least one run directory: perdure report RUN ...")
    records = [read(path, suite) for path in expand([Path(run) for run in runs])]
    check_comparable(records)
    groups = group(records)
    labels = [one.label for one in groups]
    if against is not None and against not in labels:
        raise RunError(
            f"No row is called {against!r}; {hint(against, labels)}the rows are: "
            f"{', '.join(labels)}."
        )
    start = zero_shot(groups)
    drawn = families(groups)
    return Report(
        suite=records[0].suite,
        definition=records[0].definition,
        images={name: int(entry["n"]) for name, entry in records[0].splits.items()},
        rows=tuple(_row(one, start) for one in groups),
        pairs=_pairs(groups, against),
        equal=tuple(
            Equal(one.label, one.knob, one.grid, target, at_equal_id(one.curves, target))
            for one in drawn
            for target in at_id
        ),
        above=() if against is None else _above(groups, drawn, against),
    )


def _row(one: Group, start: Record | None) -> Row:
    """Average a group over its seeds."""
    summaries = [summary(record.splits) for record in one.records]
    if start is not None and start not in one.records:
        before = summary(start.splits)
        for values in summaries:
            values["forgetting"] = before["ood"] - values["ood"]
    first = one.first
    return Row(
        label=one.label,
        method=first.method,
        alpha=first.alpha,
        seeds=tuple(record.seed for record in one.records),
        splits={
            name: over_seeds([record.splits[name]["accuracy"] for record in one.records])
            for name in first.splits
        },
        values={word: over_seeds([one[word] for one in summaries]) for word in summaries[0]},
        trainable=first.trainable,
        seconds=over_seeds([record.seconds for record in one.records]),
    )


def _pairs(groups: Sequence[Group], against: str | None) -> tuple[Pair, ...]:
    """Take paired differences of all pairs of rows, or of all rows against one."""
    chosen = list(combinations(groups, 2))
    if against is not None:
        rival = next(one for one in groups if one.label == against)
        chosen = [(one, rival) for one in groups if one is not rival]
    shares: dict[str, dict[str, Any]] = {}
    for one in {id(member): member for pair in chosen for member in pair}.values():
        outcomes = [record.correct() for record in one.records]
        shares[one.label] = {
            name: np.mean([found[name] for found in outcomes], axis=0) for name in outcomes[0]
        }
    roles = {name: entry["role"] for name, entry in groups[0].first.splits.items()}
    pairs = []
    for first, second in chosen:
        gaps = {}
        for role in ("id", "ood"):
            names = [name for name, found in roles.items() if found == role]
            gaps[role] = paired_difference(
                {name: shares[first.label][name] for name in names},
                {name: shares[second.label][name] for name in names},
            )
        pairs.append(Pair(first.label, second.label, gaps["id"], gaps["ood"]))
    return tuple(pairs)


def _above(groups: Sequence[Group], drawn: Sequence[Family], against: str) -> tuple[Above, ...]:
    """Read every other row against the curves of one row."""
    rival = next(one for one in groups if one.label == against)
    found = []
    for family in drawn:
        if family.label not in (against, rival.first.method):
            continue
        for one in groups:
            if one.first.method in (rival.first.method, "zero-shot"):
                continue
            own = {record.seed: point(0.0, record.splits) for record in one.records}
            gap_over = above_curve(own, family.curves)
            found.append(Above(one.label, family.label, family.knob, gap_over))
    return tuple(found)


def _plain(value: Any) -> Any:
    """Return named tuples as dictionaries, for JSON."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
