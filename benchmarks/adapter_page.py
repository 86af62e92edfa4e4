"""Turn measured ablations and choices of alpha into `docs/results-adapters.md` and two pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perdure.comparison import over_seeds
from perdure.figure_style import COLOURS, STYLE
from perdure.predictor import Predictor
from perdure.surgery.adapter import Adapter
from perdure.surgery.residual import adapters
from perdure.tables import cell, table

RULES = {
    "fixed": "fixed 0.5",
    "id_one_se": "id_one_se",
    "leave_concepts_out": "leave_concepts_out (1 division)",
    "stock": "stock (2 runs)",
    "mono": "mono",
    "lines": "lines",
    "dynamic": "dynamic (4 copies)",
    "alpha 1": "alpha 1 (no choice)",
}


def page(ablations: Mapping[str, str], rules: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page."""
    remarks = Path("benchmarks/figures/adapter_remarks.md")
    parts = [
        "# R-Adapter on EmojiShift: its parts, and the choice of alpha",
        "Written by `python -m benchmarks.adapter_study` (resumable); not edited by hand. The main "
        "table, with FT, FLYP, TRACER and LoRA, is in [results.md](results.md); the method in "
        "[methods/radapter.md](methods/radapter.md). Shipped checkpoint, recipe "
        "`emojishift/radapter` with its chosen rate, not chosen again for variants; n = 1,600 "
        "images per set; OOD is the unweighted mean of the five shifted sets. Differences have "
        "95 % intervals over images, paired by image; they do not cover the choice of seeds.",
        "## Dropping, averaging, re-scaling",
        "First row: all three. Rows that differ only in alpha or in averaging share one training.",
        body(ablations["ensembles"]),
        "## The loss",
        body(ablations["losses"]),
        "## Choosing alpha without shifted data",
        f"R-Adapter at {len(rules)} seeds; every rule sees `val` (n = 1,600, the training domain) "
        "at most. `OOD regret`: best OOD accuracy on the line (alpha = 0, 0.125, ..., 1) minus "
        "that of the choice; `mean regret`: the same of (ID + OOD) / 2. The choices by tensor or "
        "by image (stock, mono, lines, dynamic) leave the line and may beat it, which is a "
        "negative regret. Mean ± sample standard deviation over seeds, in points; `s`: seconds "
        "of the choice on one thread of a busy machine.",
        table(
            ["rule", "alpha per seed", "ID", "OOD", "OOD regret", "mean regret", "s"],
            [row(rule, title, rules) for rule, title in RULES.items()],
        ),
    ]
    if remarks.is_file():
        parts.append(remarks.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts) + "\n"


def body(markdown: str) -> str:
    """Return a report without its title."""
    lines = markdown.strip().splitlines()
    return "\n".join(lines[1:] if lines[0].startswith("# ") else lines).strip()


def row(rule: str, title: str, seeds: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what one rule came to."""
    found = [entry[rule] for _, entry in sorted(seeds.items())]
    alphas = ", ".join("-" if one["alpha"] is None else f"{one['alpha']:g}" for one in found)
    if all(one["alpha"] is None for one in found):
        alphas = "by image" if rule == "dynamic" else "by tensor"
    middle = [one["middle"] - (one["id"] + one["ood"]) / 2 for one in found]
    return [
        title,
        alphas,
        cell(over_seeds([one["id"] for one in found])),
        cell(over_seeds([one["ood"] for one in found])),
        cell(over_seeds([one["best"] - one["ood"] for one in found]), sign=True),
        cell(over_seeds(middle), sign=True),
        f"{np.mean([one['seconds'] for one in found]):.0f}",
    ]


def draw_strength(curves: Sequence[Mapping[float, tuple[float, float]]], out: Path) -> None:
    """Draw ID and OOD accuracy over alpha, seeds thin and their mean thick."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("Agg")
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6, 3.6))
        grid = list(curves[0])
        for index, (name, colour) in enumerate(
            zip(("ID", "OOD, mean of 5 sets"), COLOURS, strict=False)
        ):
            values = 100 * np.array([[points[alpha][index] for alpha in grid] for points in curves])
            for seed in values:
                axes.plot(grid, seed, color=colour, linewidth=0.7, alpha=0.5)
            axes.plot(grid, values.mean(axis=0), color=colour, marker="o", markersize=4, label=name)
        axes.set(
            xlabel="alpha", ylabel="accuracy, %",
            title=f"R-Adapter on EmojiShift, {len(curves)} seeds, 1,600 images per set",
        )  # fmt: skip
        axes.legend()
        figure.savefig(out)
        pyplot.close(figure)


def length(adapter: Adapter) -> float:
    """Return the Frobenius norm of what an adapter adds per unit of its input."""
    whole = adapter.weight
    if whole is None:
        assert adapter.up is not None
        assert adapter.down is not None
        whole = adapter.up @ adapter.down
    gate = 1.0 if adapter.gate is None else float(adapter.gate.detach())
    return abs(gate) * float(whole.detach().norm())


def draw_norms(predictors: Sequence[Path], out: Path) -> None:
    """Draw how long every adapter's effective matrix is, by block, mean over seeds."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("Agg")
    lengths: dict[str, list[float]] = {}
    for path in predictors:
        for name, adapter in adapters(Predictor.load(path).clip).items():
            lengths.setdefault(name, []).append(length(adapter))
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6, 3.6))
        for colour, (tower, part) in zip(
            COLOURS,
            (("image", "attention"), ("image", "mlp"), ("text", "attention"), ("text", "mlp")),
            strict=False,
        ):
            mine = [
                np.mean(values)
                for name, values in lengths.items()
                if name.startswith("visual.") == (tower == "image")
                and name.endswith("attn") == (part == "attention")
            ]
            axes.plot(
                range(len(mine)), mine, color=colour, marker="o", markersize=4,
                label=f"{tower}, {part}",
            )  # fmt: skip
        axes.set(
            xlabel="block", ylabel="Frobenius norm of s F",
            title=f"Averaged adapters after training, mean of {len(predictors)} seeds",
        )  # fmt: skip
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        figure.savefig(out)
        pyplot.close(figure)
