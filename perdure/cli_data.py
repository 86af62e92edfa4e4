"""The verbs of `perdure data`: check, stats, sheet, compact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Json, columns, emit, emit_json, meter, say, tally

if TYPE_CHECKING:
    from .data.findings import Findings, Part

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at data and mend tables.")

Root = Annotated[
    Path, typer.Argument(metavar="ROOT", help="Directory below which data sets lie, or a table.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME", help="Only this data set; may be repeated."),
]


_HEADER = "data set", "split", "rows", "pictures", "expected", "classes", "missing", "damaged"


def _wanted(suite: str | None, sets: list[str] | None, root: Path) -> list[str] | None:
    """Return the data sets that must be there; None for all that are found."""
    if suite is None:
        return sets
    from .data import shifts, uses
    from .data.suites import suite as find_suite

    if suite == "retrieval":  # scores whichever is there, else a table of one's own
        return [*uses.searched(root), *(sets or ())]
    if suite in shifts.MEMBERS:
        return [*shifts.MEMBERS[suite], *(sets or ())]
    found = find_suite(suite, root)
    return [*dict.fromkeys(split.dataset for split in found.splits), *(sets or ())]


def check(
    root: Root,
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="NAME", help="Everything that it scores.")
    ] = None,
    sets: Sets = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Also open every picture, to find damaged ones.")
    ] = False,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Also find test pictures that are trained on.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Also ask it whether labels are permuted."),
    ] = None,
    json: Json = False,
) -> None:
    """Say which data sets are there, what they lack, and what is wrong with them.

    Ends with 1 if anything is wrong. Counts that nobody has proved only make a remark.
    """
    from .data.check import check as look

    with meter(1) as shown:
        phase = f"{root}: looking at files"
        shown.describe(phase)
        found = look(
            root,
            _wanted(suite, sets, root),
            decode=decode,
            duplicates=duplicates,
            progress=tally(shown, phase),
        )
        gates = []
        if model is not None:
            shown.describe(f"{model}: guessing labels")
            gates = _ask(model, found)
        shown.advance(1)
    if json:
        emit_json(
            {
                "root": str(root),
                "parts": [_row(part) for part in found.parts],
                "faults": found.faults,
                "remarks": found.remarks,
                "gates": gates,
            }
        )
    else:
        rows = [[str(value) for value in _row(part).values()] for part in found.parts]
        if rows:
            emit(columns(_HEADER, rows, left=2))
        for gate in gates:
            emit(
                f"zero-shot, {gate['name']} {gate['split']}: {100 * gate['accuracy']:.1f} % of "
                f"{gate['n']}; chance {100 * gate['chance']:.1f} %"
            )
        for remark in found.remarks:
            emit(f"Remark: {remark}")
        for fault in found.faults:
            emit(f"Wrong: {fault}")
        emit("Nothing is wrong." if found.good else f"{len(found.faults)} things are wrong.")
    if not found.good:
        raise typer.Exit(1)


def _ask(model: str, found: Findings) -> list[dict[str, Any]]:
    """Score every labelled split zero-shot; what is at chance becomes a fault."""
    from dataclasses import asdict

    from .looking import gate
    from .subjects import find

    predictor = find(model).predictor()
    asked = []
    for part in found.parts:
        catalog = part.catalog
        if catalog is None or catalog.captioned or part.missing:
            continue
        one = gate(predictor, catalog, found.root)
        asked.append(asdict(one))
        fault = one.fault()
        found.faults += [fault] if fault else []
    return asked


def _there(found: Findings) -> list[Part]:
    """Return what can be read, and say what cannot.

    Raises:
        DataError: If nothing can.
    """
    from .errors import DataError

    if not found.parts:
        raise DataError(f"there is nothing to look at: {' '.join(found.faults)}")
    for fault in found.faults:
        say(f"Wrong: {fault}")
    return found.parts


def _row(part: Any) -> dict[str, Any]:
    return {
        "name": part.name,
        "split": part.split,
        "rows": part.rows,
        "pictures": part.pictures,
        "expected": "" if part.expected is None else part.expected,
        "classes": "" if part.classes is None else part.classes,
        "missing": len(part.missing),
        "damaged": len(part.damaged),
    }


def stats(root: Root, sets: Sets = None, json: Json = False) -> None:
    """Count what every split that is there has: per class, caption, pixel, region, question."""
    from .data.check import check as look
    from .data.check import statistics

    rows = [
        {"name": part.name, "split": part.split, **statistics(part)}
        for part in _there(look(root, sets))
    ]
    if json:
        emit_json(rows)
        return
    for row in rows:
        words = (f"{key} {value:g}" for key, value in row.items() if not isinstance(value, str))
        emit(f"{row['name']} {row['split']}: {', '.join(words)}")


def sheet(
    root: Root,
    out: Annotated[Path, typer.Option("--out", metavar="PNG", help="Where it is written.")],
    sets: Sets = None,
    per_row: Annotated[
        int, typer.Option("--columns", metavar="N", min=1, help="Pictures per split.")
    ] = 12,
) -> None:
    """Write one row of pictures per split, to look at with one's own eyes.

    Labels of pixels are drawn over their pictures, regions are cut out as they are trained on, and
    questions stand below theirs.
    """
    from .data.check import check as look
    from .sheets import sheet_of

    found = look(root, sets, contents=False)
    emit(f"Wrote {sheet_of(_there(found), root, out, per_row)}")


def compact(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="CSV with many rows a picture.")],
    out: Annotated[Path, typer.Option("--out", metavar="CSV", help="Written whole or not at all.")],
    json: Json = False,
) -> None:
    """Keep one row per picture; prompts are then drawn when pictures are loaded.

    Reads tables of FLYP, TRACER and R-Adapter, with tabs or commas.
    """
    from .data.compact import compact as carry_out

    done = carry_out(table, out)
    if json:
        emit_json(done._asdict())
        return
    emit(
        f"Wrote {out}: {done.pictures:,} pictures of {done.classes:,} classes, from "
        f"{done.rows:,} rows"
    )
