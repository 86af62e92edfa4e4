"""Compression of what was added to a model: fewer ranks, with a bound on the error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .adapters import fill
from .errors import SurgeryError
from .predictor import Predictor
from .surgery.factors import CHILD, Factors
from .surgery.low_rank import LowRank
from .surgery.operations import Surgery
from .surgery.residual import Residual, adapters
from .surgery.sites import find_sites


@dataclass(frozen=True)
class Truncation:
    """What happened to the matrix that was added at one place.

    With the matrix M and the kept part M_k, both without alpha: for every input x,
    |alpha M x - alpha M_k x| <= `largest` |x| <= `bound` |x|.
    """

    path: str
    """Of the layer, in `clip`"""
    before: int
    """Rank that was possible"""
    rank: int
    """Rank that is kept, k"""
    bound: float
    """alpha times the root of the sum of all discarded singular values squared: the Frobenius
    norm of the error"""
    largest: float
    """alpha times the largest discarded singular value: the spectral norm of the error"""
    energy: float
    """Share of the squared singular values that is kept, in [0, 1]"""


@dataclass(frozen=True)
class Compressed:
    """A compressed model and what was lost."""

    predictor: Predictor
    layers: tuple[Truncation, ...]

    @property
    def bound(self) -> float:
        """Frobenius norm of the errors of all layers together."""
        return math.sqrt(sum(layer.bound**2 for layer in self.layers))


@torch.no_grad()
def compress(
    predictor: Predictor, rank: int | None = None, energy: float | None = None
) -> Compressed:
    """Return an independent copy whose added matrices have fewer ranks: their truncated SVD.

    Truncates s F of a residual adapter with gate s, and scale B A of a low-rank update. No other
    matrix of the same rank is nearer.

    Args:
        predictor: With added modules; their alpha stays a dial.
        rank: Largest rank that is kept anywhere, at least 1.
        energy: Instead of `rank`: each matrix keeps the fewest ranks that hold this share, in
            (0, 1], of its squared singular values.

    Raises:
        SurgeryError: If there are no added modules, or not exactly one of `rank` and `energy` is
            given and in range.

    Source: Eckart and Young 1936, "The approximation of one matrix by another of lower rank".
    """
    if (rank is None) == (energy is None):
        raise SurgeryError("give either a rank or an energy to compress to, not both or neither.")
    if rank is not None and rank < 1:
        raise SurgeryError(f"rank is {rank}, but must be at least 1.")
    if energy is not None and not 0 < energy <= 1:
        raise SurgeryError(f"energy is {energy}, but must lie in (0, 1].")
    if not predictor.surgeries:
        raise SurgeryError(f"{predictor.source.name} has no added modules to compress.")
    tensors = {name: value.detach() for name, value in predictor.added().items()}
    surgeries: list[Surgery] = []
    layers: list[Truncation] = []
    for surgery in predictor.surgeries:
        kept: dict[str, int] = {"": 1, "image": 1, "text": 1}
        for place in _places(predictor.clip, surgery):
            layer, up, down = _truncate(place, rank, energy)
            layers.append(layer)
            kept[place.tower] = max(kept[place.tower], layer.rank)
            tensors.pop(f"clip.{place.name}.weight", None)
            tensors |= {f"clip.{place.name}.up": up, f"clip.{place.name}.down": down}
        surgeries.append(_with_ranks(surgery, kept))
    result = predictor.fold(0.0)
    state = predictor.state_dict()  # the base's weights, bit for bit, whatever folding does to a -0
    result.load_state_dict({name: state[name] for name in result.state_dict()})
    with torch.random.fork_rng(devices=[]):
        for surgery in surgeries:
            result.attach(surgery)
    fill(result.added(), tensors, "the compressed model")
    return Compressed(result, tuple(layers))


class _Place(NamedTuple):
    name: str
    """Path in `clip` of the module that holds the matrix"""
    module: Any
    tower: str
    """"image" or "text" where ranks are per tower, else empty"""


def _places(clip: nn.Module, surgery: Surgery) -> list[_Place]:
    """Return where a surgery has added matrices."""
    if isinstance(surgery, LowRank):
        names = [f"{path}.{CHILD}" for path in surgery.layers(clip)]
        return [_Place(name, clip.get_submodule(name), "") for name in names]
    if isinstance(surgery, Residual):
        towers = {site.hooked: site.tower for site in find_sites(clip, surgery.towers)}
        return [
            _Place(f"{path}.adapter", module, towers[path])
            for path, module in adapters(clip).items()
            if path in towers
        ]
    raise SurgeryError(f"what {surgery.name!r} adds is no matrix that could be compressed.")


def _with_ranks(surgery: Surgery, kept: Mapping[str, int]) -> Surgery:
    if isinstance(surgery, LowRank):
        return replace(surgery, rank=kept[""])
    assert isinstance(surgery, Residual)
    return replace(surgery, rank_image=kept["image"], rank_text=kept["text"])


def _truncate(
    place: _Place, rank: int | None, energy: float | None
) -> tuple[Truncation, Tensor, Tensor]:
    """Return what is lost at one place, and the kept factors up (out, k) and down (k, in)."""
    module = place.module
    if isinstance(module, Factors):
        factor = module.scale
    else:
        factor = 1.0 if module.gate is None else abs(float(module.gate))
    whole = getattr(module, "weight", None)
    left, sigma, right = _svd(module.up, module.down) if whole is None else _svd(whole)
    squares = (factor * sigma).square()
    total = float(squares.sum())
    # A residual adapter of full rank has another form; the last rank of it always goes.
    most = len(sigma) if isinstance(module, Factors) else min(len(sigma), len(left) - 1)
    if rank is None:
        assert energy is not None
        held = squares.cumsum(0) / total if total > 0 else torch.ones_like(squares)
        # The last sum may miss 1 by a rounding error.
        rank = int((held < min(energy, float(held[-1]))).sum()) + 1
    k = min(rank, most)
    lost = squares[k:]
    layer = Truncation(
        path=place.name.rpartition(".")[0],
        before=len(sigma),
        rank=k,
        bound=module.alpha * math.sqrt(float(lost.sum())),
        largest=module.alpha * math.sqrt(float(lost[0])) if len(lost) else 0.0,
        energy=1.0 - float(lost.sum()) / total if total > 0 else 1.0,
    )
    root = sigma[:k].sqrt()
    return layer, (left[:, :k] * root).float(), (root[:, None] * right[:k]).float()


def _svd(up: Tensor, down: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (out, n), sigma (n,), V^T (n, in) of a matrix, or of the product of two factors."""
    if down is None:
        u, s, v = torch.linalg.svd(up.double(), full_matrices=False)
        return u, s, v
    # Through the small triangles: the product itself may be a thousand times larger.
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().T)
    left, sigma, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return q_up @ left, sigma, right @ q_down.T
