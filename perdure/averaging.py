"""Averages over the data sets of a transfer protocol, read from run directories. No torch.

Every data set has runs and a suite of its own. `base` and `novel` are then the means over data sets
of each set's mean over seeds. Two harmonic means are told apart, as in `perdure.reporting`:
`harmonic` is that of the two averages, as in the "average" row of published tables, and
`mean_harmonic` is the mean over data sets of each set's own harmonic mean. Values are shares in
[0, 1]; only Markdown prints per cent.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .comparison import Reading, over_seeds
from .errors import RunError
from .groups import Group, check_comparable, group
from .metrics import harmonic_mean, harmonic_of_means, mean_of_harmonics
from .records import Record, expand, read, suites_of, summary
from .tables import cell, table

PREFIX = "base-to-novel-"
"""Of suites, left out of the names of data sets"""

MEASURES = ("base", "novel", "harmonic", "mean_harmonic")
"""Of an average, in the order of columns"""


class SetScores(NamedTuple):
    """A method on one data set, over its seeds."""

    seeds: tuple[int | None, ...]
    base: Reading
    novel: Reading
    harmonic: float
    """Of the two means over seeds"""
    images: tuple[int, int]
    """Of base and of novel classes"""


@dataclass(frozen=True)
class Average:
    """A method over data sets."""

    label: str
    sets: Mapping[str, SetScores]
    """Data set to scores, those that the method was scored on"""
    missing: tuple[str, ...]
    """Data sets that another row has and this one has not"""
    values: Mapping[str, Reading]
    """`MEASURES`, each the value over data sets with the spread over seeds that all sets have;
    empty where a data set is missing, because means over different sets are not compared"""


@dataclass(frozen=True)
class Averages:
    """All methods over the same data sets."""

    sets: tuple[str, ...]
    rows: tuple[Average, ...]

    def to_markdown(self) -> str:
        """Return Markdown tables, accuracies in per cent."""
        count = len(self.sets)
        lines = [
            [row.label, _seeds(row), *(cell(row.values.get(word)) for word in MEASURES)]
            for row in self.rows
        ]
        parts = [
            f"# Averages over {count} data set{'s'[: count > 1]}\n\n"
            "Accuracy in per cent; ± is the standard deviation over seeds of the mean over sets. "
            "harmonic: the harmonic mean of the two averages, as in published tables; "
            "mean_harmonic: the mean over sets of their own harmonic means.",
            table(["run", "seeds", *MEASURES], lines),
        ]
        parts += [
            f"{row.label}: no average, because {', '.join(row.missing)} "
            f"{'is' if len(row.missing) == 1 else 'are'} missing."
            for row in self.rows
            if row.missing
        ]
        header = ["run", *(f"{name} (n = {self._images(name)})" for name in self.sets)]
        parts += [
            "## Every data set\n\nBase / novel / their harmonic mean, each over seeds; "
            "n: images of base + novel classes.",
            table(header, [[row.label, *map(_triple, map(row.sets.get, self.sets))]
                           for row in self.rows]),
        ]  # fmt: skip
        return "\n\n".join(parts) + "\n"

    def to_csv(self) -> str:
        """Return one line per method and data set, and one per average, as shares."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["run", "set", "seeds", *MEASURES])
        for row in self.rows:
            for name, found in row.sets.items():
                own = (found.base.mean, found.novel.mean, found.harmonic, "")
                writer.writerow([row.label, name, len(found.seeds), *own])
            if row.values:
                means = [row.values[word].mean for word in MEASURES]
                writer.writerow([row.label, "average", row.values["base"].n, *means])
        return text.getvalue()

    def to_json(self) -> str:
        """Return all of it as one JSON object, values as shares."""
        rows = [
            {
                "label": row.label,
                "missing": row.missing,
                "values": {word: value._asdict() for word, value in row.values.items()},
                "sets": {
                    name: found._asdict()
                    | {"base": found.base._asdict(), "novel": found.novel._asdict()}
                    for name, found in row.sets.items()
                },
            }
            for row in self.rows
        ]
        return json.dumps({"sets": self.sets, "rows": rows}, indent=2)

    def _images(self, name: str) -> str:
        """Return the number of images of a data set, from any row: all have the same."""
        base, novel = next(row.sets[name].images for row in self.rows if name in row.sets)
        return f"{base:,} + {novel:,}"


def average(runs: Sequence[Path | str]) -> Averages:
    """Average base-to-novel scores over all data sets that runs have such scores of.

    Rows are methods, told apart as in `perdure.reporting.report`, within each data set: runs of one
    row differ in their data set, their seed, and in settings of which every data set has one value.
    A run that was scored on several data sets, as zero-shot, counts for all of them.

    Args:
        runs: Directories of runs, or of directories of runs.

    Raises:
        RunError: If no run has such scores, or the runs of one data set are not comparable.
    """
    of_set: dict[str, list[Record]] = {}
    paths = expand([Path(run) for run in runs]) if runs else []
    for path in paths:
        for suite in suites_of(path):
            record = read(path, suite)
            if {"base", "novel"} <= summary(record.splits).keys():
                of_set.setdefault(suite.removeprefix(PREFIX), []).append(_unnamed(record))
    if not of_set:
        raise RunError(
            f"none of {len(paths)} runs has scores of base and novel classes; make them with "
            f"perdure eval RUN --suite {PREFIX}DATASET."
        )
    found: dict[str, dict[str, Group]] = {}
    for name in sorted(of_set):
        check_comparable(of_set[name])
        for one in group(of_set[name]):
            found.setdefault(one.label, {})[name] = one
    sets = tuple(sorted(of_set))
    return Averages(sets, tuple(_row(label, own, sets) for label, own in found.items()))


def _unnamed(record: Record) -> Record:
    """Return a record whose settings do not tell which data set it is of."""
    named = record.settings.get("data.name")
    if not isinstance(named, str):
        return record
    settings = {
        key: value.replace(named, "*") if isinstance(value, str) else value
        for key, value in record.settings.items()
    }
    return replace(record, settings=settings)


def _row(label: str, own: Mapping[str, Group], sets: Sequence[str]) -> Average:
    scores = {name: _scores(one) for name, one in own.items()}
    missing = tuple(name for name in sets if name not in own)
    return Average(label, scores, missing, {} if missing else _values(own, scores))


def _scores(one: Group) -> SetScores:
    """Return what a group comes to on its data set."""
    each = [summary(record.splits) for record in one.records]
    base, novel = ([values[word] for values in each] for word in ("base", "novel"))
    counts = [
        sum(int(entry["n"]) for entry in one.first.splits.values() if entry["role"] == role)
        for role in ("base", "novel")
    ]
    return SetScores(
        tuple(record.seed for record in one.records),
        over_seeds(base),
        over_seeds(novel),
        harmonic_of_means(base, novel),
        (counts[0], counts[1]),
    )


def _values(own: Mapping[str, Group], scores: Mapping[str, SetScores]) -> dict[str, Reading]:
    """Return the averages over all data sets, with the spread over seeds."""
    base, novel = (
        [float(getattr(one, word).mean) for one in scores.values()] for word in ("base", "novel")
    )
    means = {
        "base": float(np.mean(base)),
        "novel": float(np.mean(novel)),
        "harmonic": harmonic_of_means(base, novel),
        "mean_harmonic": mean_of_harmonics(base, novel),
    }
    shared = set.intersection(*(set(one.seeds) for one in scores.values()))
    by_seed: dict[str, list[float | None]] = {word: [] for word in MEASURES}
    for seed in sorted(shared, key=str):
        values = [
            summary(record.splits)
            for one in own.values()
            for record in one.records
            if record.seed == seed
        ]
        first, second = ([value[word] for value in values] for word in ("base", "novel"))
        by_seed["base"].append(float(np.mean(first)))
        by_seed["novel"].append(float(np.mean(second)))
        by_seed["harmonic"].append(harmonic_mean(float(np.mean(first)), float(np.mean(second))))
        by_seed["mean_harmonic"].append(mean_of_harmonics(first, second))
    return {word: over_seeds(by_seed[word])._replace(mean=means[word]) for word in MEASURES}


def _seeds(row: Average) -> str:
    """Return the number of seeds, from the least to the most of a data set."""
    counts = sorted({len(found.seeds) for found in row.sets.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def _triple(found: SetScores | None) -> str:
    if found is None:
        return "n/a"
    return f"{cell(found.base)} / {cell(found.novel)} / {100 * found.harmonic:.1f}"
