"""MERGETUNE at work in three spaces: trained weights, class rows, and (a preset) image features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from ..batch import Batch, Step
from ..classifying import ClassifierLearner
from ..collective import average
from ..endpoints import Endpoints
from ..learner import Learner, evaluating
from ..path_loss import grid, loss_at, path_loss
from ..predictor import Predictor
from ..repairing import Settings, distance, row_gaps
from ..weights import Snapshot, run_at, trainable


class Options(Protocol):
    """What learners read of the method itself; all else has been filled in and is in `Settings`."""

    @property
    def fisher_steps(self) -> int:
        """First steps on whose batches the Fisher information is estimated."""

    @property
    def log_points(self) -> bool:
        """Whether the loss of every place on the path is logged."""


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
        self, host: Learner, method: Options, settings: Settings, ends: Endpoints, seed: int
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
        method: Options,
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
        self, host: Learner, method: Options, settings: Settings, ends: Endpoints, seed: int
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
