"""Measure R-Adapter's parts and the choices of alpha on EmojiShift, and write their page.

    OMP_NUM_THREADS=1 python -m benchmarks.adapter_study [--page-only | --part losses]

Writes `docs/results-adapters.md`, its figures, and the pictures of `docs/methods/radapter.md`. The
runs of R-Adapter itself are those of `benchmarks.results`. Resumable.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perdure import evaluate
from perdure.ablate import ablate
from perdure.alpha.dynamic import Dynamic
from perdure.alpha.report import Options
from perdure.alpha.select import select_alpha, write_choice
from perdure.data.suites import suite as find_suite
from perdure.evaluation import evaluate_points
from perdure.files import read_json, write_json, write_text
from perdure.grids import PRESETS, Axis, Choice
from perdure.prediction import How
from perdure.records import read, summary
from perdure.runtime import Runtime

from .adapter_page import draw_norms, draw_strength, page
from .experiments import ROOT, SEEDS, SUITE, Job, carry_out_all
from .results import read_choices, run_folder, test_jobs

FIGURES = Path("benchmarks/figures")
PAGE = Path("docs/results-adapters.md")
NAME = "radapter"
MORE = (3, 4)
"""Seeds beside those of the results page, for the choices of alpha"""

PARTS = ("ensembles", "losses", "rules")

ALPHA = Axis("alpha", (Choice("alpha 1", alpha=1.0), Choice("alpha 0.5", alpha=0.5)))


def ensembles() -> tuple[Axis, ...]:
    """Return the axes of dropping, averaging and re-scaling."""
    parts = tuple(axis for axis in PRESETS["radapter"] if axis.name in ("dropping", "accumulation"))
    return (*parts, ALPHA)


def losses() -> tuple[Axis, ...]:
    """Return the axis of the loss, and re-scaling."""
    return (*(axis for axis in PRESETS["radapter"] if axis.name == "loss"), ALPHA)


def ablation(name: str) -> None:
    """Carry out one ablation and keep its table."""
    found = ablate(
        f"emojishift/{NAME}",
        {"ensembles": ensembles, "losses": losses}[name](),
        ROOT / "ablation" / name,
        find_suite(SUITE),
        overrides=("run.threads=1", "run.device=cpu"),
        seeds=SEEDS,
        how=How(runtime=Runtime("cpu", threads=1)),
        say=print,
    )
    write_json(FIGURES / f"ablation_{name}.json", {"markdown": found.to_markdown()})


def more_jobs(rate: float) -> list[Job]:
    """Return the runs of further seeds."""
    first = next(iter(test_jobs("seed-0", NAME, rate, read_choices(), sweep=True)))
    return [
        first._replace(
            out=run_folder("seed-0", NAME, rate) / f"seed-{seed}",
            settings=tuple(
                f"seed={seed}" if text.startswith("seed=") else text for text in first.settings
            ),
        )
        for seed in MORE
    ]


def curve(run: Path) -> dict[float, tuple[float, float]]:
    """Return ID and OOD accuracy of a run at every alpha of its line."""
    found = {alpha: summary(splits) for alpha, splits in read(run, SUITE).sweep.items()}
    return {alpha: (words["id"], words["ood"]) for alpha, words in sorted(found.items())}


def between(points: Mapping[float, tuple[float, float]], alpha: float) -> tuple[float, float]:
    """Read ID and OOD accuracy at any alpha, linear between neighbours."""
    grid = list(points)
    return (
        float(np.interp(alpha, grid, [points[one][0] for one in grid])),
        float(np.interp(alpha, grid, [points[one][1] for one in grid])),
    )


def choose(run: Path, other: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Apply every rule to one run and score what it chooses."""
    points, how = curve(run), How(runtime=Runtime("cpu", threads=1))
    best = max(ood for _, ood in points.values())
    middle = max((one + two) / 2 for one, two in points.values())
    work = ROOT / "alpha" / f"seed-{seed}"
    found: dict[str, dict[str, Any]] = {}
    for rule in ("fixed", "id_one_se", "leave_concepts_out", "stock", "mono", "lines", "dynamic"):
        options = Options(other=other, work=work / "hidden")
        report = select_alpha(run, SUITE, rule, how=how, options=options)
        if report.alpha is not None and report.weights is None:
            inside, outside = between(points, report.alpha)
        else:
            inside, outside = scored(report, run, work / rule)
        found[rule] = {
            "alpha": report.alpha, "id": inside, "ood": outside, "best": best, "middle": middle,
            "seconds": report.cost.seconds, "warnings": list(report.warnings),
        }  # fmt: skip
    inside, outside = points[1.0]
    found["alpha 1"] = {
        "alpha": 1.0, "id": inside, "ood": outside, "best": best, "middle": middle,
        "seconds": 0.0, "warnings": [],
    }  # fmt: skip
    return found


def scored(report: Any, run: Path, out: Path) -> tuple[float, float]:
    """Score a choice by tensor or by image."""
    if not out.exists():
        write_choice(report, run, out)
    how = How(runtime=Runtime("cpu", threads=1))
    if report.copies:
        model: Any = Dynamic.load(out)
        scores = evaluate_points(model, {0.0: lambda: None}, find_suite(SUITE), how, conditions={})
        words = summary(scores[0.0].splits)
    else:
        words = summary(evaluate(out, SUITE).splits)
    return words["id"], words["ood"]


def rules(rate: float, workers: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Apply every rule to five seeds."""
    first = test_jobs("seed-0", NAME, rate, read_choices(), sweep=True)
    carry_out_all([*first, *more_jobs(rate)], workers)
    file = FIGURES / "alpha_rules.json"
    done: dict[str, Any] = read_json(file) if file.is_file() else {}
    seeds = (*SEEDS, *MORE)
    folder = run_folder("seed-0", NAME, rate)
    for seed in seeds:
        if str(seed) not in done:
            other = folder / f"seed-{(seed + 1) % len(seeds)}"
            done[str(seed)] = choose(folder / f"seed-{seed}", other, seed)
            write_json(file, done)
            print(f"rules of seed {seed}", flush=True)
    return done


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page-only", action="store_true", help="write the page from what is done")
    parser.add_argument("--part", choices=PARTS, help="measure this part alone")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    asked = parser.parse_args()
    rate = read_choices()[NAME].rate
    for part in () if asked.page_only else (asked.part,) if asked.part else PARTS:
        if part == "rules":
            rules(rate, asked.workers)
        else:
            ablation(part)
    if asked.part:
        return
    tables = {part: read_json(FIGURES / f"ablation_{part}.json")["markdown"] for part in PARTS[:2]}
    write_text(PAGE, page(tables, read_json(FIGURES / "alpha_rules.json")))
    runs: Sequence[Path] = [run_folder("seed-0", NAME, rate) / f"seed-{seed}" for seed in SEEDS]
    pictures = Path("docs/methods")
    draw_strength([curve(run) for run in runs], pictures / "radapter-alpha.png")
    draw_norms([run / "predictor" for run in runs], pictures / "radapter-norms.png")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
