"""The verbs around a run: predict, calibrate, export, doctor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .console import (
    DataOfRun,
    Device,
    Json,
    Limit,
    Threads,
    columns,
    emit,
    emit_json,
    meter,
    percent,
    print_error,
    readable_size,
    say,
)
from .errors import nearest, typed


def predict(
    subject: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Run, or name of a model.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES", help="Pictures, or folders of pictures.")
    ],
    classes: Annotated[
        Path | None,
        typer.Option("--classes", metavar="FILE", help="A name per line; else as trained."),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option("--templates", metavar="FILE", help="A prompt per line, {} for the name."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write there instead of printing.")
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="csv|json", help="Of the result.")] = (
        "csv"
    ),
    batch: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Pictures at a time.")
    ] = 256,
    device: Device = "auto",
    threads: Threads = None,
    json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
) -> None:
    """Classify pictures.

    Probabilities of every class come from the run's head if it was trained on these classes, else
    from its text tower, and are calibrated if the run was (perdure calibrate RUN).
    """
    forms = ("csv", "json")
    if form not in forms:
        hint = nearest(form, forms) or f"choose one of {', '.join(forms)}."
        raise typer.BadParameter(f"no format is called {form!r}; {hint}", param_hint="--format")
    from .data.class_names import read_list
    from .files import require_writable, write_text
    from .predicting import find_pictures, predict_files
    from .prediction import How
    from .runtime import Runtime

    if out is not None:
        require_writable(out)
    names = None if classes is None else read_list(classes, "classes")
    prompts = None if templates is None else read_list(templates, "templates")
    files = find_pictures(images)
    runtime = Runtime(device, threads=threads)
    try:
        with meter(len(files)) as shown:
            shown.describe(f"{subject}: predicting")
            how = How(batch_size=batch, runtime=runtime, progress=shown.advance)
            found = predict_files(subject, files, names, prompts, how)
    finally:
        runtime.close()
    if not runtime.is_main:
        return
    scaled = "" if found.temperature is None else f", temperature {found.temperature:.3g}"
    count = f"{len(files)} picture{'s' if len(files) > 1 else ''}"
    say(f"{count}, {len(found.classes)} classes, {found.classifier}{scaled}")
    text = found.to_json() if json or form == "json" else found.to_csv()
    if out is None:
        emit(text.rstrip("\n"))
    else:
        write_text(out, text)
        say(f"Wrote {out}")


def calibrate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run or merge result.")],
    suite: Annotated[
        str | None,
        typer.Option("--suite", metavar="NAME", help="Whose task; else that of the training."),
    ] = None,
    limit: Limit = None,
    data: DataOfRun = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Fit a run's temperature on the `val` split of its task.

    Keeps it as RUN/calibration.json, where `perdure predict` finds it. No image that scores are
    reported on is looked at.
    """
    from .calibration import FILE
    from .calibration import calibrate as fit
    from .prediction import How
    from .runtime import Runtime

    runtime = Runtime(device, threads=threads)
    try:
        found = fit(run, suite, How(root=data, limit=limit, runtime=runtime))
    finally:
        runtime.close()
    if not runtime.is_main:
        return
    if json:
        emit_json(asdict(found))
        return
    rows = [
        ["before", "1", percent(found.ece_before), f"{found.nll_before:.3f}"],
        [
            "after",
            f"{found.temperature:.3f}",
            percent(found.ece_after),
            f"{found.nll_after:.3f}",
        ],
    ]
    emit(f"{run} on {found.dataset} {found.split} (n = {found.n}), scored by {found.classifier}")
    emit(columns(["", "temperature", "ECE", "NLL"], rows))
    emit(f"Wrote {Path(run) / FILE}")


def export(
    subject: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Run, or name of a model.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New directory.")],
    to: Annotated[
        str,
        typer.Option("--to", metavar="FORMAT", help="open_clip, adapters or peft."),
    ] = "open_clip",
    rank: Annotated[
        int | None,
        typer.Option("--rank", metavar="R", min=1, help="adapters: keep at most R ranks."),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", metavar="E", help="adapters: keep this share, up to 1."),
    ] = None,
    json: Json = False,
) -> None:
    """Write a model for other programs, and check it.

    open_clip: a whole plain CLIP. adapters: what lora or radapter added, without its base model;
    --rank or --energy makes it smaller and prints a bound on the error. peft: updates of lora for
    the peft library. The directory is read back, by the program it is for, and compared with its
    source on random inputs; if any embedding differs by more than 1e-4 nothing is kept.
    """
    formats = ("open_clip", "adapters", "peft")
    if to not in formats:
        hint = nearest(to, formats) or f"choose one of {', '.join(formats)}."
        raise typer.BadParameter(f"no format is called {to!r}; {hint}", param_hint="--to")
    if to != "adapters" and (rank is not None or energy is not None):
        raise typer.BadParameter("only adapters can be made smaller", param_hint="--rank, --energy")
    if rank is not None and energy is not None:
        raise typer.BadParameter("give one of the two", param_hint="--rank, --energy")
    if to == "adapters":
        _export_adapters(subject, out, rank, energy, json=json)
        return
    from .exporting import BOUND, export_open_clip, export_peft

    found = (export_peft if to == "peft" else export_open_clip)(subject, out)
    if json:
        emit_json({"path": str(out), "format": to, "bound": BOUND, **found._asdict()})
        return
    emit(
        f"Wrote {out}; largest difference to {subject}: image embeddings {found.image:.1e}, text "
        f"embeddings {found.text:.1e}, scale {found.scale:.1e} (allowed: {BOUND:g})"
    )
    if to == "peft":
        emit(f'Next, in Python: peft.PeftModel.from_pretrained(clip, "{out}")')
        return
    emit(f'Next, in Python: open_clip.create_model("local-dir:{out}")')


def _export_adapters(
    subject: str, out: Path, rank: int | None, energy: float | None, *, json: bool
) -> None:
    """Write added modules alone and say what compressing them has lost."""
    from .exporting import export_adapters

    lost = export_adapters(subject, out, rank=rank, energy=energy)
    size = sum(file.stat().st_size for file in out.iterdir())
    if json:
        layers = [] if lost is None else [asdict(layer) for layer in lost.layers]
        bound = 0.0 if lost is None else lost.bound
        emit_json(
            {"path": str(out), "format": "adapters", "bytes": size, "bound": bound}
            | {"layers": layers}
        )
        return
    if lost is not None:
        rows = [
            [layer.path, f"{layer.before} -> {layer.rank}", percent(layer.energy),
             f"{layer.largest:.2e}", f"{layer.bound:.2e}"]
            for layer in lost.layers
        ]  # fmt: skip
        emit(columns(["layer", "ranks", "energy %", "spectral", "Frobenius"], rows))
        emit(
            "Bounds are alpha times the discarded singular values: what a layer adds to its output "
            "changes by at most the spectral one times the length of its input.\n"
            f"All layers together, Frobenius: {lost.bound:.3g}"
        )
    emit(f"Wrote {out} ({readable_size(size)}), read back bit for bit; it needs its base model.")
    emit(f"Next: perdure eval {typed(out)}")


def doctor(json: Json = False) -> None:
    """Check the installation and the machine.

    Versions, threads, devices, disk, bundled model and data, environment variables. Ends with 2 if
    something does not work.
    """
    from .doctor import OPTIONAL, VARIABLES, examine

    found = examine()
    if json:
        emit_json(found.to_dict())
    else:
        versions = [f"{name} {number or 'MISSING'}" for name, number in found.versions.items()]
        rows = [
            ["versions", ", ".join(versions[:2])],
            *(["", ", ".join(versions[start : start + 4])] for start in range(2, len(versions), 4)),
            ["platform", found.platform],
            ["cores", f"{found.cores['physical']} physical, {found.cores['logical']} logical"],
            ["threads", f"{found.threads['run']} in a run (torch: {found.threads['torch']})"],
            ["devices", ", ".join(found.devices)],
            *([name, number or f"not installed; {OPTIONAL[name]}"]
              for name, number in found.extras.items()),
            *([f"free {place}", readable_size(free)] for place, free in found.disk.items()),
            *([name, "does NOT load" if spent is None else f"loads and runs ({spent:.2f} s)"]
              for name, spent in found.models.items()),
            *([name, place] for name, place in found.data.items()),
            *([name, f"{'not set' if value is None else value} ({VARIABLES[name]})"]
              for name, value in found.variables.items()),
        ]  # fmt: skip
        width = max(len(label) for label, _ in rows)
        emit("\n".join(f"{label:<{width}}  {text}" for label, text in rows))
        for text in found.warnings:
            emit(f"Warning: {text}")
    for fault in found.faults:
        print_error(fault)
    if found.faults:
        raise typer.Exit(2)
    if not json:
        emit("Everything that perdure needs is here.")
