"""What the choice of an interpolation share says about itself: choice, curve, cost, doubts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..prediction import How, Moves, Unit, gather
from ..run import Run
from ..subjects import Subject
from ..sweeping import Line
from ..training import Progress, Say
from ..weights import Weights
from .rules import Floats, standard_errors

Rule = Literal["fixed", "id_one_se", "leave_concepts_out", "stock", "mono", "lines", "dynamic"]

RULES: dict[Rule, str] = {
    "fixed": "a convention per kind of task: 0.5, retrieval 0.8, segmentation 0.4",
    "id_one_se": "smallest alpha within one standard error of the best on `val`",
    "leave_concepts_out": "trains again without half of the classes, or captions; balances halves",
    "stock": "per tensor, from the angle between the updates of two runs",
    "mono": "per matrix, from the spectrum of its update; looks at no data",
    "lines": "grows with depth, from the first block to the last",
    "dynamic": "per image, from the entropies of both ends",
}
"""Every rule and what it does; the first one costs nothing"""

GRID = tuple(step / 20 for step in range(21))
"""0, 0.05, ..., 1"""


FIXED = {"classification": 0.5, "retrieval": 0.8, "segmentation": 0.4}
"""Shares that are customary where nothing is known

Source: Wortsman et al. 2022, arXiv 2109.01903 (0.5); R-Adapter, Kim et al. 2024, arXiv 2408.05749.
"""


class CurvePoint(NamedTuple):
    """One alpha, and what was measured there."""

    alpha: float
    value: float
    """Share in [0, 1]"""
    error: float
    """Standard error of `value`, over images"""
    parts: Mapping[str, float] = MappingProxyType({})
    """What `value` is made of, such as the accuracies on seen and on hidden classes"""


class Copy(NamedTuple):
    """One of the merged models among which a rule per image chooses."""

    alpha: float
    share: float
    """Of the validation images, in [0, 1]"""


@dataclass(frozen=True)
class Cost:
    """What a choice took."""

    images: int = 0
    """Decoded"""
    forwards: int = 0
    """Images times models"""
    steps: int = 0
    """Optimiser steps of extra training"""
    seconds: float = 0.0


@dataclass(frozen=True)
class AlphaReport:
    """A choice of the share of the tuned weights, in one of three forms, and its grounds."""

    subject: str
    method: Rule
    alpha: float | None = None
    """One share for all weights; None where it differs between tensors or images"""
    layers: dict[str, float] = field(default_factory=dict)
    """Tensor to the length of its chosen update over that of the whole one; empty for one share"""
    copies: tuple[Copy, ...] = ()
    """Models to choose from for every image; empty for one share"""
    value: float | None = None
    """Of the choice, as the curve's values"""
    error: float | None = None
    """Standard error of `value`"""
    measure: str = "accuracy"
    """What the curve's values are"""
    curve: tuple[CurvePoint, ...] = ()
    """Ascending from alpha = 0; empty for rules that look at no data"""
    suite: str = ""
    """Whose task, or which captions; none of the splits that are reported was looked at"""
    split: str = "val"
    """What the data call the validation images"""
    n: int = 0
    """Validation images"""
    figures: dict[str, Any] = field(default_factory=dict)
    """What else the rule has found, by name"""
    warnings: tuple[str, ...] = ()
    """Why this choice may be wrong"""
    cost: Cost = Cost()
    weights: Weights | None = field(default=None, repr=False, compare=False)
    """Of a choice by tensor; never written with the report"""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it but the weights, for programs."""
        plain = {name: value for name, value in vars(self).items() if name != "weights"}
        plain["curve"] = [{**point._asdict(), "parts": dict(point.parts)} for point in self.curve]
        plain["copies"] = [copy._asdict() for copy in self.copies]
        plain["warnings"] = list(self.warnings)
        plain["cost"] = asdict(self.cost)
        return plain


@dataclass(frozen=True, kw_only=True)
class Options:
    """What some of the rules need besides a run."""

    grid: Sequence[float] = GRID
    """Ascending from 0 to 1"""
    task: str | None = None
    """Of `fixed`: a key of `FIXED`; None for that of the suite or of the training data"""
    other: Subject | Run | Path | str | None = None
    """Of `stock`: a run that differs only in its seed"""
    deep: float = 1.0
    """Of `lines`: share of the last block, in (0, 1]"""
    copies: int = 4
    """Of `dynamic`: models to choose from, >= 1"""
    splits: int = 1
    """Of `leave_concepts_out`: divisions of the classes, 1 to 3, each with a training of its own"""
    work: Path | None = None
    """Of `leave_concepts_out`: where the extra runs go; RUN/alpha by default"""
    progress: Progress | None = None
    """Of `leave_concepts_out`: called after every training step"""
    say: Say | None = None
    """Of `leave_concepts_out`: called with remarks for people"""


@dataclass(frozen=True, eq=False)
class Look:
    """Validation images under every alpha of a grid, and under edited weights."""

    alphas: tuple[float, ...]
    shares: Floats
    """(A, N), what each image adds to the measure, whose value is their mean"""
    edited: Floats
    """(E, N), the same per edit"""
    cost: Cost
    measure: str = "accuracy"
    parts: tuple[Mapping[str, float], ...] = ()
    """Per alpha, what else was measured; empty for nothing"""
    logits: Sequence[NDArray[np.float32]] = ()
    """(N, C) per alpha; empty where there are no classes"""
    labels: NDArray[np.int64] | None = None
    """(N,), of the classes"""

    @property
    def n(self) -> int:
        """Return the number of images."""
        return int(self.shares.shape[1])

    def right(self, logits: NDArray[np.float32]) -> Floats:
        """Return 1 for each right prediction of the classes and 0 for others, (N,)."""
        right: Floats = (logits.argmax(axis=1) == self.labels).astype(np.float64)
        return right

    def curve(self) -> tuple[CurvePoint, ...]:
        """Return the measure over alpha, with standard errors over images."""
        values, errors = self.shares.mean(axis=1), standard_errors(self.shares)
        parts: Sequence[Mapping[str, float]] = self.parts or [{}] * len(values)
        return tuple(map(CurvePoint, self.alphas, values.tolist(), errors.tolist(), parts))


def look(
    line: Line, unit: Unit, how: How, alphas: Sequence[float], edits: Sequence[Weights] = ()
) -> Look:
    """Score validation images at every alpha and with every edit, decoding each image once.

    Raises:
        WeightsError: If a logit is not finite.
    """
    began = perf_counter()
    moves = moves_of(line, alphas, edits)
    found = gather(line.moving, moves, unit, how)
    logits, labels = [found[key].logits for key in moves], unit.dataset.labels
    right = np.array([one.argmax(axis=1) == labels for one in logits], dtype=np.float64)
    n = len(unit.dataset)
    return Look(
        tuple(alphas),
        right[: len(alphas)],
        right[len(alphas) :],
        Cost(n, n * len(moves), 0, perf_counter() - began),
        logits=logits[: len(alphas)],
        labels=labels,
    )


def moves_of(line: Line, alphas: Sequence[float], edits: Sequence[Weights]) -> Moves:
    """Return how to get to every alpha and then to every edit, numbered in this order."""

    def put(weights: Weights) -> Callable[[], None]:
        return lambda: line.put(weights)

    return {float(key): move for key, move in enumerate([*map(line.at, alphas), *map(put, edits)])}


def difference(first: Floats, second: Floats) -> tuple[float, float]:
    """Return the mean difference of what the same images add, and its standard error."""
    gap = first - second
    return float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else 0.0
