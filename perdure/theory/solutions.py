"""Where gradient descent ends in the linear model: fine-tuning and its regularised forms.

All start at the pre-trained W0 (p, d) and fit ||W X_I - Y||^2 / 2; each function is the limit of
gradient descent with a step below 2 over the largest eigenvalue. P is the projector on the task
subspace, W* the minimum-norm solution, (u_k, sigma_k) the left singular pairs of X_I.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DataError
from .arrays import Floats, directions, matrix, number
from .linear import minimum_norm_solution, task_projector


def fine_tune(Y: ArrayLike, X_I: ArrayLike, W0: ArrayLike) -> Floats:
    """Return the limit of plain fine-tuning, W0 (I - P) + W*.

    In the task subspace everything of W0 is replaced; outside of it nothing changes.

    Args:
        Y: Targets, (p, n), as from `contrastive_target`.
        X_I: Image features, (d, n).
        W0: Pre-trained weights, (p, d).

    Returns:
        Weights, (p, d).

    Raises:
        DataError: If the shapes do not fit.

    Source: TRACER (arXiv 2605.29380), theorem 3.2.
    """
    return self_distill(Y, X_I, W0, 0.0)


def l2_sp(Y: ArrayLike, X_I: ArrayLike, W0: ArrayLike, strength: float) -> Floats:
    """Return the limit under strength / 2 ||W - W0||^2, (Y X_I' + s W0) (X_I X_I' + s I)^-1.

    Direction u_k becomes (sigma_k^2 W* + s W0) u_k / (sigma_k^2 + s): weak directions of the task
    stay near W0, strong ones hardly feel the pull.

    **The paper says that L2-SP damages the part of W0 outside the task subspace. In its own model
    it does not**: sigma_k = 0 there, so W (I - P) = W0 (I - P) exactly, as with self-distillation.
    What differs is that self-distillation mixes all directions of the task alike.

    Args:
        Y: Targets, (p, n).
        X_I: Image features, (d, n).
        W0: Pre-trained weights, (p, d).
        strength: s >= 0, in units of sigma^2; 0 is fine-tuning.

    Returns:
        Weights, (p, d).

    Raises:
        DataError: If the shapes do not fit.
        ValueError: If `strength` is negative.

    Source: TRACER (arXiv 2605.29380), theorem C.2; its form by direction is derived.
    """
    Y, X_I, W0 = task(Y, X_I, W0)
    strength = number("strength", strength)
    left, values, right = directions(X_I)
    start = W0 @ left
    mixed = ((Y @ right.T) * values + strength * start) / (values**2 + strength)
    end: Floats = W0 + (mixed - start) @ left.T
    return end


def weight_decay(Y: ArrayLike, X_I: ArrayLike, strength: float) -> Floats:
    """Return the limit under strength / 2 ||W||^2, Y X_I' (X_I X_I' + s I)^-1.

    This is what decay in AdamW pulls to. Whatever the start, everything outside the task subspace
    decays to zero.

    Args:
        Y: Targets, (p, n).
        X_I: Image features, (d, n).
        strength: s >= 0, in units of sigma^2; 0 stands for the limit s -> 0, which is W*.

    Returns:
        Weights, (p, d).

    Raises:
        DataError: If the shapes do not fit.
        ValueError: If `strength` is negative.

    Source: derived.
    """
    X_I = matrix("X_I", X_I)
    Y = matrix("Y", Y, columns=X_I.shape[1])
    strength = number("strength", strength)
    left, values, right = directions(X_I)
    end: Floats = (Y @ right.T) * (values / (values**2 + strength)) @ left.T
    return end


def self_distill(Y: ArrayLike, X_I: ArrayLike, W0: ArrayLike, strength: float) -> Floats:
    """Return the limit under strength / 2 ||W X_I - W0 X_I||^2, a teacher that stays at the start.

    W0 (I - P) + [s / (1 + s)] W0 P + [1 / (1 + s)] W*: one mixing weight for all directions of the
    task. The bias that stays is s / (1 + s) of W0 P - W*, however long the training.

    Args:
        Y: Targets, (p, n).
        X_I: Image features, (d, n).
        W0: Pre-trained weights and teacher, (p, d).
        strength: s >= 0, without unit; 0 is fine-tuning.

    Returns:
        Weights, (p, d).

    Raises:
        DataError: If the shapes do not fit.
        ValueError: If `strength` is negative.

    Source: TRACER (arXiv 2605.29380), theorem 3.2.
    """
    return wise_ft(Y, X_I, W0, 1.0 / (1.0 + number("strength", strength)))


def wise_ft(Y: ArrayLike, X_I: ArrayLike, W0: ArrayLike, alpha: float) -> Floats:
    """Return (1 - alpha) W0 + alpha times fine-tuned weights, W0 (I - alpha P) + alpha W*.

    In this model interpolating afterwards equals distilling from the start with strength
    (1 - alpha) / alpha.

    Args:
        Y: Targets, (p, n).
        X_I: Image features, (d, n).
        W0: Pre-trained weights, (p, d).
        alpha: Share of the fine-tuned weights, in [0, 1].

    Returns:
        Weights, (p, d).

    Raises:
        DataError: If the shapes do not fit.
        ValueError: If `alpha` is out of range.

    Source: derived.
    """
    Y, X_I, W0 = task(Y, X_I, W0)
    alpha = number("alpha", alpha, high=1.0)
    return W0 + alpha * (minimum_norm_solution(Y, X_I) - W0 @ task_projector(X_I))


def descent_limit(curvature: ArrayLike, pull: ArrayLike, W0: ArrayLike) -> Floats:
    """Return the limit of gradient descent on <W, W H> / 2 - <B, W> from W0.

    W0 (I - Q) + B H^+, Q being the projector on the range of H. All limits above are cases of it.

    Args:
        curvature: H, symmetric and positive semi-definite, (d, d).
        pull: B, (p, d), with rows in the range of H.
        W0: Start, (p, d).

    Returns:
        Weights, (p, d).

    Raises:
        DataError: If the shapes do not fit, H is not symmetric and positive semi-definite, or B
            leaves its range: then the loss is unbounded below.

    Source: TRACER (arXiv 2605.29380), the lemma before theorem C.2.
    """
    W0 = matrix("W0", W0)
    H = matrix("curvature", curvature, W0.shape[1], W0.shape[1])
    B = matrix("pull", pull, *W0.shape)
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    zero = max(abs(values).max(), 1e-300) * len(H) * np.finfo(np.float64).eps * 4
    if values[0] < -zero or abs(H - H.T).max() > zero:
        raise DataError(
            f"curvature is not symmetric and positive semi-definite (smallest eigenvalue "
            f"{values[0]:g}); descent would not converge."
        )
    kept = values > zero
    basis, values = vectors[:, kept], values[kept]
    inside = B @ basis
    if np.linalg.norm(B - inside @ basis.T) > 1e-8 * np.linalg.norm(B):
        raise DataError("pull leaves the range of curvature; the loss is unbounded below.")
    limit: Floats = W0 + (inside / values - W0 @ basis) @ basis.T
    return limit


def task(Y: ArrayLike, X_I: ArrayLike, W0: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return targets, features and start as matrices that fit each other.

    Raises:
        DataError: If they do not.
    """
    X_I = matrix("X_I", X_I)
    W0 = matrix("W0", W0, columns=len(X_I))
    return matrix("Y", Y, rows=len(W0), columns=X_I.shape[1]), X_I, W0
