"""The verb diagnose: what fine-tuning did to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import DataOfRun, Device, Json, Threads, emit, emit_json, meter

FOLDER = "diagnosis"
"""In a run, where nobody names another"""


def diagnose(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished training run.")],
    suite: Annotated[
        str | None,
        typer.Option("--suite", metavar="NAME", help="What is answered; else the task's suite."),
    ] = None,
    images: Annotated[
        int,
        typer.Option("--images", metavar="N", min=2, help="Of each kind, for features and spans."),
    ] = 256,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Answer at most N images per split.")
    ] = None,
    energy: Annotated[
        float, typer.Option("--energy", metavar="E", help="Share of inputs that spans keep.")
    ] = 0.99,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="RUN|MODEL", help="Compare with this, not the start."),
    ] = None,
    worst: Annotated[
        int, typer.Option("--worst", metavar="K", min=1, help="Forgotten classes to name.")
    ] = 10,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="New folder; RUN/diagnosis.")
    ] = None,
    data: DataOfRun = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Say what fine-tuning did to a run.

    Against the pre-trained model: how far each layer moved, and whether in the span of training
    inputs; how alike features stayed on images of the task and on shifted ones; how answers
    changed: accuracy, calibration, forgotten classes, images that went from right to wrong. Writes
    JSON, a report and two pictures.
    """
    from .data.suites import suite as find_suite
    from .errors import RunError
    from .files import require_writable

    if suite is not None:
        find_suite(suite, data)  # before torch is imported
    if out is not None and out.exists():
        raise RunError(f"{out} exists already. Choose a new folder for --out, or remove it.")
    from .diagnosis.diagnose import diagnose as look
    from .diagnosis.diagnose import images_of
    from .diagnosis.telling import report, write
    from .opening import task_of
    from .prediction import How
    from .runtime import Runtime
    from .subjects import find

    subject = find(run)
    if out is None and subject.run is None:
        raise RunError(f"{run} is not a run, so there is no folder for it; name one with --out.")
    folder = out or Path(run) / FOLDER
    require_writable(folder / "report.txt")  # before minutes of work
    runtime = Runtime(device, threads=threads)
    try:
        chosen, root = task_of(subject, suite, data)
        with meter(images_of(chosen, How(root=root, limit=limit), images)) as shown:

            def count(seen: int) -> None:
                shown.describe(f"{run}: looking")
                shown.advance(seen)

            shown.describe(f"{run}: looking")
            how = How(root=root, limit=limit, runtime=runtime, progress=count)
            found = look(subject, chosen, against=against, images=images, energy=energy, how=how)
    finally:
        runtime.close()
    if not runtime.is_main:
        return
    written = write(found, folder, worst)
    if json:
        emit_json({**found.to_dict(), "out": str(folder)})
        return
    emit(report(found, worst))
    emit(f"\nWrote {folder}: {', '.join(path.name for path in written)}")
