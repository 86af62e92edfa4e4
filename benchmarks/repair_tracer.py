"""Measure MERGETUNE after TRACER on EmojiShift and write `docs/results-repair-tracer.md`.

    OMP_NUM_THREADS=1 python -m benchmarks.repair_tracer [--workers 2 | --page-only]

As `benchmarks.repair`, whose runs it takes where they exist; apart from it because TRACER was
measured later.
"""

from pathlib import Path

from .best import zero_shot
from .experiments import carry_out_all, study
from .repair import Host, host_jobs, page, repair_jobs

PAGE = Path("docs/results-repair-tracer.md")
CHECKPOINT = "seed-0"
TRACER, FLYP = Host("tracer"), Host("flyp")


def measure(workers: int) -> None:
    """Carry out what is missing."""
    zero_shot(CHECKPOINT)
    carry_out_all([*host_jobs(CHECKPOINT, TRACER), *host_jobs(CHECKPOINT, FLYP)], workers)
    carry_out_all(repair_jobs(CHECKPOINT, TRACER), workers)


def whole_page() -> str:
    """Return the page."""
    return page({CHECKPOINT: (FLYP, TRACER)}, "repair_tracer", "TRACER")


if __name__ == "__main__":
    study(__doc__, measure, whole_page, PAGE)
