"""The mean loss along a straight line between two models, in the memory of one training step.

Every point of the line is a forward and a backward pass of its own: its graph is gone before the
next point begins, and only the sum of the gradients is kept until the optimiser's backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from .batch import Batch
from .collective import gather
from .learner import Learner
from .weights import Weights, lerp

Grid = Literal["midpoints", "stratified", "released"]

_SCALE = 2.0**16
"""Factor on fp16 losses, as torch's own scaler starts with"""

_HALVINGS = 40
"""Of that factor before a gradient is given up, as in the training loop"""


def grid(kind: Grid, points: int, seed: int = 0, step: int = 1) -> list[float]:
    """Return the places, in [0, 1], at which a line is evaluated.

    Args:
        kind: "midpoints" of `points` equal parts; "stratified", one uniform draw in each of them;
            "released", 0.1, 0.1 + 1 / points, ... below 1.01, as the authors' code has it: not
            always as many as asked for, and with 1 among them where points is 10 or 20.
        points: Number of parts, at least 1.
        seed: Of the run; with `step` it fixes the draws, which are equal on every process.
        step: Optimiser step.
    """
    if kind == "released":
        places = (0.1 + number / points for number in range(points))
        return [place for place in places if place < 1.01]
    within = np.full(points, 0.5)
    if kind == "stratified":
        within = np.random.default_rng((seed, step)).random(points)
    return [float(place) for place in (np.arange(points) + within) / points]


def path_loss(
    learner: Learner, batch: Batch, step: int, fixed: Weights, live: Weights, at: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the mean of a learner's loss at fixed + a (live - fixed) over all `a` in `at`.

    Every point sees the random numbers that the caller would draw next, so that all have the same
    dropout, and leaves running statistics of normalisation layers as they were.

    Args:
        learner: Its own weights are replaced meanwhile.
        batch: This process's batch.
        step: Number of the optimiser step.
        fixed: Where the line begins, by names of the learner's parameters.
        live: Where it ends, the same names; gets the gradient, once.
        at: Places on the line, at least one.

    Returns:
        The mean, shape (), and every point's loss, (N,), without gradient.
    """
    names = list(live)
    each: list[Tensor] = []

    def evaluate(*ends: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        total: list[Tensor | None] = [None] * len(names)
        now = dict(zip(names, ends, strict=True))
        for place in at:
            loss, gradients = loss_at(learner, batch, step, lerp(fixed, now, place))
            each.append(loss)
            for index, gradient in enumerate(gradients):
                if gradient is not None:
                    part, so_far = gradient * (place / len(at)), total[index]
                    total[index] = part if so_far is None else so_far.add_(part)
        return torch.stack(each).mean(), total

    mean: Tensor = _Known.apply(evaluate, *live.values())
    return mean, torch.stack(each)


def loss_at(
    learner: Learner, batch: Batch, step: int, weights: Weights
) -> tuple[Tensor, list[Tensor | None]]:
    """Return a learner's loss, shape (), and its gradient at other weights than its own.

    The learner, its running statistics and the random state are left as they were. With several
    processes the gradient is this process's part, which their mean completes, as in any backward
    pass.

    Args:
        learner: Computes the loss, the sum of its terms.
        batch: This process's batch.
        step: Number of the optimiser step.
        weights: Names of the learner's parameters to values.

    Returns:
        The loss, and a gradient per tensor in the order of `weights`; None where there is none.
    """
    kind = batch.images.device.type
    devices = [batch.images.device] if kind == "cuda" else []
    half, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    points = {f"learner.{name}": each.detach().requires_grad_() for name, each in weights.items()}
    scale = _SCALE if half and dtype == torch.float16 else 1.0
    both = _LossAndGradient(learner)
    for _ in range(_HALVINGS):
        # Autocast would keep a cast copy of the weights of every point.
        with (
            torch.enable_grad(),
            torch.random.fork_rng(devices),
            _kept_statistics(learner),
            torch.autocast(kind, dtype, enabled=half, cache_enabled=False),
        ):
            loss, gradients = functional_call(
                both, points, (batch, step, list(points.values()), scale)
            )
        if scale == 1.0 or not bool(loss.isfinite()) or _finite_everywhere(gradients, loss):
            break
        scale /= 2
    if scale != 1.0:
        gradients = [None if each is None else each / scale for each in gradients]
    return loss, gradients


class _LossAndGradient(nn.Module):
    """Both in one call: activations that are computed again then find the weights of the point."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(
        self, batch: Batch, step: int, points: list[Tensor], scale: float
    ) -> tuple[Tensor, list[Tensor | None]]:
        loss = torch.stack(list(self.learner(batch, step).terms.values())).sum()
        with torch.autocast(loss.device.type, enabled=False):  # as backward passes are run
            found = torch.autograd.grad(loss * scale, points, allow_unused=True)
        return loss.detach(), list(found)


class _Known(torch.autograd.Function):
    """A scalar whose gradient is computed together with it."""

    @staticmethod
    def forward(ctx: Any, evaluate: Callable[..., Any], *live: Tensor) -> Tensor:
        value, gradients = evaluate(*live)
        ctx.save_for_backward(*gradients)
        result: Tensor = value
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        parts = (None if each is None else each * upstream for each in ctx.saved_tensors)
        return (None, *parts)


def _finite_everywhere(gradients: Sequence[Tensor | None], loss: Tensor) -> bool:
    """Return whether all gradients are finite, on every process, so that all agree."""
    known = [each for each in gradients if each is not None]
    finite = torch.stack([each.isfinite().all() for each in known]).all()
    return bool(gather(finite.to(loss.dtype).reshape(1)).all())


@contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    """Put the running statistics of normalisation layers back as they were."""
    kept = [(buffer, buffer.clone()) for buffer in statistics(module).values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """Return the live running statistics of normalisation layers, by their names."""
    return {
        f"{name}.{key}": buffer
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._NormBase)
        for key, buffer in part.named_buffers(recurse=False)
    }
