"""Loss and accuracy along straight lines between models: is there a barrier, and how high.

Two models are connected if no point between them is worse than the line between their scores. Each
image is decoded once, however many points and lines there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import towers
from .data.loading import eval_batches
from .data.suites import Suite
from .data.suites import suite as find_suite
from .errors import RunError, WeightsError
from .inputs import places_of
from .interpolation import aligned
from .metrics import Floats, accuracy_barrier, barriers, loss_barrier, nll_rows
from .prediction import How, Unit, gather, open_suite, select_columns
from .predictor import Predictor
from .weights import lerp, lerp_tensor, require_same

Space = Literal["parameters", "classifier"]
"""What moves in a straight line: all weights, or the rows of the classifier alone"""

RESAMPLES = 1000
"""Bootstrap samples of the images, for the intervals of barriers"""

_CHUNK = 50


class Interval(NamedTuple):
    """A number and the percentile bootstrap interval of it over images, 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SplitCurve:
    """One split along one line."""

    role: str
    n: int
    """Images"""
    nll: tuple[float, ...]
    """Mean negative log-likelihood per point, in nats"""
    accuracy: tuple[float, ...]
    """Per point, in [0, 1]"""
    loss_barrier: Interval
    """Of the NLL, in nats"""
    accuracy_barrier: Interval
    """In [0, 1]"""

    @property
    def lowest(self) -> int:
        """Return the number of the point of lowest accuracy, the first of equals."""
        return int(np.argmin(self.accuracy))


@dataclass(frozen=True)
class Segment:
    """A straight line between two models."""

    start: str
    end: str
    control: bool
    """Whether it is the line that goes past the model between its ends"""
    splits: Mapping[str, SplitCurve]


@dataclass(frozen=True)
class PathScan:
    """What was found along one or more lines."""

    suite: str
    definition: str
    """Hash of the suite's definition"""
    space: Space
    positions: tuple[float, ...]
    """Of the points on each line, from 0 to 1"""
    segments: tuple[Segment, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, for programs."""
        found = asdict(self)
        for segment in found["segments"]:
            for curve in segment["splits"].values():
                for name in ("loss_barrier", "accuracy_barrier"):
                    curve[name] = dict(zip(Interval._fields, curve[name], strict=True))
        return found


def scan(
    models: Sequence[Predictor],
    suite: Suite | str = "emojishift",
    *,
    names: Sequence[str] = ("A", "B", "C"),
    points: int = 11,
    space: Space = "parameters",
    how: How | None = None,
) -> PathScan:
    """Score the straight lines between models, and past the middle one of three as a control.

    Args:
        models: Two or three; A to B to C are scored, and A to C.
        suite: Which splits.
        names: What the result calls the models.
        points: On each line, both ends included, >= 2.
        space: "parameters" mixes all weights (tower, head, added modules). "classifier" mixes the
            rows of the classes, which are normalised after mixing: raw text features where every
            model has one prompt per class, else unit rows; of heads rows and biases as they are. It
            needs models with one and the same image tower.
        how: Data, device, number of images.

    Raises:
        RunError: If there are not two or three models, or too few points.
        WeightsError: If the models do not fit together, or a logit is not finite.
        DataError: If the suite is unknown or data are missing.
    """
    if len(models) not in (2, 3):
        raise RunError(f"a path leads over two or three models; found {len(models)}.")
    if points < 2:
        raise RunError(f"points is {points}; a line needs both its ends, and more to see between.")
    if space not in ("parameters", "classifier"):
        raise RunError(f"space is {space!r}; allowed: parameters, classifier.")
    how = how or How()
    suite = find_suite(suite, how.root) if isinstance(suite, str) else suite
    fitted = aligned(models, weights=space == "parameters")
    if how.runtime is not None:
        fitted = [model.to(how.runtime.device) for model in fitted]
    legs = list(pairwise(range(len(models))))
    legs += [(0, 2)] if len(models) == 3 else []
    positions = np.linspace(0.0, 1.0, points)
    places = [(*leg, float(t)) for leg in legs for t in positions]
    score = _by_weights(fitted) if space == "parameters" else _by_rows(fitted)
    curves: list[dict[str, SplitCurve]] = [{} for _ in legs]
    for split, unit in open_suite(suite, how):
        measured = [_measure(logits, unit) for logits in score(places, unit, how)]
        for number in range(len(legs)):
            own = measured[number * points : (number + 1) * points]
            curves[number][split.name] = _curve(split.role, own, positions)
    segments = tuple(
        Segment(names[a], names[b], (a, b) == (0, 2), splits)
        for (a, b), splits in zip(legs, curves, strict=True)
    )
    return PathScan(suite.name, suite.definition, space, tuple(positions.tolist()), segments)


Place = tuple[int, int, float]
"""Numbers of two models, and how far to go from the first to the second"""

Scorer = Callable[[Sequence[Place], Unit, How], Sequence[NDArray[np.float32]]]


def _by_weights(models: Sequence[Predictor]) -> Scorer:
    """Return what scores a data set with mixtures of all weights."""
    moving = models[0].copy()
    states = [model.state_dict() for model in models]

    def move(a: int, b: int, t: float) -> None:
        moving.load_state_dict(lerp(states[a], states[b], t))

    def score(places: Sequence[Place], unit: Unit, how: How) -> Sequence[NDArray[np.float32]]:
        moves = {float(number): partial(move, *place) for number, place in enumerate(places)}
        found = gather(moving, moves, unit, how)
        return [found[key].logits for key in moves]

    return score


def _by_rows(models: Sequence[Predictor]) -> Scorer:
    """Return what scores a data set with mixtures of the models' class rows."""
    first = models[0].clip.visual.state_dict()
    for model in models[1:]:
        other = model.clip.visual.state_dict()
        require_same(first, other)
        for name, value in other.items():
            if not value.equal(first[name]):
                raise WeightsError(
                    f"the image towers differ (first in {name}), so that one classifier cannot "
                    "move between them; scan the path in parameters."
                )

    @torch.no_grad()
    def score(places: Sequence[Place], unit: Unit, how: How) -> Sequence[NDArray[np.float32]]:
        model = models[0]
        single = all(
            each.prompts(unit.names[:1], unit.templates).shape[1] == 1
            for each in models
            if each.head is None
        )
        ends = [_End.of(each, unit, raw=single) for each in models]
        parts: list[list[Tensor]] = [[] for _ in places]
        batches = eval_batches(
            unit.dataset,
            model.preprocess,
            how.batch_size,
            device=model.device,
            workers=how.workers,
            cache=how.cache,
        )
        for images in batches:
            with how.halved(images.device):
                features = model.encode_image(images)
            features = features.float()
            for part, (a, b, t) in zip(parts, places, strict=True):
                logits = towers.score(features, *_mix(ends[a], ends[b], t)).float()
                part.append(select_columns(logits, unit.columns).cpu())
            if how.progress is not None:
                how.progress(len(images) * len(places))
        joined = [torch.cat(part).numpy() for part in parts]
        if not all(np.isfinite(each).all() for each in joined):
            raise WeightsError("some logits are not finite; the weights of a model are damaged.")
        return joined

    return score


class _End(NamedTuple):
    """The classifier of one model."""

    weight: Tensor
    """As the model scores, (C, D)"""
    bias: Tensor | None
    raw: Tensor
    """Rows that are mixed, and normalised afterwards, (C, D)"""
    scale: Tensor

    @classmethod
    def of(cls, model: Predictor, unit: Unit, *, raw: bool) -> _End:
        head = model.head
        if head is not None and set(unit.names) <= set(model.classes):
            columns = places_of(unit.names, model.classes)
            rows = head.weight[columns]
            return cls(rows, head.bias[columns], rows, model.scale)
        prompts = model.prompts(unit.names, unit.templates)
        rows = model.class_features(prompts)
        weight = model.scale * rows
        if raw:
            tokens = model.trim(prompts[:, 0]).to(model.device)
            rows = towers.encode_text(model.clip, tokens).float()
        return cls(weight, None, rows, model.scale)


def _mix(a: _End, b: _End, t: float) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias at share t from a to b; exactly theirs at both ends."""
    if t in (0.0, 1.0):
        end = b if t else a
        return end.weight, end.bias
    rows = lerp_tensor(a.raw, b.raw, t)
    if a.bias is not None and b.bias is not None:
        return rows, lerp_tensor(a.bias, b.bias, t)
    return lerp_tensor(a.scale, b.scale, t) * towers.unit(rows), None


class _Measured(NamedTuple):
    """Every image at one point."""

    nll: Floats
    """(N,)"""
    correct: Floats
    """1 or 0, (N,)"""


def _measure(logits: NDArray[np.float32], unit: Unit) -> _Measured:
    labels = unit.dataset.labels
    correct = (logits.argmax(axis=1) == labels).astype(np.float64)
    return _Measured(nll_rows(logits, labels), correct)


def _curve(role: str, points: Sequence[_Measured], positions: Floats) -> SplitCurve:
    nll = np.stack([point.nll for point in points])
    correct = np.stack([point.correct for point in points])
    loss, accuracy = nll.mean(axis=1), correct.mean(axis=1)
    rises, falls = (_resampled(values, positions) for values in (nll, -correct))
    return SplitCurve(
        role,
        nll.shape[1],
        tuple(loss.tolist()),
        tuple(accuracy.tolist()),
        Interval(loss_barrier(loss, positions), *rises),
        Interval(accuracy_barrier(accuracy, positions), *falls),
    )


def _resampled(losses: Floats, positions: Floats) -> tuple[float, float]:
    """Return the interval of a loss barrier over images (P, N), which are drawn for all points."""
    rng = np.random.default_rng(0)
    n = losses.shape[1]
    found = []
    for _ in range(RESAMPLES // _CHUNK):
        drawn = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(_CHUNK)]
        found.append(barriers(np.stack(drawn) @ losses.T / n, positions))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return float(low), float(high)
