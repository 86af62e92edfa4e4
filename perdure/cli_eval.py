"""The verb eval: scores of runs and models, of all together, or of the line of weights to a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_ensembles import about_ensemble, plan_ensemble, score_ensemble
from .cli_scores import score_table, sweep_table
from .console import (
    Cache,
    Data,
    Device,
    Json,
    LimitPerSplit,
    Precision,
    Threads,
    Transform,
    Workers,
    emit,
    emit_json,
    meter,
    say,
)
from .processes import is_main

if TYPE_CHECKING:
    from .prediction import How
    from .subjects import Subject


def evaluate(
    subjects: Annotated[
        list[str],
        typer.Argument(metavar="RUN|MODEL", help="Runs, or names of models."),
    ],
    suite: Annotated[
        str, typer.Option("--suite", metavar="NAME", help="A name of `perdure list suites`.")
    ] = "emojishift",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Score the line of weights from zero-shot to the run.")
    ] = False,
    temperature: Annotated[
        bool, typer.Option("--temperature", help="Also calibrate on `val`: ece_scaled, nll_scaled.")
    ] = False,
    limit: LimitPerSplit = None,
    data: Data = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="TAG|FILE", help="Weights, for an open_clip name."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Keep a model's scores in a new run directory."),
    ] = None,
    ensemble: Annotated[
        str | None,
        typer.Option(
            "--ensemble", metavar="mean|vrf", help="Score all together, mixing their outputs."
        ),
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option("--shares", metavar="1,1", help="Weight of each model (ensemble mean)."),
    ] = None,
    neighbours: Annotated[
        int | None,
        typer.Option("--neighbours", metavar="K", help="Nearest failure, 1 (ensemble vrf)."),
    ] = None,
    transform: Transform = "exact",
    precision: Precision = "fp32",
    workers: Workers = 0,
    cache: Cache = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also score anew what is scored already.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Score runs or models on a suite.

    A run keeps its scores in RUN/scores, and is not scored again while neither it nor what is
    scored changes; a command that was stopped goes on where it was. A directory of runs stands for
    its runs. JSON is one object for one subject, a list for more. An ensemble mixes probabilities:
    `mean` the same for all images, `vrf` (zero-shot, then tuned) by each image's distance to
    training images on which zero-shot fails.
    """
    from .data.suites import suite as find_suite

    chosen = find_suite(suite, data)
    if out is not None and len(subjects) != 1:
        raise typer.BadParameter(
            f"it keeps one model, but {len(subjects)} are given.", param_hint="--out"
        )
    if sweep and (temperature or out is not None):
        raise typer.BadParameter(
            "it goes with neither --temperature nor --out.", param_hint="--sweep"
        )
    if ensemble is not None:
        if sweep or temperature or out is not None:
            raise typer.BadParameter(
                "it goes with neither --sweep nor --temperature nor --out.",
                param_hint="--ensemble",
            )
        plan = plan_ensemble(ensemble, shares, neighbours)
    elif shares is not None or neighbours is not None:
        raise typer.BadParameter("it needs --ensemble.", param_hint="--shares, --neighbours")
    from .merging import merge as keep
    from .prediction import How
    from .runtime import Runtime
    from .subjects import find, find_all

    found = [one for name in subjects for one in find_all(name, weights)]
    runtime = Runtime(device, threads=threads)
    ways: dict[str, Any] = {
        "transform": transform,
        "precision": precision,
        "workers": workers,
        "cache": cache,
    }
    how = How(root=data, limit=limit, runtime=runtime, **ways)
    documents = []
    try:
        if ensemble is not None:
            scores = score_ensemble(found, chosen, plan, how)
            if runtime.is_main and not json:
                emit(f"{scores.conditions['subject']} on {suite}\n{score_table(scores)}")
                emit(about_ensemble(scores))
            documents, found = [scores.to_dict()], []
        if out is not None:
            if runtime.is_main:
                keep("zero-shot", found, out)
            runtime.wait()
            found = [find(out)]
        parts: Iterable[tuple[dict[str, Any], str]]
        if sweep:
            parts = (_sweep(one, chosen, how, again=again) for one in found)
        else:
            parts = _score(found, chosen, how, temperature=temperature, again=again)
        for one, (document, lines) in zip(found, parts, strict=True):
            documents.append(document)
            if runtime.is_main and not json:
                emit(f"{_titled(one)} on {suite}\n{lines}\n")
    except (KeyboardInterrupt, SystemExit):
        if runtime.is_main and ensemble is None and any(one.run for one in found):
            say("Finished splits of runs are kept: the same command goes on from there.")
        raise
    finally:
        runtime.close()
    if runtime.is_main and json:
        emit_json(documents[0] if len(documents) == 1 else documents)


def _titled(subject: Subject) -> str:
    """Return the name of a subject, and what was special about its training data."""
    views = subject.conditions().get("cached_views")
    return subject.name + (f" ({' and '.join(map(str, views))} cached views)" if views else "")


def _score(
    subjects: Sequence[Subject], suite: Any, how: How, *, temperature: bool, again: bool
) -> list[tuple[dict[str, Any], str]]:
    """Score subjects in as few passes over the images as possible; return JSON and tables."""
    from dataclasses import replace

    from .evaluation import images_in
    from .scoring import evaluate_all

    if not subjects:
        return []
    images = images_in(suite, how, temperature=temperature)
    names = subjects[0].name + (f" and {len(subjects) - 1} more" if len(subjects) > 1 else "")
    with meter(images * len(subjects)) as shown:

        def count(scored: int) -> None:
            shown.describe(f"{names}: scoring")
            shown.advance(scored)

        how = replace(how, progress=count)
        found = evaluate_all(
            subjects,
            suite,
            how,
            temperature=temperature,
            again=again,
            say=say if is_main() else None,
        )
    return [(scores.to_dict(), score_table(scores)) for scores in found]


def _sweep(subject: Subject, suite: Any, how: How, *, again: bool) -> tuple[dict[str, Any], str]:
    """Score the line of weights to one subject; return its JSON document and its table."""
    from dataclasses import replace

    from .evaluation import images_in
    from .sweeping import ALPHAS, sweep_run

    with meter(images_in(suite, how) * len(ALPHAS)) as shown:

        def count(scored: int) -> None:
            shown.describe(f"{subject.name}: scoring")
            shown.advance(scored)

        line = sweep_run(subject, suite, how=replace(how, progress=count), again=again)
    points = [{"alpha": alpha, "splits": one.splits} for alpha, one in line.items()]
    return {**line[1.0].to_dict(), "sweep": points}, sweep_table(line)
