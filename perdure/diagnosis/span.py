"""Which directions of a layer's input some data occupy, found in one pass and constant memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError

ENERGY = 0.99
"""Share of the mean squared length of inputs that a span keeps, unless told otherwise"""


class Moments:
    """Sum of x x^T over rows x, to which rows are added as they come.

    Not centred, as in the linear theory: a direction in which all inputs are equal moves too.

    Args:
        width: d, of the rows.
        device: Where the sum lives; in float64, which MPS lacks, so there on the host.
    """

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        where = torch.device("cpu") if device is None or device.type == "mps" else device
        self.total = torch.zeros(width, width, dtype=torch.float64, device=where)
        self.rows = 0

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Count rows (n, d)."""
        exact = rows.to(self.total)
        self.total.addmm_(exact.T, exact)
        self.rows += len(rows)

    def length(self, matrix: Tensor) -> float:
        """Return the sum over rows x of |A x|^2 for a matrix A (out, d)."""
        exact = matrix.to(self.total)
        return float(torch.dot((exact @ self.total).reshape(-1), exact.reshape(-1)))


@dataclass(frozen=True, eq=False)
class Span:
    """The fewest orthogonal directions that hold a share of the energy of a layer's inputs."""

    basis: Tensor
    """(d, r), orthonormal columns, float32"""
    energy: float
    """The share asked for, in (0, 1]; 1 keeps all that is not rounding error"""
    rows: int
    """Inputs it was found on"""

    @property
    def rank(self) -> int:
        """Number of directions, r."""
        return self.basis.shape[1]

    @property
    def width(self) -> int:
        """Of the input, d."""
        return self.basis.shape[0]

    @property
    def random(self) -> float:
        """Expected share of an update without any preference, r / d."""
        return self.rank / self.width

    def occupied(self, other: Moments) -> float | None:
        """Return the share of the energy of other inputs that lies in here; None without any."""
        whole = float(other.total.trace())
        return other.length(self.basis.T) / whole if whole > 0 else None


def find_span(moments: Moments, energy: float = ENERGY) -> Span:
    """Return the span of the rows that were counted.

    Args:
        moments: At least one row that is not zero.
        energy: Share to keep, in (0, 1].

    Raises:
        DataError: If there is nothing to span, or `energy` is out of range.
    """
    check_energy(energy)
    values, vectors = torch.linalg.eigh(moments.total)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    whole = float(values.sum())
    if not whole > 0:
        raise DataError("the inputs of a layer are zero for all calibration images; use others.")
    if energy == 1:
        # Rows come in float32: smaller singular values than this are its rounding errors.
        noise = torch.finfo(torch.float32).eps ** 2 * len(values)
        rank = int((values > noise * values[0]).sum())
    else:
        kept = values.cumsum(0) / whole
        rank = int((kept < energy).sum()) + 1
    return Span(vectors[:, :rank].float().contiguous(), energy, moments.rows)


def check_energy(energy: float) -> None:
    """Refuse a share of energy that is no share.

    Raises:
        DataError: If it is not in (0, 1].
    """
    if not 0 < energy <= 1:
        raise DataError(
            f"energy is {energy}, but must be above 0 and at most 1: the share of the mean "
            "squared length of inputs that the span keeps."
        )


class Split(NamedTuple):
    """Squared Frobenius norms of an update's part in the span of the inputs and of the rest."""

    inside: float
    outside: float

    @property
    def share(self) -> float | None:
        """Part of the squared norm that is inside, in [0, 1]; None for no update."""
        whole = self.inside + self.outside
        return self.inside / whole if whole > 0 else None


@torch.no_grad()
def split_update(update: Tensor, span: Span) -> Split:
    """Divide an update dW (out, d) into dW P and dW (I - P), where P projects on the span.

    Source: TRACER (Asadollahzadeh et al. 2026, arXiv 2605.29380), section 4: P is its task
        projector, for one linear layer.
    """
    exact = update.double()
    basis = span.basis.to(exact)
    coordinates = exact @ basis
    inside = float(coordinates.square().sum())
    # Not a difference of norms: that of nearly everything would leave rounding errors.
    outside = float((exact - coordinates @ basis.T).square().sum())
    return Split(inside, outside)
