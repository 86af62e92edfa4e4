"""Search one recipe that combines what the house has, on validation sets alone.

    OMP_NUM_THREADS=1 python -m benchmarks.search [--workers 2]

The budget is the list below: every candidate trains once, on the shipped checkpoint with seed 0,
and is scored along its WiSE-FT line on `val` and `val_shift`. The best is the one with the highest
`val_shift` accuracy at equal `val` accuracy, averaged over the targets; a candidate that does not
reach a target loses to all that do. No test set is looked at. What the figures hold already is not
run again.
"""

import argparse
from itertools import pairwise
from pathlib import Path

from perdure.files import read_json, write_json
from perdure.records import read

from .experiments import CHOICE, ROOT, Job, carry_out_all

FOLDER = ROOT / "search"
FIGURE = Path("benchmarks/figures/search.json")
TARGETS = (0.78, 0.81, 0.84)
"""Accuracies on `val` at which `val_shift` is read; zero-shot has 0.68, the fastest runs 0.87"""

MPM = ("method.contrastive=mpm_nce", "method.margin=0.05", "method.smoothing=0.02")
WIDE = ("method.contrastive=mpm_nce", "method.margin=0.1", "method.smoothing=0.02")
TWO = "method.teacher={interactive_weight: 0, cross_weight: 0}"
FOUR = "method.teacher={}"

CANDIDATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "tracer 3e-4": ("tracer", ("optim.lr=3e-4",)),
    "tracer 6e-4": ("tracer", ("optim.lr=6e-4",)),
    "tracer 1.2e-3": ("tracer", ("optim.lr=1.2e-3",)),
    "tracer, mpm 3e-4": ("tracer", (*MPM, "optim.lr=3e-4")),
    "tracer, mpm 6e-4": ("tracer", (*MPM, "optim.lr=6e-4")),
    "tracer, mpm 1.2e-3": ("tracer", (*MPM, "optim.lr=1.2e-3")),
    "tracer, mpm, margin 0.1, 6e-4": ("tracer", (*WIDE, "optim.lr=6e-4")),
    "tracer, mpm, feature x 4, 1.2e-3": (
        "tracer", (*MPM, "method.feature_weight=15.6", "optim.lr=1.2e-3"),
    ),
    "tracer, mpm, feature x 4, 2.4e-3": (
        "tracer", (*MPM, "method.feature_weight=15.6", "optim.lr=2.4e-3"),
    ),
    "tracer, mpm, feature x 8, 1.2e-3": (
        "tracer", (*MPM, "method.feature_weight=31.2", "optim.lr=1.2e-3"),
    ),
    "tracer, mpm, feature x 16, 2.4e-3": (
        "tracer", (*MPM, "method.feature_weight=62.5", "optim.lr=2.4e-3"),
    ),
    "tracer, mpm, strength x 2, 1.2e-3": (
        "tracer", (*MPM, "method.strength=1.8", "optim.lr=1.2e-3"),
    ),
    "tracer, mpm, teacher served, 1.2e-3": (
        "tracer", (*MPM, "method.serve=teacher", "optim.lr=1.2e-3"),
    ),
    "lora, mpm, two terms, feature x 4, 1.2e-2": (
        "lora-mpm",
        (
            "method.teacher={interactive_weight: 0, cross_weight: 0, feature_weight: 15.6}",
            "optim.lr=1.2e-2",
        ),
    ),
    "lora, mpm, two terms, 6e-3": ("lora-mpm", (TWO, "optim.lr=6e-3")),
    "lora, mpm, four terms, 6e-3": ("lora-mpm", (FOUR, "optim.lr=6e-3")),
    "lora, mpm, four terms, 1.2e-2": ("lora-mpm", (FOUR, "optim.lr=1.2e-2")),
    "lora, rank 32, mpm, four terms, 3e-3": (
        "lora-mpm", (FOUR, "method.rank=32", "optim.lr=3e-3"),
    ),
    "r-adapter, four terms, 4e-3": ("radapter", (FOUR, "optim.lr=4e-3")),
    "r-adapter, four terms, no dropping, 4e-3": (
        "radapter", (FOUR, "method.drop=0", "optim.lr=4e-3"),
    ),
}  # fmt: skip
"""Name to recipe and overrides; the first three are the rival itself, for scale"""


def job(name: str) -> Job:
    """Return the run of one candidate."""
    recipe, overrides = CANDIDATES[name]
    settings = ("seed=0", "run.threads=1", "run.device=cpu", *overrides)
    if recipe != "tracer":
        settings = (*settings, "method.alpha=1")
    return Job(FOLDER / name.replace(", ", "-").replace(" ", "-"), recipe, settings, CHOICE, True)


def line(name: str) -> list[tuple[float, float]]:
    """Return accuracy on `val` and `val_shift` along the line of a candidate."""
    record = read(job(name).out, CHOICE)
    return [
        (splits["val"]["accuracy"], splits["val_shift"]["accuracy"])
        for _, splits in sorted(record.sweep.items())
    ]


def read_off(points: list[tuple[float, float]], target: float) -> float | None:
    """Return `val_shift` accuracy where the line last crosses a `val` accuracy."""
    found = None
    for (left, low), (right, high) in pairwise(points):
        if min(left, right) <= target <= max(left, right) and left != right:
            found = low + (high - low) * (target - left) / (right - left)
    return found


def measured(name: str) -> dict[str, object]:
    """Return what the figures keep of a candidate that was carried out."""
    points = line(name)
    values = [read_off(points, target) for target in TARGETS]
    known = [value for value in values if value is not None]
    mean = sum(known) / len(values) if len(known) == len(values) else None
    return {"mean": mean, "at": values, "end": points[-1]}


def main() -> None:
    """Carry out what is missing, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    workers = parser.parse_args().workers
    before = read_json(FIGURE)["candidates"] if FIGURE.is_file() else {}
    missing = [name for name in CANDIDATES if name not in before]
    carry_out_all([job(name) for name in missing], workers)
    found = {name: before[name] if name in before else measured(name) for name in CANDIDATES}
    write_json(FIGURE, {"targets": TARGETS, "candidates": found})
    for name, entry in sorted(found.items(), key=lambda item: -(item[1]["mean"] or 0)):
        cells = " ".join("  n/a" if v is None else f"{100 * v:5.1f}" for v in entry["at"])
        mean = "n/a" if entry["mean"] is None else f"{100 * entry['mean']:.1f}"
        end = " / ".join(f"{100 * part:.1f}" for part in entry["end"])
        print(f"{mean:>5} | {cells} | end {end} | {name}")


if __name__ == "__main__":
    main()
