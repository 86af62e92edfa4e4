"""MERGETUNE: continued fine-tuning of a tuned model, of any method, back towards zero-shot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..batch import Batch, Step
from ..collective import average
from ..endpoints import Endpoints, endpoints, set_to
from ..errors import TaskError
from ..learner import Learner
from ..method import Context, Count, Inner, NonNegative, Share
from ..path_loss import Grid, grid, in_groups, loss_at, path_loss, squared
from ..predictor import Predictor
from ..weights import Snapshot, trainable

Anchor = Literal["l2", "cosine", "fisher"]
Reduction = Literal["sum", "mean", "relative"]


class Settings(NamedTuple):
    """What is optimised, after presets and defaults have filled in what was left open."""

    anchor_weight: float = 8.0
    path_weight: float = 0.5
    start: float = 0.3
    points: int = 5
    grid: Grid = "midpoints"
    anchor: Anchor = "l2"
    reduction: Reduction = "relative"
    decay_towards: Literal["anchor", "zero"] = "anchor"


DEFAULTS: dict[str, dict[str, Any]] = {
    "parameters": {"anchor_weight": 1.0, "anchor": "l2", "reduction": "relative"},
}
"""What differs from `Settings` by space; the paper gives no values for full weights"""


@dataclass(frozen=True, kw_only=True)
class MergeTune:
    """The loss of a host method at w, on the way from the tuned model to w, and a pull to CLIP.

    L(w) = L2(w) + `anchor_weight` D(w, w1) + `path_weight` mean over a of L2(w2 + a (w - w2)), for
    the host's loss L2, the zero-shot model w1 and the tuned model w2, which the recipe names under
    `model: init`. Only what the host trains moves, and the result is a model of the host's kind.

    Options that are left null take the paper's values where it has any.

    Source: MERGETUNE, arXiv 2601.10497.
    """

    name: ClassVar[str] = "mergetune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2601.10497"

    host: Inner
    """The method that made the tuned model: a table of its name and options"""
    anchor_weight: NonNegative | None = None
    """Of the distance to the zero-shot model, the paper's lambda; null for 1"""
    path_weight: NonNegative | None = None
    """Of the mean loss between the tuned model and this one, the paper's beta; null for 0.5"""
    start: Share | None = None
    """Share of the tuned model in the first weights, the rest zero-shot; the paper's tau; null for
    0.3"""
    points: Count | None = None
    """Number of places on the path at each step; null for 5"""
    grid: Grid | None = None
    """Where they are: the middles of equal parts, a random place in each of them, or 0.1 and on in
    steps of 1 / points as in the authors' code; null for the middles"""
    anchor: Literal["l2", "fisher"] | None = None
    """The distance: squared, or squared and weighted with the zero-shot model's diagonal Fisher
    information on the training data; null for squared"""
    reduction: Reduction | None = None
    """Of the squared distance: summed over scalars, their mean, or relative to that of the tuned
    model, head and towers apart, half each; null for relative, for which weights of models of all
    sizes mean the same"""
    fisher_steps: Count = 10
    """First steps on whose batches the Fisher information is estimated, the square of the gradient
    of the host's loss at the zero-shot weights; until then the estimate so far is used"""
    decay_towards: Literal["anchor", "zero"] | None = None
    """Where the optimiser's weight decay pulls; null for the anchor, the zero-shot model"""
    log_points: bool = False
    """Whether the loss of every place on the path is logged"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Build the host on the zero-shot model and start it between that and the tuned `student`.

        Raises:
            TaskError: If the task, or the tuned model's head, does not fit the host.
            WeightsError: If the tuned model is not one that the host could have made, or is the
                zero-shot model itself.
        """
        if isinstance(self.host, MergeTune):
            raise TaskError("method.host is mergetune itself; name the method that it repairs.")
        host = self.host.build(context.zeroshot(), context)
        ends = endpoints(host, student, context)
        settings = self.settings()
        set_to(host, ends, settings.start)
        host.restart()
        return MergeTuneLearner(host, self, settings, ends, context.seed)

    def settings(self) -> Settings:
        """Return the options with defaults filled in."""
        given = {key: getattr(self, key) for key in Settings._fields}
        return Settings(
            **DEFAULTS["parameters"] | {k: v for k, v in given.items() if v is not None}
        )


class MergeTuneLearner(Learner):
    """A host's learner with two more terms, both on the weights it trains.

    Args:
        host: Its trainable weights are where the run starts.
        method: The hyper-parameters.
        settings: Those with defaults filled in.
        ends: The zero-shot and the tuned weights.
        seed: Of the run, on which random places depend.
    """

    def __init__(
        self, host: Learner, method: MergeTune, settings: Settings, ends: Endpoints, seed: int
    ) -> None:
        super(Learner, self).__init__()  # the student is a part of the host, and only of it
        self.host = host
        self.method = method
        self.settings = settings
        self.seed = seed
        self.zeroshot = Snapshot(ends.zeroshot)
        self.tuned = Snapshot(ends.tuned)
        self.fisher = None
        if settings.anchor == "fisher" and settings.anchor_weight:
            self.fisher = Snapshot({name: value * 0 for name, value in ends.zeroshot.items()})
        self._new_fisher: dict[str, Tensor] | None = None

    @property
    def student(self) -> Predictor:  # type: ignore[override]
        """The host's model."""
        return self.host.student

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`."""
        settings = self.settings
        more: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        live = trainable(self.host)
        if settings.path_weight:  # first, so that no other graph is in memory meanwhile
            at = grid(settings.grid, settings.points, self.seed, step)
            mean, losses = path_loss(self.host, batch, step, self.tuned.values(), live, at)
            more["path"] = settings.path_weight * mean
            if self.method.log_points:
                stats = {f"path_{number}": loss for number, loss in enumerate(losses, 1)}
        if settings.anchor_weight:
            distance = self.distance(live, self.importance(batch, step))
            more["anchor"] = settings.anchor_weight * distance
            stats["anchor_distance"] = distance.detach()
        terms, found = self.host(batch, step)
        return Step(joined(terms, more), {**found, **stats})

    def distance(
        self, live: Mapping[str, Tensor], importance: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Return how far weights are from the zero-shot model, shape ()."""
        models = (live, self.zeroshot.values(), self.tuned.values())
        relative = self.settings.reduction == "relative"
        parts = []
        for names in in_groups(list(live)) if relative else [list(live)]:
            now, zero, end = ({name: one[name] for name in names} for one in models)
            gap = squared(now, zero, importance)
            if self.settings.reduction == "mean":
                gap = gap / sum(value.numel() for value in now.values())
            if relative:
                whole = squared(end, zero, importance)
                gap = torch.where(whole > 0, gap / whole, 0.0)  # a group that never moved
            parts.append(gap)
        return torch.stack(parts).mean()

    def importance(self, batch: Batch, step: int) -> dict[str, Tensor] | None:
        """Return the Fisher information so far, with this batch in the first steps, or None."""
        if self.fisher is None:
            return None
        known = self.fisher.values()
        if step > self.method.fisher_steps:
            return known
        _, gradients = loss_at(self.host, batch, step, self.zeroshot.values())
        squares = {
            name: torch.zeros_like(known[name]) if one is None else average(one).square()
            for name, one in zip(known, gradients, strict=True)
        }
        self._new_fisher = {
            name: torch.lerp(value, squares[name], 1 / step) for name, value in known.items()
        }
        return self._new_fisher

    def after_step(self, step: int) -> None:
        """Keep the Fisher information and let the host update its averages."""
        if self.fisher is not None and self._new_fisher is not None:
            self.fisher.mix_(self._new_fisher, 1.0)
            self._new_fisher = None
        self.host.after_step(step)

    def decays_to(self) -> Mapping[str, Tensor]:
        """Return the zero-shot weights, unless decay is to pull to zero."""
        if self.settings.decay_towards == "zero":
            return {}
        return {f"host.{name}": value for name, value in self.zeroshot.values().items()}

    def export(self) -> Predictor:
        """Return what the host would deliver."""
        return self.host.export()


def joined(terms: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the host's terms and those of this method, which must have other names."""
    same = terms.keys() & more.keys()
    return {**{f"host_{key}" if key in same else key: one for key, one in terms.items()}, **more}
