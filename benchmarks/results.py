"""Run every method on EmojiShift and write `docs/results.md`.

    OMP_NUM_THREADS=1 python -m benchmarks.results [--workers 2] [--page-only]

Hours of work, resumable at any point: finished runs below `runs/results` are kept. Choices are made
on `val` and `val_shift` of the first checkpoint with one seed; then each test set is looked at once
per recipe and seed.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from perdure import merge
from perdure.documents import RECIPES
from perdure.files import write_json, write_text

from .experiments import (
    CHECKPOINTS,
    CHOICE,
    PLANS,
    ROOT,
    SECOND,
    SEEDS,
    SUITE,
    Choice,
    Chooser,
    Job,
    carry_out_all,
    missing,
    settings_of,
)

PAGE = Path("docs/results.md")
FIGURES = Path("benchmarks/figures")


def run_folder(checkpoint: str, name: str, rate: float) -> Path:
    """Return where the seeds of one method at one rate are."""
    return ROOT / checkpoint / name / f"{rate:g}"


def test_jobs(
    checkpoint: str, name: str, rate: float, choices: dict[str, Choice], sweep: bool
) -> Iterator[Job]:
    """Return one run per seed, to be measured on the test sets."""
    plan = PLANS[name]
    for seed in SEEDS:
        init = None
        if plan.init is not None:
            start = choices[plan.init].rate
            init = run_folder(checkpoint, plan.init, start) / f"seed-{seed}"
        extra = choices[name].extra(plan)
        settings = settings_of(name, rate, checkpoint, seed, extra, init)
        out = run_folder(checkpoint, name, rate) / f"seed-{seed}"
        yield Job(out, name, settings, SUITE, sweep)


def second_rates(choices: dict[str, Choice]) -> dict[str, set[float]]:
    """Return the further rates, fixed before any test set was looked at.

    The line over two learning rates needs half the rate of FT and FLYP and twice that of TRACER;
    teachers are compared at FLYP's own rate.
    """
    rates = {
        "ft": {choices["ft"].rate / 2},
        "flyp": {choices["flyp"].rate / 2},
        "tracer": {choices["tracer"].rate * 2, choices["flyp"].rate},
        "ema-sd": {choices["flyp"].rate},
        "wma-sd": {choices["flyp"].rate},
    }
    return {name: found - {choices[name].rate} for name, found in rates.items()}


def choose_all(workers: int) -> dict[str, Choice]:
    """Carry out the grids and apply the selection rule."""
    chooser = Chooser()
    first = [job for name in PLANS if name != "lp-ft" for job in chooser.rate_jobs(name)]
    carry_out_all(first, workers)
    knobs = [job for name, plan in PLANS.items() if plan.values for job in chooser.knob_jobs(name)]
    carry_out_all(knobs, workers)
    choices = {name: chooser.choose(name) for name in PLANS if name != "lp-ft"}
    start = chooser.job("lp", choices["lp"].rate, choices["lp"].value, None).out
    carry_out_all(chooser.rate_jobs("lp-ft", start), workers)
    choices["lp-ft"] = chooser.choose("lp-ft")
    record = {name: choice._asdict() for name, choice in choices.items()}
    write_json(FIGURES / "choices.json", record)
    return choices


def read_choices() -> dict[str, Choice]:
    """Return the recorded choices."""
    record = json.loads((FIGURES / "choices.json").read_text(encoding="utf-8"))
    return {
        name: Choice(entry["rate"], entry["value"], tuple(tuple(row) for row in entry["tried"]))
        for name, entry in record.items()
    }


def measure_all(choices: dict[str, Choice], workers: int) -> None:
    """Carry out everything that is measured on test sets."""
    for checkpoint, model in CHECKPOINTS.items():
        out = ROOT / checkpoint / "zero-shot"
        if not out.exists():
            merge("zero-shot", [model], out)
        from perdure import evaluate

        for suite in (SUITE, CHOICE):
            if not (out / "scores" / f"{suite}.json").is_file():
                evaluate(out, suite)
    main = [name for name in PLANS if PLANS[name].init is None]
    jobs = [
        job
        for name in main
        for job in test_jobs("seed-0", name, choices[name].rate, choices, sweep=True)
    ]
    carry_out_all(jobs, workers)
    chain = test_jobs("seed-0", "lp-ft", choices["lp-ft"].rate, choices, sweep=True)
    carry_out_all(chain, workers)
    further = [
        job
        for name, rates in second_rates(choices).items()
        for rate in sorted(rates)
        for job in test_jobs("seed-0", name, rate, choices, sweep=False)
    ]
    carry_out_all(further, workers)
    again = [
        job
        for name in SECOND
        for job in test_jobs("seed-1", name, choices[name].rate, choices, sweep=True)
    ]
    carry_out_all(again, workers)


def open_ends(choices: dict[str, Choice]) -> int:
    """Return how many test runs are still to be done."""
    jobs = [
        job
        for name in PLANS
        for job in test_jobs("seed-0", name, choices[name].rate, choices, sweep=True)
    ]
    jobs += [
        job
        for name in SECOND
        for job in test_jobs("seed-1", name, choices[name].rate, choices, sweep=True)
    ]
    return sum(map(missing, jobs))


def main() -> None:
    """Choose, measure, and write the page."""
    from .results_page import draw, headline, page, renew_headers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--page-only", action="store_true", help="write the page from what is done")
    arguments = parser.parse_args()
    if arguments.page_only:
        choices = read_choices()
    else:
        choices = choose_all(arguments.workers)
        measure_all(choices, arguments.workers)
    write_text(PAGE, page(choices, open_ends(choices)))
    write_json(FIGURES / "headline.json", headline(choices))
    draw(choices, PAGE.with_suffix(".png"))
    renew_headers(choices, RECIPES / "emojishift")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
