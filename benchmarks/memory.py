"""Measure the peak memory of training steps, each in a fresh process.

    python -m benchmarks.memory            all steps, twice each, and their ratios
    python -m benchmarks.memory "NAME"     one step, in this process; prints two numbers of bytes

Resident memory above what the process held before the model was built, over the first step and
three more; freed blocks of 64 KB or more go back to the system at once. Linux only.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from perdure.zoo import random_clip

from .pattern import shape
from .steps import STEPS, prepare

_STATUS = Path("/proc/self/status")


def resident(field: str) -> int:
    """Return VmRSS (now) or VmHWM (largest so far) of this process, in bytes."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(name: str) -> tuple[int, int]:
    """Take four steps and return (peak above the start, bytes of the model's weights)."""
    prepare()
    tiny = random_clip()
    tiny.encode_image(torch.zeros(1, 3, 40, 40)).sum().backward()  # loads what torch loads late
    start = resident("VmRSS")
    step = STEPS[name]()
    for _ in range(3 if "perdure" in name else 4):  # perdure's has taken its first
        step()
    peak = resident("VmHWM") - start
    return peak, sum(value.numel() * value.element_size() for value in shape().parameters())


def in_fresh_process(name: str) -> tuple[int, int]:
    """Return what `measure` finds in a new process."""
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", name],
        env={**os.environ, **settings}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak, weights = map(int, done.stdout.split())
    return peak, weights


def main() -> None:
    """Print a table of peaks and what they are to each other."""
    if len(sys.argv) > 1:
        print(*measure(sys.argv[1]))
        return
    if not _STATUS.exists():
        print("Peak memory is measured on Linux only.")
        return
    print("| step | peak MB above the start | runs |\n|---|---|---|")
    peaks: dict[str, float] = {}
    weights = 1
    for name in STEPS:
        found = []
        for _ in range(2):
            peak, weights = in_fresh_process(name)
            found.append(peak)
        peaks[name] = statistics.median(found)
        runs = ", ".join(f"{peak / 1e6:.0f}" for peak in found)
        print(f"| {name} | {peaks[name] / 1e6:.0f} | {runs} |", flush=True)
    print()
    for name, against in (
        ("FLYP, perdure", "FLYP, published pattern"),
        ("TRACER, perdure", "TRACER, published pattern"),
        ("TRACER, perdure, checkpointing", "TRACER, perdure"),
    ):
        print(f"- peak of {name} / {against}: {peaks[name] / peaks[against]:.2f}")
    more = peaks["TRACER, perdure"] - peaks["FLYP, perdure"]
    print(f"- TRACER - FLYP, both perdure: {more / weights:.2f} times the teacher's weights")


if __name__ == "__main__":
    main()
