"""Which runs stand behind `docs/results.md`, how their settings are chosen, and carrying them out.

Every run is a directory below `runs/results`; what is there and complete is not done again, so an
interrupted command goes on where it stopped.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from perdure.files import read_json, whole_file, write_text

ROOT = Path("runs/results")
SUITE, CHOICE = "emojishift", "emojishift-val"
SEEDS = (0, 1, 2)
CHECKPOINTS = {"seed-0": "perdure-tiny", "seed-1": "local-dir:benchmarks/perdure-tiny-1"}


class Plan(NamedTuple):
    """How one method is tuned."""

    rates: tuple[float, ...]
    """Learning rates, each twice the one before"""
    head_factor: float | None = None
    """The head's rate as a multiple of the rate, where there is a head"""
    knob: str | None = None
    """A further setting, chosen at the chosen rate"""
    values: tuple[float, ...] = ()
    """Its candidates; the first is used while the rate is chosen"""
    init: str | None = None
    """Method whose run it starts from"""
    sweep: bool = True
    """Whether its weights can be interpolated with the start"""
    fixed: tuple[str, ...] = ()
    """Overrides of every run; adapters are tuned and listed at full strength"""


CONTRASTIVE = (1.5e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3)
TOWER = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
FULL_STRENGTH = ("method.alpha=1",)

PLANS = {
    "flyp": Plan(CONTRASTIVE),
    "tracer": Plan(CONTRASTIVE),
    "ft": Plan(TOWER, head_factor=10),
    "lp": Plan(
        (0.0125, 0.025, 0.05, 0.1), knob="method.head_decay", values=(1e-5, 1e-6, 1e-4, 1e-3)
    ),
    "wma-sd": Plan(CONTRASTIVE),
    "ema-sd": Plan(CONTRASTIVE),
    "static-sd": Plan(CONTRASTIVE),
    "carot": Plan(CONTRASTIVE),
    "l2sp": Plan(
        TOWER, head_factor=10, knob="method.strength", values=(0.01, 0.003, 0.03, 0.1, 0.3, 1.0)
    ),
    "lp-ft": Plan(TOWER, head_factor=10, init="lp"),
    "radapter": Plan((2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2), fixed=FULL_STRENGTH),
    "radapter-low-rank": Plan((4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2), fixed=FULL_STRENGTH),
    "lora": Plan((7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2), fixed=FULL_STRENGTH),
    "lora-mpm": Plan((7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2), fixed=FULL_STRENGTH),
}
SECOND = ("ft", "flyp", "wma-sd", "tracer", "radapter", "lora-mpm")
"""Methods that are also run on the second checkpoint"""


class Job(NamedTuple):
    """One training run and what is measured on it."""

    out: Path
    recipe: str
    settings: tuple[str, ...]
    suite: str
    sweep: bool


def settings_of(
    name: str, rate: float, checkpoint: str, seed: int, extra: Sequence[str], init: Path | None
) -> tuple[str, ...]:
    """Return the overrides that make a recipe into one run."""
    plan = PLANS[name]
    settings = [f"optim.lr={rate}", f"seed={seed}", f"model.name={CHECKPOINTS[checkpoint]}"]
    settings += ["run.threads=1", "run.device=cpu", *plan.fixed, *extra]
    if plan.head_factor is not None:
        settings.append(f"optim.head_lr={rate * plan.head_factor}")
    if init is not None:
        settings.append(f"model.init={init}")
    return tuple(settings)


def carry_out(job: Job) -> str:
    """Train and measure one run, or only what is missing of it."""
    import torch

    from perdure import evaluate, load_recipe, train
    from perdure.run import Run
    from perdure.sweeping import sweep_run

    torch.set_num_threads(1)
    if not (job.out / "predictor").is_dir():
        recipe = load_recipe(f"emojishift/{job.recipe}", job.settings)
        train(recipe, job.out, resume=job.out.exists())
    if not (job.out / "scores" / f"{job.suite}.json").is_file():
        evaluate(Run(job.out), job.suite)
    if job.sweep and not outcomes_of(job).is_file():
        found = sweep_run(job.out, job.suite)
        splits = next(iter(found.values())).outcomes
        # What each image came to at every alpha, for intervals of differences between curves.
        arrays = {
            split: np.stack([scores.outcomes[split].correct for scores in found.values()])
            for split in splits
        }
        with whole_file(outcomes_of(job)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
    return str(job.out.relative_to(ROOT))


def outcomes_of(job: Job) -> Path:
    """Return the file that holds, per split, which images are right at which alpha, (9, N)."""
    return job.out / "scores" / f"{job.suite}.sweep-outcomes.npz"


def missing(job: Job) -> bool:
    """Return whether anything of a job is still to be done."""
    files = [job.out / "scores" / f"{job.suite}.json", *([outcomes_of(job)] if job.sweep else [])]
    return not all(file.is_file() for file in files)


def carry_out_all(jobs: Iterable[Job], workers: int) -> None:
    """Carry out jobs in separate processes, each with one thread."""
    waiting = [job for job in jobs if missing(job)]
    if not waiting:
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(carry_out, job) for job in waiting]
        for done, future in enumerate(as_completed(futures), start=1):
            print(f"{done}/{len(waiting)} {future.result()}", flush=True)


def study(
    description: str, measure: Callable[[int], None], page: Callable[[], str], out: Path
) -> None:
    """Carry out what a study lacks and write its page, as the command line asks.

    Args:
        description: Of the program; its first line is its help.
        measure: Carries out what is missing with a number of processes.
        page: Makes the page from what is done.
        out: Its file.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--page-only", action="store_true", help="write the page from what is done")
    asked = parser.parse_args()
    if not asked.page_only:
        measure(asked.workers)
    write_text(out, page())
    print(f"wrote {out}")


def score(out: Path, split: str) -> float:
    """Return the accuracy of a run on a split that choices may use."""
    entry = read_json(out / "scores" / f"{CHOICE}.json")["splits"][split]
    return float(entry["accuracy"])


def smallest_within_one_error(rates: Sequence[float], accuracy: Callable[[float], float]) -> float:
    """Return the smallest rate whose `val` accuracy is within one standard error of the best."""
    values = [accuracy(rate) for rate in rates]
    best = max(values)
    error = float(np.sqrt(best * (1 - best) / 1600))
    return next(rate for rate, value in zip(rates, values, strict=True) if value >= best - error)


class Choice(NamedTuple):
    """What the selection rule chose for one method, and from what."""

    rate: float
    value: float | None
    tried: tuple[tuple[float, float | None, float, float], ...]
    """Rate, knob, `val` and `val_shift` accuracy of every candidate"""

    def extra(self, plan: Plan) -> tuple[str, ...]:
        """Return the override that sets the knob."""
        return () if self.value is None else (f"{plan.knob}={self.value}",)


class Chooser:
    """Runs the grids on the first checkpoint and one seed, in two rounds."""

    def __init__(self) -> None:
        self.folder = ROOT / "choices"

    def job(self, name: str, rate: float, value: float | None, init: Path | None) -> Job:
        """Return the run of one candidate."""
        plan = PLANS[name]
        tag = f"{rate:g}" if value in (None, *plan.values[:1]) else f"{rate:g}-{value:g}"
        extra = tuple(
            f"{plan.knob}={first if value is None else value}" for first in plan.values[:1]
        )
        settings = settings_of(name, rate, "seed-0", 0, extra, init)
        return Job(self.folder / name / tag, name, settings, CHOICE, sweep=False)

    def rate_jobs(self, name: str, init: Path | None = None) -> list[Job]:
        """Return the runs of the first round, which differ in learning rate."""
        return [self.job(name, rate, None, init) for rate in PLANS[name].rates]

    def best_rate(self, name: str) -> float:
        """Apply the selection rule to the first round."""
        folder = self.folder / name
        return smallest_within_one_error(
            PLANS[name].rates, lambda rate: score(folder / f"{rate:g}", "val")
        )

    def knob_jobs(self, name: str) -> list[Job]:
        """Return the runs of the second round, which differ in the further setting."""
        rate = self.best_rate(name)
        return [self.job(name, rate, value, None) for value in PLANS[name].values[1:]]

    def choose(self, name: str) -> Choice:
        """Apply the whole rule; every candidate must have been measured."""
        plan, rate = PLANS[name], self.best_rate(name)
        folder = self.folder / name
        tried: list[tuple[float, float | None, float, float]] = []
        for one in plan.rates:
            out = folder / f"{one:g}"
            tried.append((one, None, score(out, "val"), score(out, "val_shift")))
        value = None
        if plan.values:
            candidates = {plan.values[0]: folder / f"{rate:g}"}
            candidates |= {v: folder / f"{rate:g}-{v:g}" for v in plan.values[1:]}
            for v in plan.values[1:]:
                out = candidates[v]
                tried.append((rate, v, score(out, "val"), score(out, "val_shift")))

            def together(v: float) -> float:
                return score(candidates[v], "val") + score(candidates[v], "val_shift")

            value = max(candidates, key=together)
        return Choice(rate, value, tuple(tried))
