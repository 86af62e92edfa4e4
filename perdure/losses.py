"""Loss functions of tensors: pure, float32 or wider, each with its source.

All take `Pairs` whose rows are unit vectors and never normalise again. Image-to-text scores stand
in the rows of a (B, B) matrix and text-to-image scores in its columns. A teacher is a constant: no
gradient flows into it. The terms of one step may share their matrices through a `Comparison`.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .batch import Pairs


def similarity(pairs: Pairs) -> Tensor:
    """Return the scaled cosines of all images (rows) with all texts (columns), (B, B).

    In float32 at least, also under autocast: bf16 logits near 30 lie on a grid of 0.125.
    """
    # Scaling B x D entries is cheaper than B x B.
    return _cosines(_scaled(pairs.image, pairs.scale), pairs.text)


class Comparison:
    """Log-probabilities of a student and its teacher on one batch, each computed once, on demand.

    Every member is a pair of (B, B) tensors in image x text layout: image-to-text, normalised over
    rows' entries, and text-to-image, normalised over columns' entries.

    Args:
        student: Pairs that receive gradients.
        teacher: Pairs of the same images and texts; detached here. None where no term needs one.
    """

    def __init__(self, student: Pairs, teacher: Pairs | None = None) -> None:
        self.student = student
        self.teacher = teacher

    @cached_property
    def student_log(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of student images against student texts."""
        return _log_both(similarity(self.student))

    @cached_property
    def teacher_log(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of teacher images against teacher texts, constant."""
        return _log_both(similarity(self._fixed))

    @cached_property
    def teacher_probabilities(self) -> tuple[Tensor, Tensor]:
        """The exponential of `teacher_log`, constant."""
        rows, columns = self.teacher_log
        return rows.exp(), columns.exp()

    @cached_property
    def cross_log(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of student images and texts against the teacher's, student scale."""
        student, teacher = self.student, self._fixed
        # The scale goes to the student's side: the constant side then needs no backward product.
        rows = _cosines(_scaled(student.image, student.scale), teacher.text)
        columns = _cosines(teacher.image, _scaled(student.text, student.scale))
        return rows.log_softmax(dim=1), columns.log_softmax(dim=0)

    @property
    def _fixed(self) -> Pairs:
        if self.teacher is None:
            raise ValueError("this comparison was built without a teacher; pass its pairs.")
        return Pairs(*(tensor.detach() for tensor in self.teacher))


def info_nce(pairs: Pairs, smoothing: float = 0.0, shared: Comparison | None = None) -> Tensor:
    """Symmetric contrastive loss whose positives are the diagonal, shape ().

    Other rows of the same class count as negatives.

    Args:
        pairs: Matched embeddings.
        smoothing: Probability, in [0, 1), spread evenly over all B candidates of a row.
        shared: A comparison with `pairs` as its student.

    Source: CLIP (Radford et al. 2021, arXiv 2103.00020); as fine-tuning loss, FLYP (Goyal et al.
    2023, arXiv 2212.00638).
    """
    rows, columns = _shared(pairs, None, shared).student_log
    loss = _diagonal(rows, columns)
    if smoothing == 0.0:
        return loss
    spread = -0.5 * (rows.mean() + columns.mean())
    return (1.0 - smoothing) * loss + smoothing * spread


def feature_distill(student: Pairs, teacher: Pairs) -> Tensor:
    """Squared distance of embeddings, summed over D and both modalities, mean over rows, shape ().

    In [0, 8]. Summing over D keeps the meaning of a weight when the width changes.

    Source: TRACER (Asadollahzadeh et al. 2026, arXiv 2605.29380), equations 20 to 27. The authors'
    code takes the mean over D; its weight 2000 at D = 512 is 3.906 here.
    """
    image = _wide(student.image) - _wide(teacher.image.detach())
    text = _wide(student.text) - _wide(teacher.text.detach())
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
    both = _shared(student, teacher, shared)
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
    return _diagonal(*_shared(student, teacher, shared).cross_log)


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
    both = _shared(student, teacher, shared)
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
    both = _shared(student, teacher, shared)
    if temperature == 1.0:
        targets = both.teacher_probabilities
    else:
        logits = similarity(both._fixed) / temperature
        targets = logits.softmax(dim=1), logits.softmax(dim=0)
    rows, columns = map(_inner, targets, both.student_log)
    return -(rows + columns) / student.image.shape[0]


def class_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Divergence of class predictions, KL(teacher || student), mean over rows, shape ().

    Args:
        student_logits: (B, C), receives gradients.
        teacher_logits: (B, C), constant.
    """
    with _exact(student_logits):
        target = _wide(teacher_logits.detach()).log_softmax(dim=1)
        found = _wide(student_logits).log_softmax(dim=1)
        return _inner(target.exp(), target - found) / student_logits.shape[0]


def cross_norm(visual_weight: Tensor, text_weight: Tensor) -> Tensor:
    """Frobenius norm, not squared, of the product of the towers' projections, shape ().

    Args:
        visual_weight: (visual width, D).
        text_weight: (text width, D).

    Source: CaRot's code, option cross_fnorm.
    """
    with _exact(visual_weight):
        return _frobenius(_wide(visual_weight) @ _wide(text_weight).T)


def orthogonality(visual_weight: Tensor) -> Tensor:
    """Frobenius norm, not squared, of the Gram matrix of columns minus identity, shape ().

    Args:
        visual_weight: (visual width, D). A linear layer stores (D, width): pass its transpose.

    Source: CaRot (Oh et al. 2024, arXiv 2311.01723), orthogonality constraint. For attention-pooled
    towers the authors' code takes the width x width side, whose minimum is not 0.
    """
    with _exact(visual_weight):
        weight = _wide(visual_weight)
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        return _frobenius(weight.T @ weight - eye)


def _shared(student: Pairs, teacher: Pairs | None, shared: Comparison | None) -> Comparison:
    if shared is None:
        return Comparison(student, teacher)
    if shared.student is not student or (teacher is not None and shared.teacher is not teacher):
        raise ValueError("`shared` was built from other pairs than those of this call.")
    return shared


def _divergence(both: Comparison, found: tuple[Tensor, Tensor]) -> Tensor:
    gaps = map(torch.sub, both.teacher_log, found)
    rows, columns = map(_inner, both.teacher_probabilities, gaps)
    return 0.5 * (rows + columns) / both.student.image.shape[0]


def _diagonal(rows: Tensor, columns: Tensor) -> Tensor:
    return -0.5 * (rows.diagonal().mean() + columns.diagonal().mean())


def _inner(a: Tensor, b: Tensor) -> Tensor:
    # One pass, no (B, B) product in memory; half the backward of (a * b).sum().
    with _exact(a):
        return torch.dot(a.reshape(-1), b.reshape(-1))


def _frobenius(matrix: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrix)  # its gradient at the zero matrix is zero
    return norm


def _cosines(image: Tensor, text: Tensor) -> Tensor:
    with _exact(image):
        return _wide(image) @ _wide(text).T


def _scaled(rows: Tensor, scale: Tensor) -> Tensor:
    return _wide(rows) * _wide(scale)


def _log_both(logits: Tensor) -> tuple[Tensor, Tensor]:
    return logits.log_softmax(dim=1), logits.log_softmax(dim=0)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _exact(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)
