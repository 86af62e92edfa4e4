"""The verb drift: what fine-tuning did to one's own pictures and searches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Device, Json, Threads, columns, emit, emit_json, meter, percent

if TYPE_CHECKING:
    from .drift import Drift, Search

SHOWN = 10
"""Broken queries in the table; JSON has all of them"""


def drift(
    before: Annotated[
        str, typer.Argument(metavar="BEFORE", help="Run or model, usually the zero-shot one.")
    ],
    after: Annotated[
        str, typer.Argument(metavar="AFTER", help="Run or model, usually made from it.")
    ],
    images: Annotated[Path, typer.Option("--images", metavar="DIR", help="Your pictures.")],
    captions: Annotated[
        Path | None,
        typer.Option("--captions", metavar="TABLE", help="Paths and captions, CSV/TSV/JSONL."),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option("--queries", metavar="FILE", help="Searches without answers, one per line."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Show which searches of your pictures broke.

    Compares features, nearest neighbours and text-to-image search of two models. With captions a
    search is right if it finds the picture described; with --queries, the picture that came first
    before. A query is broken if that picture was among the first 10 and no longer is.
    """
    if captions is not None and queries is not None:
        raise typer.BadParameter("give captions or queries, not both.", param_hint="--queries")
    from .drift import drift as compare
    from .drift import read_captions, read_queries
    from .predicting import find_pictures
    from .prediction import How
    from .runtime import Runtime
    from .subjects import find

    files = find_pictures([images])
    texts = None
    if captions is not None:
        texts = read_captions(captions, images, files)
    elif queries is not None:
        texts = read_queries(queries)
    subjects = [find(name) for name in (before, after)]
    runtime = Runtime(device, threads=threads)
    try:
        models = [one.predictor() for one in subjects]
        work = len(files) + (len(dict.fromkeys(texts.texts)) if texts else 0)
        with meter(2 * work) as shown:

            def count(done: int) -> None:
                shown.describe("embedding")
                shown.advance(done)

            how = How(runtime=runtime, progress=count)
            found = compare(models[0], models[1], files, images, texts, how)
    finally:
        runtime.close()
    if not runtime.is_main:
        return
    if json:
        emit_json({"before": subjects[0].name, "after": subjects[1].name, **found.to_dict()})
        return
    emit(f"{subjects[0].name} before, {subjects[1].name} after, on {found.pictures:,} pictures\n")
    emit(_features(found))
    if found.search is not None:
        emit("\n" + _search(found.search))


def _features(found: Drift) -> str:
    """What moved, and by how much."""
    rows = []
    if found.cosine is None or found.low_cosine is None or found.interval is None:
        rows.append(["cosine of a picture's features", "-", "sizes differ"])
    else:
        low, high = found.interval
        rows.append(
            ["cosine of a picture's features", f"{found.cosine:.3f}", f"{low:.3f}-{high:.3f}"]
        )
        rows.append(["5 % of the pictures lie below", f"{found.low_cosine:.3f}", ""])
    low, high = found.kept_interval
    name = f"nearest {found.neighbours} pictures kept, %"
    rows.append([name, percent(found.kept), f"{percent(low)}-{percent(high)}"])
    return columns(["features", "mean", "95 % interval"], rows)


def _search(found: Search) -> str:
    """Recall before and after, and the queries that broke, worst first."""
    rows = [
        [f"recall at {k}, %", percent(found.before[key]), percent(found.after[key])]
        for k, key in ((k, f"recall_at_{k}") for k in (1, 5, 10))
    ]
    gap, low, high = (100 * value for value in found.change)
    lines = [
        columns([f"search by {found.n:,} queries", "before", "after"], rows),
        f"Judged by: {found.judged_by}. Recall at 1 changed by {gap:+.1f} points "
        f"(95 % interval {low:+.1f} to {high:+.1f}, over paired queries).",
        f"Ranks: {found.better:,} better, {found.worse:,} worse. First 10: {len(found.broken):,} "
        f"broken, {found.repaired:,} repaired.",
    ]
    if found.broken:
        worst = found.broken[:SHOWN]
        rows = [[one.text, one.picture, str(one.before), str(one.after)] for one in worst]
        more = len(found.broken) - len(worst)
        lines.append("")
        lines.append(columns(["broken query, worst first", "picture", "rank", "now"], rows, left=2))
        lines += [f"and {more:,} more; --json lists all."] if more else []
    return "\n".join(lines)
