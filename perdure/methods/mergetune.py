"""MERGETUNE: continued fine-tuning of a tuned model, of any method, back towards zero-shot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..batch import Batch, Step
from ..classifying import ClassifierLearner
from ..collective import average
from ..endpoints import Endpoints, endpoints, set_to, zeroshot_rows
from ..errors import TaskError
from ..learner import Learner, evaluating
from ..method import Context, Count, Inner, NonNegative, Share
from ..path_loss import Grid, grid, loss_at, path_loss
from ..predictor import Predictor
from ..repairing import Preset, Reduction, Settings, Space, distance, filled_in, row_gaps
from ..weights import Snapshot, run_at, trainable


@dataclass(frozen=True, kw_only=True)
class MergeTune:
    """The loss of a host method at w, on the way from the tuned model to w, and a pull to CLIP.

    L(w) = L2(w) + `anchor_weight` D(w, w1) + `path_weight` mean over a of L2(w2 + a (w - w2)), for
    the host's loss L2, the zero-shot model w1 and the tuned model w2, which the recipe names under
    `model: init`. Only what the host trains moves, and the result is a model of the host's kind.

    w is what the host trains (space `parameters`), or the class rows that come of it (`classifier`;
    then L2 on the path is the host's loss without its own anchors, and image features are those of
    the model as it trains). What is left null is taken from the preset, or by space: in
    `classifier`, where scores are cosines, the values of the paper's ablations (8, 0.5, 0.3, 5) and
    a cosine; for full weights and linear heads, for which it has none, an anchor that is relative.

    Source: MERGETUNE, arXiv 2601.10497; the presets are what its public code (commit 6e211bc)
    optimises, which differs by host and from the paper.
    """

    name: ClassVar[str] = "mergetune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2601.10497"

    host: Inner
    """The method that made the tuned model: a table of its name and options"""
    preset: Preset | None = None
    """`released-prompt`: all on class rows, start 1, cosine anchor of 8, path 1 at 0.1, 0.3, ...;
    `released-mma`: no anchor, and a path of 10 to the zero-shot rows; `released-promptkd`: path in
    mixed image features, anchor of 100 at the tuned model. Keys beside it still count"""
    space: Space | None = None
    """What the path and the anchor are made of: class rows or trained weights; null for the rows
    where the host has some that train"""
    anchor_weight: NonNegative | None = None
    """Of the distance to the zero-shot model, the paper's lambda; null for 8, and for 1 where that
    is relative. With a cosine it is the code's W"""
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
    anchor: Literal["l2", "cosine", "fisher"] | None = None
    """The distance: squared; of rows also 1 - cosine, which is half the squared distance of unit
    rows; of weights also squared and weighted with the zero-shot model's diagonal Fisher
    information on the training data. Null for the cosine where scores are cosines, else squared"""
    reduction: Reduction | None = None
    """Of the distance: summed, the mean over scalars or rows, or relative to that of the tuned
    model, head and towers apart, half each; null for the mean over rows that make cosines, else
    relative, by which one weight means the same for models of all sizes"""
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
            TaskError: If the task, the tuned model's head, or an option does not fit the host.
            WeightsError: If the tuned model is not one that the host could have made, or is the
                zero-shot model itself.
        """
        if isinstance(self.host, MergeTune):
            raise TaskError("method.host is mergetune itself; name the method that it repairs.")
        host = self.host.build(context.zeroshot(), context)
        ends = endpoints(host, student, context)
        settings = filled_in(self, host)
        parts = (self, settings, ends, context.seed)
        learner: MergeTuneLearner
        if settings.space == "parameters":
            learner = MergeTuneLearner(host, *parts)
        elif settings.space == "features":
            learner = FeatureLearner(host, *parts)
        else:
            assert isinstance(host, ClassifierLearner)
            zero = zeroshot_rows(host, context)
            set_to(host, ends, 1.0)
            with torch.no_grad():
                tuned = host.rows().clone()
            learner = RowLearner(host, *parts, zero, tuned)
        set_to(host, ends, settings.start)
        host.restart()
        return learner


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

    @property
    def fixed_features(self) -> bool:
        """Whether the host's image features are fixed: nothing else looks at images."""
        return self.host.fixed_features

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`."""
        live, path = trainable(self.host), None
        if self.settings.path_weight:  # first, so that no other graph is in memory meanwhile
            path = path_loss(self.host, batch, step, self.tuned.values(), live, self.places(step))
        anchor = self.anchor(live, batch, step) if self.settings.anchor_weight else None
        return self.joined(self.host(batch, step), path, anchor)

    def places(self, step: int) -> list[float]:
        """Return where on the path optimiser step `step` looks."""
        return grid(self.settings.grid, self.settings.points, self.seed, step)

    def anchor(self, live: Mapping[str, Tensor], batch: Batch, step: int) -> Tensor:
        """Return how far weights are from the anchor, shape ()."""
        ends = (self.zeroshot.values(), self.tuned.values())
        to_tuned = self.settings.anchor_at == "tuned"
        first, last = reversed(ends) if to_tuned else ends
        importance = self.importance(batch, step)
        return distance(live, first, last, self.settings.reduction, importance)

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

    def joined(
        self, found: Step, path: tuple[Tensor, Tensor] | None, anchor: Tensor | None
    ) -> Step:
        """Return a host's step with the terms of this method, which get names of their own.

        Args:
            found: The host's.
            path: Mean loss, (), and loss of every place, (N,).
            anchor: Distance, ().
        """
        more, stats = {}, dict(found.stats)
        if path is not None:
            more["path"] = self.settings.path_weight * path[0]
            if self.method.log_points:
                places = enumerate(path[1].detach(), 1)
                stats |= {f"path_{number}": loss for number, loss in places}
        if anchor is not None:
            more["anchor"] = self.settings.anchor_weight * anchor
            stats["anchor_distance"] = anchor.detach()
        own = {f"host_{key}" if key in more else key: one for key, one in found.terms.items()}
        return Step(own | more, stats)

    def after_step(self, step: int) -> None:
        """Keep the Fisher information and let the host update its averages."""
        if self.fisher is not None and self._new_fisher is not None:
            self.fisher.mix_(self._new_fisher, 1.0)
            self._new_fisher = None
        self.host.after_step(step)

    def decays_to(self) -> Mapping[str, Tensor]:
        """Return the anchor's weights, unless decay is to pull to zero."""
        if self.settings.decay_towards == "zero":
            return {}
        end = self.tuned if self.settings.anchor_at == "tuned" else self.zeroshot
        return {f"host.{name}": value for name, value in end.values().items()}

    def export(self) -> Predictor:
        """Return what the host would deliver."""
        return self.host.export()


class RowLearner(MergeTuneLearner):
    """The same in the space of class rows: images are embedded once, all places are one product.

    Args:
        host: Its class rows train.
        method: The hyper-parameters.
        settings: Those with defaults filled in.
        ends: The zero-shot and the tuned weights, between which the run starts.
        seed: Of the run, on which random places depend.
        zeroshot_rows: (C, D), of the zero-shot model; unit rows where scores are cosines.
        tuned_rows: (C, D), raw, of the tuned model.
    """

    host: ClassifierLearner
    zeroshot_rows: Tensor
    tuned_rows: Tensor

    def __init__(
        self,
        host: ClassifierLearner,
        method: MergeTune,
        settings: Settings,
        ends: Endpoints,
        seed: int,
        zeroshot_rows: Tensor,
        tuned_rows: Tensor,
    ) -> None:
        super().__init__(host, method, settings, ends, seed)
        self.register_buffer("zeroshot_rows", zeroshot_rows)
        self.register_buffer("tuned_rows", tuned_rows)

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`."""
        settings, host = self.settings, self.host
        features, rows, targets = host.embed(batch), host.rows(), host.targets(batch)
        path = anchor = None
        if settings.path_weight:
            first, last = self.tuned_rows, rows
            if settings.path_to == "zero-shot":
                first, last = rows, self.zeroshot_rows
            at = rows.new_tensor(self.places(step))[:, None, None]
            losses = host.task_loss(features, first + at * (last - first), targets)
            path = losses.mean(), losses
        if settings.anchor_weight:
            anchor = self.row_anchor(rows)
        return self.joined(host.scored(features, rows, targets), path, anchor)

    def row_anchor(self, rows: Tensor) -> Tensor:
        """Return how far class rows are from those of the zero-shot model, shape ()."""
        settings, zero = self.settings, self.zeroshot_rows
        kind = (settings.anchor, self.host.cosine, settings.unsquared)
        gaps = row_gaps(rows, zero, *kind)
        if settings.reduction == "sum":
            return gaps.sum()
        if settings.reduction == "mean":
            return gaps.mean()
        return gaps.sum() / row_gaps(self.tuned_rows, zero, *kind).sum()


class FeatureLearner(MergeTuneLearner):
    """The released objective for students: its path mixes image features of two models.

    Those of the tuned model come from it in evaluation mode, without gradient. Mixtures are not
    brought to unit length, as in the public code.
    """

    host: ClassifierLearner

    def __init__(
        self, host: Learner, method: MergeTune, settings: Settings, ends: Endpoints, seed: int
    ) -> None:
        super().__init__(host, method, settings, ends, seed)
        known = {key: one for key, one in ends.statistics[1].items() if one.is_floating_point()}
        self.statistics = Snapshot({f"student.{key}": one for key, one in known.items()})

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`."""
        host, live, path = self.host, trainable(self.host), None
        features, rows, targets = host.embed(batch), host.rows(), host.targets(batch)
        if self.settings.path_weight:
            before = self.before(batch)
            mixed = (torch.lerp(before, features, place) for place in self.places(step))
            losses = torch.stack([host.task_loss(each, rows, targets) for each in mixed])
            path = losses.mean(), losses
        anchor = self.anchor(live, batch, step) if self.settings.anchor_weight else None
        return self.joined(host.scored(features, rows, targets), path, anchor)

    @torch.no_grad()
    def before(self, batch: Batch) -> Tensor:
        """Return the unit image features of the tuned model, (B, D)."""
        values = self.tuned.values() | self.statistics.values()
        with evaluating(self.host):
            features: Tensor = run_at(
                _Embedding(self.host), {f"host.{key}": one for key, one in values.items()}, batch
            )
        return features


class _Embedding(nn.Module):
    """The image features of a learner, as something that weights can be replaced in."""

    def __init__(self, host: ClassifierLearner) -> None:
        super().__init__()
        self.host = host

    def forward(self, batch: Batch) -> Tensor:
        return self.host.embed(batch)
