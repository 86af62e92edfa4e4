"""The verbs that study a method: ablate, profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

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
    counter,
    emit,
    emit_json,
    meter,
    numbers,
    say,
)
from .errors import nearest
from .grids import PRESETS, Axis, parse_axis

Grid = Annotated[
    list[str] | None,
    typer.Option("--grid", metavar="A.B=C,D", help="An axis and its values; may be repeated."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a value; may be repeated."),
]


def ablate(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="YAML file, or a name of `perdure list recipes`."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the runs go.")],
    grid: Grid = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="|".join(PRESETS), help="A grid by name, before others."),
    ] = None,
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="0,1,2", help="Of every cell.")] = "0",
    suite: Annotated[
        str, typer.Option("--suite", metavar="NAME", help="What is scored.")
    ] = "emojishift",
    limit: LimitPerSplit = None,
    data: Data = None,
    form: Annotated[
        str, typer.Option("--format", metavar="md|csv|json", help="How to print it.")
    ] = "md",
    only: Annotated[
        bool, typer.Option("--plan", help="Say what would be trained, and do nothing.")
    ] = False,
    precision: Precision = "fp32",
    workers: Workers = 0,
    cache: Cache = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
) -> None:
    """Train a recipe over a grid and compare.

    Every cell with every seed; rows are compared with the first value of every axis, paired by
    image. What is finished under --out is not done again. The axis alpha, and options that change
    only what a run delivers (tracer: method.serve; radapter: method.momentum=0, method.alpha),
    need no training of their own. Tables go to DIR/ablation.md, .csv and .json.
    """
    forms = ("md", "csv", "json")
    if form not in forms:
        hint = nearest(form, forms) or f"choose one of {', '.join(forms)}."
        raise typer.BadParameter(f"no format is called {form!r}; {hint}", param_hint="--format")
    axes = _axes(grid, preset, PRESETS)
    chosen_seeds = numbers(seeds, int, "--seeds")
    from .data.suites import suite as find_suite

    chosen = find_suite(suite, data)
    from .ablate import ablate as carry_out
    from .ablate import plan
    from .prediction import How
    from .runtime import Runtime

    given = tuple(overrides or ())
    cells, plans = plan(recipe, axes, out, overrides=given, seeds=chosen_seeds)
    trained = sum(one.carrier is None for one in plans.values())
    count = f"{len(cells)} cells x {len(chosen_seeds)} seeds: {trained} trainings"
    if only:
        if json or form == "json":
            emit_json(
                [
                    {
                        "path": str(one.path),
                        "delivered_by": None if one.carrier is None else str(one.carrier),
                        "alphas": list(one.alphas),
                    }
                    for one in plans.values()
                ]
            )
        else:
            emit(count + "\n" + "\n".join(f"  {cell.label}" for cell in cells))
        return
    runtime = Runtime(device, threads=threads)
    ways: dict[str, Any] = {"precision": precision, "workers": workers, "cache": cache}
    try:
        with meter(trained) as shown:
            found = carry_out(
                recipe,
                axes,
                out,
                chosen,
                overrides=given,
                seeds=chosen_seeds,
                how=How(root=data, limit=limit, runtime=runtime, **ways),
                progress=lambda name: counter(shown, f"{name}:") if runtime.is_main else None,
                say=say,
            )
    finally:
        runtime.close()
    if not runtime.is_main:
        return
    if json or form == "json":
        emit(found.to_json())
    else:
        emit((found.to_csv() if form == "csv" else found.to_markdown()).rstrip("\n"))
    say(f"{count}. Wrote {out / 'ablation.md'}, .csv and .json")


def profile(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="YAML file, or a name of `perdure list recipes`."),
    ],
    grid: Grid = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="radapter", help="A grid by name, before others."),
    ] = None,
    overrides: Overrides = None,
    count: Annotated[
        int, typer.Option("--steps", metavar="N", min=1, help="Steps to measure.")
    ] = 10,
    json: Json = False,
) -> None:
    """Measure what training steps cost.

    Time per step, peak memory, and how many numbers train, are stored and are kept beside; every
    cell of the grid in a process of its own. Nothing is written.
    """
    from .profiling import PROFILES
    from .profiling import profile as carry_out

    axes = _axes(grid, preset, PROFILES)
    found = carry_out(
        recipe,
        axes,
        overrides=tuple(overrides or ()),
        count=count,
        done=lambda label: say(f"Measured {label}"),
    )
    if json:
        emit_json([one.to_dict() for one in found])
        return
    first = found[0].seconds.median
    rows = [
        [
            one.label,
            f"{1e3 * one.seconds.median:.1f}",
            f"{1e3 * one.seconds.low:.1f}-{1e3 * one.seconds.high:.1f}",
            f"{one.seconds.median / first:.2f}",
            f"{1e3 * one.cpu_seconds:.1f}",
            "-" if one.peak is None else f"{one.peak / 1e6:,.0f}",
            "-" if one.peak is None or one.before is None
            else f"{(one.peak - one.before) / 1e6:,.0f}",
            f"{one.trainable:,}",
            f"{one.stored:,}",
            f"{one.snapshots:,}",
        ]
        for one in found
    ]  # fmt: skip
    header = [
        "cell", "ms per step", "quartiles", "ratio", "CPU ms", "peak MB", "of steps MB",
        "trainable", "stored", "snapshots",
    ]  # fmt: skip
    emit(columns(header, rows))
    emit(
        f"\n{count} steps each, after 2 more; peak of the {found[0].peak_of}, of which steps took "
        "the part in the next column. Stored: numbers that rebuild the result from the pre-trained "
        "model. Snapshots: averages, teachers and anchors."
    )


def _axes(
    grid: list[str] | None, preset: str | None, presets: Mapping[str, Sequence[Axis]]
) -> list[Axis]:
    """Return the axes of a named grid, if one is asked for, and those that are written out."""
    if preset is not None and preset not in presets:
        hint = nearest(preset, presets) or f"choose one of {', '.join(presets)}."
        raise typer.BadParameter(f"no grid is called {preset!r}; {hint}", param_hint="--preset")
    named = presets[preset] if preset is not None else ()
    return [*named, *map(parse_axis, grid or ())]
