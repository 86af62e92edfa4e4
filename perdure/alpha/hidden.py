"""Choose alpha by hiding half of the classes from a second, shorter training.

What fine-tuning does to classes it never saw stands in for what it does to data it never saw: the
protocol of base-to-novel tests, used inside the training task. Only validation images are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..data.datasets import open_dataset
from ..data.suites import Suite
from ..errors import TaskError
from ..metrics import harmonic_mean
from ..prediction import How, open_validation
from ..recipe import Recipe, ValidateSpec
from ..run import Run
from ..subjects import find
from ..sweeping import Line, ends
from ..training import Progress, Say, train
from .report import CurvePoint, look
from .rules import best, binomial_errors, harmonic_error


@dataclass(frozen=True)
class Hidden:
    """One division of the classes, and the curve it gave."""

    number: int
    """Of the division"""
    run: Path
    """The training without the hidden classes"""
    alpha: float
    """Where the harmonic mean is largest"""
    curve: tuple[CurvePoint, ...]
    """Harmonic mean of both accuracies, and these as parts"""
    images: int
    forwards: int
    steps: int
    seconds: float


def shorter(recipe: Recipe, number: int, total: int) -> Recipe:
    """Return a recipe for half of the classes and half of the steps.

    What counts in optimiser steps is halved, and a moving average of the method (`momentum`)
    forgets its start to the same degree. Shares of the run need no change.

    Args:
        recipe: Of the whole run.
        number: Of the division.
        total: Optimiser steps of the whole run.

    Raises:
        TaskError: If the training data are divided already, the run started from another one, or
            one step is all there is.
    """
    if "/" in recipe.data.classes:
        raise TaskError(
            f"the run was trained on {recipe.data.classes} of its classes, which is a half "
            "already; choose alpha for the run on all classes."
        )
    if recipe.model.init is not None:
        raise TaskError(
            f"the run started from {recipe.model.init}, which has seen every class, so none can be "
            "hidden from it; choose another rule."
        )
    if total < 2:
        raise TaskError(f"the run has {total} step, of which there is no half.")
    steps, optim, method = total // 2, recipe.optim, recipe.method
    waits = None if optim.warmup_steps is None else optim.warmup_steps // 2
    values: dict[str, Any] = {
        field.name: getattr(method, field.name)
        for field in fields(method)  # type: ignore[arg-type]
        if field.name == "momentum"
    }
    if values:
        method = replace(method, momentum=values["momentum"] ** (total / steps))  # type: ignore[type-var]
    return replace(
        recipe,
        data=replace(recipe.data, classes=f"{recipe.data.classes}/seen-{number}"),
        optim=replace(
            optim,
            epochs=None,
            steps=steps,
            warmup_steps=waits,
            warmup_epochs=0,
            # Half a run has no whole number of epochs.
            schedule="cosine" if optim.schedule == "cosine-epochs" else optim.schedule,
        ),
        method=method,
        validate=ValidateSpec(),
    )


def leave_concepts_out(
    run: Run,
    suite: Suite,
    number: int,
    *,
    how: How,
    grid: Sequence[float],
    work: Path,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Hidden:
    """Train without the hidden classes of one division and measure both halves on `val`.

    The extra run stays in `work`, where an interrupted one is resumed and a finished one reused.

    Args:
        run: A finished training run.
        suite: Names the task.
        number: Of the division, from 0.
        how: Data, device, number of images.
        grid: Alphas.
        work: Directory for extra runs.
        progress: Called after every step.
        say: Called with remarks for people.

    Raises:
        TaskError: If the classes cannot be divided, or the suite is about others.
        RunError: If `work` holds another run in this place.
        DataError: If data are missing.
    """
    began = perf_counter()
    recipe = run.recipe()
    total = int(run.status().get("total_steps") or run.status()["step"])
    plan = shorter(recipe, number, total)
    trained = open_dataset(
        plan.data.name, plan.data.split, plan.data.root, seed=plan.seed, classes=plan.data.classes
    ).classes
    purpose = "no alpha can be chosen"
    seen, hidden = (
        open_validation(suite, how, purpose=purpose, half=f"{half}-{number}")
        for half in ("seen", "hidden")
    )
    if seen.names != trained:
        raise TaskError(
            f"the run was trained on other classes than suite {suite.name} asks for, so they "
            "cannot be hidden from it; name the suite of the training task."
        )
    if how.runtime is not None:
        plan = replace(plan, run=replace(plan.run, device=str(how.runtime.device)))
    again = train(plan, work / f"split-{number}", resume=True, progress=progress, say=say)
    zero_shot, tuned = ends(find(again))
    if how.runtime is not None:
        zero_shot, tuned = (end.to(how.runtime.device) for end in (zero_shot, tuned))
    line = Line(zero_shot, tuned)
    halves = [look(line, unit, how, grid) for unit in (seen, hidden)]
    shares = [half.correct.mean(axis=1) for half in halves]
    errors = [
        binomial_errors(share, len(half.labels)) for share, half in zip(shares, halves, strict=True)
    ]
    curve = tuple(
        CurvePoint(
            float(alpha),
            harmonic_mean(float(one), float(other)),
            harmonic_error(one, other, one_error, other_error),
            {"seen": float(one), "hidden": float(other)},
        )
        for alpha, one, other, one_error, other_error in zip(grid, *shares, *errors, strict=True)
    )
    return Hidden(
        number,
        again.path,
        best(grid, [point.value for point in curve]),
        curve,
        sum(half.cost.images for half in halves),
        sum(half.cost.forwards for half in halves),
        plan.optim.total_steps(1),
        perf_counter() - began,
    )


def together(found: Sequence[Hidden]) -> tuple[CurvePoint, ...]:
    """Return the mean curve of several divisions; errors over images, not over divisions."""
    points = []
    for column in zip(*(one.curve for one in found), strict=True):
        parts = {
            name: float(np.mean([point.parts[name] for point in column]))
            for name in column[0].parts
        }
        error = float(np.sqrt(np.mean([point.error**2 for point in column]) / len(column)))
        value = float(np.mean([point.value for point in column]))
        points.append(CurvePoint(column[0].alpha, value, error, parts))
    return tuple(points)
