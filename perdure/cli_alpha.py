"""The verb that chooses how far to go: alpha."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    Cache,
    Data,
    Device,
    Json,
    Limit,
    Precision,
    Threads,
    Workers,
    clock,
    columns,
    emit,
    emit_json,
    percent,
    say,
)
from .errors import nearest

if TYPE_CHECKING:
    from .alpha.report import AlphaReport

ALPHA_RULES = (
    "fixed", "id_one_se", "leave_concepts_out", "stock", "mono", "lines", "dynamic",
)  # fmt: skip
"""As in `perdure.alpha.report`, which imports torch"""


def alpha(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished training run.")],
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite", metavar="NAME", help="Whose task; its `val` split is used. The run's own."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", metavar="|".join(ALPHA_RULES), help="The rule.")
    ] = "fixed",
    other: Annotated[
        str | None,
        typer.Option("--with", metavar="RUN2", help="stock: the same recipe with another seed."),
    ] = None,
    splits: Annotated[
        int, typer.Option("--splits", metavar="1|2|3", help="leave_concepts_out: trainings.")
    ] = 1,
    work: Annotated[
        Path | None,
        typer.Option("--work", metavar="DIR", help="leave_concepts_out: for these; RUN/alpha."),
    ] = None,
    copies: Annotated[
        int, typer.Option("--copies", metavar="K", help="dynamic: models to choose from.")
    ] = 4,
    deep: Annotated[
        float, typer.Option("--deep", help="lines: share of the last block, above 0 to 1.")
    ] = 1.0,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", metavar="classification|retrieval|segmentation", help="fixed; the run's own."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="Write the merged model as a run.")
    ] = None,
    limit: Limit = None,
    data: Data = None,
    precision: Precision = "fp32",
    workers: Workers = 0,
    cache: Cache = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Choose how far to go from zero-shot to a run.

    Without shifted data: by a convention (fixed), by validation accuracy (id_one_se), by a shorter
    training without half of the classes (leave_concepts_out), by the weights (stock, mono, lines),
    or for each image (dynamic). Runs trained on captions are judged by mean recall. Works for any
    run with a zero-shot start. Says when to distrust the choice; --out writes the merged model.
    """
    if method not in ALPHA_RULES:
        hint = nearest(method, ALPHA_RULES) or f"choose one of {', '.join(ALPHA_RULES)}."
        raise typer.BadParameter(f"no rule is called {method!r}; {hint}", param_hint="--method")
    if suite is not None:  # before torch is imported
        from .data.suites import suite as find_suite

        find_suite(suite, data)
    from .alpha.report import Options
    from .alpha.select import select_alpha, write_choice
    from .errors import RunError
    from .prediction import How
    from .runtime import Runtime

    if out is not None and out.exists():
        raise RunError(f"{out} exists already. Choose a new directory for --out, or remove it.")
    options = Options(
        task=task, other=other, deep=deep, copies=copies, splits=splits, work=work, say=say
    )
    runtime = Runtime(device, threads=threads)
    try:
        ways: dict[str, Any] = {"precision": precision, "workers": workers, "cache": cache}
        how = How(root=data, limit=limit, runtime=runtime, **ways)
        found = select_alpha(run, suite, method, how=how, options=options)  # type: ignore[arg-type]
    finally:
        runtime.close()
    if not runtime.is_main:
        return
    if out is not None:
        write_choice(found, run, out)
    if json:
        emit_json(
            {
                **found.to_dict(),
                "precision": precision,
                "out": None if out is None else str(out),
            }
        )
        return
    emit(_about(found))
    if out is not None:
        emit(f"Wrote {out}")
    elif found.alpha is not None:
        emit(
            f"Next: perdure alpha {run}{'' if suite is None else f' --suite {suite}'} --method "
            f"{method} --out RUN, or perdure merge wise-ft MODEL {run} --alpha {found.alpha:g} "
            "--out RUN"
        )


def _about(found: AlphaReport) -> str:
    """Return a choice for people: the curve, the choice, its doubts, its cost."""
    lines: list[str] = []
    if found.curve:
        names = list(found.curve[0].parts)
        head = found.measure if len(found.measure) < 12 else found.measure.split()[0]
        rows = [
            [
                f"{point.alpha:g}",
                percent(point.value),
                percent(point.error),
                *(percent(point.parts[name]) for name in names),
            ]
            for point in found.curve
        ]
        lines += [
            f"{found.subject}: {found.measure} on `{found.split}` of {found.suite}, n = {found.n}, "
            "per cent",
            columns(["alpha", head, "s.e.", *names], rows),
            "",
        ]
    lines.append(f"{found.method}: {_choice(found)}")
    lines += [f"Distrust: {warning}." for warning in found.warnings]
    cost = found.cost
    if cost.seconds:
        steps = f", {cost.steps} training steps" if cost.steps else ""
        lines.append(
            f"Cost: {cost.images:,} images decoded, {cost.forwards:,} forward passes{steps}, "
            f"{clock(cost.seconds)}"
        )
    return "\n".join(lines)


def _choice(found: AlphaReport) -> str:
    value = ""
    if found.value is not None and found.error is not None:
        value = f", {found.measure} {percent(found.value)} ± {percent(found.error)} (s.e.)"
    if found.alpha is not None:
        alphas: Any = found.figures.get("alphas", ())
        spread = ", ".join(f"{one:g}" for one in alphas) if len(alphas) > 1 else ""
        return f"alpha {found.alpha:g}{f' (divisions: {spread})' if spread else ''}{value}"
    if found.copies:
        shares = ", ".join(f"{one.alpha:g} for {100 * one.share:.0f} %" for one in found.copies)
        return f"alpha per image: {shares} of the images{value}"
    low, high = min(found.layers.values()), max(found.layers.values())
    control = found.figures["control_alpha"]
    plain = percent(found.figures["control_value"])
    return (
        f"alpha per tensor, from {low:.2f} to {high:.2f} of {len(found.layers)} updates{value}; "
        f"plain interpolation as far ({control:.2f}): {plain}"
    )
