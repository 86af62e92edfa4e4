"""Turn the figures of `benchmarks.theory_toy` into `docs/theory-toy.md`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perdure.comparison import over_seeds
from perdure.files import write_text
from perdure.tables import cell, table

from . import theory_toy

PAGE = Path("docs/theory-toy.md")
LABELS = {"ft": "FT", "l2sp": "L2-SP", "static": "static SD", "ema": "EMA SD", "wma": "WMA SD"}

Figures = Mapping[str, Any]


def column(figures: Figures, method: str, name: str) -> list[float]:
    """Return one figure of a method, one entry per seed."""
    return [entry[name] for _, entry in sorted(figures[method].items())]


def held(figures: Figures, name: str, order: Sequence[str]) -> str:
    """Return in how many seeds a figure strictly falls along an order of methods."""
    rows = np.array([column(figures, method, name) for method in order])
    count = int(np.all(np.diff(rows, axis=0) < 0, axis=0).sum())
    return f"{count} of {rows.shape[1]}"


def shares(values: Sequence[float]) -> str:
    """Return mean and sample standard deviation of shares that are no accuracies."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def page(figures: Figures) -> str:
    """Return the page."""
    start, seeds = figures["zero-shot"], len(figures["ft"])
    kept = [
        ["zero-shot", *(f"{100 * start[name]:.1f}" for name in ("id", "ood", "other"))],
        *(
            [LABELS[m], *(cell(over_seeds(column(figures, m, n))) for n in ("id", "ood", "other"))]
            for m in LABELS
        ),
    ]
    static = float(np.mean(column(figures, "static", "along_task")))
    strength = (1 - static) / static
    theory = theory_toy.predicted(strength)
    moved = [
        [
            LABELS[method],
            "-" if method == "l2sp" else f"{theory[method][0]:.3f}",
            shares(column(figures, method, "along_task")),
            shares(column(figures, method, "length_task")),
            "-" if method in ("ft", "l2sp") else shares(column(figures, method, "gap")),
        ]
        for method in LABELS
    ]
    way = ("ft", "ema", "wma", "static")
    parts = [
        "# TRACER's toy experiment on EmojiShift",
        "Written by `python -m benchmarks.theory_toy` (resumable); not edited by hand. "
        "perdure-tiny, image tower only, text tower frozen; "
        f"{theory_toy.STEPS} steps of 64 images at rate 1e-3 without weight decay for every "
        "method, none of it tuned. Self-distillation (SD) pulls image features to the teacher "
        f"with strength {theory_toy.STRENGTH} and weight 3.906; L2-SP has the contrastive loss "
        "and strength 0.3. The paper's toy is MNIST and coloured MNIST (arXiv 2605.29380); "
        "only its question is the same.",
        "## Gained and kept",
        f"Accuracy in per cent, mean ± sample standard deviation of {seeds} seeds, "
        f"n = {theory_toy.LIMIT} images per set: the task (ID), the mean of its five shifted "
        "sets (OOD), and `val_shift`, 60 concepts that fine-tuning never names. The "
        "settings of training were fixed beforehand; the number of scored images was cut to this "
        "for speed after FT's first seed had been scored. L2-SP's strength is that of its recipe, "
        "which was chosen with a view to `val_shift`, the others' were not.",
        table(["method", "ID", "OOD", "other concepts"], kept),
        "## How far each goes",
        "`along`: displacement of image features on the task, projected on FT's of the same "
        "seed (FT = 1). `length`: how long the displacement is, as a share of FT's. `gap`: "
        "root mean squared distance of student and teacher features in the last step. The "
        f"predicted column is the paper's linear model with lambda = {strength:.2f}, the one "
        "value fitted: that at which static SD is where it was measured. Features of "
        f"{theory_toy.IMAGES} images per set.",
        table(["method", "predicted along", "along", "length", "gap"], moved),
        "## Does the order of the linear theory appear?",
        f"- Along FT's way, FT > EMA > WMA > static: in {held(figures, 'along_task', way)} "
        "seeds.\n"
        "- Gap to the teacher, static > WMA > EMA: in "
        f"{held(figures, 'gap', ('static', 'wma', 'ema'))} seeds.\n"
        "- Accuracy on other concepts, static > WMA > EMA > FT (more pull, more kept): in "
        f"{held(figures, 'other', way[::-1])} seeds; static > WMA > FT alone: in "
        f"{held(figures, 'other', ('static', 'wma', 'ft'))}.\n"
        "- The paper's own toy keeps most with a dynamic teacher, WMA > static > L2-SP > FT: "
        f"in {held(figures, 'other', ('wma', 'static', 'l2sp', 'ft'))} seeds on other "
        f"concepts, in {held(figures, 'ood', ('wma', 'static', 'l2sp', 'ft'))} on OOD.\n"
        "- ID accuracy, FT > static (bias costs the task): in "
        f"{held(figures, 'id', ('ft', 'static'))} seeds; WMA > static: in "
        f"{held(figures, 'id', ('wma', 'static'))}; static > L2-SP: in "
        f"{held(figures, 'id', ('static', 'l2sp'))}.",
        "What does not carry over: the sizes (compare the two columns `along`), since steps "
        "are single gradient steps of a network and not exact solutions; and the linear "
        "model's untouched complement, which says nothing about concepts whose images share "
        "the features of the task. L2-SP's strength and that of distillation are in different "
        "units, so its place among the others is one of these settings, not of the methods.",
    ]
    return "\n\n".join(parts) + "\n"


def write_page(figures: Figures) -> None:
    """Write the page."""
    write_text(PAGE, page(figures))
    print(f"wrote {PAGE}")
