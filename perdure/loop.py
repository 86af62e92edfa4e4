"""The training loop. It knows no method by name, writes no file and decides nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import optim
from .batch import Batch
from .errors import DivergedError
from .learner import Learner
from .optim import Schedule
from .runtime import Runtime

_OVERFLOWS = 40
"""Halvings of the fp16 loss scale at one step before giving up; from 65,536 this passes 1e-7"""


class Tick(NamedTuple):
    """One finished optimiser step, as seen from outside."""

    step: int
    """Counting from 1"""
    lr: float
    """Of the first parameter group"""
    seconds: float
    """Since the loop began"""
    loss: float | None = None
    """Sum of the terms; None, like all that follows, where values were not read"""
    terms: dict[str, float] | None = None
    stats: dict[str, float] | None = None
    grad_norm: float | None = None
    """Before clipping"""


def always(step: int) -> bool:
    """Read the values of every step."""
    return True


def steps(
    learner: Learner,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    schedule: Schedule,
    runtime: Runtime,
    *,
    seed: int = 0,
    start: int = 0,
    clip_norm: float | None = None,
    read: Callable[[int], bool] = always,
) -> Iterator[Tick]:
    """Train and yield after every optimiser step; the caller logs, saves and stops.

    Args:
        learner: On the device of `runtime`, in training mode.
        batches: Those of steps `start` + 1, `start` + 2, ...; training ends with them.
        optimizer: As `optim.make` returns it.
        schedule: Number of a step to the factor on the learning rates.
        runtime: Device, precision and processes.
        seed: Together with the step it fixes all random numbers of torch.
        start: Optimiser steps already done.
        clip_norm: Largest gradient norm; None to leave gradients alone.
        read: Steps whose values are wanted; only these wait for the device.

    Raises:
        DivergedError: If a loss is not finite; carries its step and every term. Found at the next
            step that is read, before it is yielded.
    """
    module = runtime.prepare(learner)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    began = perf_counter()
    unread: list[tuple[int, dict[str, Tensor]]] = []
    for step, batch in enumerate(batches, start + 1):
        runtime.seed(seed, step)
        rate = optim.set_rate(optimizer, schedule(step))
        for _ in range(_OVERFLOWS):  # more than once only where fp16 gradients overflow
            optimizer.zero_grad(set_to_none=True)  # the forward pass needs their memory
            with runtime.autocast():
                terms, stats = module(batch, step)
            loss = torch.stack(list(terms.values())).sum()
            unread.append((step, {name: term.detach() for name, term in terms.items()}))
            runtime.backward(loss, optimizer)
            norm = _clip(parameters, clip_norm) if clip_norm or read(step) else None
            if runtime.step(optimizer):
                break
            _finite_terms(unread)
        else:
            raise DivergedError(step, _finite_terms(unread) | {"gradient": math.inf})
        learner.after_step(step)
        if norm is None or not read(step):
            yield Tick(step, rate, perf_counter() - began)
            continue
        values = _finite_terms(unread)
        unread.clear()
        size = float(norm)
        if not math.isfinite(size):
            raise DivergedError(step, values | {"gradient": size})
        logged = {name: float(value) for name, value in stats.items()}
        seconds = perf_counter() - began
        yield Tick(step, rate, seconds, sum(values.values()), values, logged, size)


def _clip(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """Return the gradients' norm, and shorten them to `limit` if there is one."""
    if limit is not None:
        return nn.utils.clip_grad_norm_(parameters, limit)
    return nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])


def _finite_terms(unread: list[tuple[int, dict[str, Tensor]]]) -> dict[str, float]:
    """Read the terms of several steps in one go and return those of the last.

    Raises:
        DivergedError: For the first step at which one is not finite.
    """
    flat = torch.stack([term for _, terms in unread for term in terms.values()]).tolist()
    values: dict[str, float] = {}
    for step, terms in unread:
        values = {name: flat.pop(0) for name in terms}
        if not all(map(math.isfinite, values.values())):
            raise DivergedError(step, values)
    return values
