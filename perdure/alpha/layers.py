"""Choices of alpha tensor by tensor, each beside the plain interpolation that moves as far."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.paired import Paired
from ..errors import RunError
from ..identities import identity
from ..interpolation import wise_ft
from ..prediction import How, Unit
from ..predictor import Predictor
from ..records import document
from ..run import Run
from ..subjects import Subject, find
from ..sweeping import Line, tuned_end, zero_shot_of
from ..weights import Weights, lerp
from . import weights as rules
from .pairs import look_at_pairs
from .report import AlphaReport, Cost, Look, Options, Rule, difference, look
from .rules import standard_errors

PARALLEL = 0.95
"""A mean cosine from here on says that two runs are one"""


@dataclass(frozen=True, eq=False)
class Task:
    """A line, images or captioned pictures to judge it by, and what was asked for."""

    line: Line
    unit: Unit | Paired
    how: How
    options: Options
    zero_shot: Predictor

    def look(self, *edits: Weights) -> Look:
        """Score the images on the whole grid and with edited weights."""
        if isinstance(self.unit, Paired):
            return look_at_pairs(self.line, self.unit, self.how, self.options.grid, edits)
        return look(self.line, self.unit, self.how, self.options.grid, edits)


def stock(subject: Subject, task: Task) -> AlphaReport:
    """Choose by the angle between the updates of two runs; raises RunError if they do not fit."""
    second = _second_run(subject, task.options.other)
    other = tuned_end(second)
    if task.how.runtime is not None:
        other = other.to(task.how.runtime.device)
    end = wise_ft(task.zero_shot, other, 1.0).state_dict()
    weights, cosines = rules.stock(task.line.start, task.line.end, end)
    doubts = []
    if float(np.median(cosines)) > PARALLEL:
        doubts.append(
            f"the updates are nearly parallel (median cosine {np.median(cosines):.3f}), as those "
            "of one run are: the share is near 1 whatever the data. Train with another seed"
        )
    middle = lerp(task.line.end, end, 0.5)
    figures = {"other": str(second.run), "cosine": float(np.median(cosines))}
    return _edited(subject, task, "stock", weights, middle, figures, doubts)


def mono(subject: Subject, task: Task) -> AlphaReport:
    """Choose by the spectrum of every matrix of updates."""
    weights = rules.mono(task.line.start, task.line.end)
    return _edited(subject, task, "mono", weights, task.line.end, {}, [])


def lines(subject: Subject, task: Task) -> AlphaReport:
    """Choose by depth; the first block moves not at all, or half as far as the last."""
    deep = task.options.deep
    # From nothing in the first block, unless half is better by more than one standard error.
    edits = {
        shallow: rules.lines(task.line.start, task.line.end, deep, shallow)
        for shallow in (0.0, deep / 2)
    }
    seen = task.look(*edits.values())
    gap, error = difference(seen.edited[1], seen.edited[0])
    shallow = deep / 2 if gap > error else 0.0
    figures = {"shallow": shallow, "deep": deep, "gain_of_half": gap, "gain_error": error}
    report = _edited(subject, task, "lines", edits[shallow], task.line.end, figures, [])
    return replace(report, cost=_sum(seen.cost, report.cost))


def _edited(
    subject: Subject,
    task: Task,
    method: Rule,
    weights: Weights,
    whole: Weights,
    figures: dict[str, Any],
    doubts: list[str],
) -> AlphaReport:
    """Report on edited weights, beside the plain interpolation with an update of their length."""
    start = task.line.start
    control = rules.norm_ratio(start, whole, weights)
    plain = lerp(start, whole, control)
    seen = task.look(weights, plain)
    ours, controls = seen.edited
    gap, error = difference(ours, controls)
    if gap <= error:
        doubts.append(
            f"on validation it is not better than interpolation at alpha {control:.2f}, which "
            f"moves the weights as far ({100 * gap:+.1f} points, standard error {100 * error:.1f})"
        )
    return AlphaReport(
        subject.name,
        method,
        layers={
            name: rules.norm_ratio({name: start[name]}, whole, weights)
            for name in start
            if start[name].is_floating_point() and not start[name].equal(whole[name])
        },
        value=float(ours.mean()),
        error=float(standard_errors(ours)),
        measure=seen.measure,
        curve=seen.curve(),
        figures={
            **figures,
            "control_alpha": control,
            "control_value": float(controls.mean()),
            "gain_over_control": gap,
            "gain_over_control_error": error,
        },
        warnings=tuple(doubts),
        cost=seen.cost,
        weights={name: value.cpu() for name, value in weights.items()},
    )


def _second_run(subject: Subject, other: Subject | Run | Path | str | None) -> Subject:
    """Return the run to compare angles with, if it is another one of the same recipe."""
    if other is None:
        raise RunError(
            "stock compares two runs that differ only in their seed, and only one is given; add "
            "--with RUN2, trained with --set seed=..."
        )
    second = find(other)
    zero_shot_of(second)
    assert subject.run is not None
    assert second.run is not None
    here, there = (identity(document(path)) for path in (subject.run, second.run))
    different = sorted(key for key in here[3] | there[3] if here[3].get(key) != there[3].get(key))
    if different or here[2] == there[2]:
        reason = f"differ in {', '.join(different[:3])}" if different else f"share seed {here[2]}"
        raise RunError(
            f"{subject.name} and {second.name} {reason}; stock needs two runs of one recipe with "
            "different seeds."
        )
    return second


def _sum(one: Cost, other: Cost) -> Cost:
    return Cost(one.images + other.images, one.forwards + other.forwards)
