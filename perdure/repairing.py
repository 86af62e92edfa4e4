"""What MERGETUNE optimises: presets, defaults by space, and distances to the zero-shot model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from .classifying import ClassifierLearner
from .errors import TaskError
from .learner import Learner
from .path_loss import Grid
from .towers import unit
from .weights import Weights

Preset = Literal["released-prompt", "released-mma", "released-promptkd"]
Space = Literal["parameters", "classifier"]
Reduction = Literal["sum", "mean", "relative"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options after presets and defaults have filled in what was left open."""

    space: Literal["parameters", "classifier", "features"] = "parameters"
    """Where places on the path lie: weights, class rows, or (a preset's) image features"""
    anchor_weight: float = 1.0
    path_weight: float = 0.5
    start: float = 0.3
    points: int = 5
    grid: Grid = "midpoints"
    anchor: Literal["l2", "cosine", "fisher"] = "l2"
    reduction: Reduction = "relative"
    decay_towards: Literal["anchor", "zero"] = "anchor"
    path_to: Literal["tuned", "zero-shot"] = "tuned"
    """Fixed end of the path; towards the zero-shot model only in a preset"""
    anchor_at: Literal["tuned", "zero-shot"] = "zero-shot"
    """Where the distance is zero; at the tuned model only in a preset"""
    unsquared: bool = False
    """Whether the distance of rows is not squared, as in a preset"""


COSINES: dict[str, Any] = {"anchor_weight": 8.0, "anchor": "cosine", "reduction": "mean"}
"""Defaults for rows that make cosines, with the weight of the paper's ablations; for all else the
paper gives no values"""

_RELEASED: dict[str, Any] = {"start": 1.0, "grid": "released", "decay_towards": "zero"}
PRESETS: dict[str, dict[str, Any]] = {
    "released-prompt": _RELEASED
    | {"space": "classifier", "anchor": "cosine", "anchor_weight": 8.0, "reduction": "mean"}
    | {"path_weight": 1.0, "unsquared": True},
    "released-mma": _RELEASED
    | {"space": "classifier", "anchor_weight": 0.0, "path_weight": 10.0, "path_to": "zero-shot"},
    "released-promptkd": _RELEASED
    | {"space": "features", "anchor": "l2", "anchor_weight": 100.0, "reduction": "mean"}
    | {"anchor_at": "tuned", "path_weight": 0.05, "points": 10},
}
"""What the public code (commit 6e211bc) optimises, by host. The path weight of promptkd is its 50
divided by the 1,000 of its divergence, which here is a part of the host's loss"""


def filled_in(method: Any, host: Learner) -> Settings:
    """Return a method's options with preset and defaults filled in.

    Args:
        method: With the fields of `Settings` that can be chosen, null where open, and `preset`.
        host: Whose class rows may train.

    Raises:
        TaskError: If an option does not fit the host or another option.
    """
    preset = dict(PRESETS.get(method.preset, {}))
    names = [field.name for field in fields(Settings)]
    found = {name: getattr(method, name, None) for name in names}
    given = {name: value for name, value in found.items() if value is not None}
    space = given.get("space") or preset.get("space") or ("classifier" if _rows(host) else None)
    if space in ("classifier", "features") and not isinstance(host, ClassifierLearner):
        raise TaskError(
            f"method.space is {space!r}{_by(method)}, but the host {method.host.name} has no class "
            "rows that its scores come of; use 'parameters', or a host such as coop, mma or ft "
            "with train: head."
        )
    if space == "classifier" and not _rows(host):
        raise TaskError(
            f"method.space is 'classifier'{_by(method)}, but the class rows of the host "
            f"{method.host.name} do not train; use 'parameters'."
        )
    cosines = space == "classifier" and isinstance(host, ClassifierLearner) and host.cosine
    defaults = dict(COSINES) if cosines else {}
    if "anchor" in given and given["anchor"] != "cosine" and not preset:
        defaults.pop("anchor_weight", None)  # the paper's is one for cosines
    settings = Settings(**defaults | preset | given | {"space": space or "parameters"})
    if settings.anchor == "cosine" and settings.space != "classifier":
        raise TaskError(
            f"method.anchor is 'cosine', which compares class rows, but the space is "
            f"{settings.space!r}; use 'l2' or 'fisher'."
        )
    if settings.anchor == "fisher" and settings.space != "parameters":
        raise TaskError(
            "method.anchor is 'fisher', which weights parameters, but the space is "
            f"{settings.space!r}; set method.space to 'parameters', or use 'l2' or 'cosine'."
        )
    return settings


def distance(
    live: Weights,
    first: Weights,
    last: Weights,
    reduction: Reduction,
    importance: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return the squared distance of weights from `first`, shape ().

    Args:
        live: Gets the gradient.
        first: Where the distance is 0.
        last: Where it is 1 with the reduction "relative", head and towers each for itself.
        reduction: "sum", "mean" over scalars, or "relative".
        importance: Factor on the square of every scalar; None for 1.
    """
    relative = reduction == "relative"
    parts = []
    for names in _in_groups(list(live)) if relative else [list(live)]:
        gap = _squared(live, first, names, importance)
        if reduction == "mean":
            gap = gap / sum(live[name].numel() for name in names)
        if relative:
            whole = _squared(last, first, names, importance)
            gap = torch.where(whole > 0, gap / whole, 0.0)  # 0 for a group that never moved
        parts.append(gap)
    return torch.stack(parts).mean()


def row_gaps(rows: Tensor, zero: Tensor, anchor: str, cosine: bool, unsquared: bool) -> Tensor:
    """Return the distance of every row from that of the zero-shot model, (C,).

    Args:
        rows: (C, D), raw.
        zero: (C, D); unit rows where scores are cosines.
        anchor: "cosine" for 1 - cosine, "l2" for squared distances.
        cosine: Whether scores are cosines; then only directions are compared.
        unsquared: Whether to take the root of squared distances.
    """
    if anchor == "cosine":
        return 1.0 - (unit(rows) * unit(zero)).sum(dim=-1)
    gap = (unit(rows) if cosine else rows.float()) - zero
    return gap.norm(dim=-1) if unsquared else gap.square().sum(dim=-1)


def _rows(host: Learner) -> bool:
    """Return whether a host has class rows that train."""
    return isinstance(host, ClassifierLearner) and host.rows().requires_grad


def _by(method: Any) -> str:
    return f" (by the preset {method.preset})" if method.preset and method.space is None else ""


def _in_groups(names: Sequence[str]) -> list[list[str]]:
    """Part the weights of a linear head from those of the towers; no group is empty."""
    head = [name for name in names if name.startswith("student.head.")]
    return [part for part in ([name for name in names if name not in set(head)], head) if part]


def _squared(
    a: Weights, b: Weights, names: Sequence[str], importance: Mapping[str, Tensor] | None
) -> Tensor:
    parts = []
    for name in names:
        gap = (a[name] - b[name]).square()
        parts.append((gap if importance is None else gap * importance[name]).sum())
    return torch.stack(parts).sum()
