"""The whole story on one page: zero-shot, fine-tuned, forgotten, and not forgotten.

Trains FT, FLYP and TRACER with their shipped recipes on the embedded benchmark, scores the line of
weights from the start to each of them, and writes table, figures and report.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .comparison import Curve, Point
from .console import Meter
from .errors import RunError
from .evaluation import Scores, evaluate
from .figures import Confidence, frontier, reliability
from .files import write_json, write_text
from .merging import merge
from .prediction import How
from .recipe import Recipe, load_recipe
from .records import summary
from .reporting import report
from .run import Run
from .sweeping import ALPHAS, sweep_run
from .training import train

SUITE = "emojishift"

MARKER = "demo.json"
"""Written first, so that a directory is known to be a demo's and may be replaced by the next"""

STEP_COST: Mapping[str, float] = {"ft": 0.13, "flyp": 0.15, "tracer": 0.18}
"""Rough seconds of a training step on one core, to tell how much of the work is done"""

IMAGE_COST = 1 / 1400
"""Rough seconds to score an image on one core"""

RENDER_COST = 9.0
"""Rough seconds until all test images are drawn, which happens when they are first looked at"""


@dataclass(frozen=True)
class Plan:
    """How much of the benchmark a demo looks at."""

    epochs: int
    alphas: tuple[float, ...]
    """Interpolation shares, without 0, which is the zero-shot model"""
    limit: int
    """Images per split"""

    def effort(self) -> float:
        """Return rough seconds on one core, for the progress bar."""
        steps = 20 * self.epochs
        scored = 6 * self.limit * (1 + len(STEP_COST) * len(self.alphas))
        return RENDER_COST + steps * sum(STEP_COST.values()) + scored * IMAGE_COST


FULL = Plan(epochs=10, alphas=ALPHAS[1:], limit=1600)

QUICK = Plan(epochs=5, alphas=(0.25, 0.5, 0.75, 1.0), limit=480)


def plan(quick: bool) -> Plan:
    """Return the plan of the quick or the full demo."""
    return QUICK if quick else FULL


def run_demo(
    out: Path | str,
    *,
    quick: bool = False,
    model: str = "perdure-tiny",
    seed: int = 0,
    meter: Meter | None = None,
) -> list[dict[str, Any]]:
    """Train, score and draw; everything lands in `out`.

    Args:
        out: New directory, or that of an earlier demo, which is replaced.
        quick: Half the epochs, 480 images per split, four alphas; for a first look.
        model: Start of the fine-tuning.
        seed: Of the fine-tuning.
        meter: Shows progress over `Plan.effort` units.

    Returns:
        One row per model: method, alpha (None where nothing was interpolated), seed, id, ood,
        ece_id, ece_ood, splits, trainable, seconds of training; shares in [0, 1].

    Raises:
        RunError: If `out` holds anything else than an earlier demo.
    """
    chosen = plan(quick)
    out = Path(out)
    recipes = {
        name: load_recipe(
            f"emojishift/{name}",
            (f"model.name={model}", f"seed={seed}", f"optim.epochs={chosen.epochs}"),
        )
        for name in STEP_COST
    }
    _take_over(out)
    meter = meter or _Silent()
    start = merge("zero-shot", [model], out / "zero-shot")
    meter.describe("zero-shot: drawing and scoring")

    def first(images: int) -> None:
        meter.advance(images * (IMAGE_COST + RENDER_COST / (6 * chosen.limit)))

    def scored(images: int) -> None:
        meter.advance(images * IMAGE_COST)

    zero_shot = evaluate(start, SUITE, limit=chosen.limit, progress=first)
    rows = [_row("zero-shot", None, None, zero_shot, trainable=0, seconds=0.0)]
    curves: dict[str, dict[float, Scores]] = {}
    for name, recipe in recipes.items():
        run = _train(name, recipe, out / name, chosen, meter)
        meter.describe(f"{name}: scoring {len(chosen.alphas)} models")
        how = How(limit=chosen.limit, progress=scored)
        curves[name] = sweep_run(run.path, SUITE, alphas=chosen.alphas, how=how)
        status = run.status()
        for alpha, scores in sorted(curves[name].items(), reverse=True):
            share = None if alpha == 1.0 else alpha
            cost = {"trainable": status["trainable"], "seconds": status["seconds"]}
            rows.append(_row(name, share, seed, scores, **cost))
    meter.describe("drawing")
    _draw(out, zero_shot, curves, seed)
    write_text(out / "report.md", _page(out, quick, zero_shot))
    write_json(out / MARKER, {"state": "finished", "quick": quick, "rows": rows})
    return rows


def _train(name: str, recipe: Recipe, out: Path, plan: Plan, meter: Meter) -> Run:
    """Train one method and tell the meter after every step."""
    effort = 20 * plan.epochs * STEP_COST[name]

    def finished(tick: Any, total: int) -> None:
        meter.describe(f"{name}: training", f"step {tick.step} of {total}")
        meter.advance(effort / total)

    meter.describe(f"{name}: training")
    return train(recipe, out, progress=finished)


def _take_over(out: Path) -> None:
    """Make `out` an empty directory that is marked as a demo's.

    Raises:
        RunError: If it holds something that no demo has written.
    """
    if out.exists() and not (out / MARKER).is_file() and (out.is_file() or any(out.iterdir())):
        raise RunError(
            f"{out} holds something else than an earlier demo. "
            "Choose another directory: perdure demo --out DIR."
        )
    shutil.rmtree(out, ignore_errors=True)
    write_json(out / MARKER, {"state": "running"})


def _row(
    method: str,
    alpha: float | None,
    seed: int | None,
    scores: Scores,
    *,
    trainable: int,
    seconds: float,
) -> dict[str, Any]:
    """Return one model as the demo's JSON lists it."""
    values = summary(scores.splits)
    words = {word: values[word] for word in ("id", "ood", "ece_id", "ece_ood")}
    splits = {
        name: {metric: entry[metric] for metric in ("accuracy", "ece", "nll", "n")}
        for name, entry in scores.splits.items()
    }
    return {
        "method": method,
        "alpha": alpha,
        "seed": seed,
        **words,
        "splits": splits,
        "trainable": trainable,
        "seconds": round(seconds, 2),
    }


def _draw(
    out: Path, zero_shot: Scores, curves: Mapping[str, Mapping[float, Scores]], seed: int
) -> None:
    """Write both figures."""
    start = summary(zero_shot.splits)
    shifted = [name for name, entry in zero_shot.splits.items() if entry["role"] == "ood"]
    drawn = []
    for name, found in curves.items():
        points = [Point(0.0, start["id"], start["ood"])]
        for alpha, scores in sorted(found.items()):
            values = summary(scores.splits)
            points.append(Point(alpha, values["id"], values["ood"]))
        drawn.append(Curve(name, seed, tuple(points)))
    frontier(
        drawn,
        (start["id"], start["ood"]),
        out / "frontier.png",
        suite=SUITE,
        shifted=shifted,
        images=int(zero_shot["id"]["n"]),
    )
    panels = {"zero-shot": zero_shot, **{name: found[1.0] for name, found in curves.items()}}
    reliability(
        {
            name: {
                "ID": _joined(scores, ["id"]),
                "OOD": _joined(scores, shifted),
            }
            for name, scores in panels.items()
        },
        out / "reliability.png",
        suite=SUITE,
    )


def _joined(scores: Scores, names: Sequence[str]) -> Confidence:
    """Join the images of several splits, and average their calibration errors."""
    return Confidence(
        np.concatenate([scores.outcomes[name].confidence for name in names]),
        np.concatenate([scores.outcomes[name].correct for name in names]),
        float(np.mean([scores[name]["ece"] for name in names])),
    )


def _page(out: Path, quick: bool, zero_shot: Scores) -> str:
    """Return the report: figures first, then every number."""
    runs = [out / name for name in ("zero-shot", *STEP_COST)]
    found = report(runs, against="flyp", at_id=(0.70, 0.75, 0.80))
    start = summary(zero_shot.splits)
    note = (
        "This was a quick look: half the training, fewer images. "
        "`perdure demo` without `--quick` gives the figures worth quoting.\n\n"
        if quick
        else ""
    )
    return f"""# What fine-tuning gains and what it forgets

{note}A small CLIP was fine-tuned to classify one artist's drawings of 80 things (ID) with three
methods, and scored on other artists' drawings of the same things, hard scenes and corruptions
(OOD). Zero-shot it starts at {100 * start["id"]:.1f} % ID and {100 * start["ood"]:.1f} % OOD.

![ID against OOD accuracy](frontier.png)

Every curve starts at the zero-shot model and ends, at its name, in the fine-tuned one; in between
their weights are interpolated (WiSE-FT). Higher at the same ID accuracy means less forgotten.

![Confidence against accuracy](reliability.png)

A curve below the dashed line is a model that is surer than it is right.

{found.to_markdown().replace("# emojishift", "## Every number", 1)}
`id`, `ood`, `art`: accuracy on the task, mean over the five shifted sets, and the same without
`corrupt`. `ece_id`, `ece_ood`: calibration error there. `forgetting`: OOD accuracy lost against
zero-shot. One seed; `docs/results.md` has several, with spreads.

Again, by hand: `perdure train emojishift/tracer --out runs/tracer`, then
`perdure eval runs/tracer --suite emojishift --sweep`, then `perdure report runs/*`.
"""


class _Silent:
    """A meter that shows nothing."""

    def describe(self, phase: str, detail: str = "") -> None:
        """Ignore what is being done."""

    def advance(self, amount: float) -> None:
        """Ignore finished work."""
