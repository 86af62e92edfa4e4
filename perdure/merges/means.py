"""Merges that average whole models: interpolation, soups, arcs, and means that weigh evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import mixing
from ..errors import RunError, WeightsError
from .rules import (
    Rule,
    Tensors,
    checked_shares,
    is_weight,
    mean_rule,
    require_alpha,
    require_examples,
    require_range,
    require_several,
)


@dataclass(frozen=True, kw_only=True)
class WiseFT:
    """(1 - alpha) A + alpha B; Wortsman et al. 2022, arXiv 2109.01903."""

    kind: ClassVar[str] = "wise-ft"
    based: ClassVar[bool] = True
    alpha: float | None = None
    """Share of B in [0, 1]"""

    def __post_init__(self) -> None:
        require_alpha(self.alpha, "0 is zero-shot, 1 the fine-tuned model.")

    def check(self, inputs: int) -> None:
        """As `Merger.check`."""
        if inputs != 2:
            raise RunError(f"wise-ft takes two inputs, zero-shot and tuned; found {inputs}.")

    def rule(self, members: Sequence[Tensors], known: Sequence[Tensors]) -> Rule:
        """As `Merger.rule`."""
        assert self.alpha is not None
        return mean_rule(members, (1.0 - self.alpha, self.alpha))


@dataclass(frozen=True, kw_only=True)
class Soup:
    """Weighted mean of all members; Wortsman et al. 2022, arXiv 2203.05482."""

    kind: ClassVar[str] = "soup"
    based: ClassVar[bool] = False
    shares: tuple[float, ...] | None = None
    """One number >= 0 per member, of which only the ratios matter; equal by default"""
    greedy: bool = False
    """Add members in the order of their accuracy on `val`, while it does not fall"""

    def __post_init__(self) -> None:
        if self.greedy and self.shares is not None:
            raise WeightsError("a greedy soup chooses its members and their shares; leave one out.")

    def check(self, inputs: int) -> None:
        """As `Merger.check`."""
        checked_shares(self.shares, inputs)

    def rule(self, members: Sequence[Tensors], known: Sequence[Tensors]) -> Rule:
        """As `Merger.rule`."""
        return mean_rule(members, checked_shares(self.shares, len(members)))


@dataclass(frozen=True, kw_only=True)
class Slerp:
    """The arc from A to B, tensor by tensor; Shoemake 1985."""

    kind: ClassVar[str] = "slerp"
    based: ClassVar[bool] = False
    alpha: float | None = None
    """Share of the arc in [0, 1]"""

    def __post_init__(self) -> None:
        require_alpha(self.alpha, "0 is the first model, 1 the second.")

    def check(self, inputs: int) -> None:
        """As `Merger.check`."""
        if inputs != 2:
            raise RunError(f"slerp takes two inputs, the ends of the arc; found {inputs}.")

    def rule(self, members: Sequence[Tensors], known: Sequence[Tensors]) -> Rule:
        """As `Merger.rule`."""
        alpha = self.alpha
        assert alpha is not None
        straight = mean_rule(members, (1.0 - alpha, alpha))

        def merged(name: str) -> Tensor:
            first = members[0].read(name)
            if not is_weight(name, first):
                return straight(name)
            return mixing.slerp(first, members[1].read(name), alpha).to(first.dtype)

        return merged


@dataclass(frozen=True, kw_only=True)
class Fisher:
    """Mean weighted with Fisher information; Matena and Raffel 2022, arXiv 2111.09832."""

    kind: ClassVar[str] = "fisher"
    based: ClassVar[bool] = False
    shares: tuple[float, ...] | None = None
    """One number >= 0 per member; equal by default"""
    examples: int = 64
    """Training images that the information is measured on"""
    exact: bool = False
    """Expectation over all classes instead of one drawn label per image: C times the work"""
    seed: int = 0
    """Of the drawn labels"""
    floor: float = 1e-8
    """Smallest information"""

    def __post_init__(self) -> None:
        require_examples(self.examples)
        if not self.floor > 0:
            raise WeightsError(f"floor is {self.floor}; it must be greater than 0.")

    def check(self, inputs: int) -> None:
        """As `Merger.check`."""
        require_several(self.kind, inputs)
        checked_shares(self.shares, inputs)

    def rule(self, members: Sequence[Tensors], known: Sequence[Tensors]) -> Rule:
        """As `Merger.rule`."""
        shares = checked_shares(self.shares, len(members))
        plain = mean_rule(members, shares)
        measured = set(known[0].names())

        def merged(name: str) -> Tensor:
            if name not in measured:
                return plain(name)
            tensors = (member.read(name) for member in members)
            information = (one.read(name) for one in known)
            found = mixing.fisher(tensors, information, shares, self.floor)
            return found.to(members[0].read(name).dtype)

        return merged


@dataclass(frozen=True, kw_only=True)
class RegMean:
    """Least squares on each linear layer's outputs; Jin et al. 2023, arXiv 2212.09849."""

    kind: ClassVar[str] = "regmean"
    based: ClassVar[bool] = False
    ratio: float = 0.9
    """Factor on the Gram matrices beside their diagonal, in [0, 1]"""
    examples: int = 256
    """Training images that the Gram matrices are measured on"""
    ridge: float = 1e-6
    """Share of the mean diagonal added where the matrices are singular"""

    def __post_init__(self) -> None:
        require_examples(self.examples)
        require_range("ratio", self.ratio, 0.0, 1.0)
        if not self.ridge > 0:
            raise WeightsError(f"ridge is {self.ridge}; it must be greater than 0.")

    def check(self, inputs: int) -> None:
        """As `Merger.check`."""
        require_several(self.kind, inputs)

    def rule(self, members: Sequence[Tensors], known: Sequence[Tensors]) -> Rule:
        """As `Merger.rule`."""
        plain = mean_rule(members, (1.0,) * len(members))
        measured = set.intersection(*(set(one.names()) for one in known))

        def merged(name: str) -> Tensor:
            if name not in measured:
                return plain(name)
            matrices = [member.read(name) for member in members]
            grams = [one.read(name) for one in known]
            found = mixing.regmean(matrices, grams, self.ratio, self.ridge)
            return found.to(matrices[0].dtype)

        return merged
