"""Group runs that differ only in seed, name the groups, and draw their trade-off curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from .comparison import Curve, Point
from .errors import RunError
from .identities import key_of
from .records import Record, point, summary

Knob = Literal["alpha", "learning rate"]

RATES = ("optim.lr", "optim.head_lr")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in seed, in the order of their seeds."""

    label: str
    records: tuple[Record, ...]

    @property
    def first(self) -> Record:
        """Any of the runs, for what they share."""
        return self.records[0]


class Family(NamedTuple):
    """Curves of one method, one per seed."""

    label: str
    knob: Knob
    curves: tuple[Curve, ...]

    @property
    def grid(self) -> tuple[float, ...]:
        """Positions that every seed has."""
        shared = [{point.position for point in curve.points} for curve in self.curves]
        return tuple(sorted(set.intersection(*shared)))


def check_comparable(records: Sequence[Record]) -> None:
    """Make sure that all scores were made on the same images with the same rules.

    Raises:
        RunError: If suites, suite definitions or numbers of images differ; names two runs that do.
    """
    first = records[0]
    for other in records[1:]:
        for what, here, there in (
            ("suites", first.suite, other.suite),
            (f"definitions of suite {first.suite}", first.definition, other.definition),
            ("numbers of images", _images(first), _images(other)),
            ("pixels (--transform, --precision)", first.pixels, other.pixels),
        ):
            if here != there:
                raise RunError(
                    f"These runs were scored on different {what}: {first.path} has {here}, "
                    f"{other.path} has {there}. Accuracies of different tests are not compared; "
                    f"evaluate both again with the same version of perdure and the same options."
                )


def group(records: Iterable[Record]) -> tuple[Group, ...]:
    """Group runs that differ only in seed; the order of the input does not matter.

    Raises:
        RunError: If two runs are equal in everything, the seed included.
    """
    members: dict[str, list[Record]] = {}
    for record in records:
        members.setdefault(record.key, []).append(record)
    labels = _labels({key: found[0] for key, found in members.items()})
    groups = []
    for key, found in members.items():
        found.sort(key=lambda record: (record.seed is None, record.seed or 0, str(record.path)))
        for left, right in pairwise(found):
            if left.seed == right.seed:
                raise RunError(
                    f"{left.path} and {right.path} are the same run: equal recipe and seed "
                    f"{left.seed}. Name one of them, or train with another seed: --set seed=..."
                )
        groups.append(Group(labels[key], tuple(found)))
    return tuple(sorted(groups, key=_order))


def families(groups: Sequence[Group]) -> tuple[Family, ...]:
    """Return every trade-off curve that the groups contain.

    Over alpha: a group of trained runs with points between zero-shot (0) and itself (1), from
    sweeps or from `wise-ft` runs of the same inputs. Over the learning rate: groups that differ
    in nothing but their learning rates, seeds that all of them have.
    """
    found: list[Family] = []
    if not all({"id", "ood"} <= summary(one.first.splits).keys() for one in groups):
        return ()
    for one in groups:
        curves = [_alpha_curve(record, groups) for record in one.records if _trained(record)]
        whole = [curve for curve in curves if len(curve.points) > 2]
        if whole:
            found.append(Family(one.label, "alpha", tuple(whole)))
    siblings: dict[str, list[Group]] = {}
    for one in groups:
        if _trained(one.first):
            rest = {key: one.first.settings[key] for key in one.first.settings if key not in RATES}
            siblings.setdefault(key_of(rest), []).append(one)
    found.extend(_rate_family(several) for several in siblings.values() if len(several) > 1)
    return tuple(found)


def zero_shot(groups: Sequence[Group]) -> Record | None:
    """Return the untouched model's scores, where they are among the runs."""
    return next((one.first for one in groups if one.first.method == "zero-shot"), None)


def _trained(record: Record) -> bool:
    return "kind" not in record.settings and record.method != "zero-shot"


def _alpha_curve(record: Record, groups: Sequence[Group]) -> Curve:
    """Collect a run's interpolations with zero-shot; a sweep wins over single evaluations."""
    points: dict[float, Point] = {}
    if record.strength is not None:
        points[record.strength] = point(record.strength, record.splits)
    start = zero_shot(groups)
    if start is not None:
        points[0.0] = point(0.0, start.splits)
    for one in groups:
        for other in one.records:
            same = other.tuned is not None and key_of(other.tuned) == record.key
            if same and other.seed == record.seed and other.alpha is not None:
                points[other.alpha] = point(other.alpha, other.splits)
    for alpha, splits in record.sweep.items():
        points[alpha] = point(alpha, splits)
    return Curve(record.method, record.seed, tuple(points[alpha] for alpha in sorted(points)))


def _rate_family(several: Sequence[Group]) -> Family:
    """Join groups that differ only in learning rate, seed by seed."""
    by_seed: dict[int | None, list[Point]] = {}
    for one in several:
        for record in one.records:
            rate = float(record.settings["optim.lr"])
            by_seed.setdefault(record.seed, []).append(point(rate, record.splits))
    method = several[0].first.method
    curves = tuple(
        Curve(method, seed, tuple(sorted(points)))
        for seed, points in by_seed.items()
        if len(points) == len(several)
    )
    return Family(method, "learning rate", curves)


def _images(record: Record) -> dict[str, int]:
    return {name: int(entry["n"]) for name, entry in record.splits.items()}


def _order(one: Group) -> tuple[bool, str]:
    return one.first.method != "zero-shot", one.label


def _labels(representatives: Mapping[str, Record]) -> dict[str, str]:
    """Name each group by its method, and by the settings in which it differs from namesakes."""
    bases = {key: _base(record) for key, record in representatives.items()}
    labels = {}
    for key, record in representatives.items():
        namesakes = [
            other.settings for name, other in representatives.items() if bases[name] == bases[key]
        ]
        differing: dict[str, None] = {}
        for setting in sorted({setting for one in namesakes for setting in one}):
            table = setting.partition(".")[0]
            having = [one for one in namesakes if _has(one, table)]
            if len({repr(one.get(setting)) for one in having}) > 1:
                absent = not _has(record.settings, table)
                value = None if absent else record.settings.get(setting)
                differing[f"{table if absent else setting}={_short(value)}"] = None
            elif len(having) < len(namesakes):  # tables such as `guard`, which some have not
                differing[table if _has(record.settings, table) else f"{table}=None"] = None
        if len(differing) > 1:  # its keys say more
            tables = {one.partition(".")[0] for one in differing if "." in one}
            differing = {one: None for one in differing if one not in tables}
        labels[key] = f"{bases[key]} ({', '.join(differing)})" if differing else bases[key]
    return labels


def _has(settings: Mapping[str, Any], table: str) -> bool:
    return any(key == table or key.startswith(f"{table}.") for key in settings)


def _base(record: Record) -> str:
    if record.alpha is not None:
        return f"{record.method} + WiSE {record.alpha:g}"
    return record.method


def _short(value: Any) -> str:
    """Return a setting as it would be typed, long lists of inputs by their number."""
    if isinstance(value, list):
        return f"{len(value)} inputs" if len(str(value)) > 40 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
