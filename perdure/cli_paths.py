"""The verb path: what lies between models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    Cache,
    Data,
    Device,
    Json,
    LimitPerSplit,
    Precision,
    Threads,
    Workers,
    columns,
    emit,
    emit_json,
    meter,
    percent,
)

if TYPE_CHECKING:
    from .path import Interval, PathScan, Segment

SPACES = ("parameters", "classifier")


def path(
    subjects: Annotated[
        list[str],
        typer.Argument(metavar="A B [C]", help="Runs, or names of models."),
    ],
    suite: Annotated[
        str, typer.Option("--suite", metavar="NAME", help="A name of `perdure list suites`.")
    ] = "emojishift",
    points: Annotated[
        int, typer.Option("--points", metavar="N", help="On each line, both ends included.")
    ] = 11,
    space: Annotated[
        str, typer.Option("--space", metavar="NAME", help=f"{' or '.join(SPACES)}.")
    ] = "parameters",
    limit: LimitPerSplit = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.png", help="Also draw it.")
    ] = None,
    precision: Precision = "fp32",
    workers: Workers = 0,
    cache: Cache = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Score the straight lines between models.

    From A to B, and for three models on to C and, as a control, from A to C directly. A barrier is
    how far loss rises above, or accuracy falls below, the line between the scores of both ends: 0
    if the models are connected. Intervals are 95 % bootstrap intervals over images.
    """
    if len(subjects) not in (2, 3):
        raise typer.BadParameter(
            f"a path leads over two or three models; found {len(subjects)}.", param_hint="A B [C]"
        )
    if space not in SPACES:
        raise typer.BadParameter(f"{space!r} is none of {', '.join(SPACES)}.", param_hint="--space")
    if out is not None and out.suffix != ".png":
        raise typer.BadParameter(f"{out} does not end in .png.", param_hint="--out")
    from .data.suites import suite as find_suite

    chosen = find_suite(suite, data)
    if out is not None:
        from .extras import require
        from .files import require_writable

        require("matplotlib", f"drawing {out}")
        require_writable(out)
    from dataclasses import replace

    from .evaluation import images_in
    from .path import scan
    from .prediction import How
    from .runtime import Runtime
    from .subjects import find

    found = [find(name) for name in subjects]
    runtime = Runtime(device, threads=threads)
    ways: dict[str, Any] = {"precision": precision, "workers": workers, "cache": cache}
    how = How(root=data, limit=limit, runtime=runtime, **ways)
    try:
        lines = 1 if len(found) == 2 else 3
        with meter(images_in(chosen, how) * points * lines) as shown:

            def count(scored: int) -> None:
                shown.describe("scoring")
                shown.advance(scored)

            result = scan(
                [one.predictor() for one in found],
                chosen,
                names=[one.name for one in found],
                points=points,
                space="classifier" if space == "classifier" else "parameters",
                how=replace(how, progress=count),
            )
    finally:
        runtime.close()
    if not runtime.is_main:
        return
    if out is not None:
        from .figures import path as draw

        draw(result, out)
    if json:
        seeds = {one.name: one.seed() for one in found}
        emit_json({**result.to_dict(), "seeds": seeds, "limit": limit, "precision": precision})
        return
    emit("\n\n".join(_table(result, segment) for segment in result.segments))
    if out is not None:
        emit(f"\nWrote {out}")


def _table(found: PathScan, segment: Segment) -> str:
    """One line per point, then one per split with its barriers."""
    kind = "control, directly: " if segment.control else ""
    title = f"{kind}{segment.start} -> {segment.end} in {found.space}, {found.suite}"
    header = ["t", *(f"{name} {what}" for name in segment.splits for what in ("acc", "NLL"))]
    rows = []
    for number, t in enumerate(found.positions):
        row = [f"{t:.3g}"]
        for curve in segment.splits.values():
            row += [percent(curve.accuracy[number]), f"{curve.nll[number]:.3f}"]
        rows.append(row)
    summary = []
    for name, curve in segment.splits.items():
        lowest = curve.lowest
        summary.append(
            [
                name, curve.role, str(curve.n),
                _interval(curve.accuracy_barrier, 100, 1), _interval(curve.loss_barrier, 1, 3),
                f"{percent(curve.accuracy[lowest])} at {found.positions[lowest]:.3g}",
            ]
        )  # fmt: skip
    words = ["split", "role", "images", "acc barrier [95 %]", "NLL barrier [95 %]", "lowest acc"]
    return f"{title}\n{columns(header, rows)}\n\n{columns(words, summary, left=2)}"


def _interval(found: Interval, factor: float, digits: int) -> str:
    value, low, high = (f"{factor * part:.{digits}f}" for part in found)
    return f"{value} [{low}, {high}]"
