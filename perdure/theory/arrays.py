"""What the functions of the theory take: matrices that fit each other, and numbers in range."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError

Floats = NDArray[np.float64]


class Directions(NamedTuple):
    """The thin singular value decomposition of a feature matrix, without what is zero."""

    left: Floats
    """Orthonormal basis u_k of the task subspace, columns, (d, r)"""
    values: Floats
    """Singular values sigma_k > 0, largest first, (r,)"""
    right: Floats
    """Orthonormal rows, (r, n)"""


def matrix(
    name: str, value: ArrayLike, rows: int | None = None, columns: int | None = None
) -> Floats:
    """Return a float64 matrix of the shape that is wanted.

    Raises:
        DataError: If it is no matrix of finite numbers, is empty, or has another shape.
    """
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{name} is not a table of numbers; pass a matrix.") from None
    wanted = f"({'any' if rows is None else rows}, {'any' if columns is None else columns})"
    fits = found.ndim == 2 and all(
        wanted_size in (None, size)
        for size, wanted_size in zip(found.shape, (rows, columns), strict=True)
    )
    if not fits or found.size == 0:
        raise DataError(
            f"{name} has shape {found.shape}; expected a matrix {wanted} that fits the others: "
            "features are columns, one per example, and weights act from the left."
        )
    if not np.isfinite(found).all():
        raise DataError(f"{name} holds values that are not finite; remove them.")
    return found


def vector(name: str, value: ArrayLike, low: float = -np.inf, high: float = np.inf) -> Floats:
    """Return a float64 vector of at least one entry within a range.

    Raises:
        DataError: If it is no vector, is empty, or leaves the range.
    """
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{name} is not a list of numbers; pass a vector.") from None
    if found.ndim != 1 or not found.size:
        raise DataError(f"{name} has shape {found.shape}; expected (T,) with T >= 1.")
    if not (np.isfinite(found).all() and low <= found.min() and found.max() <= high):
        raise DataError(
            f"{name} reaches from {found.min():g} to {found.max():g}; every entry must be finite "
            f"and lie in [{low:g}, {high:g}]."
        )
    return found


def number(name: str, value: float, low: float = 0.0, high: float = np.inf) -> float:
    """Return a finite number within a range.

    Raises:
        ValueError: If it is out of range or not finite.
    """
    if not (np.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} is {value}; it must be finite and lie in [{low:g}, {high:g}].")
    return float(value)


def directions(X_I: Floats) -> Directions:
    """Decompose a feature matrix; singular values within rounding of zero do not count."""
    left, values, right = np.linalg.svd(X_I, full_matrices=False)
    rank = int((values > values[0] * max(X_I.shape) * np.finfo(np.float64).eps).sum())
    return Directions(left[:, :rank], values[:rank], right[:rank])
