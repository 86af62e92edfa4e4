"""The linear model of contrastive fine-tuning: its loss, its target matrix, its task subspace.

Image and text encoders are matrices, W_I (p, d_I) and W_T (p, d_T); features are columns, X_I
(d_I, n) and X_T (d_T, n), and column i of both is one pair. The text encoder is frozen. A score is
s_ij = (W_I x_i) . (W_T t_j).

Source of the setting: TRACER (Asadollahzadeh et al. 2026, arXiv 2605.29380), section 3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DataError
from .arrays import Floats, directions, matrix, number


def contrastive_target(W_T: ArrayLike, X_T: ArrayLike) -> Floats:
    """Return the contrastive target matrix Y = W_T X_T (n I - J), J being all ones.

    Column i is n times the text embedding of pair i minus the sum of all: where image i is drawn
    to. The columns sum to zero, so a batch of one pair has no target.

    Args:
        W_T: Frozen text encoder, (p, d_T).
        X_T: Text features, (d_T, n).

    Returns:
        Y, (p, n), in units of n embeddings.

    Raises:
        DataError: If the shapes do not fit.

    Source: TRACER (arXiv 2605.29380), section 3.
    """
    W_T, X_T = _encoder("W_T", W_T, "X_T", X_T)
    texts = W_T @ X_T
    target: Floats = texts.shape[1] * texts - texts.sum(axis=1, keepdims=True)
    return target


def linearised_loss(W_I: ArrayLike, W_T: ArrayLike, X_I: ArrayLike, X_T: ArrayLike) -> float:
    """Return L_CL, the sum of s_ij over i != j minus (n - 1) times the sum of s_ii.

    Equals -trace(Y' W_I X_I) for the target Y, so it is linear in W_I and unbounded below. Training
    is therefore studied on the least-squares surrogate ||W_I X_I - Y||^2 / 2, which differs from
    L_CL by ||W_I X_I||^2 / 2 and a constant.

    Args:
        W_I: Image encoder, (p, d_I).
        W_T: Text encoder, (p, d_T).
        X_I: Image features, (d_I, n).
        X_T: Text features, (d_T, n).

    Returns:
        A sum of scores; divide by n (n - 1) for the mean over pairs.

    Raises:
        DataError: If the shapes do not fit.

    Source: TRACER (arXiv 2605.29380), section 3; the simplification of its double sum is derived.
    """
    W_I, W_T, X_I, X_T = _pair(W_I, W_T, X_I, X_T)
    images, texts = W_I @ X_I, W_T @ X_T
    pairs = texts.shape[1]
    return float(images.sum(axis=1) @ texts.sum(axis=1) - pairs * (images * texts).sum())


def regularised_loss(
    W_I: ArrayLike, W_T: ArrayLike, X_I: ArrayLike, X_T: ArrayLike, weight: float
) -> float:
    """Return L_CL / (n (n - 1)) + weight / 2 ||W_I' W_T||^2: the loss before the surrogate.

    Args:
        W_I: Image encoder, (p, d_I).
        W_T: Text encoder, (p, d_T).
        X_I: Image features, (d_I, n).
        X_T: Text features, (d_T, n); n >= 2.
        weight: Of the cross-Frobenius norm, >= 0.

    Returns:
        Mean score of wrong pairs minus that of right ones, plus the penalty.

    Raises:
        DataError: If the shapes do not fit, or there is one pair only.
        ValueError: If `weight` is negative.

    Source: TRACER (arXiv 2605.29380), section 3.
    """
    W_I, W_T, X_I, X_T = _pair(W_I, W_T, X_I, X_T)
    norm = np.square(W_I.T @ W_T).sum()
    mean = linearised_loss(W_I, W_T, X_I, X_T) / _ordered_pairs(X_I)
    return float(mean + number("weight", weight) / 2 * norm)


def regularised_gradient(
    W_I: ArrayLike, W_T: ArrayLike, X_I: ArrayLike, X_T: ArrayLike, weight: float
) -> Floats:
    """Return the gradient of `regularised_loss` with respect to W_I, (p, d_I).

    Arguments and errors are those of `regularised_loss`.

    Source: derived.
    """
    W_I, W_T, X_I, X_T = _pair(W_I, W_T, X_I, X_T)
    pull = contrastive_target(W_T, X_T) @ X_I.T / _ordered_pairs(X_I)
    gradient: Floats = number("weight", weight) * W_T @ (W_T.T @ W_I) - pull
    return gradient


def regularised_solution(W_T: ArrayLike, X_I: ArrayLike, X_T: ArrayLike, weight: float) -> Floats:
    """Return the only minimum of `regularised_loss`, (W_T W_T')^-1 Y X_I' / (weight n (n - 1)).

    Gradient descent reaches it from every start, so **nothing of the pre-trained weights outside
    the task subspace is left**. That fine-tuning preserves this part, as the theorems say, is a
    property of the least-squares surrogate, and this penalty works against it.

    Args:
        W_T: Text encoder of full row rank, (p, d_T).
        X_I: Image features, (d_I, n).
        X_T: Text features, (d_T, n); n >= 2.
        weight: Of the cross-Frobenius norm, > 0.

    Returns:
        W_I, (p, d_I).

    Raises:
        DataError: If the shapes do not fit, there is one pair only, or W_T has not full row rank.
        ValueError: If `weight` is not above 0.

    Source: derived.
    """
    W_T, X_T = _encoder("W_T", W_T, "X_T", X_T)
    X_I = matrix("X_I", X_I, columns=X_T.shape[1])
    if number("weight", weight) == 0:
        raise ValueError("weight is 0; without the penalty the loss is unbounded below.")
    if len(directions(W_T).values) < len(W_T):
        raise DataError(
            f"W_T {W_T.shape} has not full row rank; then the minimum is not unique. Reduce the "
            "embedding to the space that the texts span."
        )
    pull = contrastive_target(W_T, X_T) @ X_I.T / _ordered_pairs(X_I)
    solution: Floats = np.linalg.solve(weight * W_T @ W_T.T, pull)
    return solution


def task_projector(X_I: ArrayLike) -> Floats:
    """Return the projector P on the task subspace, the span of the image features.

    A change of W_I outside of it, W (I - P), does not change any training embedding; gradients of
    the training loss lie within it.

    Args:
        X_I: Image features, (d_I, n).

    Returns:
        P = P' = P P, (d_I, d_I).

    Raises:
        DataError: If X_I is no matrix of finite numbers.

    Source: TRACER (arXiv 2605.29380), section 3.
    """
    basis = directions(matrix("X_I", X_I)).left
    projector: Floats = basis @ basis.T
    return projector


def minimum_norm_solution(Y: ArrayLike, X_I: ArrayLike) -> Floats:
    """Return the smallest W that minimises ||W X_I - Y||, W* = Y X_I' (X_I X_I')^+.

    Args:
        Y: Targets, (p, n).
        X_I: Image features, (d_I, n).

    Returns:
        W*, (p, d_I), within the task subspace.

    Raises:
        DataError: If the shapes do not fit.

    Source: TRACER (arXiv 2605.29380), section 3.
    """
    X_I = matrix("X_I", X_I)
    Y = matrix("Y", Y, columns=X_I.shape[1])
    left, values, right = directions(X_I)
    solution: Floats = (Y @ right.T) / values @ left.T
    return solution


def _ordered_pairs(X_I: Floats) -> int:
    pairs = X_I.shape[1]
    if pairs < 2:
        raise DataError("the features hold one pair; a contrastive loss needs at least two.")
    return int(pairs * (pairs - 1))


def _encoder(
    name: str, encoder: ArrayLike, features_name: str, features: ArrayLike
) -> tuple[Floats, Floats]:
    found = matrix(features_name, features)
    return matrix(name, encoder, columns=len(found)), found


def _pair(
    W_I: ArrayLike, W_T: ArrayLike, X_I: ArrayLike, X_T: ArrayLike
) -> tuple[Floats, Floats, Floats, Floats]:
    image, images = _encoder("W_I", W_I, "X_I", X_I)
    text, texts = _encoder("W_T", W_T, "X_T", X_T)
    matrix("W_T", text, rows=len(image))
    matrix("X_T", texts, columns=images.shape[1])
    return image, text, images, texts
