"""The verbs that show: demo, report, list, show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import Json, columns, emit, emit_json, meter, numbers, percent
from .errors import TaskError, nearest


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where results go.")] = Path(
        "perdure-demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Shorter training, fewer images; for a first look.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the whole story in minutes, offline.

    Fine-tunes the bundled model on the embedded benchmark with FT, FLYP and TRACER, interpolates
    each with its start, and writes a table, frontier.png, reliability.png and report.md. An earlier
    demo at the same place is replaced.
    """
    from .demo import plan, run_demo

    with meter(plan(quick).effort()) as shown:
        rows = run_demo(out, quick=quick, meter=shown)
    if json:
        emit_json({"rows": rows})
        return
    emit(_demo_table(rows))
    emit(f"\nWritten to {out}: report.md, frontier.png, reliability.png, one run per method")


def _demo_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows for a terminal: per cent, without most of the interpolations."""
    start = rows[0]
    shifted = [name for name in start["splits"] if name != "id"]
    header = ["model", "ID", *shifted, "OOD", "ECE ID", "ECE OOD", "forgotten", "seconds"]
    lines = []
    for row in rows:
        if row["alpha"] not in (None, 0.5):
            continue
        half = "" if row["alpha"] is None else f" + WiSE {row['alpha']:g}"
        lost = "-" if row is start else percent(start["ood"] - row["ood"])
        lines.append(
            [
                row["method"] + half,
                percent(row["id"]),
                *(percent(row["splits"][name]["accuracy"]) for name in shifted),
                percent(row["ood"]),
                percent(row["ece_id"]),
                percent(row["ece_ood"]),
                lost,
                f"{row['seconds']:.0f}",
            ]
        )
    images = start["splits"]["id"]["n"]
    seeds = sorted({row["seed"] for row in rows} - {None})
    one = 1.96 * (0.25 / images) ** 0.5  # largest where half of the images are right
    note = (
        f"Accuracy and 15-bin ECE in per cent, {images:,} images per set, "
        f"seed {', '.join(map(str, seeds))}; 95 % intervals: at most "
        f"±{percent(one)} on one set, ±{percent(one / len(shifted) ** 0.5)} for OOD, their mean."
    )
    return f"{columns(header, lines)}\n\n{note}"


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Evaluated runs, or directories of runs."),
    ],
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="NAME", help="Where runs have several.")
    ] = None,
    at_id: Annotated[
        str | None,
        typer.Option("--at-id", metavar="65,70,75", help="Compare at equal ID accuracy, per cent."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="ROW", help="Row to compare with; all pairs without."),
    ] = None,
    average: Annotated[
        bool,
        typer.Option("--average", help="Average base and novel accuracy over data sets."),
    ] = False,
    form: Annotated[
        str, typer.Option("--format", metavar="md|csv|json", help="How to print it.")
    ] = "md",
    json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
) -> None:
    """Compare evaluated runs over their seeds.

    Mean, standard deviation and number of seeds; differences paired by image, with intervals; and
    OOD accuracy at equal ID accuracy where runs were swept (perdure eval RUN --sweep) or merged
    with their start. With --average, runs of several data sets, each scored on its own suite
    base-to-novel-DATASET, come to one row per method: the averages and both harmonic means.
    """
    forms = ("md", "csv", "json")
    if form not in forms:
        hint = nearest(form, forms) or f"choose one of {', '.join(forms)}."
        raise typer.BadParameter(f"no format is called {form!r}; {hint}", param_hint="--format")
    if average:
        if suite is not None or at_id is not None or against is not None:
            raise typer.BadParameter(
                "it goes with none of --suite, --at-id, --against.", param_hint="--average"
            )
        from .averaging import average as over_sets

        means = over_sets(runs)
        if json or form == "json":
            emit(means.to_json())
        else:
            emit((means.to_csv() if form == "csv" else means.to_markdown()).rstrip("\n"))
        return
    from .reporting import report as compare

    percents = [] if at_id is None else numbers(at_id, float, "--at-id")
    for value in percents:
        if not 0 <= value <= 100:
            raise typer.BadParameter(
                f"{value:g} is no accuracy in per cent, 0 to 100.", param_hint="--at-id"
            )
    found = compare(runs, suite=suite, at_id=[value / 100 for value in percents], against=against)
    if json or form == "json":
        emit(found.to_json())
    else:
        emit((found.to_csv() if form == "csv" else found.to_markdown()).rstrip("\n"))


def list_names(
    what: Annotated[
        str, typer.Argument(metavar="methods|recipes|suites|models", help="What to list.")
    ],
    json: Json = False,
) -> None:
    """List methods, recipes, suites or models."""
    rows = _known(what)
    if json:
        emit_json([{"name": name, "summary": summary} for name, summary in rows])
        return
    emit(columns(["name", "summary"], rows, left=2))


def _known(what: str) -> list[tuple[str, str]]:
    """Return names and summaries of one kind; imports no torch."""
    if what == "methods":
        from .method import known_methods

        return [(name, entry.summary) for name, entry in known_methods().items()]
    if what == "recipes":
        from .documents import list_recipes

        return list_recipes()
    if what == "suites":
        from .data.suites import SUITES

        return [(name, entry.summary) for name, entry in SUITES.items()]
    if what == "models":
        from .zoo import MODELS

        return list(MODELS.items())
    kinds = ("methods", "recipes", "suites", "models")
    hint = nearest(what, kinds) or f"choose one of {', '.join(kinds)}."
    raise typer.BadParameter(f"there is no list of {what!r}; {hint}", param_hint="WHAT")


def show(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE|RUN", help="A name of `perdure list suites`, or a run.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PNG", help="Picture; SUITE.png by default.")
    ] = None,
) -> None:
    """Draw a suite's data, or say how a run stands."""
    from .rundir import is_run

    if is_run(Path(suite)):
        if out is not None:
            message = f"{suite} is a run, of which there is no picture."
            raise typer.BadParameter(message, param_hint="--out")
        emit("\n".join(_about_run(Path(suite))))
        return
    from .data.suites import suite as find_suite

    found = find_suite(suite)
    others = {split.dataset for split in found.splits} - {"emojishift"}
    if others:
        raise TaskError(
            f"there is no picture sheet of {', '.join(sorted(others))}; "
            "suites on emojishift have one."
        )
    from .data.emojishift import picture_sheet

    emit(f"Wrote {picture_sheet(out or Path(f'{suite}.png'))}")


def _about_run(path: Path) -> list[str]:
    """Return what a run is, how far it is, and what its guard saw and did; imports no torch."""
    from .files import read_json
    from .identities import identity
    from .notes import told
    from .records import document

    origin, file = document(path), path / "status.json"
    status = read_json(file) if file.is_file() else {}
    method, alpha, seed, _ = identity(origin)
    data = origin.get("data") or {}
    parts = [method]
    parts += [f"on {data['name']}"] if "name" in data else []
    parts += [] if alpha is None else [f"alpha {alpha:g}"]
    parts += [] if seed is None else [f"seed {seed}"]
    lines = [f"{path}: {', '.join(parts)}"]
    if "step" in status:
        delivered = status.get("delivered_step")
        end = "" if delivered is None else f", delivered step {delivered}"
        lines.append(
            f"{status.get('state')}: step {status['step']} of {status.get('total_steps', '?')}{end}"
        )
    if status.get("best_step") is not None:
        lines.append(f"validation: {percent(status['best_value'])} at step {status['best_step']}")
    guard = status.get("guard")
    if guard:
        kind = "test images" if not guard["for_choosing"] else "images for choosing"
        lines.append(
            f"guard: {guard['metric']} of {guard['suite']} ({guard['images']:,} {kind}), "
            f"{guard['start']:.3f} before training, bound {guard['bound']:.3f}"
        )
        lines.append(told(guard) or "the guard has not acted")
    scored = sorted(one.name.removesuffix(".json") for one in (path / "scores").glob("*.json"))
    lines.append(f"scores: {', '.join(scored) or 'none'}")
    return lines
