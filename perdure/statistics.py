"""Teacher and student on one batch, in numbers: how sure they are, how right, how far apart.

All is vectorised over the batch and stays on its device, so a step that logs none of it waits for
nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .contrastive import Comparison

FIRST = 5
"""Partners per row whose overlap is measured; all of them in smaller batches"""

_SIDES = ("image", "text")
_BOTH = (
    "teacher_entropy", "teacher_confidence", "student_confidence", "teacher_agreement",
    "teacher_divergence", "teacher_accuracy", "student_accuracy", "accuracy_gap",
    "teacher_probability", "student_probability",
)  # fmt: skip
"""Reported as a mean of the two directions as well"""


@torch.no_grad()
def teacher_stats(both: Comparison, *, floor: float = 0.0) -> dict[str, Tensor]:
    """Return how a teacher and its student see one batch, scalars of shape () without gradient.

    Each stands as `NAME_image` (every image against all texts) and `NAME_text` (the reverse), most
    also as `NAME`, the mean of the two:

    - `teacher_entropy`, in nats; `teacher_temperature`, ln B over it (no mean);
    - `teacher_confidence`, `student_confidence`: mean largest probability;
    - `teacher_agreement`: share of rows with the same nearest partner; `teacher_overlap`: share of
      the five nearest that are the same (no mean);
    - `teacher_divergence`: KL(teacher || student), mean over rows;
    - `teacher_accuracy`, `student_accuracy`: share of rows whose nearest partner is their own, and
      `accuracy_gap`, their difference. Rows of one class count as wrong for each other, so this is
      no classification accuracy: with many more rows than classes its ceiling is far below 1;
    - `teacher_probability`, `student_probability`: mean probability of the row's own partner.

    Args:
        both: A comparison with a teacher; what it has computed already is used again.
        floor: Added to probabilities inside logarithms. The authors' code adds 1e-8, which bounds
            a divergence; 0 is exact.

    Raises:
        ValueError: If the comparison has no teacher.

    Source: TRACER's code. Its "prediction diversity" is left out: it is 1 for all probabilities.
    """
    found: dict[str, Tensor] = {}
    logs = zip(both.teacher_log, both.student_log, both.teacher_probabilities, strict=True)
    for side, (teacher, student, probability) in zip(_SIDES, logs, strict=True):
        if side == "text":  # one text per row, contiguous: what follows runs along rows
            teacher, student, probability = (
                matrix.T.contiguous() for matrix in (teacher, student, probability)
            )
        values = _one_direction(teacher, student, probability, floor)
        found |= {f"{name}_{side}": value for name, value in values.items()}
    means = {name: 0.5 * (found[f"{name}_image"] + found[f"{name}_text"]) for name in _BOTH}
    return means | found


def _one_direction(
    teacher: Tensor, student: Tensor, probability: Tensor, floor: float
) -> dict[str, Tensor]:
    """Return the statistics of log-probabilities (B, B) whose own partners are the diagonal."""
    size = len(teacher)
    first = min(FIRST, size)
    best, near = teacher.topk(first, dim=1)
    own_best, own_near = student.topk(first, dim=1)
    if floor:
        entropy = -_inner(probability, (probability + floor).log()) / size
        crossed = _inner(probability, (student.exp() + floor).log()) / size
        # The source floors the student's side of a divergence only.
        divergence = _inner(probability, teacher) / size - crossed
    else:
        entropy = -_inner(probability, teacher) / size
        divergence = -entropy - _inner(probability, student) / size
    places = torch.arange(size, device=teacher.device)
    accuracy, own_accuracy = _share(near[:, 0] == places), _share(own_near[:, 0] == places)
    return {
        "teacher_entropy": entropy,
        "teacher_temperature": torch.log(entropy.new_tensor(float(size))) / entropy,
        "teacher_confidence": best[:, 0].exp().mean(),
        "student_confidence": own_best[:, 0].exp().mean(),
        "teacher_agreement": _share(near[:, 0] == own_near[:, 0]),
        "teacher_overlap": _share((near[:, :, None] == own_near[:, None, :]).any(dim=2)),
        "teacher_divergence": divergence,
        "teacher_accuracy": accuracy,
        "student_accuracy": own_accuracy,
        "accuracy_gap": accuracy - own_accuracy,
        "teacher_probability": probability.diagonal().mean(),
        "student_probability": student.diagonal().exp().mean(),
    }


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of products without a (B, B) temporary."""
    return torch.dot(a.reshape(-1), b.reshape(-1))


def _share(matches: Tensor) -> Tensor:
    return matches.float().mean()
