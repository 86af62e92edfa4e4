"""A model before and after its fine-tuning, brought together so that both can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import heads
from ..inputs import fill
from ..predictor import Predictor
from ..surgery.slots import slots_of
from .layers import Layer, feed, find_layers, groups_of, weights_of
from .span import ENERGY, Moments, Span, find_span
from .update import same_shape

BUDGET = 2 << 30
"""Bytes that sums over inputs may take at once; more layers than fit take another pass"""

Batches = Callable[[], Iterable[Tensor]]
"""Gives normalised images (B, 3, H, W), again at every call."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models, and which tensors of them can be compared."""

    start: Predictor
    """Pre-trained; with the zero-shot head where the other has a head"""
    tuned: Predictor
    """Folded, as far as it can be"""
    groups: dict[str, str]
    """Name of every tensor that can be compared to its part of the model"""
    layers: tuple[Layer, ...]
    """The matrices among them"""
    limits: tuple[str, ...]
    """Sentences about what cannot be said, and why"""

    @property
    def text_applies(self) -> bool:
        """Whether both read the same class prompts."""
        return slots_of(self.tuned.surgeries) is None


def bring_together(start: Predictor, tuned: Predictor) -> Pair:
    """Fold both and find what can be compared.

    Args:
        start: Pre-trained; gets a zero-shot head, in a copy, where the other has a head.
        tuned: Fine-tuned from it.
    """
    tuned, start = tuned.plain().eval(), start.plain().eval()
    limits: list[str] = []
    own_space = not heads.texts_apart(tuned.surgeries)
    if tuned.head is not None and start.head is None and own_space:
        start = start.copy()
        start.set_head(tuned.classes, tuned.templates)
    names = groups_of(start)
    same = set(same_shape(weights_of(start), weights_of(tuned), names))
    groups = {name: group for name, group in names.items() if name in same}
    if tuned.surgeries:
        added = " and ".join(repr(surgery.name) for surgery in tuned.surgeries)
        before, after = weights_of(start), weights_of(tuned)
        own = "are those of the start"
        if any(not torch.equal(before[name], after[name]) for name in groups):
            own = "were changed by an earlier run (model.init), which can be diagnosed itself"
        groups = {}
        limits.append(
            f"What {added} added cannot be folded into the weights, and the towers' own weights "
            f"{own}. So there is no update to be divided into spans, and it has "
            "no singular values; features and answers are compared all the same."
        )
    if slots_of(tuned.surgeries) is not None:
        limits.append(
            "Learned contexts stand in the place of the prompts' words, so blocks of the text "
            "tower do not see the same texts before and after; class rows are compared instead."
        )
    if not own_space:
        limits.append(
            "Images are projected into the space of a teacher, so the cosine of embeddings "
            "before and after has no meaning there; CKA has."
        )
    layers = tuple(layer for layer in find_layers(start) if layer.name in groups)
    return Pair(start, tuned, groups, layers, tuple(limits))


def prompts_of(
    predictor: Predictor, names: Sequence[str], templates: Sequence[str], limit: int
) -> Tensor:
    """Tokenise at most `limit` class prompts, spread evenly over names and templates, (N, L)."""
    count = len(names) * len(templates)
    places = np.linspace(0, count - 1, min(limit, count)).round().astype(int).tolist()
    pairs = [divmod(place, len(templates)) for place in places]
    return predictor.tokenizer([fill(templates[second], names[first]) for first, second in pairs])


def moments_of(
    predictor: Predictor, layers: Sequence[Layer], images: Batches, prompts: Tensor | None = None
) -> dict[str, Moments]:
    """Return the moments of what comes into layers, by their names; see `layers.feed`."""
    weights = weights_of(predictor)
    widths = {layer.name: layer.matrix(weights[layer.name]).shape[1] for layer in layers}
    found: dict[str, Moments] = {}

    def take(name: str, rows: Tensor) -> None:
        if name not in found:
            found[name] = Moments(widths[name], rows.device)
        found[name].add(rows)

    feed(predictor, layers, take, images(), prompts)
    return found


def in_passes(
    predictor: Predictor, layers: Sequence[Layer], budget: int = BUDGET
) -> Iterator[list[Layer]]:
    """Divide layers so that the moments of each part fit into a budget of bytes."""
    weights = weights_of(predictor)
    part: list[Layer] = []
    taken = 0
    for layer in layers:
        size = 8 * layer.matrix(weights[layer.name]).shape[1] ** 2
        if part and taken + size > budget:
            yield part
            part, taken = [], 0
        part.append(layer)
        taken += size
    if part:
        yield part


@torch.no_grad()
def find_spans(
    predictor: Predictor,
    layers: Sequence[Layer],
    images: Batches,
    prompts: Tensor | None = None,
    energy: float = ENERGY,
    budget: int = BUDGET,
) -> dict[str, Span]:
    """Return the span of what comes into each layer, by name; without layers nobody heard of.

    Raises:
        DataError: If `energy` is out of range, or inputs are zero.
    """
    return {
        name: find_span(moments, energy)
        for part in in_passes(predictor, layers, budget)
        for name, moments in moments_of(predictor, part, images, prompts).items()
    }
