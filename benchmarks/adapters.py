"""Compare what adapters cost, in training, serving and on disk, with the published pattern.

    OMP_NUM_THREADS=1 python -m benchmarks.adapters [--rounds 7]

The published R-Adapter code trains full matrices whatever rank is asked for, multiplies by masks
after the products they mask, averages out of place, tensor by tensor, and stores the whole model
with two sets of adapters. Its FLOPs are compared first, then exact counters, then CPU time, as
medians of per-round ratios of interleaved rounds.
"""

import argparse
import sys
from typing import Any

import torch
from safetensors.torch import save

from perdure.batch import Batch
from perdure.learner import Learner
from perdure.loop import steps
from perdure.method import Context
from perdure.methods.flyp import Flyp
from perdure.methods.radapter import RAdapter
from perdure.optim import make
from perdure.optim_spec import OptimSpec
from perdure.predictor import Predictor
from perdure.runtime import Runtime
from perdure.surgery.residual import Residual
from perdure.weights import Snapshot

from .pattern import Action, counted, inputs, shape
from .speed import ratio, timed
from .steps import LENGTH, prepare

ROWS = 16
"""Batch of the published figures below"""

OFFICIAL = {"full fine-tuning": 59.70, "R-Adapter": 48.34}
"""GFLOP of steps of the published code at this shape, whole context, same counter"""

DRAWS = 20
"""Steps over which FLOPs that depend on what is dropped are averaged"""


def batch(trimmed: bool) -> Batch:
    """Return the shared inputs, 16 rows, with texts of full length or cut to the longest."""
    rows = Batch(*(part[:ROWS] for part in inputs()))
    return rows._replace(tokens=shape().trim(rows.tokens)) if trimmed else rows


def learner_of(method: Any) -> Learner:
    """Return a method at work on a fresh model of the benchmark's shape."""
    learner: Learner = method.build(shape(), Context(LENGTH, (), (), shape))
    return learner.train()


def step_of(learner: Learner, rows: Batch) -> Action:
    """Return a step of perdure's loop that logs nothing."""
    spec = OptimSpec(lr=1e-5, weight_decay=0.0, batch_size=ROWS, epochs=1)
    optimizer, schedule = make(learner, spec, LENGTH)
    runtime = Runtime("cpu", threads=1)

    def forever() -> Any:
        while True:
            yield rows

    ticks = steps(learner, forever(), optimizer, schedule, runtime, read=lambda step: False)
    next(ticks)
    return lambda: next(ticks)


def trained(rank_image: int | None, rank_text: int | None, mode: Any = "module") -> Learner:
    """Return R-Adapter of some ranks."""
    return learner_of(RAdapter(rank_image=rank_image, rank_text=rank_text, drop_mode=mode))


def training(rounds: int) -> None:
    """Print what a training step costs."""
    whole, cut = batch(trimmed=False), batch(trimmed=True)
    cases = {
        "full fine-tuning, whole context": (learner_of(Flyp()), whole),
        "R-Adapter, published pattern": (trained(None, None, "token"), whole),
        "full fine-tuning, perdure": (learner_of(Flyp()), cut),
        "R-Adapter, full rank, perdure": (trained(None, None), cut),
        "R-Adapter, rank 1/8 of the width, perdure": (trained(32, 24), cut),
    }
    actions = {name: step_of(*case) for name, case in cases.items()}
    flops = {}
    print("| step, batch 16 | trained | GFLOP | operators |\n|---|---|---|---|")
    for name, action in actions.items():
        found = [counted(action)[:2] for _ in range(DRAWS if "perdure" in name else 1)]
        flops[name] = sum(gflop for gflop, _ in found) / len(found)
        count = sum(p.numel() for p in cases[name][0].parameters() if p.requires_grad)
        operators = sum(number for _, number in found) / len(found)
        print(f"| {name} | {count:,} | {flops[name]:.2f} | {operators:,.0f} |", flush=True)
    for name, official in zip(list(cases)[:2], OFFICIAL.values(), strict=True):
        share = flops[name] / official
        print(f"\n- {name}: {share:.3f} of the published code's {official} GFLOP")
        if abs(share - 1) > 0.02:
            sys.exit("the pattern is not the published code's, so ratios to it mean nothing")
    seconds = timed(actions, rounds)
    print()
    whole_tuning, published, tuning, _, ours = cases
    for against in (tuning, whole_tuning, published):
        print(f"- {ours} / {against}: {ratio(seconds, ours, against)} CPU, "
              f"{flops[ours] / flops[against]:.3f} FLOPs")  # fmt: skip


def random_adapters(rank: int | None) -> Predictor:
    """Return a model with adapters that do something."""
    predictor = shape().eval()
    predictor.attach(Residual(rank_image=rank, rank_text=rank))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in predictor.added().values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return predictor


@torch.no_grad()
def serving(rounds: int) -> None:
    """Print what a folded image tower costs beside a plain one, for several ranks."""
    images = inputs().images[:ROWS]
    plain = shape().eval()
    actions: dict[str, Action] = {"plain": lambda: plain.encode_image(images)}
    expected = counted(actions["plain"])
    print(f"\n- plain image tower: {expected[0]:.3f} GFLOP, {expected[1]} operators")
    for rank in (None, 1, 32, 128):
        adapted = random_adapters(rank)
        folded = adapted.fold(0.5)
        adapted.set_alpha(0.5)
        name = f"folded, rank {rank or 'full'}"
        actions[name] = lambda folded=folded: folded.encode_image(images)
        found = counted(actions[name])
        apart = (folded.encode_image(images) - adapted.encode_image(images)).abs().max()
        print(f"- {name}: {found[0]:.3f} GFLOP, {found[1]} operators; at most {float(apart):.1e} "
              "from unfolded embeddings")  # fmt: skip
        if found[:2] != expected[:2]:
            sys.exit("a folded model is not a plain one")
    seconds = timed(actions, rounds)
    for name in list(actions)[1:]:
        print(f"- {name} / plain: {ratio(seconds, name, 'plain')} CPU")


def averaging(rounds: int) -> None:
    """Print what one update of the average of full-rank adapters costs."""
    live = {name: value.detach() for name, value in random_adapters(None).added().items()}
    mean, snapshot = {name: value.clone() for name, value in live.items()}, Snapshot(live)

    def as_published() -> None:
        for name, value in live.items():
            mean[name] = 0.999 * mean[name] + 0.001 * value

    seconds = timed(
        {"published": as_published, "ours": lambda: snapshot.mix_(live, 0.001)}, rounds * 5
    )
    print(f"\n- update of the average / published: {ratio(seconds, 'ours', 'published')} CPU")


def storing() -> None:
    """Print how large what is stored of a tuned model is."""
    adapted = random_adapters(None)
    added = {name: value.detach() for name, value in adapted.added().items()}
    size = len(save(added))
    twice = sum(value.numel() for value in (*adapted.parameters(), *added.values()))
    print(f"- adapters alone: {size / 1e6:.1f} MB; model with live and averaged adapters "
          f"{4 * twice / 1e6:.1f} MB: {size / (4 * twice):.3f}")  # fmt: skip


def main() -> None:
    """Print training, serving, averaging and storing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    prepare()
    training(rounds)
    serving(rounds)
    averaging(rounds)
    storing()


if __name__ == "__main__":
    main()
