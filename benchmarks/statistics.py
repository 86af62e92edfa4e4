"""Compare the cost of teacher and student statistics with the published codes' pattern.

    OMP_NUM_THREADS=1 python -m benchmarks.statistics [--rounds 7]

The pattern's products of features are counted for both; a second ratio leaves out what perdure's
distillation has computed anyway. Then the share of a whole step that logs them every 20 steps.
"""

import argparse
import time

import torch
from torch.nn import functional

from perdure.batch import Batch, Pairs
from perdure.contrastive import Comparison
from perdure.methods.tracer import Tracer
from perdure.statistics import teacher_stats

from .pattern import Action, shape, step_statistics
from .speed import ratio, timed
from .steps import ours, prepare

EVERY = 20


def actions(size: int, width: int = 512) -> dict[str, Action]:
    """Return the statistics of one batch in the pattern's way, whole, and on shared matrices."""
    generator = torch.Generator().manual_seed(0)
    rows = functional.normalize(torch.randn(4, size, width, generator=generator), dim=-1)
    student = Pairs(rows[0], rows[1], torch.tensor(20.0))
    teacher = Pairs(rows[2], rows[3], torch.tensor(25.0))
    shared = Comparison(student, teacher)
    teacher_stats(shared)
    return {
        "published": lambda: step_statistics(tuple(student), tuple(teacher)),
        "whole": lambda: teacher_stats(Comparison(student, teacher)),
        "shared": lambda: teacher_stats(shared),
    }


def step_seconds(size: int, rounds: int) -> float:
    """Return the CPU seconds of one TRACER step of `size` pairs, the least of some."""
    predictor, generator = shape(), torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, *([predictor.preprocess.size] * 2), generator=generator)
    tokens = torch.randint(1, 8000, (size, 16), generator=generator)
    tokens[:, -1] = 8191
    step = ours(Tracer(), Batch(images, tokens, torch.arange(size)))
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        step()
        seconds.append(time.process_time() - began)
    return min(seconds)


def compare(size: int, rounds: int, steps: int) -> list[str]:
    """Return one line per ratio."""
    found = actions(size)
    for action in found.values():
        action()
    seconds = timed(found, rounds)
    share = min(seconds["whole"]) / EVERY / step_seconds(size, steps)
    head = f"- statistics at B = {size}"
    return [
        f"{head}, perdure / pattern: {ratio(seconds, 'whole', 'published')}",
        f"{head}, on shared matrices / pattern: {ratio(seconds, 'shared', 'published')}",
        f"{head}, every {EVERY} steps: {100 * share:.3f} % of a TRACER step (10.9 M parameters)",
    ]


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    prepare()
    print("\n".join(compare(512, parser.parse_args().rounds, 1)))


if __name__ == "__main__":
    main()
