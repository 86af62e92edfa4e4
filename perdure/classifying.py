"""The base of learners that score image features against class rows: prompts, adapters, heads.

Images are embedded once per step and class rows once per step, so that a loss at several settings
of the rows, as along a path between two models, costs one matrix product and no further pass.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from .batch import Batch, Step
from .collective import gather, gather_labels
from .learner import Learner
from .towers import unit


class ClassifierLearner(Learner):
    """A learner that scores `scale` times the cosine of image features with class rows.

    Its loss is `task_loss(embed(batch), rows(), targets(batch))` plus the terms of `anchors`. Rows
    are raw: they are normalised in `logits`, so that mixtures of two sets of rows are those of the
    towers' own outputs.
    """

    cosine: ClassVar[bool] = True
    """Whether scores are cosines, so that the length of a row means nothing"""
    term: ClassVar[str] = "task"
    """Name of the loss"""

    @property
    def fixed_features(self) -> bool:
        """Whether no weight of the image tower trains.

        A learner that embeds images in its own way, or makes its targets from them, says no.
        """
        return not any(each.requires_grad for each in self.student.clip.visual.parameters())

    def embed(self, batch: Batch) -> Tensor:
        """Return unit image features of the batch of all processes, (B, D)."""
        if batch.features is not None:
            return gather(batch.features)
        return gather(self.student.encode_image(batch.images))

    @abstractmethod
    def rows(self) -> Tensor:
        """Return the raw rows of the training classes, (C, D), differentiable in what trains."""

    def targets(self, batch: Batch) -> Tensor:
        """Return what the scores are compared with: labels (B,) of the batch of all processes."""
        return gather_labels(batch.labels)

    def logits(self, features: Tensor, rows: Tensor) -> Tensor:
        """Return scaled cosines.

        Args:
            features: (B, D), unit rows.
            rows: (..., C, D), raw.

        Returns:
            (..., B, C), in float32 at least.
        """
        scaled = self.student.scale.float() * features.float()
        return scaled @ unit(rows.float()).transpose(-1, -2)

    def task_loss(self, features: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every set of rows, (...,) for rows (..., C, D)."""
        scores = self.logits(features, rows)
        flat = scores.flatten(end_dim=-3) if scores.ndim > 2 else scores[None]
        # Classes second, as cross_entropy wants them: (P, C, B) against (P, B).
        found = functional.cross_entropy(
            flat.transpose(1, 2), targets.expand(len(flat), -1), reduction="none"
        ).mean(dim=1)
        return found.reshape(scores.shape[:-2])

    def anchors(self, rows: Tensor) -> dict[str, Tensor]:
        """Return further weighted terms of the method itself, shape () each, from its rows."""
        return {}

    def scored(self, features: Tensor, rows: Tensor, targets: Tensor) -> Step:
        """Compute all terms from what `embed`, `rows` and `targets` have returned."""
        return Step({self.term: self.task_loss(features, rows, targets)} | self.anchors(rows), {})

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`."""
        return self.scored(self.embed(batch), self.rows(), self.targets(batch))
