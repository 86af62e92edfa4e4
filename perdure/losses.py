"""Loss functions of tensors: pure, float32 or wider, each with its source.

All take `Pairs` whose rows are unit vectors and never normalise again. Image-to-text scores stand
in the rows of a (B, B) matrix and text-to-image scores in its columns. A teacher is a constant: no
gradient flows into it. The terms of one step may share their matrices through a `Comparison`.
The contrastive losses are those of `contrastive`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import Pairs
from .contrastive import (
    Comparison,
    compare,
    diagonal_loss,
    exact,
    info_nce,
    mpm_nce,
    mpm_sigmoid,
    similarity,
    wide,
)

__all__ = [
    "Comparison",
    "class_kl",
    "cross_kl",
    "cross_norm",
    "feature_distill",
    "info_nce",
    "interactive_nce",
    "logit_distill",
    "mpm_nce",
    "mpm_sigmoid",
    "orthogonality",
    "relational_kl",
    "similarity",
    "softened_kl",
]


def feature_distill(student: Pairs, teacher: Pairs) -> Tensor:
    """Squared distance of embeddings, summed over D and both modalities, mean over rows, shape ().

    In [0, 8]. Summing over D keeps the meaning of a weight when the width changes.

    Source: TRACER (Asadollahzadeh et al. 2026, arXiv 2605.29380), equations 20 to 27. The authors'
    code takes the mean over D; its weight 2000 at D = 512 is 3.906 here.
    """
    image = wide(student.image) - wide(teacher.image.detach())
    text = wide(student.text) - wide(teacher.text.detach())
    return (image.square().sum() + text.square().sum()) / image.shape[0]


def relational_kl(student: Pairs, teacher: Pairs, shared: Comparison | None = None) -> Tensor:
    """Divergence of the student's in-batch similarities from the teacher's, shape ().

    Half the sum over the two directions of KL(teacher || student), mean over rows; each side uses
    its own scale.

    Args:
        student: Pairs that receive gradients.
        teacher: Pairs of the same images and texts.
        shared: A comparison of these two.

    Source: TRACER, equations 20 to 27; the half is the authors' code's.
    """
    both = compare(student, teacher, shared)
    return _divergence(both, both.student_log)


def interactive_nce(student: Pairs, teacher: Pairs, shared: Comparison | None = None) -> Tensor:
    """Contrastive loss of student anchors against the teacher's embeddings as keys, shape ().

    Uses the student's scale; equals `info_nce` when teacher and student agree.

    Args:
        student: Pairs that receive gradients.
        teacher: Pairs of the same images and texts.
        shared: A comparison of these two.

    Source: TRACER, equations 20 to 27.
    """
    return diagonal_loss(*compare(student, teacher, shared).cross_log)


def cross_kl(student: Pairs, teacher: Pairs, shared: Comparison | None = None) -> Tensor:
    """Divergence of student-to-teacher similarities from the teacher's own, shape ().

    Half the sum over the two directions of KL(teacher || student anchors, teacher keys), mean over
    rows; the student's scale multiplies the crossed cosines.

    Args:
        student: Pairs that receive gradients.
        teacher: Pairs of the same images and texts.
        shared: A comparison of these two.

    Source: TRACER, equations 20 to 27.
    """
    both = compare(student, teacher, shared)
    return _divergence(both, both.cross_log)


def logit_distill(
    student: Pairs, teacher: Pairs, temperature: float = 1.0, shared: Comparison | None = None
) -> Tensor:
    """Cross-entropy of the student against the teacher's in-batch probabilities, shape ().

    The two directions are summed, mean over rows. At temperature 1 its gradient is twice that of
    `relational_kl`, from which it differs by the teacher's entropy.

    Args:
        student: Pairs that receive gradients.
        teacher: Pairs of the same images and texts.
        temperature: Divides the teacher's logits only, > 0; 1 leaves them.
        shared: A comparison of these two.

    Source: CaRot (Oh et al. 2024, arXiv 2311.01723). The authors' code takes log(softmax), which
    is infinite where a probability underflows; this is the log-softmax.
    """
    both = compare(student, teacher, shared)
    if temperature == 1.0:
        targets = both.teacher_probabilities
    else:
        logits = similarity(both.fixed) / temperature
        targets = logits.softmax(dim=1), logits.softmax(dim=0)
    rows, columns = map(_inner, targets, both.student_log)
    return -(rows + columns) / student.image.shape[0]


def class_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Divergence of class predictions, KL(teacher || student), mean over rows, shape ().

    Args:
        student_logits: (B, C), receives gradients.
        teacher_logits: (B, C), constant.
    """
    with exact(student_logits):
        target = wide(teacher_logits.detach()).log_softmax(dim=1)
        found = wide(student_logits).log_softmax(dim=1)
        return _inner(target.exp(), target - found) / student_logits.shape[0]


def softened_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) of class predictions, mean over rows and classes, shape (...).

    Dividing by the classes too makes it 1/C of the usual mean over rows, `class_kl` at T = 1.

    Args:
        student_logits: (..., B, C), receives gradients.
        teacher_logits: (B, C), constant.
        temperature: Divides both, > 0.

    Source: PromptKD (Li et al., CVPR 2024, arXiv 2403.02781), equation 5; the mean over classes is
    the authors' code's.
    """
    with exact(student_logits):
        target = (wide(teacher_logits.detach()) / temperature).log_softmax(dim=-1)
        found = (wide(student_logits) / temperature).log_softmax(dim=-1)
        return temperature**2 * (target.exp() * (target - found)).mean(dim=(-2, -1))


def cross_norm(visual_weight: Tensor, text_weight: Tensor) -> Tensor:
    """Frobenius norm, not squared, of the product of the towers' projections, shape ().

    Args:
        visual_weight: (visual width, D).
        text_weight: (text width, D).

    Source: CaRot's code, option cross_fnorm.
    """
    with exact(visual_weight):
        return _frobenius(wide(visual_weight) @ wide(text_weight).T)


def orthogonality(visual_weight: Tensor) -> Tensor:
    """Frobenius norm, not squared, of the Gram matrix of columns minus identity, shape ().

    Args:
        visual_weight: (visual width, D). A linear layer stores (D, width): pass its transpose.

    Source: CaRot (Oh et al. 2024, arXiv 2311.01723), orthogonality constraint. For attention-pooled
    towers the authors' code takes the width x width side, whose minimum is not 0.
    """
    with exact(visual_weight):
        weight = wide(visual_weight)
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        return _frobenius(weight.T @ weight - eye)


def _divergence(both: Comparison, found: tuple[Tensor, Tensor]) -> Tensor:
    gaps = map(torch.sub, both.teacher_log, found)
    rows, columns = map(_inner, both.teacher_probabilities, gaps)
    return 0.5 * (rows + columns) / both.student.image.shape[0]


def _inner(a: Tensor, b: Tensor) -> Tensor:
    # One pass, no (B, B) product in memory; half the backward of (a * b).sum().
    with exact(a):
        return torch.dot(a.reshape(-1), b.reshape(-1))


def _frobenius(matrix: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrix)  # its gradient at the zero matrix is zero
    return norm
