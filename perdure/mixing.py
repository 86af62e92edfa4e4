"""Means of tensors of one shape, tensor by tensor: plain, along an arc, by information, by inputs.

Pure functions without files or models; everything is computed in float32 or wider. What is done
with differences from a common start is in `task_vectors`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .weights import lerp_tensor

NEARLY_PARALLEL = 0.9995
"""Cosine from which an arc is taken for a straight line"""


def precise(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or in its own type if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def mean(tensors: Iterable[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the weighted mean of tensors that may arrive one by one.

    Each moves the mean so far by its share of what was seen, so that shares of 0 and 1 are exact.
    Integer tensors come from the later one where it has at least half of what was seen.

    Source: Wortsman et al. 2022, "Model soups", arXiv 2203.05482.
    """
    result: Tensor | None = None
    total = 0.0
    for tensor, share in zip(tensors, shares, strict=True):
        total += share
        if result is None:
            result = tensor
        else:
            result = lerp_tensor(result, tensor, share / total if total else 0.0)
    assert result is not None
    return result


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return the point at share t of the arc from a to b, both taken as one long vector.

    [sin((1 - t) w) a + sin(t w) b] / sin(w) with w the angle between them; the straight line where
    they are nearly parallel or opposite, or one is zero. Exact at t = 0 and 1.

    Source: Shoemake 1985, "Animating rotation with quaternion curves".
    """
    if t in (0.0, 1.0):
        return b if t else a
    left, right = precise(a), precise(b)
    size = float(left.norm() * right.norm())
    cosine = float((left.double() * right.double()).sum()) / size if size else 1.0
    if not abs(cosine) < NEARLY_PARALLEL:
        return lerp_tensor(left, right, t)
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    first, second = torch.sin((1.0 - t) * angle), torch.sin(t * angle)
    return float(first / angle.sin()) * left + float(second / angle.sin()) * right


def fisher(
    tensors: Iterable[Tensor],
    information: Iterable[Tensor],
    shares: Sequence[float],
    floor: float = 1e-8,
) -> Tensor:
    """Return the mean of tensors, entry by entry weighted with their Fisher information.

    Sum of c_i max(F_i, floor) theta_i over the sum of c_i max(F_i, floor).

    Args:
        tensors: Of equal shape.
        information: The diagonal Fisher information of each, same shape, >= 0.
        shares: The c_i, >= 0.
        floor: Smallest information, > 0: where nothing is known the result is the plain mean.

    Source: Matena and Raffel 2022, "Merging models with Fisher-weighted averaging", arXiv
        2111.09832; the floor is WiSE-FT's.
    """
    above: Tensor | None = None
    below: Tensor | None = None
    for tensor, known, share in zip(tensors, information, shares, strict=True):
        weight = share * precise(known).clamp(min=floor)
        part = weight * precise(tensor)
        above = part if above is None else above + part
        below = weight if below is None else below + weight
    assert above is not None
    assert below is not None
    return above / below


def regmean(
    matrices: Sequence[Tensor], grams: Sequence[Tensor], ratio: float = 0.9, ridge: float = 1e-6
) -> Tensor:
    """Return the linear map whose outputs are nearest to those of several maps on their inputs.

    (sum G_i)^-1 sum G_i W_i for W_i of shape (in, out). Where the sum of the Gram matrices is
    singular, `ridge` times its mean diagonal pulls towards the mean of the maps.

    Args:
        matrices: (out, in) each, as linear layers hold them.
        grams: Mean of x x^T over each layer's inputs x, (in, in).
        ratio: Factor on the entries beside the diagonal, in [0, 1].
        ridge: Used only where it is needed, > 0.

    Source: Jin et al. 2023, "Dataless knowledge fusion by merging weights" (RegMean), arXiv
        2212.09849; the paper's ratio is 0.9.
    """
    total = torch.zeros_like(grams[0], dtype=torch.float64)
    right = torch.zeros_like(matrices[0].T, dtype=torch.float64)
    for matrix, gram in zip(matrices, grams, strict=True):
        damped = gram.double() * ratio
        damped.diagonal().copy_(gram.diagonal())
        total += damped
        right += damped @ matrix.double().T
    scale = float(total.diagonal().mean()) or 1.0
    factor, failed = torch.linalg.cholesky_ex(total)
    if int(failed) or float(factor.diagonal().square().min()) < 1e-9 * scale:
        middle = sum((matrix.double().T for matrix in matrices), torch.zeros_like(right))
        total = total + ridge * scale * torch.eye(len(total), dtype=total.dtype)
        right = right + ridge * scale * middle / len(matrices)
        factor = torch.linalg.cholesky(total)
    return torch.cholesky_solve(right, factor).T.to(precise(matrices[0]).dtype)
