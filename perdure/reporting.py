"""Tables over runs and seeds, read from run directories. No torch.

Words: `id` is the accuracy on the split of role "id"; `ood` the unweighted mean accuracy over the
splits of role "ood"; `art` the same without `corrupt`, whose pictures come from the training
domain; `ece` the expected calibration error with 15 equal-width bins over a whole set; `ece_ood`
the unweighted mean of the shifted sets' errors; `forgetting` the OOD accuracy of the zero-shot
model minus that of the run; `base` and `novel` the accuracies on trained and held-out classes,
`base_ood` and `novel_ood` those on shifted images of them; `target` the unweighted mean accuracy
over tasks that were never trained on. `harmonic` is the harmonic mean of the averages over seeds of
`base` and `novel`, as in published tables, and its spread that of the seeds' own harmonic means;
`mean_harmonic` is the mean of these. `harmonic_ood` and `mean_harmonic_ood` likewise. Of other
tasks than classification the word is the name of their main metric, such as `recall_at_1`, as the
unweighted mean over splits; `rsum` is the sum of retrieval's six recalls, averaged over data sets.
Values are shares in [0, 1] (`rsum` in [0, 6]); only Markdown prints per cent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from .comparison import (
    Reading,
    above_curve,
    at_equal_id,
    over_seeds,
    paired_harmonic_difference,
)
from .errors import RunError
from .groups import Family, Group, check_comparable, families, group, zero_shot
from .metrics import harmonic_of_means
from .notes import notes_on
from .records import HARMONIC, Record, expand, hint, main_value, point, read, summary
from .samples import differences, mean_shares, samples
from .tables import Above, Equal, Pair, Report, Row
from .tasks import TASKS

if TYPE_CHECKING:
    from .run import Run


def report(
    runs: Sequence[Run | Path | str],
    *,
    suite: str | None = None,
    at_id: Sequence[float] = (),
    against: str | None = None,
) -> Report:
    """Compare evaluated runs.

    Args:
        runs: Runs, their directories, or directories of runs; the order does not matter.
        suite: Which scores to read; may be None where all runs have scores of one suite only.
        at_id: ID accuracies, shares in [0, 1], at which curves are compared.
        against: Label of the row that differences and curves are taken against; all pairs and no
            curves where None.

    Raises:
        RunError: If runs are missing, unscored, scored on different tests, or `against` is unknown.
    """
    if not runs:
        raise RunError("No runs given. Name at least one run directory: perdure report RUN ...")
    records = [read(path, suite) for path in expand([_path(run) for run in runs])]
    check_comparable(records)
    return compare(group(records), at_id=at_id, against=against)


def compare(
    groups: Sequence[Group], *, at_id: Sequence[float] = (), against: str | None = None
) -> Report:
    """Compare groups of runs whose scores are comparable; rows keep the order of the groups.

    Args:
        groups: At least one.
        at_id: As in `report`.
        against: As in `report`.

    Raises:
        RunError: If `against` is unknown.
    """
    records = [groups[0].first]
    labels = [one.label for one in groups]
    if against is not None and against not in labels:
        raise RunError(
            f"No row is called {against!r}; {hint(against, labels)}the rows are: "
            f"{', '.join(labels)}."
        )
    start = zero_shot(groups)
    drawn = families(groups)
    counted = _counted(records[0])
    return Report(
        suite=records[0].suite,
        definition=records[0].definition,
        images={name: int(entry["n"]) for name, entry in records[0].splits.items()},
        roles={name: str(entry["role"]) for name, entry in records[0].splits.items()},
        rows=tuple(_row(one, start) for one in groups),
        pairs=_pairs(groups, against),
        equal=tuple(
            Equal(one.label, one.knob, one.grid, target, at_equal_id(one.curves, target))
            for one in drawn
            for target in at_id
        ),
        above=() if against is None else _above(groups, drawn, against),
        notes=notes_on(groups),
        metrics={
            name: str(entry.get("metric", "accuracy")) for name, entry in records[0].splits.items()
        },
        counted=counted,
        paired="pictures" if counted == "queries" else counted,
    )


def _counted(record: Record) -> str:
    """Return what the numbers of examples count; splits of several tasks have "examples"."""
    tasks = {str(entry.get("task", "classify")) for entry in record.splits.values()}
    known = [entry.counted for name, entry in TASKS.items() if name in tasks]
    return known[0] if len(known) == len(tasks) == 1 else "examples"


def _path(run: Run | Path | str) -> Path:
    return Path(run) if isinstance(run, (str, Path)) else run.path


def _row(one: Group, start: Record | None) -> Row:
    """Average a group over its seeds."""
    summaries = [summary(record.splits) for record in one.records]
    if start is not None and start not in one.records and "ood" in summaries[0]:
        before = summary(start.splits)
        for values in summaries:
            values["forgetting"] = before["ood"] - values["ood"]
    first = one.first
    averages = {word: over_seeds([one[word] for one in summaries]) for word in summaries[0]}
    for word, (base, novel) in HARMONIC.items():
        if word in averages:
            averages[f"mean_{word}"] = averages[word]
            mean = harmonic_of_means(*([one[name] for one in summaries] for name in (base, novel)))
            averages[word] = averages[word]._replace(mean=mean)
    return Row(
        label=one.label,
        method=first.method,
        alpha=first.alpha,
        seeds=tuple(record.seed for record in one.records),
        splits={
            name: over_seeds([main_value(record.splits[name]) for record in one.records])
            for name in first.splits
        },
        values=averages,
        trainable=first.trainable,
        seconds=over_seeds([record.seconds for record in one.records]),
        views=first.views,
        view_seconds=_embedding(one),
    )


def _embedding(one: Group) -> Reading | None:
    """Average the seconds that embedding views took, where that was done."""
    seconds = [record.view_seconds for record in one.records]
    return over_seeds(seconds) if any(each is not None for each in seconds) else None


def _pairs(groups: Sequence[Group], against: str | None) -> tuple[Pair, ...]:
    """Take paired differences of all pairs of rows, or of all rows against one."""
    chosen = list(combinations(groups, 2))
    if against is not None:
        rival = next(one for one in groups if one.label == against)
        chosen = [(one, rival) for one in groups if one is not rival]
    found = {
        one.label: [samples(record) for record in one.records]
        for one in {id(member): member for pair in chosen for member in pair}.values()
    }
    pairs = []
    members: dict[str, list[str]] = {}
    for name, entry in groups[0].first.splits.items():
        members.setdefault(str(entry["role"]), []).append(name)
    for first, second in chosen:
        both = found[first.label], found[second.label]
        gaps = differences(*both)
        for word, halves in HARMONIC.items():
            if members.keys() >= set(halves):
                gaps[word] = paired_harmonic_difference(
                    *([mean_shares(one, members[role]) for role in halves] for one in both)
                )
        pairs.append(Pair(first.label, second.label, gaps))
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
