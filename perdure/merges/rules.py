"""What every kind of merge is made of: tensors by name, a rule for one of them, checked options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from .. import mixing
from ..errors import RunError, WeightsError

Rule = Callable[[str], Tensor]
"""From a name to the merged tensor"""

_STATISTICS = ("running_mean", "running_var")
"""Last parts of names of what normalisation layers have counted, which no task vector moves"""


class Tensors(Protocol):
    """Named tensors that are read one by one."""

    def names(self) -> Sequence[str]:
        """Return the names in a fixed order."""

    def read(self, name: str) -> Tensor:
        """Return one of them."""


class Merger(Protocol):
    """Options of a kind of merge, and its rule."""

    kind: ClassVar[str]
    based: ClassVar[bool]
    """Whether the first input is the model that the others were fine-tuned from"""

    def check(self, inputs: int) -> None:
        """Refuse a number of inputs.

        Raises:
            RunError: If there are too few or too many.
            WeightsError: If there is not one weight per member.
        """

    def rule(self, members: Sequence[Tensors], known: Sequence[Tensors]) -> Rule:
        """Return what makes one tensor out of those of that name.

        Args:
            members: In the order of the inputs.
            known: What was measured of each: Fisher information or Gram matrices, by name.
        """


def mean_rule(members: Sequence[Tensors], shares: Sequence[float]) -> Rule:
    """Return the rule of the weighted mean."""
    return lambda name: mixing.mean((member.read(name) for member in members), shares)


def checked_shares(shares: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Return one share per member; equal ones where none are given.

    Raises:
        WeightsError: If they do not fit, one is negative, or all are zero.
    """
    parts = (1.0,) * count if shares is None else tuple(float(share) for share in shares)
    if count == 0 or len(parts) != count or min(parts) < 0 or not 0 < sum(parts) < float("inf"):
        raise WeightsError(
            f"shares {list(parts)} do not fit {count} members; give one number >= 0 per member, "
            "not all of them zero."
        )
    return parts


def is_weight(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is learned, and no counter or running statistic."""
    return tensor.is_floating_point() and name.rpartition(".")[2] not in _STATISTICS


def require_vectors(kind: str, inputs: int, weights: Sequence[float] | None) -> None:
    """Refuse a number of inputs, or of weights, that gives no task vectors.

    Raises:
        RunError, WeightsError: If it does.
    """
    if inputs < 2:
        raise RunError(
            f"{kind} takes the base and one or more models that were fine-tuned from it; found "
            f"{inputs} input."
        )
    if weights is not None and len(weights) != inputs - 1:
        raise WeightsError(
            f"weights {list(weights)} do not fit {inputs - 1} tuned models; give one number for "
            "each, and none for the base, which comes first."
        )


def require_several(kind: str, inputs: int) -> None:
    """Refuse fewer than two inputs.

    Raises:
        RunError: If there are.
    """
    if inputs < 2:
        raise RunError(f"{kind} takes two or more models; found {inputs}.")


def require_alpha(alpha: float | None, meaning: str) -> None:
    """Refuse a share that is missing or out of range.

    Raises:
        WeightsError: If it is.
    """
    if alpha is None or not 0.0 <= alpha <= 1.0:
        raise WeightsError(f"alpha is {alpha}, but must be given and lie in [0, 1]: {meaning}")


def require_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse an option out of its range.

    Raises:
        WeightsError: If it is.
    """
    if not low <= value <= high:
        raise WeightsError(f"{name} is {value}; it must lie in [{low:g}, {high:g}].")


def require_word(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse an option that is none of the allowed words.

    Raises:
        WeightsError: If it is.
    """
    if value not in allowed:
        raise WeightsError(f"{name} is {value!r}; allowed: {', '.join(allowed)}.")


def require_examples(value: int) -> None:
    """Refuse to measure on no image.

    Raises:
        WeightsError: If that is asked for.
    """
    if value < 1:
        raise WeightsError(f"examples is {value}; it must be at least 1.")
