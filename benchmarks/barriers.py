"""Scan the lines between zero-shot, repaired and tuned models for barriers, and one that has one.

    OMP_NUM_THREADS=1 python -m benchmarks.barriers [--seeds 0]

FT on EmojiShift and MERGETUNE after it: zero-shot -> repaired -> tuned, and zero-shot -> tuned as
the control. Beside these the line from the tuned model to itself with permuted hidden units: the
same function at both ends, so that whatever rises between them is a barrier, and a scan that sees
none would be worth nothing. Writes `docs/methods/mergetune-barriers.png` and the part `barriers` of
`docs/methods/mergetune.md`. Resumable: finished runs and scans are kept.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perdure import metrics, train, zoo
from perdure.comparison import over_seeds
from perdure.figure_style import COLOURS, picture
from perdure.files import read_json, write_json
from perdure.path import scan
from perdure.prediction import How
from perdure.predictor import Predictor
from perdure.recipe import load_recipe
from perdure.run import Run
from perdure.tables import cell, table

ROOT = Path("runs/barriers")
FIGURES = Path("benchmarks/figures/barriers.json")
PICTURE = Path("docs/methods/mergetune-barriers.png")
SUITE = "emojishift"
POINTS = 11
LIMIT = 400
"""Images per split, evenly spread"""
NAMES = ("zero-shot", "FT + MERGETUNE", "FT")
PERMUTED = "FT, permuted"
MEASURED = ("nll", "accuracy")

Floats = NDArray[np.float64]


@torch.no_grad()
def permuted(model: Predictor, seed: int) -> Predictor:
    """Return a copy whose blocks have their hidden units in another order: the same function.

    Args:
        model: With open_clip's own transformers in the towers that count.
        seed: Of the orders, one per block.
    """
    other = model.copy()
    generator = torch.Generator().manual_seed(seed)
    for part in other.clip.modules():
        if hasattr(part, "c_fc") and hasattr(part, "c_proj"):
            order = torch.randperm(len(part.c_fc.bias), generator=generator)
            part.c_fc.weight.copy_(part.c_fc.weight[order])
            part.c_fc.bias.copy_(part.c_fc.bias[order])
            part.c_proj.weight.copy_(part.c_proj.weight[:, order])
    return other


def models(seed: int) -> tuple[Predictor, Predictor, Predictor]:
    """Return zero-shot, repaired and tuned model of a seed; trains what is missing."""
    own = (f"seed={seed}", "run.device=cpu", "run.threads=1")
    tuned = train(load_recipe("emojishift/ft", own), ROOT / f"ft-{seed}", resume=True)
    again = (*own, f"model.init={tuned.path}")
    recipe = load_recipe("emojishift/mergetune-ft", again)
    repaired = train(recipe, ROOT / f"mergetune-{seed}", resume=True)
    return zoo.load("perdure-tiny"), Run(repaired.path).predictor(), Run(tuned.path).predictor()


def measure(seed: int) -> dict[str, Any]:
    """Return the scans of a seed, as `PathScan.to_dict` has them."""
    start, repaired, tuned = models(seed)
    how = How(limit=LIMIT)
    found = scan([start, repaired, tuned], SUITE, names=NAMES, points=POINTS, how=how)
    ends = [tuned, permuted(tuned, seed)]
    other = scan(ends, SUITE, names=(NAMES[2], PERMUTED), points=POINTS, how=how)
    return {"lines": found.to_dict(), "permuted": other.to_dict()}


def segments(figures: Mapping[str, Any], seed: str) -> list[Mapping[str, Any]]:
    """Return all lines of a seed, the permuted one last."""
    found = figures[seed]
    return [*found["lines"]["segments"], *found["permuted"]["segments"]]


def curve(segment: Mapping[str, Any], role: str, what: str) -> Floats:
    """Return accuracy or nll along a line, (P,), mean over the splits of a role."""
    splits = [one[what] for one in segment["splits"].values() if one["role"] == role]
    return np.mean(splits, axis=0)


def barrier(along: Floats, what: str) -> float:
    """Return how far loss rises above, or accuracy falls below, the straight line."""
    kind = metrics.loss_barrier if what == "nll" else metrics.accuracy_barrier
    return kind(along)


def barriers() -> str:
    """Return the table of the page."""
    figures = read_json(FIGURES)
    seeds = sorted(figures)
    rows = []
    for number, first in enumerate(segments(figures, seeds[0])):
        lines = [segments(figures, seed)[number] for seed in seeds]
        cells = []
        for role in ("id", "ood"):
            losses, shares = ([curve(line, role, what) for line in lines] for what in MEASURED)
            found = over_seeds([barrier(each, "nll") for each in losses])
            spread = "" if found.sd is None else f" ± {found.sd:.3f}"
            lowest = np.mean(shares, axis=0)
            place = int(np.argmin(lowest))
            cells += [
                f"{found.mean:.3f}{spread}",
                cell(over_seeds([barrier(each, "accuracy") for each in shares])),
                f"{100 * lowest[place]:.1f} at {place / (POINTS - 1):.1f} "
                f"({100 * lowest[0]:.1f}, {100 * lowest[-1]:.1f})",
            ]
        name = f"{first['start']} → {first['end']}" + ", directly" * first["control"]
        rows.append([name, *cells])
    header = ["line"]
    header += [
        f"{role} {what}"
        for role in ("ID", "OOD")
        for what in ("loss barrier, nats", "accuracy barrier", "lowest accuracy (ends)")
    ]
    high = max(one["high"] for one in intervals(figures, "lines"))
    low = min(one["low"] for one in intervals(figures, "permuted"))
    return (
        f"{table(header, rows)}\n\n"
        f"Accuracies in per cent and their barriers in points, {named(seeds)}; n = {LIMIT} images "
        f"per set, {POINTS} "
        "points per line, all weights; OOD: the mean curve of the shifted sets. Of single sets and "
        f"seeds, the 95 % bootstrap interval over images of a loss barrier ends at {high:.3f} nats "
        f"or below on the first three lines, and begins at {low:.3f} or above on the last."
    )


def named(seeds: list[str]) -> str:
    """Return which seeds a number is of, for people."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"mean ± sd of seeds {', '.join(seeds)}"


def intervals(figures: Mapping[str, Any], kind: str) -> list[Mapping[str, float]]:
    """Return the loss barriers of every seed, line and split of one kind of scan."""
    return [
        split["loss_barrier"]
        for found in figures.values()
        for segment in found[kind]["segments"]
        for split in segment["splits"].values()
    ]


def draw(figures: Mapping[str, Any], out: Path) -> None:
    """Draw accuracy and loss along all lines, mean over seeds, single seeds faint."""
    seeds = sorted(figures)
    with picture(out, figsize=(9.2, 6.0)) as figure:
        panels = figure.subplots(2, 2, sharex="col", sharey="row", width_ratios=(2, 1))
        for row, what in enumerate(("accuracy", "nll")):
            for role, colour in zip(("id", "ood"), COLOURS, strict=False):
                for number in range(4):
                    curves = [curve(segments(figures, one)[number], role, what) for one in seeds]
                    curves = [100 * each if what == "accuracy" else each for each in curves]
                    control, last = number == 2, number == 3
                    first, width = (1, 1) if number == 1 else (0, 2 if control else 1)
                    xs = np.linspace(first, first + width, POINTS)
                    axes = panels[row][1 if last else 0]
                    style: dict[str, Any] = {"color": colour, "linewidth": 1.8, "marker": "o"}
                    style |= {"markersize": 3.5}
                    if control:
                        style |= {"linestyle": (0, (4, 3)), "linewidth": 1.3, "marker": ""}
                    for each in curves:
                        axes.plot(xs, each, color=colour, linewidth=0.6, alpha=0.35)
                    names = {0: role.upper(), 2: f"{role.upper()}, directly"}
                    label = names.get(number) if row == 0 and not last else None
                    axes.plot(xs, np.mean(curves, axis=0), label=label, **style)
            panels[row][0].axvline(1, color="#9a9a9a", linewidth=1)
        panels[0][0].set_ylabel("accuracy, %")
        panels[1][0].set_ylabel("negative log-likelihood, nats")
        panels[1][0].set_xticks([0, 1, 2], list(NAMES))
        panels[1][1].set_xticks([0, 1], [NAMES[2], "the same, hidden\nunits permuted"])
        panels[0][0].set_title("no barrier: zero-shot, repaired, tuned", fontsize=10)
        panels[0][1].set_title("a barrier", fontsize=10)
        panels[0][0].legend(fontsize=8, loc="lower left")
        figure.suptitle(
            f"{SUITE}: straight lines between models in all weights, {named(seeds)}, "
            f"{LIMIT} images per set; OOD: mean of the shifted sets",
            fontsize=10, x=0.01, ha="left",
        )  # fmt: skip


def main() -> None:
    """Measure what is missing, draw, and renew the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0", metavar="0,1,2")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    done: dict[str, Any] = read_json(FIGURES) if FIGURES.is_file() else {}
    for seed in asked.seeds.split(","):
        if seed not in done:
            done[seed] = measure(int(seed))
            write_json(FIGURES, done)
            print(f"seed {seed}: done", flush=True)
    draw(done, PICTURE)
    print(f"wrote {FIGURES} and {PICTURE}; renew the page with python -m benchmarks.pages")


if __name__ == "__main__":
    main()
