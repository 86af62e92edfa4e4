"""Ablations: a recipe over a grid and seeds, trained where it must be, scored, and compared.

Cells that differ only in what a finished run delivers, or in where between zero-shot and the run it
is scored, share one training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .data.suites import Suite
from .errors import RecipeError, RunError
from .evaluation import Scores, evaluate
from .files import read_json, write_text
from .grids import BARE, FREE, Axis, Cell, cells
from .groups import Group
from .identities import identity, key_of
from .prediction import How, open_suite
from .recipe import Recipe, load_recipe, plain
from .records import Record, Splits
from .reporting import compare
from .run import Run
from .runtime import Runtime
from .subjects import find
from .sweeping import ends, sweep
from .tables import Report
from .training import Progress, Say, train
from .work import Work


@dataclass(frozen=True)
class Plan:
    """One run of an ablation."""

    recipe: Recipe
    path: Path
    carrier: Path | None
    """The run that also keeps what this one delivers; None if it is trained itself"""
    keep: bool
    """Whether it is such a carrier"""
    alphas: tuple[float, ...]
    """Where it is scored; empty for what it delivers"""


def plan(
    source: Path | str,
    axes: Sequence[Axis],
    out: Path,
    *,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
) -> tuple[list[Cell], dict[tuple[str, int], Plan]]:
    """Return the cells of a grid and the runs they need, by folder and seed, carriers first.

    Raises:
        RecipeError: If a recipe is wrong, or two cells are the same run.
    """
    grid = cells(axes)
    alphas: dict[str, list[float]] = {}
    recipes: dict[str, Recipe] = {}
    for cell in grid:
        recipes[cell.folder] = load_recipe(source, (*overrides, *cell.assignments))
        alphas.setdefault(cell.folder, [])
        if cell.alpha is not None:
            alphas[cell.folder].append(cell.alpha)
    carried = carriers(recipes)
    plans = {}
    for folder in sorted(recipes, key=lambda folder: carried[folder] is not None):
        carrier = carried[folder]
        for seed in seeds:
            plans[folder, seed] = Plan(
                replace(recipes[folder], seed=seed),
                out / folder / f"seed-{seed}",
                None if carrier is None else out / carrier / f"seed-{seed}",
                folder in carried.values(),
                tuple(alphas[folder]),
            )
    return grid, plans


def carriers(recipes: Mapping[str, Recipe]) -> dict[str, str | None]:
    """Return, for each recipe by name, the name of the one whose training does for it too.

    Raises:
        RecipeError: If two recipes are equal.
    """
    methods = {name: plain(recipe.method) for name, recipe in recipes.items()}
    rest = {name: key_of({**plain(one), "method": None}) for name, one in recipes.items()}

    def without(name: str, keys: Sequence[str]) -> str:
        kept = {key: value for key, value in methods[name].items() if key not in keys}
        return rest[name] + key_of(kept)

    found: dict[str, str | None] = {}
    for name, method in methods.items():
        twins = [one for one in recipes if without(one, ()) == without(name, ())]
        if len(twins) > 1:
            raise RecipeError(
                f"{twins[0]} and {twins[1]} of the grid are the same run; name every value once."
            )
        # A guard looks at what would be delivered, so then nothing is free of training.
        alone = recipes[name].guard is not None
        free = () if alone else FREE.get(method["name"], ())
        bare = {} if alone else BARE.get(method["name"], {})
        small = [key for key, value in bare.items() if method.get(key) == value]
        fuller = [
            one
            for one in recipes
            if without(one, (*free, *small)) == without(name, (*free, *small))
            and all(methods[one][key] != bare[key] for key in small)
        ]
        alike = [one for one in recipes if without(one, free) == without(name, free)]
        first = (fuller or alike)[0]
        found[name] = None if first == name else first
    return found


def ablate(
    source: Path | str,
    axes: Sequence[Axis],
    out: Path | str,
    suite: Suite,
    *,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    how: How | None = None,
    progress: Callable[[str], Progress | None] | None = None,
    say: Say | None = None,
) -> Report:
    """Train and score every cell of a grid with every seed, and compare them with the first cell.

    Nothing that is finished under `out` is done again. Writes `ablation.md`, `.csv` and `.json`.

    Args:
        source: A recipe.
        axes: What varies; the first choice of each makes the reference.
        out: Directory of the runs.
        suite: Which splits are scored.
        overrides: Of every recipe.
        seeds: Of training.
        how: Data, device, number of images.
        progress: Given a run's name, returns what is told about its steps.
        say: Called with remarks for people.

    Raises:
        RecipeError: If a recipe is wrong, or two cells are the same run.
        RunError: If `out` holds another ablation in the same place.
        DataError: If data are missing.
    """
    out, how = Path(out), how or How()
    grid, plans = plan(source, axes, out, overrides=overrides, seeds=seeds)
    images = {split.name: len(unit.dataset) for split, unit in open_suite(suite, how)}
    for (folder, seed), one in plans.items():
        watch = progress(f"{folder}/seed-{seed}") if progress else None
        run = _carry_out(one, watch, say)
        _score(run, one.alphas, suite, how, images)
    for one in plans.values():
        Run(one.path).tidy(keep_states=one.recipe.run.keep)
    groups = [
        Group(
            cell.label,
            tuple(_record(plans[cell.folder, seed], cell.alpha, suite) for seed in seeds),
        )
        for cell in grid
    ]
    found = compare(groups, against=groups[0].label)
    for form, text in (
        ("md", found.to_markdown()), ("csv", found.to_csv()), ("json", found.to_json() + "\n")
    ):  # fmt: skip
        write_text(out / f"ablation.{form}", text)
    return found


def _carry_out(one: Plan, progress: Progress | None, say: Say | None) -> Run:
    """Train a run, or take what it delivers from the state of another."""
    run = Run(one.path)
    carrier = None if one.carrier is None else Run(one.carrier)
    kept = carrier is not None and any(carrier.states.glob("step_*"))
    if run.path.exists() or carrier is None or not kept:
        recipe = replace(
            one.recipe, run=replace(one.recipe.run, keep=one.keep or one.recipe.run.keep)
        )
        return train(recipe, one.path, resume=True, progress=progress, say=say)
    if say is not None:
        say(f"{one.path} is delivered from the training of {carrier.path}.")
    return deliver(one.recipe, carrier, one.path)


def deliver(recipe: Recipe, carrier: Run, out: Path) -> Run:
    """Write the run that a recipe would have given, from the kept state of one that keeps more.

    Args:
        recipe: Differs from the carrier's only as `BARE` and `FREE` allow.
        carrier: Finished, with its last state.
        out: New directory.

    Raises:
        RunError: If the state does not hold what the recipe delivers.
    """
    runtime = Runtime(recipe.run.device, recipe.run.precision, recipe.run.threads)
    try:
        work = Work.prepare(recipe, runtime)
        status = carrier.status()
        carrier.load_part(int(status["step"]), work.learner)
        run = Run.create(out, recipe, runtime)
        kept = {key: value for key, value in status.items() if key not in ("state", "note")}
        run.finish(
            work.learner.export().cpu(), keep_states=False, **kept, delivered_by=str(carrier.path)
        )
    finally:
        runtime.close()
    return run


def _score(
    run: Run, alphas: Sequence[float], suite: Suite, how: How, images: Mapping[str, int]
) -> None:
    """Score a run where it has no scores of this suite on as many images yet."""
    if not alphas:
        if not _scored(run.path, suite, how, images):
            evaluate(run, suite, root=how.root, limit=how.limit, batch_size=how.batch_size,
                     transform=how.transform, precision=how.precision, workers=how.workers,
                     cache=how.cache, runtime=how.runtime, progress=how.progress)  # fmt: skip
        return
    missing = [alpha for alpha in alphas if not _scored(at(run.path, alpha), suite, how, images)]
    if missing:
        subject = find(run)
        found: Mapping[float, Scores] = sweep(
            *ends(subject), suite, alphas=missing, how=how, subject=subject.name,
            seed=subject.seed(),
        )  # fmt: skip
        for alpha, scores in found.items():
            scores.write(at(run.path, alpha) / "scores")


def at(run: Path, alpha: float) -> Path:
    """Return where the scores of a place between zero-shot and a run are kept."""
    return run / f"at-{alpha:g}"


def _scored(path: Path, suite: Suite, how: How, images: Mapping[str, int]) -> bool:
    try:
        scores = read_json(path / "scores" / f"{suite.name}.json")
        entries = scores["splits"]
        same = {name: entry["n"] for name, entry in entries.items()} == dict(images)
        outcomes = (path / "scores" / f"{suite.name}.outcomes.npz").is_file()
        ways = scores.get("precision", "fp32"), scores["transform"].get("decoding", "exact")
        same = same and ways == (how.precision, how.transform)
        return bool(scores["definition"] == suite.definition and same and outcomes)
    except (RunError, LookupError, TypeError, AttributeError):
        return False


def _record(one: Plan, alpha: float | None, suite: Suite) -> Record:
    """Return a run's scores at one place as the tables want them."""
    path = one.path if alpha is None else at(one.path, alpha)
    scores: dict[str, Any] = read_json(path / "scores" / f"{suite.name}.json")
    splits: Splits = scores["splits"]
    method, _, seed, settings = identity(plain(one.recipe))
    status = Run(one.path).status()
    return Record(
        path=path,
        method=method,
        alpha=alpha,
        seed=seed,
        settings={**settings, "alpha": alpha},
        tuned=None,
        suite=suite.name,
        definition=str(scores["definition"]),
        splits=splits,
        trainable=status.get("trainable"),
        seconds=status.get("seconds"),
    )
