"""What flows through a training step: embedded pairs, a batch, and the named loss terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # keeps this module importable in milliseconds
    from torch import Tensor


class Pairs(NamedTuple):
    """Embeddings of matched images and texts on the unit sphere, and the inverse temperature."""

    image: Tensor
    """(B, D), unit rows"""
    text: Tensor
    """(B, D), unit rows; row i describes image i"""
    scale: Tensor
    """(), exp(logit_scale)"""


class Batch(NamedTuple):
    """Rows i and j are positives of each other if and only if `labels[i] == labels[j]`."""

    images: Tensor
    """(B, 3, H, W), normalised for the model; H = W = 0 where there are `features`"""
    tokens: Tensor
    """(B, L), one caption per image"""
    labels: Tensor
    """(B,), class index, or image index in retrieval"""
    features: Tensor | None = None
    """(B, D), unit rows: what the image tower gives, embedded before training; None as a rule.
    Only learners whose image tower is fixed get them (`Learner.fixed_features`)"""


class Step(NamedTuple):
    """What one forward pass of a learner returns."""

    terms: dict[str, Tensor]
    """Weighted loss terms, shape (); the loss is their sum, always"""
    stats: dict[str, Tensor]
    """Detached scalars to log; never part of the loss"""
