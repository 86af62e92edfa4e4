"""The published ablations of TRACER's teacher beside what the linear model predicts.

All runs: ViT-B/16 on ImageNet, 25,030 steps. Accuracy in per cent; OOD is the mean of ImageNet-V2,
-R, -A, Sketch and ObjectNet. Source of the numbers: TRACER (Asadollahzadeh et al. 2026, arXiv
2605.29380), tables 9 to 11, and the curves that its authors released with the code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .advice import PUBLISHED_BETA, PUBLISHED_STEPS, PUBLISHED_STRENGTH, operate
from .arrays import Floats, vector
from .teachers import round_errors, wma_shares

Row = tuple[float, float, float, float]
"""Value of the knob, ID accuracy, OOD accuracy, OOD calibration error"""

_Run = tuple[str, float, Row]
"""Label, predicted bias, and the published row"""

BETA: tuple[Row, ...] = (
    (0.2, 81.91, 64.22, 0.0679),
    (0.5, 82.76, 64.07, 0.0732),
    (0.7, 82.97, 63.77, 0.0802),
    (0.9, 83.14, 63.38, 0.0869),
    (1.0, 83.09, 63.22, 0.0886),
    (1.5, 83.19, 62.79, 0.0965),
)
"""Kernels, strength 0.9, teacher updated every step"""

EVERY: tuple[Row, ...] = (
    (1, 82.76, 64.07, 0.0732),
    (2, 82.73, 64.06, 0.0721),
    (5, 82.70, 64.07, 0.0713),
    (10, 82.57, 64.09, 0.0710),
    (50, 82.62, 64.11, 0.0708),
    (100, 82.54, 64.22, 0.0699),
    (500, 82.13, 64.12, 0.0689),
    (1000, 81.90, 64.08, 0.0689),
    (2500, 81.38, 63.98, 0.0677),
)
"""Steps between updates of the teacher, beta 0.5, strength 0.9; kernel time as released"""

STRENGTH: tuple[Row, ...] = (
    (0.1, 83.25, 61.86, 0.1356),
    (0.2, 83.29, 62.67, 0.1144),
    (0.3, 83.28, 63.19, 0.1020),
    (0.4, 83.26, 63.48, 0.0933),
    (0.5, 83.16, 63.70, 0.0873),
    (0.7, 82.90, 64.02, 0.0793),
    (1.0, 82.70, 64.10, 0.0722),
    (1.2, 82.50, 64.11, 0.0699),
    (1.5, 82.27, 64.12, 0.0680),
    (2.0, 81.94, 64.01, 0.0676),
    (3.0, 81.58, 63.89, 0.0683),
    (4.0, 81.25, 63.72, 0.0673),
    (5.0, 81.08, 63.60, 0.0670),
    (10.0, 80.52, 63.27, 0.0691),
)
"""Strength of distillation, beta 0.5, teacher updated every step"""

DIVERGENCE: Mapping[str, float] = {
    "EMA every step": 0.0013,
    "EMA every 500": 0.0259,
    "WMA beta 1.5": 0.0250,
    "WMA beta 1": 0.0316,
    "WMA beta 0.2": 0.1096,
    "WMA every 5": 0.0594,
    "WMA every 50": 0.0664,
    "WMA every 500": 0.1082,
    "WMA every 1000": 0.1354,
    "WMA every 2500": 0.1824,
}
"""Teacher-student divergence (KL), mean over the run; EMA from 0.05 to 0.9 over a fifth of it"""

SPREAD: Mapping[str, float] = {"ID accuracy": 0.07, "OOD accuracy": 0.15}
"""Standard deviation over 3 seeds that the paper reports for its main run, points"""


NOISE = 2 * 2**0.5
"""Standard deviations of one run below which a difference of two says little: two of a
difference"""


class Plateau(NamedTuple):
    """Published runs whose OOD accuracy is not told apart from the best by the seeds' spread."""

    low: float
    """Smallest bias among them, predicted for their settings"""
    high: float
    """Largest bias"""
    best: float
    """Best OOD accuracy, per cent"""
    margin: float
    """How far below it they may be, points"""
    low_id: float
    """ID accuracy of the run with the smallest bias, per cent"""
    high_id: float
    """The same of the run with the largest"""


class Difference(NamedTuple):
    """Two runs whose published order is not the predicted one."""

    first: str
    second: str
    points: float
    """Published difference second - first, in the table's unit"""
    noise: bool
    """Whether it is below two standard deviations of a difference of two seeds"""


class Comparison(NamedTuple):
    """One published column beside the prediction for it."""

    table: str
    column: str
    prediction: str
    """What the model predicts of every row: the bias at the end, or the mean gap"""
    expected: int
    """1 if the column should rise with the prediction, -1 if it should fall"""
    labels: tuple[str, ...]
    predicted: Floats
    published: Floats

    @property
    def rho(self) -> float:
        """Spearman's rank correlation of prediction and column."""
        return spearman(self.predicted, self.published)

    @property
    def rho_range(self) -> tuple[float, float]:
        """Lowest and highest `rho` with any one row left out: how much hangs on a single run."""
        rows = range(len(self.labels))
        kept = [np.delete(np.array([self.predicted, self.published]), row, axis=1) for row in rows]
        found = [spearman(*pair) for pair in kept]
        return min(found), max(found)

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All pairs in the wrong order, largest published difference first."""
        limit = NOISE * SPREAD.get(self.column, 0.0)
        found = []
        for i in range(len(self.labels)):
            for j in range(i + 1, len(self.labels)):
                points = float(self.published[j] - self.published[i])
                if points * (self.predicted[j] - self.predicted[i]) * self.expected < 0:
                    noise = abs(points) < limit
                    found.append(Difference(self.labels[i], self.labels[j], points, noise))
        return tuple(sorted(found, key=lambda pair: -abs(pair.points)))

    @property
    def pairs(self) -> int:
        """Number of pairs of rows."""
        return len(self.labels) * (len(self.labels) - 1) // 2


def compare_published() -> tuple[Comparison, ...]:
    """Predict every row of the published ablations and compare the orders.

    The less bias remains, the better should the task be learned: ID accuracy falls with it. What
    remains is kept of the pre-trained model: OOD accuracy should rise with it, and the OOD
    calibration error fall. The mean gap is compared with the divergence of student and teacher.

    Returns:
        Three columns of every table, the same of "all" their rows (the run that two tables share
        counts once: if bias were all that matters, the three knobs would make one curve), and the
        divergences.

    Source: derived; numbers as in this module.
    """
    tables = [*_predicted(), ("all", _distinct())]
    columns = (("ID accuracy", 1, -1), ("OOD accuracy", 2, 1), ("OOD ECE", 3, -1))
    found = []
    for table, rows in tables:
        labels = tuple(label for label, _, _ in rows)
        predicted = np.array([bias for _, bias, _ in rows])
        for column, at, expected in columns:
            published = np.array([row[at] for _, _, row in rows])
            found.append(Comparison(table, column, "bias", expected, labels, predicted, published))
    gaps = np.array([_mean_gap(shares) for shares in _teachers().values()])
    names = tuple(DIVERGENCE)
    measured = np.array(list(DIVERGENCE.values()))
    found.append(Comparison("teacher", "KL", "mean gap", 1, names, gaps, measured))
    return tuple(found)


def plateau() -> Plateau:
    """Return the range of bias in which the published runs have the best OOD accuracy.

    Read off test results, after the fact: what is known about good values, not a validation.

    Source: derived; numbers as in this module.
    """
    rows = [(bias, row[1], row[2]) for _, bias, row in _distinct()]
    best, margin = max(ood for _, _, ood in rows), NOISE * SPREAD["OOD accuracy"]
    good = sorted(row for row in rows if row[2] >= best - margin)
    return Plateau(good[0][0], good[-1][0], best, margin, good[0][1], good[-1][1])


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation in [-1, 1]; equal values share their mean rank.

    Args:
        a: (N,)
        b: (N,)

    Returns:
        The correlation, or 0 where one of them is constant.

    Raises:
        DataError: If they are no vectors of finite numbers, N >= 1.
        ValueError: If their lengths differ.

    Source: Spearman 1904.
    """
    x, y = (_ranks(vector(name, value)) for name, value in (("a", a), ("b", b)))
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} values; rank correlation needs as many of both.")
    x, y = x - x.mean(), y - y.mean()
    length = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / length if length else 0.0


def _ranks(values: Floats) -> Floats:
    """Rank from 0; equal values get the mean of the ranks they take."""
    below = (values[None] < values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1)
    ranks: Floats = below + (equal - 1) / 2
    return ranks


def _predicted() -> list[tuple[str, list[_Run]]]:
    """Return the three tables with the bias that the model predicts for every run."""
    tables: Sequence[tuple[str, tuple[Row, ...], Callable[[float], float]]] = (
        ("beta", BETA, lambda x: _bias(beta=x)),
        ("strength", STRENGTH, lambda x: _bias(strength=x)),
        ("every", EVERY, lambda x: _bias(every=int(x))),
    )
    return [
        (table, [(f"{table} {row[0]:g}", predict(row[0]), row) for row in rows])
        for table, rows, predict in tables
    ]


def _distinct() -> list[_Run]:
    """Return the runs of all tables, each once."""
    runs = [run for _, rows in _predicted() for run in rows]
    return [run for run in runs if run[0] != "every 1"]  # that is beta 0.5


def _bias(
    beta: float = PUBLISHED_BETA, strength: float = PUBLISHED_STRENGTH, every: int = 1
) -> float:
    return operate(beta, strength, PUBLISHED_STEPS, every, released=True).bias


def _mean_gap(shares: Floats) -> float:
    return float(round_errors(PUBLISHED_STRENGTH, shares).gap.mean())


def _teachers() -> dict[str, Floats]:
    """Return the shares of the runs of `DIVERGENCE`, under the same names."""
    found = {}
    for name in DIVERGENCE:
        kind, knob, value = name.replace("every step", "every 1").split()
        every = int(value) if knob == "every" else 1
        if kind == "EMA":
            steps = np.arange(0, PUBLISHED_STEPS, every)
            found[name] = 1.0 - np.interp(steps, (0, 0.2 * PUBLISHED_STEPS), (0.05, 0.9))
        else:
            beta = float(value) if knob == "beta" else PUBLISHED_BETA
            found[name] = wma_shares(beta, PUBLISHED_STEPS, every, released=True)
    return found
