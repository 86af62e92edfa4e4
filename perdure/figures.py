"""Pictures: the ID-OOD frontier, the reliability diagram, lines between models. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .comparison import Curve
from .figure_style import COLOURS, MARKERS, picture
from .metrics import reliability_bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .path import PathScan, Segment

FEW = 10
"""Fewer images than these make no point of a reliability diagram"""


class Confidence(NamedTuple):
    """How sure a model was of its predictions and whether they were right."""

    confidence: NDArray[np.float32]
    """Largest class probability per image, (N,), in [0, 1]"""
    correct: NDArray[np.bool_]
    """(N,)"""
    error: float
    """Calibration error to print, in [0, 1]; of several sets the mean of their errors, which is
    larger than the error of the joined images where the sets err in opposite directions"""


def frontier(
    curves: Sequence[Curve],
    zero_shot: tuple[float, float],
    out: Path,
    *,
    suite: str,
    shifted: Sequence[str],
    images: int,
) -> Path:
    """Draw ID against OOD accuracy, one curve per method over the interpolation share alpha.

    Several seeds of a method are drawn thin, and their mean over shared alphas thick.

    Args:
        curves: Any number of methods and seeds.
        zero_shot: ID and OOD accuracy of the start, shares in [0, 1].
        out: PNG to write.
        suite: Name for the title.
        shifted: Splits that the OOD accuracy averages.
        images: Number of images of the ID split, for its label.

    Returns:
        `out`.
    """
    methods = list(dict.fromkeys(curve.method for curve in curves))
    with picture(out, figsize=(6.8, 4.8)) as figure:
        axes = figure.subplots()
        axes.axhline(100 * zero_shot[1], color="#9a9a9a", linewidth=1, linestyle=(0, (4, 3)))
        for method, colour, marker in zip(
            methods, _repeat(COLOURS), _repeat(MARKERS), strict=False
        ):
            own = [curve for curve in curves if curve.method == method]
            alphas, xs, ys = _mean_curve(own)
            if len(own) > 1:
                for curve in own:
                    axes.plot(
                        [100 * point.id for point in curve.points],
                        [100 * point.ood for point in curve.points],
                        color=colour,
                        alpha=0.25,
                        linewidth=1,
                    )
            axes.plot(xs, ys, color=colour, marker=marker, markersize=4.5, linewidth=1.8)
            # The end of the curve is the fine-tuned model itself: name it there, not in a legend.
            axes.annotate(
                method,
                (xs[-1], ys[-1]),
                xytext=(7, -2),
                textcoords="offset points",
                color=colour,
                fontweight="bold",
                path_effects=_halo(),
                zorder=6,
            )
            if 0.5 in alphas and method == methods[-1]:
                middle = alphas.index(0.5)
                axes.annotate(
                    "alpha = 0.5",
                    (xs[middle], ys[middle]),
                    xytext=(0, 9),
                    textcoords="offset points",
                    color=colour,
                    fontsize=8,
                    ha="center",
                    path_effects=_halo(),
                )
        start = (100 * zero_shot[0], 100 * zero_shot[1])
        axes.plot(*start, marker="*", markersize=15, color="#222222", linestyle="none", zorder=5)
        axes.annotate("zero-shot", start, xytext=(0, -17), textcoords="offset points", ha="center")
        axes.margins(x=0.1, y=0.12)
        seeds = sorted({curve.seed for curve in curves if curve.seed is not None})
        axes.set_title(
            f"{suite}: what fine-tuning gains and what it forgets\n"
            f"each curve: weights (1 - alpha) zero-shot + alpha fine-tuned, "
            f"{_count(len(seeds), 'seed')}",
        )
        axes.set_xlabel(f"ID accuracy, % (split id, {images:,} images)")
        axes.set_ylabel(f"OOD accuracy, %\n(mean of {', '.join(shifted)})")
    return out


def reliability(
    panels: Mapping[str, Mapping[str, Confidence]],
    out: Path,
    *,
    suite: str,
    bins: int = 15,
) -> Path:
    """Draw accuracy against confidence, one panel per method with an ID and an OOD line.

    Below each diagram stands the share of images in each confidence bin. Bins of fewer than
    `FEW` images have no point.

    Args:
        panels: Method to "ID" and "OOD" outcomes; OOD joins the images of all shifted sets.
        out: PNG to write.
        suite: Name for the title.
        bins: Equal-width bins of the confidence.

    Returns:
        `out`.
    """
    colours = {"ID": COLOURS[0], "OOD": COLOURS[1]}
    with picture(out, figsize=(2.75 * len(panels) + 0.5, 4.2)) as figure:
        grid = figure.subplots(
            2, len(panels), sharex=True, sharey="row", squeeze=False, height_ratios=(4, 1)
        )
        for column, (method, outcomes) in enumerate(panels.items()):
            upper: Axes = grid[0][column]
            lower: Axes = grid[1][column]
            upper.plot([0, 100], [0, 100], color="#9a9a9a", linewidth=1, linestyle=(0, (4, 3)))
            for role, (confidence, correct, error) in outcomes.items():
                binned = reliability_bins(confidence, correct, bins)
                full = binned.size >= FEW
                upper.plot(
                    100 * binned.confidence[full],
                    100 * binned.accuracy[full],
                    color=colours[role],
                    marker="o",
                    markersize=3.5,
                    linewidth=1.6,
                    label=f"{role}, ECE {100 * error:.1f}",
                )
                centres = (np.arange(bins) + 0.5) * 100 / bins
                lower.step(
                    centres,
                    100 * binned.size / binned.size.sum(),
                    where="mid",
                    color=colours[role],
                    linewidth=1.4,
                )
            upper.set_title(method, fontweight="bold")
            upper.legend(loc="upper left", fontsize=8, handlelength=1.4)
            upper.set(xlim=(0, 100), ylim=(0, 100))
            lower.set_xlabel("confidence, %")
        grid[0][0].set_ylabel("accuracy, %")
        grid[1][0].set_ylabel("images, %")
        total = {role: len(found.correct) for role, found in next(iter(panels.values())).items()}
        figure.suptitle(
            f"{suite}: confidence against accuracy ("
            + ", ".join(f"{role} {n:,} images" for role, n in total.items())
            + f", {bins} bins; OOD: ECE is the mean over its sets)\n"
            "on the dashed line a model is as often right as it says, below it is too sure",
            fontsize=10,
            x=0.01,
            ha="left",
        )
    return out


def path(found: PathScan, out: Path) -> Path:
    """Draw accuracy and loss along the lines between models, one colour per split.

    Two lines in a row share one axis; the control, past the model between its ends, is dashed.

    Args:
        found: Of any number of splits.
        out: PNG to write.

    Returns:
        `out`.
    """
    route = [one for one in found.segments if not one.control]
    splits = list(found.segments[0].splits)
    with picture(out, figsize=(7.4, 6.2)) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for segment in found.segments:
            xs = _along(segment, route, found.positions)
            for split, colour, marker in zip(
                splits, _repeat(COLOURS), _repeat(MARKERS), strict=False
            ):
                curve = segment.splits[split]
                shape: dict[str, Any] = {"color": colour, "linewidth": 1.6, "label": None}
                if segment.control:
                    shape |= {"linestyle": (0, (4, 3)), "linewidth": 1.1, "alpha": 0.8}
                else:
                    shape |= {"marker": marker, "markersize": 3.5}
                if segment is route[0]:
                    shape["label"] = f"{split} ({curve.n:,} images)"
                upper.plot(xs, [100 * value for value in curve.accuracy], **shape)
                lower.plot(xs, curve.nll, **shape)
        ends = [route[0].start, *(segment.end for segment in route)]
        for axes in (upper, lower):
            for place in range(1, len(route)):
                axes.axvline(place, color="#9a9a9a", linewidth=1)
        lower.set_xticks(range(len(ends)), [_fold(name) for name in ends])
        upper.set_ylabel("accuracy, %")
        lower.set_ylabel("negative log-likelihood, nats")
        dashed = "; dashed: from the first to the last directly" if len(route) > 1 else ""
        upper.set_title(
            f"{found.suite}: straight lines between models, in {found.space}\n"
            f"{len(found.positions)} points per line{dashed}"
        )
        upper.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    return out


def _along(segment: Segment, route: Sequence[Segment], positions: Sequence[float]) -> list[float]:
    """Return where a line's points are drawn: each line of the route is one wide."""
    if segment.control:
        return [len(route) * t for t in positions]
    return [list(route).index(segment) + t for t in positions]


def _fold(name: str, width: int = 24) -> str:
    """Shorten a long name at its front."""
    return name if len(name) <= width else "..." + name[3 - width :]


def _mean_curve(curves: Sequence[Curve]) -> tuple[list[float], list[float], list[float]]:
    """Average the curves of several seeds over the positions they share; in per cent."""
    by_seed = [{point.position: point for point in curve.points} for curve in curves]
    shared = sorted(set.intersection(*(set(points) for points in by_seed)))
    xs = [100 * float(np.mean([points[at].id for points in by_seed])) for at in shared]
    ys = [100 * float(np.mean([points[at].ood for points in by_seed])) for at in shared]
    return shared, xs, ys


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _halo() -> list[Any]:
    """Return a white edge that keeps text readable across lines."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]


def _repeat(values: Sequence[str]) -> Iterator[str]:
    while True:
        yield from values
