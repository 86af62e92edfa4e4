"""Measure what fine-tuning for classification does to other tasks, and write their page.

    OMP_NUM_THREADS=1 python -m benchmarks.tasks [--workers 2 | --page-only]

Retrieval, segmentation and questions on EmojiShift, for the zero-shot model and for models that
were fine-tuned to classify, at full strength and half-way to zero-shot. No setting is chosen on
these tasks. Resumable; takes the runs of `benchmarks.results` and `benchmarks.repair` that exist.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from perdure import evaluate
from perdure.comparison import over_seeds, paired_difference, paired_overlap_difference
from perdure.records import Record, main_value, read, summary
from perdure.samples import mean_shares, samples
from perdure.sweeping import sweep_run
from perdure.tables import cell, table

from .best import zero_shot
from .experiments import ROOT, SUITE, Job, carry_out_all, study
from .repair import Host, host_jobs, repair_jobs

PAGE = Path("docs/results-tasks.md")
CHECKPOINT = "seed-0"
SUITES = {
    "emojishift-retrieval": "Retrieval",
    "emojishift-segmentation": "Segmentation",
    "emojishift-vqa": "Questions",
}
HALF = 0.5


class Model(NamedTuple):
    """A row of the tables."""

    host: Host
    repaired: bool = False
    """Whether it is MERGETUNE after the host"""
    sweep: bool = False
    """Whether the whole line is scored on classification, for the comparison at equal accuracy"""

    @property
    def title(self) -> str:
        """As in tables."""
        return f"{self.host.title} + MERGETUNE" if self.repaired else self.host.title

    def jobs(self) -> list[Job]:
        """Return its runs, one per seed."""
        jobs = (repair_jobs if self.repaired else host_jobs)(CHECKPOINT, self.host)
        return [job._replace(sweep=self.sweep) for job in jobs]


MODELS = (
    Model(Host("ft")),
    Model(Host("flyp"), sweep=True),
    Model(Host("tracer"), sweep=True),
    Model(Host("radapter")),
    Model(Host("ft"), repaired=True),
    Model(Host("tracer"), repaired=True, sweep=True),
)


def measure(workers: int) -> None:
    """Carry out what is missing: hosts, their repair, then the tasks."""
    zero_shot(CHECKPOINT)
    for later in (False, True):
        carry_out_all([job for m in MODELS if m.repaired is later for job in m.jobs()], workers)
    start = ROOT / CHECKPOINT / "zero-shot"
    for suite in SUITES:
        if not (start / "scores" / f"{suite}.json").is_file():
            evaluate(start, suite)
        for model in MODELS:
            for job in model.jobs():
                if not (job.out / "scores" / f"{suite}.json").is_file():
                    sweep_run(job.out, suite, alphas=(HALF, 1.0))
                    print(f"{job.out}: {suite}", flush=True)


def records_of(model: Model, suite: str) -> list[Record]:
    """Return the scored runs of a model."""
    done = [job.out for job in model.jobs() if (job.out / "scores" / f"{suite}.json").is_file()]
    return [read(out, suite) for out in done]


def row(title: str, splits: Sequence[Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return main metric per split over seeds, then the means over splits."""
    cells = [cell(over_seeds([main_value(one[name]) for one in splits])) for name in splits[0]]
    words = [summary(one) for one in splits]
    return [title, *cells, *(cell(over_seeds([one[word] for one in words])) for word in words[0])]


def change(records: Sequence[Record], start: Record) -> str:
    """Print the mean change of the metric over sets against zero-shot, paired, in points."""
    ours, before = [samples(one) for one in records], samples(start)
    pixels = {name: one.counts for name, one in before.items() if one.counts is not None}
    if pixels:
        counts = {name: [one[name].counts for one in ours] for name in pixels}
        found = paired_overlap_difference(counts, {name: [own] for name, own in pixels.items()})
    else:
        found = paired_difference(mean_shares(ours, [*before]), mean_shares([before], [*before]))
    value, low, high = (100 * part for part in found)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def suite_part(suite: str, title: str) -> str:
    """Return the table of one task."""
    start = read(ROOT / CHECKPOINT / "zero-shot", suite)
    first = next(iter(start.splits.values()))
    rows = [[*row("zero-shot", [start.splits]), "-"]]
    for model in MODELS:
        records = records_of(model, suite)
        if not records:
            continue
        rows.append([*row(model.title, [one.splits for one in records]), change(records, start)])
        halves = [one.sweep[HALF] for one in records]
        rows.append([*row(f"{model.title}, alpha {HALF:g}", halves), ""])
    count = ", ".join(f"{name} {entry['n']}" for name, entry in start.splits.items())
    return "\n\n".join(
        [
            f"## {title}",
            f"Suite `{suite}`; metric {str(first['metric']).replace('_', ' ')}; n: {count}.",
            table(["model", *start.splits, *summary(start.splits), "gained"], rows),
        ]
    )


def page() -> str:
    """Return the page."""
    words = ("id", "ood")
    known = summary(read(ROOT / CHECKPOINT / "zero-shot", SUITE).splits)
    rows = [["zero-shot", *(f"{100 * known[word]:.1f}" for word in words)]]
    for model in MODELS:
        found = [summary(one.splits) for one in records_of(model, SUITE)]
        rows.append([model.title, *(cell(over_seeds([one[w] for one in found])) for w in words)])
    remarks = Path("benchmarks/figures/tasks_remarks.md")
    parts = [
        "# Other tasks after fine-tuning for classification, on EmojiShift",
        "Written by `python -m benchmarks.tasks` (resumable); not edited by hand. Every model was "
        "fine-tuned to classify the 80 classes of one artist, as in [results.md](results.md) and "
        "[results-repair.md](results-repair.md), and is then asked what it was never trained for: "
        "do the things that the pre-trained model can do survive?",
        "3 seeds, mean ± sample standard deviation, per cent, shipped checkpoint. `alpha 0.5`: "
        "half-way to zero-shot (WiSE-FT; for R-Adapter the strength of its adapters). `gained`: "
        "the metric against that of zero-shot in points, mean over sets, with 95 % bootstrap "
        "intervals over pictures, paired, as `perdure report` has them; they do not cover the "
        "choice of seeds.",
        "What the models are worth on their own task (accuracy; n = 1,600 images per set):",
        table(["model", "ID", "OOD"], rows),
        *(suite_part(suite, title) for suite, title in SUITES.items()),
    ]
    if remarks.is_file():
        parts.append(remarks.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    study(__doc__, measure, page, PAGE)
