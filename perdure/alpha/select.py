"""Choose how far to move from the zero-shot model to a fine-tuned run, without shifted data.

Seven rules behind one function. All look at validation images of the training task or at nothing;
none looks at a set that scores are reported on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..data.paired import Paired
from ..data.suites import Suite
from ..errors import DataError, RunError, TaskError, WeightsError, nearest
from ..files import write_json
from ..interpolation import wise_ft
from ..merging import input_of, keep, merge
from ..prediction import How, Unit, open_validation
from ..run import Run
from ..subjects import Subject, find
from ..sweeping import Line, ends, zero_shot_of
from . import rules as rules
from .asked import asked_of, kind_of, split_of
from .hidden import Hidden, leave_concepts_out, together
from .layers import Task, lines, mono, stock
from .pairs import MEASURE, PURPOSE, Captions
from .report import FIXED, RULES, AlphaReport, Copy, Cost, Options, Rule, difference


def select_alpha(
    run: Subject | Run | Path | str,
    suite: Suite | str | None = None,
    method: Rule = "fixed",
    *,
    how: How | None = None,
    options: Options | None = None,
) -> AlphaReport:
    """Choose the share of the tuned weights for a run, without looking at shifted data.

    Runs that were trained on captions, and suites of retrieval, are judged by mean recall on
    captioned validation pictures; others by accuracy on validation images.

    Args:
        run: A finished training run, of any method.
        suite: Names the task, whose validation split is used; none of the suite's own splits is.
            None for the task that the run was trained on, with the data where its recipe says.
        method: One of `RULES`.
        how: Data, device, number of images.
        options: What some rules need besides.

    Raises:
        RunError: If it is no finished training run, or the other run does not belong to it.
        TaskError: If method or options are unknown, the rule has no form for the task, or the
            classes or captions cannot be hidden.
        DataError: If there are no validation images besides those that are scored.
        WeightsError: If the ends do not fit together.
    """
    options, how = options or Options(), how or How()
    _check(method, options)
    subject = find(run)
    zero_shot_of(subject)
    if method == "fixed":
        return _fixed(subject, suite, how, options)
    asked, root = asked_of(subject, suite, how)
    how = replace(how, root=root)
    if method == "dynamic" and isinstance(asked, Captions):
        others = ", ".join(rule for rule in RULES if rule != "dynamic")
        raise TaskError(
            "dynamic compares how sure both ends are of the class of every image, and captions are "
            f"no classes; rules that choose alpha by captions are {others}."
        )
    if method == "leave_concepts_out":
        return _leave_concepts_out(subject, asked, how, options)
    unit: Unit | Paired
    if isinstance(asked, Captions):
        unit, split = asked.open(how), asked.split
        n = len(unit.labels)
    else:
        unit, split = open_validation(asked, how, purpose=PURPOSE), split_of(asked)
        n = len(unit.dataset)
    began = perf_counter()
    zero_shot, tuned = ends(subject)
    if how.runtime is not None:
        zero_shot, tuned = (end.to(how.runtime.device) for end in (zero_shot, tuned))
    task = Task(Line(zero_shot, tuned), unit, how, options, zero_shot)
    report = _RULES[method](subject, task)
    cost = replace(report.cost, seconds=perf_counter() - began)
    return replace(report, suite=asked.name, split=split, n=n, cost=cost)


def write_choice(report: AlphaReport, run: Subject | Run | Path | str, out: Path | str) -> Path:
    """Write the merged model of a choice as a new run, and the report beside it as alpha.json.

    A choice per image becomes a directory of runs: both ends and the copies between them, which
    `perdure.alpha.dynamic.Dynamic.load` reads.

    Raises:
        RunError: If `out` exists or cannot be written.
    """
    out, subject = Path(out), find(run)
    if out.exists():
        raise RunError(f"{out} exists already. Choose a new directory for --out, or remove it.")
    inputs = (zero_shot_of(subject), subject)
    if report.copies:
        for alpha in sorted({0.0, 1.0, *(copy.alpha for copy in report.copies)}):
            merge("wise-ft", inputs, out / f"alpha-{alpha:g}", alpha=alpha)
    elif report.weights is not None:
        zero_shot, tuned = ends(subject)
        merged = wise_ft(zero_shot, tuned, 1.0)
        merged.load_state_dict(report.weights)
        entries = [input_of(*pair) for pair in zip(inputs, (zero_shot, tuned), strict=True)]
        other = report.figures.get("other")
        if other is not None:
            entries.append(input_of(find(other), merged))
        record: dict[str, Any] = {"kind": report.method}
        if "shallow" in report.figures:
            record["shares"] = [report.figures["shallow"], report.figures["deep"]]
        keep(merged, {**record, "inputs": entries}, out)
    else:
        merge("wise-ft", inputs, out, alpha=report.alpha)
    write_json(out / "alpha.json", report.to_dict())
    return out


def _fixed(subject: Subject, suite: Suite | str | None, how: How, options: Options) -> AlphaReport:
    """Return the convention for a kind of task; what cannot be looked at is classification."""
    doubts = ["a convention, made without a look at your data or model"]
    task = options.task
    if task is None:
        task = "classification"
        try:
            task = kind_of(subject, suite, how)
        except DataError as error:
            if suite is not None:
                raise
            doubts.append(f"taken for classification, because the data are not there: {error}")
    return AlphaReport(subject.name, "fixed", FIXED[task], warnings=tuple(doubts))


def _id_one_se(subject: Subject, task: Task) -> AlphaReport:
    seen, grid = task.look(), task.options.grid
    values = seen.shares.mean(axis=1).tolist()
    errors = rules.paired_errors(seen.shares)
    gains = rules.paired_errors(seen.shares, 0)
    alpha = rules.one_standard_error(grid, values, errors.tolist(), gains.tolist())
    doubts = []
    if rules.still_rises(grid, values, errors.tolist(), alpha):
        doubts.append(
            f"{seen.measure} on validation rises all the way, so nothing there says where to stop: "
            "validation shows only the training domain. Expect losses under shift; prefer fixed or "
            "leave_concepts_out"
        )
    if alpha == 0.0:
        doubts.append(
            "no alpha is more than one standard error better than zero-shot on validation"
        )
    at = list(grid).index(alpha)
    curve = seen.curve()
    return AlphaReport(
        subject.name,
        "id_one_se",
        alpha,
        value=curve[at].value,
        error=curve[at].error,
        measure=seen.measure,
        curve=curve,
        figures={"best": rules.best(grid, values), "paired_errors": errors.tolist()},
        warnings=tuple(doubts),
        cost=seen.cost,
    )


def _dynamic(subject: Subject, task: Task) -> AlphaReport:
    seen, grid = task.look(), np.array(task.options.grid)
    surprise = [rules.entropies(seen.logits[end]) for end in (0, -1)]
    shares = rules.entropy_shares(*surprise)
    # Copies stand on the grid, so that no image has to be decoded again.
    kept = np.unique(rules.nearest_centre(rules.centres(shares, task.options.copies), grid))
    own = kept[rules.nearest_centre(shares, grid[kept])]
    right = seen.right(np.stack(seen.logits)[own, np.arange(len(own))])
    single = int(rules.nearest_centre(shares.mean(keepdims=True), grid)[0])
    gap, error = difference(right, seen.right(seen.logits[single]))
    doubts = []
    if gap <= error:
        doubts.append(
            f"on validation it is not better than one alpha of {grid[single]:g} for all images "
            f"({100 * gap:+.1f} points, standard error {100 * error:.1f}), at three times the cost"
        )
    if not 0.1 < float(shares.mean()) < 0.9:
        end = "fine-tuned" if shares.mean() > 0.5 else "zero-shot"
        doubts.append(
            f"the {end} end is the surer one nearly always; being sure is not being right, and "
            "fine-tuning sharpens predictions on shifted data too"
        )
    accuracy = float(right.mean())
    return AlphaReport(
        subject.name,
        "dynamic",
        copies=tuple(Copy(float(grid[at]), float((own == at).mean())) for at in kept),
        value=accuracy,
        error=float(rules.standard_errors(right)),
        curve=seen.curve(),
        figures={
            "mean": float(shares.mean()),
            "sd": float(shares.std()),
            "gain_over_mean": gap,
            "gain_error": error,
        },
        warnings=tuple(doubts),
        cost=seen.cost,
    )


def _leave_concepts_out(
    subject: Subject, asked: Suite | Captions, how: How, options: Options
) -> AlphaReport:
    assert subject.run is not None
    began = perf_counter()
    run = Run(subject.run)
    run.predictor()  # an unfinished run is answered before hours of training
    found: list[Hidden] = [
        leave_concepts_out(
            run,
            asked,
            number,
            how=how,
            grid=options.grid,
            work=options.work or subject.run / "alpha",
            progress=options.progress,
            say=options.say,
        )
        for number in range(options.splits)
    ]
    curve = together(found)
    alpha = rules.best(options.grid, [point.value for point in curve])
    at = list(options.grid).index(alpha)
    alphas = [one.alpha for one in found]
    doubts = []
    what = "captions" if isinstance(asked, Captions) else "classes"
    if len(found) == 1:
        doubts.append(f"one division of the {what}: how far another would differ is unknown")
    elif max(alphas) - min(alphas) > 0.25:
        doubts.append(f"the divisions disagree: {', '.join(f'{one:g}' for one in alphas)}")
    if alpha == 1.0:
        doubts.append(f"the hidden {what} gain all the way; they say nothing about other styles")
    figures: dict[str, Any] = {"alphas": alphas, "runs": [str(one.run) for one in found]}
    shared = [one.shared for one in found if one.shared is not None]
    if shared:
        figures["shared"] = float(np.mean(shared))
        if figures["shared"] > 0.5:
            doubts.append(
                f"training has seen {100 * figures['shared']:.0f} % of what the hidden captions "
                "speak of, so they show less of what is lost than hidden classes do"
            )
    if len(found) > 1:
        figures["sd"] = float(np.std(alphas, ddof=1))
    cost = Cost(
        sum(one.images for one in found),
        sum(one.forwards for one in found),
        sum(one.steps for one in found),
        perf_counter() - began,
    )
    return AlphaReport(
        subject.name,
        "leave_concepts_out",
        alpha,
        value=curve[at].value,
        error=curve[at].error,
        measure=f"harmonic mean of {MEASURE + ' of ' if shared else ''}seen and hidden {what}",
        curve=curve,
        suite=asked.name,
        split=asked.split if isinstance(asked, Captions) else split_of(asked),
        n=sum(one.images for one in found) // len(found),
        figures=figures,
        warnings=tuple(doubts),
        cost=cost,
    )


def _check(method: str, options: Options) -> None:
    """Refuse what no rule can use."""
    faults = []
    if method not in RULES:
        hint = nearest(method, RULES)
        faults.append(f"there is no rule {method!r}; {hint} known: {', '.join(RULES)}")
    if options.task is not None and options.task not in FIXED:
        faults.append(f"task is {options.task!r}; known: {', '.join(FIXED)}")
    if not 0 < options.deep <= 1:
        faults.append(f"the share of the last block is {options.deep}; it must lie in (0, 1]")
    if options.copies < 1:
        faults.append(f"copies is {options.copies}; at least 1 is needed")
    if not 1 <= options.splits <= 3:
        faults.append(f"splits is {options.splits}; each is a training of its own, 1 to 3")
    if faults:
        raise TaskError("; ".join(faults).replace("  ", " ") + ".")
    grid = list(options.grid)
    if len(grid) < 3 or grid != sorted(set(grid)) or (grid[0], grid[-1]) != (0.0, 1.0):
        raise WeightsError(
            f"the grid of alphas is {grid}; it must rise from 0 to 1, with something between."
        )


_RULES: dict[Rule, Callable[[Subject, Task], AlphaReport]] = {
    "id_one_se": _id_one_se,
    "stock": stock,
    "mono": mono,
    "lines": lines,
    "dynamic": _dynamic,
}
