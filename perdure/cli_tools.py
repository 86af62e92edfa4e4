"""The verbs around a run: predict, calibrate, export, doctor; and what a dry run prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import clock, columns, emit, emit_json

if TYPE_CHECKING:
    from .preflight import Preflight
    from .recipe import Recipe

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def dry_run(plans: list[tuple[Path, Recipe]], *, json: bool) -> None:
    """Look at the first steps of every planned run and print what they will train and need."""
    from .preflight import preflight

    documents = []
    for path, recipe in plans:
        found = preflight(recipe)
        documents.append({"path": str(path), **found.to_dict()})
        if not json:
            emit(f"{path}: {found.runtime}\n\n{_about(found)}\n")
    if json:
        emit_json({"runs": documents})
    else:
        emit("Nothing was written; without --dry-run the training starts.")


def _about(found: Preflight) -> str:
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
        f"Memory: weights {_size(memory.weights)}, gradients {_size(memory.gradients)}, optimiser "
        f"{_size(memory.optimizer)}, snapshots {_size(memory.snapshots)}; together "
        f"{_size(memory.known)} without activations.",
        *([f"Peak of this {memory.peak_of}: {_size(memory.peak)}."] if memory.peak else []),
        f"Time: {found.seconds_per_step:.3g} s per step x {found.total_steps} steps = "
        f"{clock(found.seconds)}, without validation.",
    ]
    return "\n".join(lines)


def _size(number: int) -> str:
    """Return bytes for people."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
