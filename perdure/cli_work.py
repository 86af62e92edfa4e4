"""The verbs that compute: train and eval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_ensembles import about_ensemble, plan_ensemble, score_ensemble
from .cli_merge import suite_of
from .cli_tools import dry_run
from .console import (
    Device,
    Json,
    Threads,
    columns,
    counter,
    emit,
    emit_json,
    meter,
    numbers,
    percent,
    say,
)
from .processes import is_main

if TYPE_CHECKING:
    from .evaluation import Scores
    from .prediction import How
    from .run import Run
    from .subjects import Subject


def train(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="YAML file, or a name of `perdure list recipes`."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="New run directory.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Override a value; may be repeated."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run at --out.")
    ] = False,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", metavar="0,1,2", help="Train into RUN/seed-0, RUN/seed-1, ..."),
    ] = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Take two steps, say what is needed, write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Fine-tune a model as a recipe says.

    Writes a run directory; Ctrl-C saves before it stops. The trained model in RUN/model loads in
    plain open_clip.
    """
    from .recipe import load_recipe

    given = tuple(overrides or ())
    plans = [(out, load_recipe(recipe, given))]
    if seeds is not None:
        plans = [
            (out / f"seed-{seed}", load_recipe(recipe, (*given, f"seed={seed}")))
            for seed in numbers(seeds, int, "--seeds")
        ]
    # Only now, because it imports torch: a wrong recipe has been answered already.
    from .run import Run
    from .runtime import Runtime
    from .training import train as carry_out

    if not resume:
        for path, _ in plans:
            Run(path).require_new()
    if dry:
        dry_run(plans, json=json)
        return
    runs = []
    # Processes can meet only once, so they stay together from the first seed to the last.
    group = Runtime(plans[0][1].run.device, threads=plans[0][1].run.threads)
    try:
        with meter(len(plans)) as shown:
            for path, plan in plans:
                count = counter(shown, f"{path}:") if is_main() else None
                runs.append(carry_out(plan, path, resume=resume, progress=count, say=say))
    finally:
        group.close()
    if not is_main():
        return
    if json:
        emit_json({"runs": [_about(run) for run in runs]})
        return
    for run in runs:
        emit(f"Finished {run.path} ({run.status().get('seconds', 0):.0f} s of training)")
    data = plans[0][1].data
    emit(f"Next: perdure eval {out} --suite {suite_of(data.name, data.root, data.classes)}")


def _about(run: Run) -> dict[str, Any]:
    status = run.status()
    kept = {key: status.get(key) for key in ("state", "step", "seconds", "trainable", "parameters")}
    return {"path": str(run.path), "seed": run.recipe().seed, **kept}


def evaluate(
    subjects: Annotated[
        list[str],
        typer.Argument(metavar="RUN|MODEL", help="Runs, or names of models."),
    ],
    suite: Annotated[
        str, typer.Option("--suite", metavar="NAME", help="A name of `perdure list suites`.")
    ] = "emojishift",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Score the line of weights from zero-shot to the run.")
    ] = False,
    temperature: Annotated[
        bool, typer.Option("--temperature", help="Also calibrate on `val`: ece_scaled, nll_scaled.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="At most N images per split.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="ROOT", help="Directory of the data.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="TAG|FILE", help="Weights, for an open_clip name."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Keep a model's scores in a new run directory."),
    ] = None,
    ensemble: Annotated[
        str | None,
        typer.Option(
            "--ensemble", metavar="mean|vrf", help="Score all together, mixing their outputs."
        ),
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option("--shares", metavar="1,1", help="Weight of each model (ensemble mean)."),
    ] = None,
    neighbours: Annotated[
        int | None,
        typer.Option("--neighbours", metavar="K", help="Nearest failure, 1 (ensemble vrf)."),
    ] = None,
    transform: Annotated[
        str,
        typer.Option(
            "--transform", metavar="exact|fast", help="Decode JPEG files exactly, or faster."
        ),
    ] = "exact",
    precision: Annotated[
        str,
        typer.Option("--precision", metavar="fp32|bf16", help="Of the image tower."),
    ] = "fp32",
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=0, help="Processes that decode ahead.")
    ] = 0,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Keep decoded pictures for the next time."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Score runs or models on a suite.

    A run keeps its scores in RUN/scores. A directory of runs stands for its runs. JSON is one
    object for one subject, a list for more. An ensemble mixes probabilities: `mean` the same for
    all images, `vrf` (zero-shot, then tuned) by each image's distance to training images on which
    zero-shot fails.
    """
    from .data.decoding import TRANSFORMS
    from .data.suites import suite as find_suite

    for option, value, allowed in (
        ("--transform", transform, TRANSFORMS),
        ("--precision", precision, ("fp32", "bf16")),
    ):
        if value not in allowed:
            raise typer.BadParameter(
                f"{value!r} is none of {', '.join(allowed)}.", param_hint=option
            )
    chosen = find_suite(suite, data)
    if out is not None and len(subjects) != 1:
        raise typer.BadParameter(
            f"it keeps one model, but {len(subjects)} are given.", param_hint="--out"
        )
    if sweep and (temperature or out is not None):
        raise typer.BadParameter(
            "it goes with neither --temperature nor --out.", param_hint="--sweep"
        )
    if ensemble is not None:
        if sweep or temperature or out is not None:
            raise typer.BadParameter(
                "it goes with neither --sweep nor --temperature nor --out.",
                param_hint="--ensemble",
            )
        plan = plan_ensemble(ensemble, shares, neighbours)
    elif shares is not None or neighbours is not None:
        raise typer.BadParameter("it needs --ensemble.", param_hint="--shares, --neighbours")
    from .merging import merge as keep
    from .prediction import How
    from .runtime import Runtime
    from .subjects import find, find_all

    found = [one for name in subjects for one in find_all(name, weights)]
    runtime = Runtime(device, threads=threads)
    ways: dict[str, Any] = {
        "transform": transform,
        "precision": precision,
        "workers": workers,
        "cache": cache,
    }
    how = How(root=data, limit=limit, runtime=runtime, **ways)
    documents = []
    try:
        if ensemble is not None:
            scores = score_ensemble(found, chosen, plan, how)
            if runtime.is_main and not json:
                emit(f"{scores.conditions['subject']} on {suite}\n{_score_table(scores)}")
                emit(about_ensemble(scores))
            documents, found = [scores.to_dict()], []
        if out is not None:
            if runtime.is_main:
                keep("zero-shot", found, out)
            runtime.wait()
            found = [find(out)]
        for one in found:
            document, lines = _score(one, chosen, how, sweep=sweep, temperature=temperature)
            documents.append(document)
            if runtime.is_main and not json:
                emit(f"{one.name} on {suite}\n{lines}\n")
    finally:
        runtime.close()
    if runtime.is_main and json:
        emit_json(documents[0] if len(documents) == 1 else documents)


def _score(
    subject: Subject, suite: Any, how: How, *, sweep: bool, temperature: bool
) -> tuple[dict[str, Any], str]:
    """Score one subject; return its JSON document and its table."""
    from dataclasses import replace

    from .evaluation import evaluate as score
    from .evaluation import images_in
    from .sweeping import ALPHAS, sweep_run

    images = images_in(suite, how, temperature=temperature)
    with meter(images * (len(ALPHAS) if sweep else 1)) as shown:

        def count(scored: int) -> None:
            shown.describe(f"{subject.name}: scoring")
            shown.advance(scored)

        how = replace(how, progress=count)
        if sweep:
            line = sweep_run(subject, suite, how=how)
            points = [{"alpha": alpha, "splits": one.splits} for alpha, one in line.items()]
            return {**line[1.0].to_dict(), "sweep": points}, _sweep_table(line)
        scores = score(
            subject,
            suite,
            temperature=temperature,
            root=how.root,
            limit=how.limit,
            transform=how.transform,
            precision=how.precision,
            workers=how.workers,
            cache=how.cache,
            runtime=how.runtime,
            progress=how.progress,
        )
    return scores.to_dict(), _score_table(scores)


def _score_table(scores: Scores) -> str:
    """One line per split and a table per task, then the means over roles."""
    from .records import main_value
    from .tasks import TASKS, UNSCALED

    scaled = scores.conditions["temperature"] is not None
    tables = []
    for task in dict.fromkeys(entry["task"] for entry in scores.splits.values()):
        entries = {name: one for name, one in scores.splits.items() if one["task"] == task}
        known = TASKS[task].columns.items()
        more = {header: key for header, key in known if any(key in one for one in entries.values())}
        if scaled and task == "classify":
            more["ECE scaled"] = "ece_scaled"
        names = dict.fromkeys(one["metric"].replace("_", " ") for one in entries.values())
        rows = []
        for name, entry in entries.items():
            low, high = entry["interval"]
            row = [name, entry["role"], str(entry["n"]), percent(main_value(entry))]
            row.append(f"{percent(low)}-{percent(high)}")
            row += [
                f"{entry[key]:.3f}" if key in UNSCALED else percent(entry.get(key))
                for key in more.values()
            ]
            rows.append(row)
        header = ["split", "role", TASKS[task].counted, " / ".join(names), "95 % interval", *more]
        tables.append(columns(header, rows, left=2))
    words = ", ".join(_word(name, **entry) for name, entry in scores.summary().items())
    return "\n\n".join(tables) + f"\n{words}"


def _word(name: str, value: float, interval: Sequence[float] | None = None) -> str:
    """Name and value of a mean over splits, with its interval if it has one."""
    if interval is None:
        return f"{name} {percent(value)}"
    low, high = interval
    return f"{name} {percent(value)} (95 % interval {percent(low)}-{percent(high)})"


def _sweep_table(line: dict[float, Scores]) -> str:
    """One line per alpha."""
    from .records import summary

    values = {alpha: summary(scores.splits) for alpha, scores in sorted(line.items())}
    words = list(next(iter(values.values())))
    rows = [
        [f"{alpha:g}", *(percent(one[word]) for word in words)] for alpha, one in values.items()
    ]
    return columns(["alpha", *words], rows)
