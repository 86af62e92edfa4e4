"""Linear heads: class rows that image features are scored with, and those a task asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .errors import TaskError
from .inputs import places_of
from .stored import empty_head
from .surgery.operations import Surgery


@torch.no_grad()
def head_of(rows: Tensor, scale: Tensor) -> nn.Linear:
    """Return a head that scores unit features as class rows do: weight scale times rows, bias 0.

    Args:
        rows: (C, D).
        scale: Inverse temperature, shape ().
    """
    head = empty_head(rows.shape[1], len(rows)).to(rows.device)
    head.weight.copy_(rows * scale)
    head.bias.zero_()
    return head


def texts_apart(surgeries: Iterable[Surgery]) -> bool:
    """Return whether images have left the space of the model's own texts.

    A projector declares it by `text_apart`; then nothing but the head can score.
    """
    return any(getattr(surgery, "text_apart", False) for surgery in surgeries)


def columns(
    head: nn.Linear | None,
    classes: Sequence[str],
    names: Sequence[str],
    surgeries: Iterable[Surgery] = (),
) -> Tensor | None:
    """Return the head's row of each name; None if there is no head or it lacks one.

    Args:
        head: With one row per class.
        classes: What its rows stand for.
        names: What is to be scored.
        surgeries: Of the model.

    Raises:
        TaskError: If the head lacks a name and the text tower cannot help, since images are
            projected away from its space.
    """
    if head is None or not set(names) <= set(classes):
        if texts_apart(surgeries):
            missing = next((name for name in names if name not in classes), "")
            if head is None:
                raise TaskError(
                    "this model's images are projected into the space of its teacher, whose class "
                    "rows it does not have, as a checkpoint of another program. Give it these: as "
                    "model.init of a recipe of promptkd that names the teacher, or by keep_rows."
                )
            raise TaskError(
                f"this model has no row for the class {missing!r}: its images are projected into "
                f"the space of its teacher, whose rows of {len(classes)} classes it keeps, and "
                "its own text tower cannot score them. Score those classes, or distil again on "
                "data that have this one."
            )
        return None
    return torch.tensor(places_of(names, classes), device=head.weight.device)
