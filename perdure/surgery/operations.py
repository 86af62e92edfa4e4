"""What every surgery can do, the table of surgeries, and how one is written down."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from importlib import import_module
from typing import Any, ClassVar, Protocol

from pydantic import TypeAdapter, ValidationError
from torch import nn

from ..errors import SurgeryError, WeightsError, nearest


class Surgery(Protocol):
    """A frozen dataclass, of values that JSON can hold, that adds modules to a model in place.

    What it adds changes no number of the model until it is trained; where it cannot be folded, as
    little as its start allows.
    """

    name: ClassVar[str]
    foldable: ClassVar[bool]
    """Whether `fold` leaves a plain CLIP; else what was added stays, as soft prompts must"""

    @property
    def alpha(self) -> float:
        """Strength of what was added: 0 the model as it was, 1 as it is trained."""

    def attach(self, clip: nn.Module) -> None:
        """Add modules, with hooks that use them; names of existing weights stay.

        Raises:
            SurgeryError: If the model has no place for them, or has them already.
        """

    def fold(self, clip: nn.Module, alpha: float) -> None:
        """Write what was added, at a strength, into the model's own weights and remove it.

        What is not foldable stays and takes the strength into its own weights, in which it is
        linear: those at alpha are (1 - alpha) those at 0 + alpha those at 1.

        Raises:
            SurgeryError: If it is not there, or cannot have this strength.
        """

    def set_alpha(self, clip: nn.Module, alpha: float) -> None:
        """Change the strength at which what was added acts.

        Raises:
            SurgeryError: If it is not there.
        """


SURGERIES: dict[str, str] = {
    "low-rank": "perdure.surgery.low_rank:LowRank",
    "residual": "perdure.surgery.residual:Residual",
    "side": "perdure.surgery.side:Side",
    "visual-prompts": "perdure.surgery.visual_prompts:VisualPrompts",
    "mask-prompts": "perdure.surgery.mask_prompts:MaskPrompts",
    "projector": "perdure.surgery.projector:Projector",
    "slots": "perdure.surgery.slots:Slots",
}
"""Name to "module:Class", imported on first use.

The order is that of folding: what acts inside a linear layer before what acts on its output.
"""


def to_record(surgery: Surgery) -> dict[str, Any]:
    """Return a surgery as JSON: its name and its fields."""
    return {"name": surgery.name, **asdict(surgery)}  # type: ignore[call-overload]


def from_record(record: Any) -> Surgery:
    """Return the surgery that `to_record` has written.

    Raises:
        WeightsError: If the record does not describe one.
    """
    values = dict(record) if isinstance(record, Mapping) else {}
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in SURGERIES:
        hint = nearest(name, SURGERIES) if isinstance(name, str) else ""
        raise WeightsError(
            f"a surgery is called {name!r}; {hint} allowed: {', '.join(SURGERIES)}. The file is "
            "damaged, or was written by a newer perdure.".replace("  ", " ")
        )
    module, _, attribute = SURGERIES[name].partition(":")
    cls = getattr(import_module(module), attribute)
    unknown = sorted(map(str, values.keys() - {field.name for field in fields(cls)}))
    if unknown:
        raise WeightsError(
            f"the surgery {name!r} has no field {', '.join(unknown)}. The file was changed by "
            "hand, or was written by a newer perdure."
        )
    try:
        surgery: Surgery = TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise WeightsError(
            f"the surgery {name!r} has {key} = {first['input']!r}: {first['msg'].lower()}."
        ) from None
    except SurgeryError as error:
        raise WeightsError(f"the surgery {name!r} cannot be: {error}") from None
    return surgery


def inner_first(surgeries: Iterable[Surgery]) -> list[Surgery]:
    """Return surgeries in the order in which they must be folded."""
    order = list(SURGERIES)
    return sorted(surgeries, key=lambda surgery: order.index(surgery.name))


def fold_all(
    clip: nn.Module, surgeries: Iterable[Surgery], alpha: float | None
) -> tuple[Surgery, ...]:
    """Fold surgeries in their order and return those that stay, which then have strength 1.

    Args:
        clip: The model, changed in place.
        surgeries: What was added to it.
        alpha: Strength of all; None for that of each.

    Raises:
        SurgeryError: If one is not there, or cannot have this strength.
    """
    surgeries = tuple(surgeries)
    for surgery in inner_first(surgeries):
        surgery.fold(clip, surgery.alpha if alpha is None else alpha)
    return tuple(with_alpha(surgery, 1.0) for surgery in surgeries if not surgery.foldable)


def require_plain(surgeries: Iterable[Surgery]) -> None:
    """Refuse what plain CLIP cannot hold.

    Raises:
        SurgeryError: If a surgery cannot be folded; says what to use instead.
    """
    kept = [surgery.name for surgery in surgeries if not surgery.foldable]
    if kept:
        raise SurgeryError(
            f"what {' and '.join(map(repr, kept))} added cannot be folded into the weights of a "
            "plain CLIP, so open_clip cannot hold it. Keep the run's predictor/ and load it with "
            "perdure.Predictor.load, or take the added modules alone: perdure export RUN --to "
            "adapters."
        )


def with_alpha(surgery: Surgery, alpha: float) -> Surgery:
    """Return the surgery with another strength."""
    changed: Surgery = replace(surgery, alpha=alpha)  # type: ignore[type-var]
    return changed


def require_any(surgeries: Iterable[Surgery], what: str, model: str) -> None:
    """Refuse to change the strength of nothing.

    Args:
        surgeries: Of the model.
        what: Beginning of the message: what was asked for.
        model: Its name.

    Raises:
        SurgeryError: If there are none.
    """
    if not any(True for _ in surgeries):
        raise SurgeryError(
            f"{what}: {model} has no added modules, or is folded; to interpolate whole models use "
            "`perdure merge wise-ft`."
        )


def check_alpha(alpha: float) -> None:
    """Refuse a strength that is negative or not finite.

    Raises:
        SurgeryError: If it is.
    """
    if not (math.isfinite(alpha) and alpha >= 0.0):
        raise SurgeryError(
            f"alpha is {alpha}, but must be finite and >= 0: 0 is the model without what was "
            "added, 1 as it was trained."
        )


def require_whole(alpha: float, what: str) -> None:
    """Refuse any strength but 1, for what is there or not.

    Args:
        alpha: The strength asked for.
        what: Subject and verb of the message, such as "a projector has".

    Raises:
        SurgeryError: If alpha is not 1.
    """
    if alpha != 1.0:
        raise SurgeryError(
            f"alpha is {alpha}, but {what} no strength other than 1, so such a model can be "
            "neither weakened nor interpolated with the one it was trained from."
        )
