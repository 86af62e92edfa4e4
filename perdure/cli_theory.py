"""The verb theory: what TRACER's linear model predicts for a run, and how far to trust it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Json, emit, emit_json, meter

if TYPE_CHECKING:
    from .theory_report import Setting

UPDATES = 300_000
"""Most updates of a teacher that are followed: seconds grow with them"""

PUBLISHED = 25_030
"""As `perdure.theory.advice.PUBLISHED_STEPS`, which help need not import"""


def theory(
    steps: Annotated[
        int, typer.Option("--steps", metavar="T", help="Optimiser steps of your run.")
    ] = PUBLISHED,
    every: Annotated[
        int, typer.Option("--every", metavar="N", help="Steps between updates of the teacher.")
    ] = 1,
    strength: Annotated[
        float | None,
        typer.Option("--strength", metavar="S", help="Of distillation, if it is given; else 0.9."),
    ] = None,
    bias: Annotated[
        float | None,
        typer.Option("--bias", metavar="B", help="Wanted at the end; that of the published run."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also compare with the published ablations.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Also draw six pictures there.")
    ] = None,
    json: Json = False,
) -> None:
    """Say which beta and strength suit a run.

    What TRACER's linear theory predicts for a run of T steps: how far the student stays from the
    task's solution (bias), and how far from its teacher (gap). Recommends beta and strength, with
    what the choice rests on.
    """
    _check(steps, every, strength, bias)
    if out is not None:
        _check_place(out)
    from .theory import advise
    from .theory_report import Setting, document, text

    given = {} if strength is None else {"strength": strength}
    advice = advise(steps, bias=bias, every=every, **given)
    of = Setting(advice, advice.best if strength is None else advice.choice)
    pictures = [] if out is None else _draw(of, out)
    if json:
        found = document(of, compare=compare)
        emit_json({**found, "pictures": [str(path) for path in pictures]})
        return
    emit(text(of, asked=bias is not None, compare=compare))
    if out is not None:
        emit(f"\nWrote {', '.join(path.name for path in pictures)} to {out}")


def _check(steps: int, every: int, strength: float | None, bias: float | None) -> None:
    """Refuse numbers that the theory has no answer for.

    Raises:
        typer.BadParameter: Names the option, what was found and what is allowed.
    """
    updates = -(-steps // max(every, 1))
    faults = (
        (steps < 1, "--steps", f"{steps} steps are no run; give 1 or more."),
        (every < 1, "--every", f"{every} is no interval; give 1 (every step) or more."),
        (
            every > steps,
            "--every",
            f"{every} is more than the {steps} steps of the run, in which the teacher would never "
            f"move; give at most {steps}.",
        ),
        (
            updates > UPDATES,
            "--steps",
            f"{steps:,} steps are {updates:,} updates of the teacher, and at most {UPDATES:,} are "
            "followed; give fewer steps, since beta changes slowly with them.",
        ),
        (
            strength is not None and not 0.01 <= strength <= 100,
            "--strength",
            f"{strength} is out of range; give a number from 0.01 to 100 (published: 0.9).",
        ),
        (
            bias is not None and not 1e-6 <= bias < 1,
            "--bias",
            f"{bias} is out of range; give a share of the start's error, from 1e-6 to below 1 "
            "(published run: 0.023).",
        ),
    )
    for wrong, option, words in faults:
        if wrong:
            raise typer.BadParameter(words, param_hint=option)


def _check_place(out: Path) -> None:
    """Find out before the work whether pictures can be written.

    Raises:
        DependencyError: If matplotlib is missing.
        RunError: If `out` is a file or cannot be written to.
    """
    from .errors import RunError
    from .extras import require
    from .files import require_writable
    from .theory_figures import PICTURES

    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; name a directory for --out, existing or new.")
    require("matplotlib", f"drawing into {out}")
    for name in PICTURES:
        require_writable(out / f"{name}.png")


def _draw(of: Setting, out: Path) -> list[Path]:
    """Draw all pictures, then write them: an error on the way leaves the directory as it was."""
    from .files import whole_file
    from .theory_figures import PICTURES, draw

    done = []
    with meter(len(PICTURES)) as shown:
        shown.describe("drawing")
        for name, content in draw(of):
            done.append((out / name, content))
            shown.advance(1)
    for path, content in done:
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
    return [path for path, _ in done]
