"""Contrastive losses, and the matrices they share with the other terms of a step.

All take `Pairs` whose rows are unit vectors and never normalise again. Image-to-text scores stand
in the rows of a (B, B) matrix and text-to-image scores in its columns. `losses` hands all of this
out together with the distillation terms.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from .batch import Pairs


def similarity(pairs: Pairs) -> Tensor:
    """Return the scaled cosines of all images (rows) with all texts (columns), (B, B).

    In float32 at least, also under autocast: bf16 logits near 30 lie on a grid of 0.125.
    """
    # Scaling B x D entries is cheaper than B x B.
    return _cosines(_scaled(pairs.image, pairs.scale), pairs.text)


class Comparison:
    """Scores of a student and its teacher on one batch, each computed once, on demand.

    Every member but `student_logits` is a pair of (B, B) tensors in image x text layout:
    image-to-text, normalised over rows' entries, and text-to-image, normalised over columns'.

    Args:
        student: Pairs that receive gradients.
        teacher: Pairs of the same images and texts; detached here. None where no term needs one.
    """

    def __init__(self, student: Pairs, teacher: Pairs | None = None) -> None:
        self.student = student
        self.teacher = teacher

    @cached_property
    def student_logits(self) -> Tensor:
        """Scaled cosines of student images with student texts, (B, B)."""
        return similarity(self.student)

    @cached_property
    def student_log(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of student images against student texts."""
        return _log_both(self.student_logits)

    @cached_property
    def teacher_log(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of teacher images against teacher texts, constant."""
        return _log_both(similarity(self.fixed))

    @cached_property
    def teacher_probabilities(self) -> tuple[Tensor, Tensor]:
        """The exponential of `teacher_log`, constant."""
        rows, columns = self.teacher_log
        return rows.exp(), columns.exp()

    @cached_property
    def cross_log(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of student images and texts against the teacher's, student scale."""
        student, teacher = self.student, self.fixed
        # The scale goes to the student's side: the constant side then needs no backward product.
        rows = _cosines(_scaled(student.image, student.scale), teacher.text)
        columns = _cosines(teacher.image, _scaled(student.text, student.scale))
        return rows.log_softmax(dim=1), columns.log_softmax(dim=0)

    @property
    def fixed(self) -> Pairs:
        """The teacher's pairs, constant."""
        if self.teacher is None:
            raise ValueError("this comparison was built without a teacher; pass its pairs.")
        return Pairs(*(tensor.detach() for tensor in self.teacher))


def compare(student: Pairs, teacher: Pairs | None, shared: Comparison | None) -> Comparison:
    """Return `shared`, or a new comparison where it is None.

    Raises:
        ValueError: If `shared` was built from other pairs.
    """
    if shared is None:
        return Comparison(student, teacher)
    if shared.student is not student or (teacher is not None and shared.teacher is not teacher):
        raise ValueError("`shared` was built from other pairs than those of this call.")
    return shared


def info_nce(
    pairs: Pairs, smoothing: float = 0.0, shared: Comparison | None = None, *, margin: float = 0.0
) -> Tensor:
    """Symmetric contrastive loss whose positives are the diagonal, shape ().

    Other rows of the same class count as negatives.

    Args:
        pairs: Matched embeddings.
        smoothing: Probability, in [0, 1), spread evenly over all B candidates of a row.
        shared: A comparison with `pairs` as its student.
        margin: Added to the cosine of negatives, before the scale; above 0 makes them harder.

    Source: CLIP (Radford et al. 2021, arXiv 2103.00020); as fine-tuning loss, FLYP (Goyal et al.
    2023, arXiv 2212.00638). The margin is that of `mpm_nce`.
    """
    both = compare(pairs, None, shared)
    if margin == 0.0:
        rows, columns = both.student_log
    else:
        size = len(pairs.image)
        matched = torch.eye(size, dtype=torch.bool, device=pairs.image.device)
        rows, columns = _log_both(_harder(both.student_logits, pairs, matched, margin))
    loss = diagonal_loss(rows, columns)
    if smoothing == 0.0:
        return loss
    spread = -0.5 * (rows.mean() + columns.mean())
    return (1.0 - smoothing) * loss + smoothing * spread


def mpm_nce(
    pairs: Pairs,
    labels: Tensor,
    margin: float = 0.0,
    smoothing: float = 0.0,
    shared: Comparison | None = None,
) -> Tensor:
    """Multi-positive margin contrastive loss, shape (): all rows of one label are positives.

    The positives of a row share its probability equally, and every negative looks closer than it
    is by the margin. Distinct labels, no margin and no smoothing give `info_nce`, to the bit.

    Args:
        pairs: Matched embeddings.
        labels: (B,); rows of equal labels are positives of each other.
        margin: Added to the cosine of negatives, before the scale; above 0 makes them harder.
        smoothing: Probability, in [0, 1), spread evenly over the negatives of a row alone; 0 in a
            row that has none.
        shared: A comparison with `pairs` as its student.

    Raises:
        ValueError: If there is not one label per row, or `smoothing` is out of range.

    Source: R-Adapter (Kim et al. 2024, arXiv 2408.05749), MPM-NCE; the half of the sum of both
    directions is the authors' code's, which is NaN where this is not: where a probability
    underflows, and with smoothing where a row has no negative.
    """
    both = compare(pairs, None, shared)
    positive = _same_label(pairs, labels, smoothing)
    if margin == 0.0:
        rows, columns = both.student_log
    else:
        rows, columns = _log_both(_harder(both.student_logits, pairs, positive, margin))
    target = _soft_targets(positive, smoothing, rows.dtype)
    # Positives are mutual, so the target of text j's column is row j of the same matrix.
    return -0.5 * (_mean((target * rows).sum(dim=1)) + _mean((target.T * columns).sum(dim=0)))


def mpm_sigmoid(
    pairs: Pairs,
    labels: Tensor,
    bias: Tensor,
    margin: float = 0.0,
    smoothing: float = 0.0,
    shared: Comparison | None = None,
) -> Tensor:
    """The pairwise sigmoid loss with all rows of one label as positives and a margin, shape ().

    For models that were pre-trained with it, such as SigLIP: every image with every text is a
    yes-or-no question of its own; the sum over texts, mean over images.

    Args:
        pairs: Matched embeddings.
        labels: (B,); rows of equal labels are positives of each other.
        bias: (), added to every logit; the model's `logit_bias`.
        margin: Added to the cosine of negatives, before the scale; above 0 makes them harder.
        smoothing: Probability, in [0, 1), that each positive gives up and the negatives of its row
            and column share, so that the sum of targets stays; 0 where there are none.
        shared: A comparison with `pairs` as its student.

    Raises:
        ValueError: If there is not one label per row, or `smoothing` is out of range.

    Source: SigLIP (Zhai et al. 2023, arXiv 2303.15343) for distinct labels without margin and
    smoothing; that MPM-NCE's margin and smoothing carry over is perdure's guess.
    """
    both = compare(pairs, None, shared)
    positive = _same_label(pairs, labels, smoothing)
    logits = both.student_logits + bias.to(both.student_logits.dtype)
    if margin != 0.0:
        logits = _harder(logits, pairs, positive, margin)
    target = positive.to(logits.dtype)
    if smoothing != 0.0:
        own = target.sum(dim=1)
        other = len(own) - own
        given = smoothing * (other > 0).to(own.dtype)
        part = given * own / other.clamp(min=1)
        # One target for both directions: the mean of what the row and the column would ask.
        shares = 0.5 * (part[:, None] + part[None, :])
        target = torch.where(positive, 1.0 - given[:, None], shares)
    total = functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    return total / len(target)


def diagonal_loss(rows: Tensor, columns: Tensor) -> Tensor:
    """Return minus the mean log-probability of matched pairs, mean of both directions, shape ()."""
    return -0.5 * (rows.diagonal().mean() + columns.diagonal().mean())


def wide(x: Tensor) -> Tensor:
    """Return a tensor in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def exact(x: Tensor) -> torch.autocast:
    """Return a context without autocast on the device of a tensor."""
    return torch.autocast(x.device.type, enabled=False)


def _same_label(pairs: Pairs, labels: Tensor, smoothing: float) -> Tensor:
    """Return which pairs of rows are positives, (B, B) and boolean."""
    if labels.shape != pairs.image.shape[:1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, but there are {len(pairs.image)} pairs; "
            "give one label per pair."
        )
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing is {smoothing}; it must lie in [0, 1).")
    return labels[:, None] == labels[None, :]


def _harder(logits: Tensor, pairs: Pairs, positive: Tensor, margin: float) -> Tensor:
    """Return logits as if all negatives were nearer by `margin` in cosine."""
    return logits + wide(pairs.scale) * margin * (~positive).to(logits.dtype)


def _soft_targets(positive: Tensor, smoothing: float, dtype: torch.dtype) -> Tensor:
    """Return the probabilities every row is to have, (B, B); rows sum to 1."""
    target = positive.to(dtype)
    own = target.sum(dim=1, keepdim=True)
    if smoothing == 0.0:
        return target / own
    other = len(own) - own
    given = smoothing * (other > 0).to(own.dtype)
    return torch.where(positive, (1.0 - given) / own, given / other.clamp(min=1))


def _mean(values: Tensor) -> Tensor:
    """Return the mean, summed in the order in which that of a matrix's diagonal is."""
    return torch.diag_embed(values).diagonal().mean()


def _cosines(image: Tensor, text: Tensor) -> Tensor:
    with exact(image):
        return wide(image) @ wide(text).T


def _scaled(rows: Tensor, scale: Tensor) -> Tensor:
    return wide(rows) * wide(scale)


def _log_both(logits: Tensor) -> tuple[Tensor, Tensor]:
    return logits.log_softmax(dim=1), logits.log_softmax(dim=0)
