"""The verb train, and what its dry run prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_merge import suite_of
from .console import (
    Json,
    clock,
    columns,
    counter,
    emit,
    emit_json,
    meter,
    numbers,
    readable_size,
    say,
)
from .errors import typed
from .processes import is_main

if TYPE_CHECKING:
    from .preflight import Preflight
    from .recipe import Recipe
    from .run import Run


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
    from .notes import told
    from .run import Run
    from .runtime import Runtime
    from .training import train as carry_out

    if not resume:
        for path, _ in plans:
            Run(path).require_new()
    if dry:
        _dry_run(plans, json=json)
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
        status = run.status()
        cached = status.get("views") and (
            f"; {status['views']} cached views of each image, embedded in "
            f"{status['view_seconds']:.1f} s"
        )
        emit(f"Finished {run.path} ({status.get('seconds', 0):.0f} s of training{cached or ''})")
        if did := told(status.get("guard") or {}):
            emit(f"{did}; what is delivered is step {status['delivered_step']}")
    data = plans[0][1].data
    emit(f"Next: perdure eval {typed(out)} --suite {suite_of(data.name, data.root, data.classes)}")


def _about(run: Run) -> dict[str, Any]:
    status = run.status()
    kept = {key: status.get(key) for key in ("state", "step", "seconds", "trainable", "parameters")}
    kept |= {
        key: status[key]
        for key in ("views", "view_bytes", "view_seconds", "guard")
        if key in status
    }
    return {"path": str(run.path), "seed": run.recipe().seed, **kept}


def _dry_run(plans: list[tuple[Path, Recipe]], *, json: bool) -> None:
    """Look at the first steps of every planned run and print what they will train and need."""
    from .preflight import preflight

    main = is_main()  # under torchrun every process takes the steps
    documents = []
    for path, recipe in plans:
        found = preflight(recipe)
        documents.append({"path": str(path), **found.to_dict()})
        if main and not json:
            emit(f"{path}: {found.runtime}\n\n{_needs(found)}\n")
    if main and json:
        emit_json({"runs": documents})
    elif main:
        emit("Nothing was written; without --dry-run the training starts.")


def _needs(found: Preflight) -> str:
    """Return what a run will train and take, for people."""
    rows = [
        [name, " x ".join(map(str, shape)) or "1", str(count)]
        for name, shape, count in found.groups()
    ]
    zero = [tensor.name for tensor in found.tensors if not tensor.moved]
    memory = found.memory
    lines = [
        columns(["trainable tensor", "shape", "count"], rows),
        "",
        f"Trains {found.trainable:,} of {found.parameters:,} numbers in {len(found.tensors)} "
        f"tensors; each got a gradient in the first {len(found.losses)} steps.",
        *([f"Gradients that were zero everywhere: {', '.join(zero)}."] if zero else []),
        f"Memory: weights {readable_size(memory.weights)}, "
        f"gradients {readable_size(memory.gradients)}, "
        f"optimiser {readable_size(memory.optimizer)}, "
        f"snapshots {readable_size(memory.snapshots)}; together {readable_size(memory.known)}, "
        f"and {readable_size(memory.activations)} of activations for the backward pass "
        "(run.checkpointing keeps fewer).",
        *([f"Peak of this {memory.peak_of}: {readable_size(memory.peak)}."] if memory.peak else []),
        f"Time: {found.seconds_per_step:.3g} s per step x {found.total_steps} steps"
        + ("" if found.view_seconds is None else f" + {found.view_seconds:.3g} s for cached views")
        + f" = {clock(found.seconds)}, without validation.",
    ]
    return "\n".join(lines)
