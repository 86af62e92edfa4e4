"""Compare a sweep over eleven points of a line of weights with one evaluation in the usual way.

    OMP_NUM_THREADS=1 python -m benchmarks.sweep [--rounds 7]

The usual evaluation decodes pictures through pillow and runs the image tower under `no_grad`; the
usual sweep does that, merges and writes a checkpoint at every point. perdure decodes every picture
once, moves one set of weights in place and writes nothing. Logits must first be those of every
merged model evaluated alone, decoding and files are counted, and then CPU time.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision import transforms

from perdure.data import own
from perdure.data.datasets import open_dataset
from perdure.data.suites import Suite
from perdure.data.suites import suite as find_suite
from perdure.interpolation import wise_ft
from perdure.prediction import How, Precision, Unit, gather, stay
from perdure.predictor import Predictor
from perdure.sweeping import Line, sweep

from .pattern import Action, shape
from .reading import BICUBIC, usual, write
from .speed import timed
from .steps import prepare

ALPHAS = tuple(step / 10 for step in range(11))
PICTURES, SIDE = 32, 128
NAMES, PROMPTS = ("cat", "dog"), ("a photo of a {}",)
TOLERANCE = 1e-5
HALVES = 2.0
"""Least gain of a product of matrices for which bfloat16 is worth timing"""


class Case(NamedTuple):
    """Both ends of a line, with heads, and pictures to score."""

    folder: Path
    start: Predictor
    tuned: Predictor
    suite: Suite
    files: list[Path]


def case(folder: Path, make: Callable[[], Predictor] = shape, count: int = PICTURES) -> Case:
    """Write pictures and return two models that are not far apart.

    Args:
        folder: Empty.
        make: Builds the model at the start.
        count: Pictures.
    """
    start = make().eval()
    side = start.preprocess.size
    write(folder, count, side, side)
    start.set_head(NAMES, PROMPTS)
    tuned = start.copy()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in tuned.parameters():
            value += 0.1 * value.std(correction=0) * torch.randn(value.shape, generator=generator)
    files = sorted((folder / "test").rglob("*.jpg"))
    return Case(folder, start, tuned, find_suite("own", folder), files)


def usual_evaluation(found: Case, predictor: Predictor) -> Callable[[], Tensor]:
    """Return one evaluation in the usual way: logits (N, C)."""
    side = predictor.preprocess.size
    sizing = (transforms.Resize(side, BICUBIC), transforms.CenterCrop(side))
    read, head = usual(found.files, *sizing, preprocess=predictor.preprocess), predictor.head

    @torch.no_grad()
    def evaluate() -> Tensor:
        assert head is not None
        features: Tensor = predictor.clip.encode_image(read())
        logits: Tensor = head(functional.normalize(features, dim=-1))
        return logits

    return evaluate


def usual_sweep(found: Case) -> Action:
    """Return a sweep in the usual way: merge, write, decode and score at every point."""
    first, last = found.start.state_dict(), found.tuned.state_dict()
    moving = found.start.copy()
    evaluate = usual_evaluation(found, moving)

    def run() -> None:
        for alpha in ALPHAS:
            merged = {name: (1 - alpha) * first[name] + alpha * last[name] for name in first}
            moving.load_state_dict(merged)
            torch.save(merged, found.folder / f"alpha-{alpha}.pt")
            evaluate()

    return run


def ours(found: Case, precision: Precision = "fp32") -> Action:
    """Return perdure's sweep, with all its metrics."""
    how = How(root=found.folder, batch_size=PICTURES, precision=precision)
    return lambda: sweep(found.start, found.tuned, found.suite, alphas=ALPHAS, how=how)


def counts(found: Case) -> tuple[int, int]:
    """Return how many pictures a sweep decodes and how many files it leaves behind."""
    before = set(found.folder.rglob("*"))
    with patch.object(own, "decode", wraps=own.decode) as decode:
        ours(found)()
    return decode.call_count, len(set(found.folder.rglob("*")) - before)


def apart(found: Case) -> float:
    """Return how far logits of the sweep are from those of merged models scored one by one."""
    data = open_dataset("own", "test", found.folder)
    unit, how = Unit(data, PROMPTS, data.classes), How(batch_size=PICTURES)
    line = Line(found.start, found.tuned)
    together = gather(line.moving, {alpha: line.at(alpha) for alpha in ALPHAS}, unit, how)
    gaps = []
    for alpha in ALPHAS:
        merged = wise_ft(found.start, found.tuned, alpha)
        alone = gather(merged, {alpha: stay}, unit, how)[alpha].logits
        gaps.append(float(np.abs(together[alpha].logits - alone).max()))
    return max(gaps)


def bf16_speed(rounds: int = 7) -> float:
    """Return how many times as fast a product of matrices is in bfloat16."""
    a, b = torch.randn(256, 256), torch.randn(256, 256)
    halves = a.bfloat16(), b.bfloat16()
    seconds = timed({"fp32": lambda: a @ b, "bf16": lambda: halves[0] @ halves[1]}, rounds)
    pairs = zip(seconds["fp32"], seconds["bf16"], strict=True)
    return statistics.median(one / other for one, other in pairs)


def compare(found: Case, rounds: int, halves: bool) -> list[str]:
    """Return a line per sweep: its CPU time in evaluations; in bfloat16 only with `halves`."""
    doing: dict[str, Action] = {
        "evaluation": usual_evaluation(found, found.tuned),
        "usual sweep": usual_sweep(found),
        "sweep, fp32": ours(found),
    }
    if halves:
        doing["sweep, bf16"] = ours(found, "bf16")
        doing["sweep, bf16"]()
    doing["evaluation"]()
    seconds = timed(doing, rounds)
    lines = []
    for name in list(doing)[1:]:
        values = [a / b for a, b in zip(seconds[name], seconds["evaluation"], strict=True)]
        low, middle, high = statistics.quantiles(values, n=4)
        lines.append(f"- {name}, {len(ALPHAS)} points: {middle:.2f} [{low:.2f}, {high:.2f}] "
                     "usual evaluations")  # fmt: skip
    return lines


def main() -> None:
    """Print counts and equality first and ratios second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        found = case(Path(folder))
        decoded, files = counts(found)
        print(f"- sweep of {len(found.files)} pictures: {decoded} decoded, {files} files written")
        gap = apart(found)
        print(f"- logits against merged models scored one by one: {gap:.1e} apart")
        if decoded != len(found.files) or files or gap > TOLERANCE:
            sys.exit("the sweep is not what it should be, so its time means nothing")
        gain = bf16_speed()
        print(f"- products of matrices in bfloat16: {gain:.2f} times as fast")
        if gain < HALVES:
            print("- this processor has no fast bfloat16, so the sweep in it is not timed")
        print(f"\nCPU time, median [quartiles] of {rounds} per-round ratios:\n")
        print("\n".join(compare(found, rounds, gain >= HALVES)))


if __name__ == "__main__":
    main()
