"""Choose alpha by hiding half of the concepts from a second, shorter training.

What fine-tuning does to concepts it never saw stands in for what it does to data it never saw: the
protocol of base-to-novel tests, used inside the training task. Only validation images are scored.
Concepts are classes; of captions, the words that tell pictures apart (`perdure.data.concepts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..data.concepts import by_names, by_words
from ..data.datasets import captions_of, open_dataset
from ..data.paired import Paired
from ..data.suites import Suite
from ..errors import TaskError
from ..metrics import harmonic_mean
from ..prediction import How, Unit, open_validation
from ..recipe import DataSpec, Recipe, ValidateSpec
from ..run import Run
from ..subjects import find
from ..sweeping import Line, ends
from ..training import Progress, Say, train
from .pairs import PURPOSE, Captions, enough, look_at_pairs
from .report import CurvePoint, look
from .rules import best, harmonic_error


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
    shared: float | None = None
    """Of captions: how many of the hidden ones' concepts training has seen, in [0, 1]"""


def shorter(recipe: Recipe, number: int, total: int) -> Recipe:
    """Return a recipe for half of the classes, or captions, and half of the steps.

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
            f"the run was trained on {recipe.data.classes} of its classes or captions, which is a "
            "half already; choose alpha for the run on all of them."
        )
    if recipe.model.init is not None:
        raise TaskError(
            f"the run started from {recipe.model.init}, which has seen every class or caption, so "
            "none can be hidden from it; choose another rule."
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
    asked: Suite | Captions,
    number: int,
    *,
    how: How,
    grid: Sequence[float],
    work: Path,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Hidden:
    """Train without the hidden concepts of one division and measure both halves on `val`.

    The extra run stays in `work`, where an interrupted one is resumed and a finished one reused.

    Args:
        run: A finished training run.
        asked: Names the task, or the captioned pictures to judge by.
        number: Of the division, from 0.
        how: Data, device, number of images.
        grid: Alphas.
        work: Directory for extra runs.
        progress: Called after every step.
        say: Called with remarks for people.

    Raises:
        TaskError: If classes or captions cannot be divided, or the suite is about others.
        RunError: If `work` holds another run in this place.
        DataError: If data are missing.
    """
    began = perf_counter()
    recipe = run.recipe()
    total = int(run.status().get("total_steps") or run.status()["step"])
    plan = shorter(recipe, number, total)
    shared = None
    units: Sequence[Unit | Paired]
    if isinstance(asked, Captions):
        units, shared = _captions(asked, recipe.data, plan.seed, number, how)
    else:
        units = _classes(asked, plan, number, how)
    if how.runtime is not None:
        plan = replace(plan, run=replace(plan.run, device=str(how.runtime.device)))
    again = train(plan, work / f"split-{number}", resume=True, progress=progress, say=say)
    zero_shot, tuned = ends(find(again))
    if how.runtime is not None:
        zero_shot, tuned = (end.to(how.runtime.device) for end in (zero_shot, tuned))
    line = Line(zero_shot, tuned)
    halves = [
        look_at_pairs(line, unit, how, grid)
        if isinstance(unit, Paired)
        else look(line, unit, how, grid)
        for unit in units
    ]
    curve = tuple(
        CurvePoint(
            one.alpha,
            harmonic_mean(one.value, other.value),
            harmonic_error(one.value, other.value, one.error, other.error),
            {"seen": one.value, "hidden": other.value},
        )
        for one, other in zip(*(half.curve() for half in halves), strict=True)
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
        shared,
    )


def _classes(suite: Suite, plan: Recipe, number: int, how: How) -> list[Unit]:
    """Return validation images of both halves of the classes."""
    data = plan.data
    trained = open_dataset(data.name, data.split, data.root, seed=plan.seed, classes=data.classes)
    if trained.captioned:
        raise TaskError(
            f"the run was trained on captions, whose words are hidden from it, but suite "
            f"{suite.name} asks for classes; leave the suite away, or name one of retrieval."
        )
    seen, hidden = (
        open_validation(suite, how, purpose=PURPOSE, half=f"{half}-{number}")
        for half in ("seen", "hidden")
    )
    if seen.names != trained.classes:
        raise TaskError(
            f"the run was trained on other classes than suite {suite.name} asks for, so they "
            "cannot be hidden from it; name the suite of the training task."
        )
    return [seen, hidden]


def _captions(
    asked: Captions, data: DataSpec, seed: int, number: int, how: How
) -> tuple[list[Paired], float]:
    """Return validation pictures whose captions name nothing hidden, and those that do.

    Also how much of what the hidden captions speak of is not hidden. A run that was trained on
    classes has their names hidden, one on captions words of these.
    """
    whole = open_dataset(data.name, "train", data.root, seed=seed, classes=data.classes)
    if whole.captioned:
        division = by_words(*captions_of(whole), number, data.name)
    else:
        classes = f"{data.classes}/hidden-{number}"
        away = open_dataset(data.name, data.split, data.root, seed=seed, classes=classes)
        division = by_names(whole.classes, away.classes)
    paired = asked.open(how)
    hides = division.hides(paired.captions, paired.caption_labels)
    hidden = np.isin(paired.labels, paired.caption_labels[hides])
    parts = [
        enough(
            paired.part(np.flatnonzero(hidden == gone)),
            f"the {half} half of split {asked.split} of {asked.dataset}",
        )
        for half, gone in (("seen", False), ("hidden", True))
    ]
    return parts, division.shared(parts[1].captions)


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
