"""Merges of task vectors: what fine-tuning added to a base that all models share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import task_vectors
from ..errors import RunError, WeightsError
from ..mixing import precise
from ..task_vectors import Cut
from .rules import (
    Rule,
    Tensors,
    is_weight,
    mean_rule,
    require_range,
    require_vectors,
    require_word,
)

Scope = Literal["per_tensor", "whole_model"]
"""Where the largest entries are looked for"""


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic:
    """Base + scale times the weighted sum of task vectors; Ilharco et al. 2023, 2212.04089."""

    kind: ClassVar[str] = "task-arithmetic"
    based: ClassVar[bool] = True
    weights: tuple[float, ...] | None = None
    """One number per tuned model; 1 each by default"""
    scale: float = 1.0
    """Factor on the sum"""

    def check(self, inputs: int) -> None:
        """As `Merger.check`."""
        require_vectors(self.kind, inputs, self.weights)

    def rule(self, members: Sequence[Tensors], known: Sequence[Tensors]) -> Rule:
        """As `Merger.rule`."""
        weights = _weights(self.weights, members)

        def merged(name: str, vectors: Iterator[Tensor]) -> Tensor:
            return self.scale * task_vectors.combine(vectors, weights)

        return _moved(members, weights, merged)


@dataclass(frozen=True, kw_only=True)
class Ties:
    """Trim, elect signs, average what agrees; Yadav et al. 2023, arXiv 2306.01708."""

    kind: ClassVar[str] = "ties"
    based: ClassVar[bool] = True
    density: float = 0.2
    """Share of every task vector that stays, in [0, 1]"""
    weights: tuple[float, ...] | None = None
    """One number per tuned model; 1 each by default"""
    scale: float = 1.0
    """Factor on the merged vector"""
    majority: task_vectors.Majority = "total"
    """Signs are elected by the sum of entries, or their frequency"""
    scope: Scope = "per_tensor"
    """Whether the largest entries are those of each tensor, or of the whole model"""

    def __post_init__(self) -> None:
        require_range("density", self.density, 0.0, 1.0)
        require_word("majority", self.majority, ("total", "frequency"))
        require_word("scope", self.scope, ("per_tensor", "whole_model"))

    def check(self, inputs: int) -> None:
        """As `Merger.check`."""
        require_vectors(self.kind, inputs, self.weights)

    def rule(self, members: Sequence[Tensors], known: Sequence[Tensors]) -> Rule:
        """As `Merger.rule`."""
        weights = _weights(self.weights, members)
        places = _places(members, self.density) if self.scope == "whole_model" else None

        def merged(name: str, vectors: Iterator[Tensor]) -> Tensor:
            if places is None:
                trimmed = [task_vectors.trim(vector, self.density) for vector in vectors]
            else:
                trimmed = [
                    task_vectors.trim_at(vector, own[name]) if name in own else vector
                    for vector, own in zip(vectors, places, strict=True)
                ]
            signs = task_vectors.elect(trimmed, self.majority)
            return self.scale * task_vectors.agree(trimmed, weights, signs)

        return _moved(members, weights, merged)


@dataclass(frozen=True, kw_only=True)
class Dare:
    """Drop random entries, enlarge the others, then add or vote; Yu et al. 2024, 2311.03099."""

    kind: ClassVar[str] = "dare"
    based: ClassVar[bool] = True
    density: float = 0.5
    """Probability of an entry to stay, in (0, 1]"""
    weights: tuple[float, ...] | None = None
    """One number per tuned model; 1 each by default"""
    scale: float = 1.0
    """Factor on the merged vector"""
    majority: Literal["none", "total", "frequency"] = "none"
    """none adds the vectors; else signs are elected as in ties"""
    seed: int = 0
    """Of the dropping: with the tensor's name and the member's number it decides all"""

    def __post_init__(self) -> None:
        require_range("density", self.density, 0.0, 1.0)
        if self.density == 0.0:
            raise WeightsError("density is 0, so that nothing would stay; it must be above 0.")
        require_word("majority", self.majority, ("none", "total", "frequency"))

    def check(self, inputs: int) -> None:
        """As `Merger.check`."""
        require_vectors(self.kind, inputs, self.weights)

    def rule(self, members: Sequence[Tensors], known: Sequence[Tensors]) -> Rule:
        """As `Merger.rule`."""
        weights = _weights(self.weights, members)
        signs = None if self.majority == "none" else self.majority

        def merged(name: str, vectors: Iterator[Tensor]) -> Tensor:
            generators = [_generator(self.seed, number, name) for number in range(len(weights))]
            listed = list(vectors)
            return self.scale * task_vectors.dare(listed, weights, self.density, generators, signs)

        return _moved(members, weights, merged)


@dataclass(frozen=True, kw_only=True)
class ModelStock:
    """Base + a share of the mean task vector, from its angles; Jang et al. 2024, 2403.19522."""

    kind: ClassVar[str] = "model-stock"
    based: ClassVar[bool] = True

    def check(self, inputs: int) -> None:
        """As `Merger.check`."""
        if inputs < 3:
            raise RunError(
                f"model-stock takes the base and two or more models that were fine-tuned from it; "
                f"found {inputs} inputs."
            )

    def rule(self, members: Sequence[Tensors], known: Sequence[Tensors]) -> Rule:
        """As `Merger.rule`."""
        weights = (1.0,) * (len(members) - 1)
        return _moved(members, weights, lambda _, vectors: task_vectors.model_stock(list(vectors)))


def _moved(
    members: Sequence[Tensors],
    weights: Sequence[float],
    merged: Callable[[str, Iterator[Tensor]], Tensor],
) -> Rule:
    """Return base + merged task vectors; what is no weight is the mean of the tuned members."""
    tuned = members[1:]
    plain = mean_rule(tuned, (1.0,) * len(tuned))

    def rule(name: str) -> Tensor:
        base = members[0].read(name)
        if not is_weight(name, base):
            return plain(name)
        start = precise(base)
        vectors = (precise(member.read(name)) - start for member in tuned)
        return (start + merged(name, vectors)).to(base.dtype)

    return rule


def _places(members: Sequence[Tensors], density: float) -> list[dict[str, Cut]]:
    """Return where each task vector is cut in every tensor, for the largest of the whole model.

    Tensors that no member moved are no part of it: what was frozen does not count.
    """
    base, tuned = members[0], members[1:]

    def vector(member: Tensors, name: str) -> Tensor:
        return precise(member.read(name)) - precise(base.read(name))

    names, total = [], 0
    for name in base.names():
        start = base.read(name)
        if is_weight(name, start) and any(not one.read(name).equal(start) for one in tuned):
            names.append(name)
            total += start.numel()
    found: list[dict[str, Cut]] = []
    for member in tuned:

        def parts(member: Tensors = member) -> Iterator[Tensor]:
            return (vector(member, name) for name in names)

        place = task_vectors.cut(parts, int(density * total))
        left, own = place.equal, {}
        for name, part in zip(names, parts(), strict=True):
            here = int((part.abs().to(torch.float32) == place.value).sum())
            own[name] = Cut(place.value, min(left, here))
            left -= own[name].equal
        found.append(own)
    return found


def _generator(seed: int, number: int, name: str) -> torch.Generator:
    """Return random numbers that depend on the seed, the member and the tensor alone."""
    digest = hashlib.sha256(f"{seed} {number} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _weights(weights: Sequence[float] | None, members: Sequence[Tensors]) -> tuple[float, ...]:
    return (1.0,) * (len(members) - 1) if weights is None else tuple(weights)
