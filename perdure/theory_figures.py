"""Pictures of TRACER's linear theory, as `perdure theory --out` writes them. Matplotlib, no torch.

Every picture is a function that fills a figure with what `perdure.theory` computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from . import theory
from .figure_style import COLOURS, MARKERS, STYLE
from .theory.advice import PUBLISHED_BETA, PUBLISHED_STRENGTH
from .theory_report import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, GREY = "#222222", "#6b6b6b"
STATIC: dict[str, Any] = {"color": BLACK, "linewidth": 2, "linestyle": (0, (1, 1.2))}
FAINT: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": (0, (4, 3))}
"""Lines of the teacher that stays, and of reference"""

BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "fontsize": 9}
"""Legends stand beside the picture and cover nothing"""

FEW = 30
"""Updates of a teacher below which its curve has points"""

MOST = 1000
"""Points of a curve over the run"""

MARKED = (0.3, 0.9, 3.0)
"""Strengths with a marker on every line of the phase picture"""


def kept(figure: Figure, of: Setting) -> None:
    """Show what every regulariser keeps of the pre-trained weights, direction by direction."""
    axes = figure.subplots()
    curvatures = np.geomspace(1e-3, 1e3, 61)
    lines = theory.kept_of_start(np.append(0.0, curvatures), of.strength)
    bias = theory.operate(of.best.beta, of.strength, of.steps, of.every).bias
    wma = f"WMA teacher, beta {of.best.beta:g},\nafter {of.steps:,} steps"
    lines[wma] = np.append(1.0, np.full(61, bias))
    names = {"static self-distillation": "static self-distillation\n(= WiSE-FT afterwards)"}
    dashes = ("-", "--", "-", (0, (1, 1.5)), "-.")
    for number, (name, shares) in enumerate(lines.items()):
        look: dict[str, Any] = {"color": COLOURS[number], "clip_on": False, "zorder": 3}
        axes.plot(curvatures, shares[1:], linestyle=dashes[number], linewidth=2, **look)
        place = 2.5e-5 * 1.9**number  # side by side, for all but one of them agree
        axes.plot(place, shares[0], marker=MARKERS[number], markersize=8, **look)
        axes.plot([], [], color=COLOURS[number], linestyle=dashes[number], linewidth=2,
                  marker=MARKERS[number], label=names.get(name, name))  # fmt: skip
    axes.axvline(5e-4, color="#444444", linewidth=0.8)
    powers = range(-2, 4)
    axes.set(xscale="log", xlim=(1.5e-5, 1.2e3), ylim=(-0.04, 1.04))
    axes.minorticks_off()
    axes.set_xticks(
        [9e-5, *(10.0**power for power in powers)],
        ["outside of\nthe task", *(f"{10.0**power:g}" for power in powers)],
    )
    axes.set_xlabel(
        r"curvature $\sigma_k^2$ of a task direction: how much the images vary along it"
    )
    axes.set_ylabel("share of the pre-trained weights kept")
    axes.set_title(
        "What is kept of the pre-trained weights, direction by direction\n"
        rf"linear model, closed forms; strength $\lambda$ = {of.strength:g}"
    )
    axes.legend(**BESIDE, labelspacing=1.0)


def phase(figure: Figure, of: Setting) -> None:
    """Show bias against gap: a colour per beta, a line per strength, a panel per horizon."""
    horizons = sorted({of.steps // 100, of.steps // 10, of.steps})
    horizons = [steps for steps in horizons if steps >= 2 * of.every] or [of.steps]
    panels = figure.subplots(1, len(horizons), sharex=True, sharey=True, squeeze=False)[0]
    strengths = np.geomspace(0.1, 10, 31)
    for axes, steps in zip(panels, horizons, strict=True):
        for strength in MARKED:
            ends = np.array([1e-5, strength / (1 + strength)])
            axes.plot(ends, ends / strength, **FAINT)
        share = 1 / (1 + strengths)
        axes.plot(strengths * share, share, **STATIC, label="static teacher")
        grid = theory.phase(theory.BETAS, strengths, steps, of.every)
        marks = theory.phase(theory.BETAS, MARKED, steps, of.every)
        for row, beta in enumerate(theory.BETAS):
            look: dict[str, Any] = {"color": COLOURS[row], "marker": MARKERS[row]}
            axes.plot(grid.bias[row], grid.gap[row], color=COLOURS[row], linewidth=1.8)
            axes.plot(marks.bias[row], marks.gap[row], markersize=5, linestyle="none", **look)
            axes.plot([], [], label=f"WMA, beta {beta:g}", **look)
        axes.set(xscale="log", yscale="log", xlim=(3e-4, 4), ylim=(3e-4, 2))
        axes.set_title(f"{steps:,} step{'s' if steps > 1 else ''}")
        axes.set_xlabel("bias: what the task still lacks")
    for strength in MARKED:
        panels[0].annotate(
            rf"$\lambda$ = {strength:g}", (strength / (1 + strength), 1 / (1 + strength)),
            xytext=(1, 4), textcoords="offset points", fontsize=8, color=GREY,
        )  # fmt: skip
    best = of.best
    panels[-1].plot(best.bias, best.gap, marker="*", markersize=15, linestyle="none",
                    color=BLACK, markerfacecolor="white", label="recommended")  # fmt: skip
    panels[0].set_ylabel("gap: what the teacher still pulls at")
    panels[-1].legend(**BESIDE)
    figure.suptitle(
        "What is left at the end of a run, as shares of the error of the start "
        f"(teacher updated {of.often})\n"
        r"along a dashed line of one strength $\lambda$ less bias is less gap; beta and the length "
        "of the run choose the place",
        fontsize=10, x=0.01, ha="left",
    )  # fmt: skip


def teachers(figure: Figure, of: Setting) -> None:
    """Show how far student and teacher are apart in every round: EMAs collapse, WMAs persist."""
    exact, gradual = figure.subplots(1, 2, sharex=True, sharey=True)
    line_up = theory.line_up(of.steps, of.every, of.betas)
    updates = len(line_up[0].shares)
    # Fine-tuning alone would be within 1 % of the solution halfway; never so fast that it bounces.
    move = min(2 * np.log(100) / updates, 1 / (1 + of.strength))
    steps = np.minimum(np.arange(1, updates + 1) * of.every, of.steps)
    # The axis is logarithmic: of a long run these points draw the same line.
    shown = np.arange(updates)
    if updates > MOST:
        shown = np.unique(np.geomspace(1, updates, MOST).round().astype(int)) - 1
    for teacher in line_up:
        look = _look(of, teacher.name) | ({"marker": "."} if updates < FEW else {})
        errors = theory.round_errors(of.strength, teacher.shares)
        exact.plot(steps[shown], errors.gap[shown], label=teacher.name, **look)
        errors = theory.step_errors(1.0, move, of.strength, teacher.shares)
        gradual.plot(steps[shown], errors.gap[shown], **look)
    for axes in (exact, gradual):
        axes.set(xscale="log", yscale="log", ylim=(1e-4, 1.3), xlabel="optimiser step")
    exact.set_ylabel("gap of student and teacher,\nshare of the start's error")
    exact.set_title("every round solved to its end\n(the recursion of theorem C.8)")
    learned = 1 - (1 - move) ** (updates / 2)
    gradual.set_title(
        "one gradient step per round, in a direction that\n"
        f"fine-tuning alone learns to {100 * learned:.0f} % by half of the run"
    )
    figure.legend(*exact.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    figure.suptitle(
        "EMAs (dashed) lose their gap after a time of their own, WMAs (solid) keep some of it\n"
        rf"{of.run}, $\lambda$ = {of.strength:g}",
        fontsize=11, x=0.01, ha="left",
    )  # fmt: skip


def horizon(figure: Figure, of: Setting) -> None:
    """Show how the bias at the end falls with the length of a run, teachers moving every step."""
    axes = figure.subplots()
    shortest, longest = 2 * of.every, max(of.steps, 100_000)
    lengths = np.unique(np.rint(np.geomspace(shortest, longest, 36)))
    found = theory.horizon(of.strength, lengths, of.every, of.betas)
    good = theory.plateau()
    axes.axhspan(good.low, good.high, color="#009e73", alpha=0.12, linewidth=0,
                 label=f"best published OOD accuracy\n({good.best:.1f} less at most "
                       f"{good.margin:.1f} points)")  # fmt: skip
    axes.axhline(of.target, **FAINT, label=f"bias wanted, {of.target:.3g}")
    for name, bias in found.bias.items():
        axes.plot(found.lengths, bias, label=name, **_look(of, name))
    axes.axvline(of.steps, color="#444444", linewidth=0.8)
    left = of.steps < 20 * shortest
    side: dict[str, Any] = {"xytext": (4, 0), "ha": "left"} if left else {"xytext": (-4, 0)}
    axes.annotate(f"{of.steps:,} steps", (of.steps, 0.7), fontsize=8,
                  textcoords="offset points", **{"ha": "right", **side})  # fmt: skip
    axes.set(xscale="log", yscale="log", ylim=(1e-4, 1.0), xlim=(shortest, longest * 1.1))
    axes.set_xlabel("length of the run, optimiser steps")
    axes.set_ylabel("bias at the end, share of the start's error")
    axes.set_title(
        "What the task still lacks at the end, by the length of the run\n"
        rf"theorem C.8, teacher updated {of.often}, $\lambda$ = {of.strength:g}"
    )
    axes.legend(**BESIDE)


def choice(figure: Figure, of: Setting) -> None:
    """Show bias and gap for every beta and strength, and where the recommendation lies."""
    from matplotlib.colors import LogNorm
    from matplotlib.patheffects import withStroke

    axes = figure.subplots()
    best, target = of.best, of.target
    low, high = min(0.1, best.strength / 2), max(10.0, best.strength * 2)
    betas, strengths = np.geomspace(0.05, 3.0, 25), np.geomspace(low, high, 25)
    grid = theory.phase(betas, strengths, of.steps, of.every)
    shown = np.clip(grid.bias, 1e-4, 1.0).T
    colours = axes.pcolormesh(betas, strengths, shown, norm=LogNorm(1e-4, 1.0), cmap="cividis",
                              shading="gouraud", rasterized=True)  # fmt: skip
    figure.colorbar(colours, ax=axes, label="bias at the end (1e-4 and less: darkest)")
    halo: list[Any] = [withStroke(linewidth=2.5, foreground=BLACK)]
    levels = [1e-3, 1e-2, 3e-2, 1e-1]
    lines = axes.contour(betas, strengths, grid.gap.T, levels, colors="white", linewidths=1)
    lines.set(path_effects=halo)
    for text in axes.clabel(
        lines, fmt=lambda level: f"gap {level:g}", fontsize=8, inline_spacing=1
    ):
        text.set_path_effects(halo)
    axes.contour(betas, strengths, grid.bias.T, [target], colors="white", linewidths=3.5)
    axes.contour(betas, strengths, grid.bias.T, [target], colors="#d55e00", linewidths=2)
    axes.plot([], [], color="#d55e00", linewidth=1.8, label=f"bias {target:.3g}, as wanted")
    axes.plot(best.beta, best.strength, marker="*", markersize=17, color=BLACK,
              markerfacecolor="white", linestyle="none", clip_on=False,
              label=f"recommended: beta {best.beta:g}, strength {best.strength:g}")  # fmt: skip
    axes.plot(PUBLISHED_BETA, PUBLISHED_STRENGTH, marker="o", color=BLACK, linestyle="none",
              markerfacecolor="#e69f00", label="published setting")  # fmt: skip
    axes.grid(visible=False)
    axes.set(xscale="log", yscale="log", xlim=(0.05, 3.0), ylim=(low, high))
    axes.set_xticks([0.05, 0.1, 0.2, 0.5, 1, 2, 3], ["0.05", "0.1", "0.2", "0.5", "1", "2", "3"])
    ticks = [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("beta of the teacher's kernel (1: plain mean of the run)")
    axes.set_ylabel(r"strength $\lambda$ of distillation")
    axes.set_title(f"Which beta and strength: {of.run}")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)


def published(figure: Figure, of: Setting) -> None:
    """Show every published run against what the model predicts for its settings."""
    found = {(one.table, one.column): one for one in theory.compare_published()}
    panels: list[Axes] = list(figure.subplots(2, 2).flat)
    units = {"ID accuracy": "%, ImageNet", "OOD accuracy": "%, mean of 5 sets",
             "OOD ECE": "share, as published"}  # fmt: skip
    for axes, (column, unit) in zip(panels, units.items(), strict=False):
        names = {"beta": "beta", "strength": "strength", "every": "update interval"}
        for number, (table, name) in enumerate(names.items()):
            one = found[table, column]
            axes.plot(one.predicted, one.published, color=COLOURS[number], linestyle="-",
                      marker=MARKERS[number], linewidth=0.8, markersize=5,
                      label=f"{name} varied, n = {len(one.labels)}")  # fmt: skip
        every = found["all", column]
        axes.set(xscale="log", ylabel=f"{column}, {unit}")
        axes.set_title(f"{column}: rank correlation {every.rho:.2f} (n = {len(every.labels)})")
        axes.set_xlabel("predicted bias at the end")
    good = theory.plateau()
    panels[1].axvspan(good.low, good.high, color="#009e73", alpha=0.12, linewidth=0)
    last = found["teacher", "KL"]
    kinds = {"EMA every": "EMA, every step or 500", "WMA beta": "WMA, beta varied",
             "WMA every": "WMA, interval varied"}  # fmt: skip
    for (kind, name), shade in zip(kinds.items(), (3, 0, 2), strict=True):
        rows = [at for at, label in enumerate(last.labels) if label.startswith(kind)]
        panels[3].plot(last.predicted[rows], last.published[rows], color=COLOURS[shade],
                       marker=MARKERS[shade], linestyle="none", label=name)  # fmt: skip
    panels[3].set(xscale="log", yscale="log", ylabel="teacher-student divergence (KL)")
    panels[3].set_xlabel("predicted mean gap over the run")
    panels[3].set_title(f"Divergence: rank correlation {last.rho:.2f} (n = {len(last.labels)})")
    panels[3].legend(fontsize=8)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle(
        "TRACER's published runs (ViT-B/16, ImageNet, 25,030 steps, one run per point) against the "
        "linear model\nshaded: OOD accuracy within two standard deviations (seeds) of the best",
        fontsize=10, x=0.01, ha="left",
    )  # fmt: skip


PICTURES: dict[str, tuple[Callable[[Figure, Setting], None], tuple[float, float]]] = {
    "kept": (kept, (9.0, 4.2)),
    "phase": (phase, (10.5, 4.2)),
    "teachers": (teachers, (10.5, 4.2)),
    "horizon": (horizon, (8.6, 4.4)),
    "choice": (choice, (7.2, 5.4)),
    "published": (published, (9.0, 7.0)),
}
"""File name without suffix to what fills it and its size in inches"""


def draw(of: Setting) -> Iterator[tuple[str, bytes]]:
    """Yield name and PNG of every picture."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for name, (fill, size) in PICTURES.items():
        with rc_context(STYLE):
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            fill(figure, of)
            written = BytesIO()
            figure.savefig(written, format="png", pil_kwargs={"optimize": True})
        yield f"{name}.png", written.getvalue()


def _look(of: Setting, name: str) -> dict[str, Any]:
    """Return how the line of a teacher looks, the same in all pictures."""
    if name == "static":
        return STATIC
    if name.startswith("EMA"):
        names = [f"EMA {decay:g}" for decay in theory.DECAYS]
        return {"color": COLOURS[4 + names.index(name)], "linewidth": 1.8, "linestyle": "--"}
    names = [f"WMA beta {beta:g}" for beta in theory.BETAS]
    colour = COLOURS[names.index(name)] if name in names else BLACK
    recommended = name == f"WMA beta {of.best.beta:g}"
    return {"color": colour, "linewidth": 3 if recommended else 1.8}
