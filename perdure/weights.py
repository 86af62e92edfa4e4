"""Weights are values: plain dicts of tensors, and the few operations every method is made of.

The shares of moving averages are in `kernels`; they have their names here too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .errors import WeightsError
from .kernels import Mix as Mix
from .kernels import beta_wma as beta_wma
from .kernels import ema as ema
from .kernels import warmup_ema as warmup_ema

Weights = Mapping[str, Tensor]
"""Parameter name, as in `named_parameters()`, to tensor."""


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """Return the live parameters that require gradients (shared ones once)."""
    return {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}


def lerp(a: Weights, b: Weights, t: float) -> dict[str, Tensor]:
    """Return (1 - t) a + t b, key by key; differentiable in both.

    Exactly `a` at t = 0 and `b` at t = 1; t may lie outside [0, 1]. Integer tensors, such as the
    batch counters of normalisation layers, are taken from the nearer end.

    Raises:
        WeightsError: If the keys or shapes differ; names the first three that do.
    """
    require_same(a, b)
    return {name: lerp_tensor(tensor, b[name], t) for name, tensor in a.items()}


def mean(members: Sequence[Weights], shares: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Return the weighted mean ("soup") of several weights; equal shares by default.

    Args:
        members: At least one.
        shares: One number >= 0 per member; only their ratios matter. Integer tensors are taken
            from the member with the largest share, the first of equals.

    Raises:
        WeightsError: If there is no member, a share is missing, negative or all are zero, or keys
            or shapes differ.

    Source: Wortsman et al. 2022, "Model soups", arXiv 2203.05482.
    """
    parts = _normalised(shares, len(members))
    first = members[0]
    for other in members[1:]:
        require_same(first, other)
    main = members[parts.index(max(parts))]
    result = {}
    for name, tensor in first.items():
        if not tensor.is_floating_point():
            result[name] = main[name]
            continue
        precise = torch.promote_types(tensor.dtype, torch.float32)
        total = torch.zeros_like(tensor, dtype=precise)
        for member, part in zip(members, parts, strict=True):
            total = total + part * member[name].to(precise)
        result[name] = total.to(tensor.dtype)
    return result


def distance(a: Weights, b: Weights, reduction: Literal["sum", "mean"]) -> Tensor:
    """Return the squared L2 distance, shape (); "mean" divides by the number of scalars.

    Raises:
        WeightsError: If the keys or shapes differ, or there are none.
    """
    require_same(a, b)
    if not a:
        raise WeightsError("the distance of no weights is undefined; pass at least one tensor.")
    total = torch.stack([(tensor - b[name]).square().sum() for name, tensor in a.items()]).sum()
    return total if reduction == "sum" else total / sum(tensor.numel() for tensor in a.values())


def run_at(module: nn.Module, weights: Weights, *args: Any) -> Any:
    """Call `module` as if it had `weights`; gradients flow to `weights`, `module` is unchanged.

    Names that `weights` leaves out keep the module's own tensors.

    Raises:
        WeightsError: If a name is not a parameter or buffer of `module`.
    """
    # torch would accept an unknown name and silently change nothing.
    known = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    unknown = [name for name in weights if name not in known]
    if unknown:
        known |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
        unknown = [name for name in unknown if name not in known]
    if unknown:
        raise WeightsError(
            f"the module has no tensor named {_some(unknown)}; "
            "names are those of named_parameters() and named_buffers()."
        )
    with _keeping_activations(module):
        return functional_call(module, dict(weights), args)


@contextmanager
def _keeping_activations(module: nn.Module) -> Iterator[None]:
    """Suspend gradient checkpointing, which would compute again with the module's own weights."""
    parts = list(module.modules()) if torch.is_grad_enabled() else []
    able: list[Any] = [part for part in parts if getattr(part, "grad_checkpointing", False)]
    for part in able:
        part.grad_checkpointing = False
    try:
        yield
    finally:
        for part in able:
            part.grad_checkpointing = True


def hash_of_weights(weights: Weights) -> str:
    """Return a hash of the names, types, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Snapshot(nn.Module):
    """A frozen copy of some weights, in float32 or wider, that lives in `state_dict`.

    Holds values, never the module they came from, so nothing is shared on disk. Buffer names are
    the weights' names with "/" for ".", which buffer names may not contain.

    Args:
        weights: Floating-point tensors; copied.

    Raises:
        WeightsError: If a tensor is not floating-point.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self._buffer_of = {name: _buffer(name) for name in weights}
        for name, tensor in weights.items():
            if not tensor.is_floating_point():
                raise WeightsError(
                    f"{name} has type {tensor.dtype}; a snapshot holds floating-point weights only."
                )
            precise = torch.promote_types(tensor.dtype, torch.float32)
            self.register_buffer(self._buffer_of[name], tensor.detach().to(precise, copy=True))

    def values(self) -> dict[str, Tensor]:
        """Return the live tensors under the weights' own names, without gradient."""
        # Read directly: `get_buffer` would take as long as the update of a small average.
        buffers = self._buffers
        return {name: cast(Tensor, buffers[key]) for name, key in self._buffer_of.items()}

    @torch.no_grad()
    def mix_(self, new: Weights, share: float) -> None:
        """Move towards `new` by `share`, in place, without gradient.

        Args:
            new: Weights with the same names; may be live parameters of any floating type.
            share: 0 changes nothing, 1 copies `new`.

        Raises:
            WeightsError: If names or shapes differ.
        """
        mine = self.values()
        require_same(mine, new)
        targets = [
            new[name] if new[name].dtype == tensor.dtype else new[name].to(tensor.dtype)
            for name, tensor in mine.items()
        ]
        # One fused call: three memory passes and no temporaries, whatever the number of tensors.
        torch._foreach_lerp_(list(mine.values()), targets, share)


def _buffer(name: str) -> str:
    return name.replace(".", "/")


def lerp_tensor(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return (1 - t) a + t b of two tensors of one shape, as `lerp` does for each name."""
    if not a.is_floating_point():
        return b if t >= 0.5 else a
    dtype = torch.promote_types(a.dtype, b.dtype)
    return torch.lerp(a.to(dtype), b.to(dtype), t)


def require_same(a: Weights, b: Weights) -> None:
    """Refuse weights whose names or shapes differ.

    Raises:
        WeightsError: Names the first three that do.
    """
    if a.keys() != b.keys():
        raise WeightsError(
            "the two sets of weights hold different names: "
            f"only in the first: {_some(sorted(a.keys() - b.keys()))}; "
            f"only in the second: {_some(sorted(b.keys() - a.keys()))}. "
            "Both must come from the same architecture and method."
        )
    wrong = [name for name in a if a[name].shape != b[name].shape]
    if wrong:
        shapes = [f"{name} {tuple(a[name].shape)} and {tuple(b[name].shape)}" for name in wrong]
        raise WeightsError(
            f"the two sets of weights differ in shape: {_some(shapes)}. "
            "Both must come from the same architecture and the same classes."
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) or "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _normalised(shares: Sequence[float] | None, count: int) -> list[float]:
    if count == 0:
        raise WeightsError("the mean of no weights is undefined; pass at least one member.")
    parts = [1.0] * count if shares is None else [float(share) for share in shares]
    if len(parts) != count or min(parts) < 0 or not 0 < sum(parts) < float("inf"):
        raise WeightsError(
            f"shares {parts} do not fit {count} members; "
            "give one number >= 0 per member, not all of them zero."
        )
    return [part / sum(parts) for part in parts]
