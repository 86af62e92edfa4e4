"""What moved, layer by layer: size, directions and rank of the change of every matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layers import Layer
from .span import Moments, Span, split_update

TOP = 8
"""Largest singular values that are kept"""


@dataclass(frozen=True)
class LayerUpdate:
    """The change of one matrix; None where a number does not exist."""

    name: str
    group: str
    shape: tuple[int, int]
    """(out, in)"""
    norm: float
    """Frobenius"""
    relative: float | None
    """To the norm of the pre-trained matrix; None where that is zero"""
    rank: int | None
    """Directions in the span of the training inputs, of `shape[1]`; None, like all of them below,
    where inputs were not heard"""
    inside: float | None
    """Share of the squared norm in that span, in [0, 1]"""
    output: float | None
    """|dW x| / |W x| over training inputs x, root mean squares"""
    output_shifted: float | None
    """The same over inputs of shifted images"""
    shifted_inside: float | None
    """Share of the energy of the inputs of shifted images in that span, in [0, 1]"""
    singular: tuple[float, ...]
    """The largest singular values, descending"""
    stable_rank: float | None
    """Squared Frobenius norm by squared spectral norm"""
    effective_rank: float | None
    """exp of the entropy of the singular values, divided by their sum"""


@dataclass(frozen=True)
class GroupUpdate:
    """The change of a part of the model: all of its tensors, also those that are no matrices."""

    group: str
    norm: float
    relative: float | None
    inside: float | None
    """Share of the squared norm in the spans of the training inputs, over the matrices that have
    one"""
    random: float | None
    """What the same update would have there if it preferred no direction"""
    layers: int
    """Matrices that have a span"""


@torch.no_grad()
def measure(
    layer: Layer,
    before: Tensor,
    after: Tensor,
    span: Span | None = None,
    inputs: Moments | None = None,
    shifted: Moments | None = None,
    top: int = TOP,
) -> LayerUpdate:
    """Return what is known of the change of one matrix.

    Args:
        layer: Which.
        before: As it was pre-trained.
        after: As it is; of the same shape.
        span: Of the training inputs.
        inputs: Moments of the training inputs.
        shifted: Moments of the inputs of shifted images.
        top: Singular values to keep.
    """
    old = layer.matrix(before).double()
    delta = layer.matrix(after).double() - old
    norm, size = float(delta.norm()), float(old.norm())
    values = torch.linalg.svdvals(delta)
    has = norm > 0
    return LayerUpdate(
        layer.name,
        layer.group,
        (delta.shape[0], delta.shape[1]),
        norm,
        norm / size if size else None,
        None if span is None else span.rank,
        None if span is None else split_update(delta, span).share,
        _output(delta, old, inputs),
        _output(delta, old, shifted),
        None if span is None or shifted is None else span.occupied(shifted),
        tuple(values[:top].tolist()),
        stable_rank(values) if has else None,
        effective_rank(values) if has else None,
    )


def stable_rank(values: Tensor) -> float:
    """Return the sum of squared singular values (n,) by the largest squared one; at least 1."""
    return float(values.square().sum() / values.max().square())


def effective_rank(values: Tensor) -> float:
    """Return exp of the entropy of singular values (n,) that are divided by their sum.

    Source: Roy and Vetterli 2007, "The effective rank", definition 1.
    """
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


@torch.no_grad()
def by_group(
    layers: Sequence[Layer],
    groups: Mapping[str, str],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    spans: Mapping[str, Span],
) -> list[GroupUpdate]:
    """Return the change of every part of a model, in the order of its names.

    Args:
        layers: Its matrices.
        groups: Name of every tensor to the part it belongs to.
        before: All tensors as they were.
        after: The same as they are.
        spans: Of the training inputs, by the names of layers.
    """
    matrices = {layer.name: layer for layer in layers}
    found: list[GroupUpdate] = []
    for group in dict.fromkeys(groups.values()):
        moved = size = inside = known = expected = 0.0
        count = 0
        for name in (name for name, own in groups.items() if own == group):
            delta = after[name].detach() - before[name].detach()
            length = float(delta.double().square().sum())
            moved += length
            size += float(before[name].detach().double().square().sum())
            if name in spans:
                part = split_update(matrices[name].matrix(delta), spans[name])
                inside += part.inside
                known += part.inside + part.outside
                expected += length * spans[name].random
                count += 1
        found.append(
            GroupUpdate(
                group,
                moved**0.5,
                (moved / size) ** 0.5 if size else None,
                inside / known if known else None,
                expected / known if known else None,
                count,
            )
        )
    return found


def same_shape(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: Iterable[str]
) -> list[str]:
    """Return those names that both models have in one shape."""
    return [
        name
        for name in names
        if name in before and name in after and before[name].shape == after[name].shape
    ]


def _output(delta: Tensor, old: Tensor, inputs: Moments | None) -> float | None:
    """Return the relative change of a layer's outputs; cheap, for moments say it all."""
    if inputs is None:
        return None
    size = inputs.length(old)
    return (max(inputs.length(delta), 0.0) / size) ** 0.5 if size > 0 else None
