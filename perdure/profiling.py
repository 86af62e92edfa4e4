"""What a training step costs: time, memory and numbers over a grid of recipes.

Every cell is measured in a process of its own, because the peak memory of a process never falls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np

from .cached_views import first_batches
from .documents import parse_yaml
from .errors import PerdureError, RecipeError, RunError
from .grids import Axis, Cell, Choice, cells
from .learner import Learner
from .loop import steps
from .method import METHODS, register
from .preflight import peak_memory
from .recipe import Recipe, dump_recipe, load_recipe, parse_recipe
from .runtime import Runtime
from .work import Work

WARM_UP = 2
"""Steps before the clock starts: allocations, first uses of kernels, terms that begin at step 2"""

PROFILES: dict[str, tuple[Axis, ...]] = {
    "radapter": (
        Axis(
            "ensembles",
            (
                Choice("none", ("method.drop=0", "method.momentum=0")),
                Choice("dropping", ("method.momentum=0",)),
                Choice("accumulation", ("method.drop=0",)),
                Choice("both"),
            ),
        ),
        Axis(
            "rank",
            (
                Choice("full rank"),
                Choice("rank 16", ("method.rank_image=16", "method.rank_text=16")),
                Choice("rank 4", ("method.rank_image=4", "method.rank_text=4")),
            ),
        ),
        Axis(
            "batch",
            tuple(Choice(f"batch {size}", (f"optim.batch_size={size}",)) for size in (16, 64)),
        ),
    ),
}
"""Grids by name: what R-Adapter's ensembles of adapters cost, by rank and batch"""


class Spread(NamedTuple):
    """A quantity over steps."""

    median: float
    low: float
    """First quartile"""
    high: float
    """Third quartile"""


@dataclass(frozen=True)
class Profile:
    """What one recipe costs per step."""

    label: str
    steps: int
    """Measured, after the warm-up"""
    batch: int
    """Images per step, over all processes"""
    seconds: Spread
    """Per step, with its data"""
    cpu_seconds: float
    """Of this process per step, mean; steadier than the clock where others use the machine"""
    trainable: int
    """Numbers that are trained"""
    stored: int
    """Numbers that rebuild the result from the pre-trained model"""
    snapshots: int
    """Numbers that averages, teachers and anchors hold while training"""
    before: int | None
    """Peak memory in bytes before the first step: imports, data, model; None if unknown"""
    peak: int | None
    """Peak memory in bytes after the last step; None if unknown"""
    peak_of: str
    """"device" or "process" """

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for programs."""
        return {**asdict(self), "seconds": self.seconds._asdict()}


def profile(
    source: Path | str,
    axes: Sequence[Axis] = (),
    *,
    overrides: Sequence[str] = (),
    count: int = 10,
    done: Callable[[str], None] | None = None,
) -> list[Profile]:
    """Measure a recipe, or every cell of a grid of it, each in a fresh process.

    Args:
        source: A recipe.
        axes: What varies; the recipe alone where there is none.
        overrides: Of every recipe.
        count: Steps to measure, >= 1, after the warm-up.
        done: Told the label of every finished cell.

    Raises:
        RecipeError: If a recipe is wrong, or the grid has an axis alpha, which no step sees.
        RunError: If a cell cannot be measured; carries its message.
    """
    grid = cells(axes) if axes else [Cell("as it is", (), None)]
    if any(cell.alpha is not None for cell in grid):
        raise RecipeError("alpha changes no step of training; leave this axis away.")
    recipes = [load_recipe(source, (*overrides, *cell.assignments)) for cell in grid]
    found = []
    for cell, recipe in zip(grid, recipes, strict=True):
        found.append(_in_a_process(cell.label, recipe, count))
        if done is not None:
            done(cell.label)
    return found


def measure(recipe: Recipe, count: int, label: str = "") -> Profile:
    """Take the first steps of a recipe in this process and measure them; write nothing.

    Raises:
        DataError: If data are missing.
        WeightsError: If the model is unknown.
        TaskError: If method and task do not fit.
    """
    runtime = Runtime(recipe.run.device, recipe.run.precision, recipe.run.threads)
    try:
        work = Work.prepare(recipe, runtime)
        before, _ = peak_memory(runtime)
        total, times, began = WARM_UP + count, [0.0], 0.0
        for tick in steps(
            work.learner,
            first_batches(work.learner, work.loader, recipe.data.views, total, runtime),
            work.optimizer,
            work.schedule,
            runtime,
            seed=recipe.seed,
            clip_norm=recipe.optim.clip_norm,
        ):
            times.append(tick.seconds)
            if tick.step == WARM_UP:
                began = process_time()
        spent = process_time() - began
        peak, peak_of = peak_memory(runtime)
    finally:
        runtime.close()
    each = np.diff(times)[WARM_UP:]
    low, median, high = np.quantile(each, [0.25, 0.5, 0.75])
    trainable, stored, snapshots = numbers(work.learner)
    return Profile(
        label,
        count,
        recipe.optim.batch_size,
        Spread(float(median), float(low), float(high)),
        spent / count,
        trainable,
        stored,
        snapshots,
        before,
        peak,
        peak_of,
    )


def numbers(learner: Learner) -> tuple[int, int, int]:
    """Return how many numbers train, how many a result is stored in, and how many are snapshots.

    A result whose student has added modules is stored in these, because all else is as
    pre-trained; any other in all that trains.
    """
    trained = {id(each): each.numel() for each in learner.parameters() if each.requires_grad}
    own = {id(each) for each in (*learner.student.parameters(), *learner.student.buffers())}
    beside = [*learner.parameters(), *learner.buffers()]
    snapshots = sum(
        each.numel() for each in beside if id(each) not in own and each.is_floating_point()
    )
    trainable = sum(trained.values())
    added = learner.student.added()
    stored = sum(each.numel() for each in added.values()) if added else trainable
    return trainable, stored, snapshots


def _in_a_process(label: str, recipe: Recipe, count: int) -> Profile:
    """Measure a recipe in a fresh process, which knows the same methods."""
    work = {
        "recipe": dump_recipe(recipe),
        "count": count,
        "label": label,
        "methods": {name: list(entry) for name, entry in METHODS.items()},
    }
    home = str(Path(__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    answer = subprocess.run(
        [sys.executable, "-m", "perdure.profiling"],
        input=json.dumps(work),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    try:
        found = json.loads(answer.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        reason = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
        raise RunError(
            f"the process that measured {label} ended without an answer ({reason}); a negative "
            "exit code is a signal, -9 often a lack of memory. Try a smaller batch."
        ) from None
    if "error" in found:
        raise RunError(f"{label} cannot be measured: {found['error']}")
    return Profile(**{**found, "seconds": Spread(**found["seconds"])})


def main() -> None:
    """Read work from standard input, measure, and answer in one line of JSON."""
    work = json.loads(sys.stdin.read())
    for name, (path, summary) in work["methods"].items():
        register(name, path, summary)
    try:
        recipe = parse_recipe(parse_yaml(work["recipe"], "the recipe"))
        answer = measure(recipe, work["count"], work["label"]).to_dict()
    except PerdureError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
