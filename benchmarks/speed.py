"""Compare the cost of perdure's training steps with that of the published codes' pattern.

    OMP_NUM_THREADS=1 python -m benchmarks.speed [--rounds 7]

The pattern (`pattern.py`) must first have the FLOPs and operators of the published codes, within
two per cent. Then exact counters (FLOPs, operators, synchronisations), then CPU time, as medians
of per-round ratios of interleaved rounds.
"""

import argparse
import statistics
import sys
import time

import torch
from torch.nn import functional

from perdure.batch import Pairs
from perdure.losses import (
    Comparison,
    cross_kl,
    feature_distill,
    info_nce,
    interactive_nce,
    relational_kl,
)
from perdure.weights import Snapshot

from .pattern import OFFICIAL, Action, Operators, contrastive, counted, distillation
from .steps import STEPS, prepare

TIMED = [name for name in STEPS if "checkpointing" not in name]


def timed(actions: dict[str, Action], rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds per call, in interleaved rounds of rotating order."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    names = list(actions)
    for round_ in range(rounds):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.process_time()
            actions[name]()
            seconds[name].append(time.process_time() - began)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, against: str) -> str:
    """Print the median and quartiles of per-round ratios."""
    values = [a / b for a, b in zip(seconds[name], seconds[against], strict=True)]
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def losses_alone(rounds: int) -> str:
    """Compare contrastive loss and four terms at B = 512, D = 512, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    rows = functional.normalize(torch.randn(4, 512, 512, generator=generator), dim=-1)
    leaves = [row.clone().requires_grad_() for row in rows[:2]]
    scale = torch.tensor(20.0, requires_grad=True)
    teacher = (rows[2], rows[3], torch.tensor(25.0))

    def as_published() -> None:
        student = (*leaves, scale)
        feature, *others = distillation(student, teacher)
        loss = contrastive(*student) + 0.9 * (2000 * feature + sum(others))
        loss.backward()  # type: ignore[no-untyped-call]

    def shared() -> None:
        student, target = Pairs(*leaves, scale), Pairs(*teacher)
        both = Comparison(student, target)
        loss = info_nce(student, shared=both) + 0.9 * (
            3.906 * feature_distill(student, target)
            + sum(term(student, target, both) for term in (relational_kl, cross_kl))
            + interactive_nce(student, target, both)
        )
        loss.backward()  # type: ignore[no-untyped-call]

    for warm in (as_published, shared):
        warm()
    return ratio(
        timed({"published": as_published, "ours": shared}, rounds * 3), "ours", "published"
    )


def average_alone(rounds: int) -> tuple[str, int]:
    """Compare one update of an average of a ViT-B/16's weights; also its operators."""
    from open_clip import get_model_config

    from perdure.building import build

    with torch.device("meta"):
        names = {
            name: p.shape for name, p in build(get_model_config("ViT-B-16")).named_parameters()
        }
    generator = torch.Generator().manual_seed(0)
    new = {name: torch.randn(size, generator=generator) for name, size in names.items()}
    mean, snapshot = {name: value.clone() for name, value in new.items()}, Snapshot(new)

    def as_published() -> None:
        for name, value in new.items():
            mean[name] = (mean[name] + 0.01 * value) / 1.01

    def in_place() -> None:
        snapshot.mix_(new, 0.01)

    seconds = timed({"published": as_published, "ours": in_place}, rounds)
    with Operators() as operators:
        in_place()
    return ratio(seconds, "ours", "published"), operators.total


def main() -> None:
    """Print counters first and ratios second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    prepare()
    actions = {name: build() for name, build in STEPS.items()}
    print("| step | GFLOP | operators | waits for the device |\n|---|---|---|---|")
    flops, operators = {}, {}
    for name, action in actions.items():
        flops[name], operators[name], waits = counted(action)
        print(f"| {name} | {flops[name]:.2f} | {operators[name]:,} | {waits} |", flush=True)
    print()
    for method, (gflop, count) in OFFICIAL.items():
        name = f"{method.upper()}, published pattern"
        shares = flops[name] / gflop, operators[name] / count
        print(f"- pattern of {method}: {shares[0]:.3f} of the published code's {gflop} GFLOP, "
              f"{shares[1]:.3f} of its {count:,} operators")  # fmt: skip
        if max(abs(share - 1) for share in shares) > 0.02:
            sys.exit("the pattern is not the published code's, so ratios to it mean nothing")
    seconds = timed({name: actions[name] for name in TIMED}, rounds)
    print(f"\nCPU time, median [quartiles] of {rounds} per-round ratios:\n")
    for name, against in (
        ("FLYP, perdure", "FLYP, published pattern"),
        ("TRACER, perdure", "TRACER, published pattern"),
        ("TRACER, perdure, bf16 teacher", "TRACER, published pattern"),
        ("TRACER, perdure", "FLYP, perdure"),
    ):
        exact = flops[name] / flops[against]
        print(f"- {name} / {against}: {ratio(seconds, name, against)}; FLOPs {exact:.3f}")
    print(f"- losses at B = 512, shared / per term: {losses_alone(rounds)}")
    text, total = average_alone(rounds)
    print(f"- update of an average, ViT-B/16: {text}; {total} operators")


if __name__ == "__main__":
    main()
