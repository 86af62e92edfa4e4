"""A look before a run: its first steps, through the real loop, and nothing written to disk."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .batch import Batch
from .cached_views import first_batches, views_used
from .errors import TaskError
from .learner import Learner
from .loop import Tick, steps
from .recipe import Recipe
from .runtime import Runtime
from .work import Work

STEPS = 2
"""Optimiser steps that are taken; terms of distillation are often zero at the first"""

_NAMED = 5
"""Tensors that an error names"""


@dataclass(frozen=True)
class Trained:
    """A tensor that the run trains."""

    name: str
    """As in the learner's `named_parameters`"""
    shape: tuple[int, ...]
    numbers: int
    moved: bool
    """Whether a gradient was not zero; one that is zero everywhere may be so by the method"""


@dataclass(frozen=True)
class Memory:
    """What the run holds, in bytes; `peak` is measured, the rest is added up."""

    weights: int
    """Of the model that trains, with its buffers"""
    gradients: int
    optimizer: int
    """Moments and step counts"""
    snapshots: int
    """Teachers, anchors and whatever else the method keeps beside the model"""
    activations: int
    """Kept for the backward pass of the first step, per process; what `run.checkpointing` lowers"""
    peak: int | None
    """Largest so far: of the GPU's memory, or of this whole process on a CPU; None if unknown"""
    peak_of: str
    """"device" or "process" """

    @property
    def known(self) -> int:
        """Sum of the parts, without activations."""
        return self.weights + self.gradients + self.optimizer + self.snapshots


@dataclass(frozen=True)
class Preflight:
    """What a run will train, need and take."""

    runtime: str
    """Device, precision, threads, for people"""
    tensors: tuple[Trained, ...]
    parameters: int
    """Numbers in all parameters of the learner, trained or not"""
    losses: tuple[dict[str, float], ...]
    """Terms of each step taken"""
    memory: Memory
    total_steps: int
    seconds_per_step: float
    """Of the last step taken, with its data; validation comes on top"""
    view_seconds: float | None = None
    """Estimate for embedding the views that the recipe declares, before the first step"""

    @property
    def trainable(self) -> int:
        """Numbers that are trained."""
        return sum(tensor.numbers for tensor in self.tensors)

    @property
    def seconds(self) -> float:
        """Estimate for the whole run."""
        return self.seconds_per_step * self.total_steps + (self.view_seconds or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for programs."""
        return {
            **asdict(self),
            "trainable": self.trainable,
            "seconds": self.seconds,
            "memory": {**asdict(self.memory), "known": self.memory.known},
        }

    def groups(self) -> list[tuple[str, tuple[int, ...], int]]:
        """Return tensors of equal shape in equal places: name with * for numbers, shape, count."""
        counts: dict[tuple[str, tuple[int, ...]], int] = {}
        for tensor in self.tensors:
            key = (re.sub(r"(?<=\.)\d+(?=\.)", "*", tensor.name), tensor.shape)
            counts[key] = counts.get(key, 0) + 1
        return [(name, shape, count) for (name, shape), count in counts.items()]


def preflight(recipe: Recipe) -> Preflight:
    """Build everything a recipe names and take its first two steps; write nothing.

    Raises:
        TaskError: If a tensor that should train gets no gradient; names those that do not.
        DivergedError: If a loss is not finite.
        DataError: If data are missing or damaged.
        WeightsError: If the model is unknown or its weights do not fit.
    """
    runtime = Runtime(recipe.run.device, recipe.run.precision, recipe.run.threads)
    try:
        return _look(Work.prepare(recipe, runtime), runtime)
    finally:
        runtime.close()


def _look(work: Work, runtime: Runtime) -> Preflight:
    learner = work.learner
    trained = {
        name: parameter for name, parameter in learner.named_parameters() if parameter.requires_grad
    }
    reached: dict[str, bool] = {}
    """Name of every tensor with a gradient, and whether one was not zero"""
    ticks: list[Tick] = []
    kept = _Kept(chain(learner.parameters(), learner.buffers()))
    counting = ExitStack()
    count, views = min(STEPS, work.total), work.recipe.data.views
    began = perf_counter()
    batches = first_batches(learner, work.loader, views, count, runtime)
    view_seconds = None if views is None else _for_views(work, batches, perf_counter() - began)
    try:
        counting.enter_context(saved_tensors_hooks(kept.pack, lambda tensor: tensor))
        for tick in steps(
            learner,
            batches,
            work.optimizer,
            work.schedule,
            runtime,
            seed=work.recipe.seed,
            clip_norm=work.recipe.optim.clip_norm,
        ):
            counting.close()  # it takes time, which the last step must not
            for name, parameter in trained.items():
                if parameter.grad is not None:
                    moved = bool(parameter.grad.count_nonzero())
                    reached[name] = reached.get(name, False) or moved
            ticks.append(tick)
    except RuntimeError as error:
        if "does not require grad" not in str(error):  # torch's answer where nothing trains
            raise
    finally:
        counting.close()
    _require_gradients([name for name in trained if name not in reached], len(trained))
    before = ticks[-2].seconds if len(ticks) > 1 else 0.0
    peak, peak_of = peak_memory(runtime)
    state = work.optimizer.state.values()
    moments = [each for values in state for each in values.values() if isinstance(each, Tensor)]
    weights, snapshots = _held(learner)
    return Preflight(
        runtime.describe(),
        tuple(
            Trained(name, tuple(parameter.shape), parameter.numel(), reached[name])
            for name, parameter in trained.items()
        ),
        sum(parameter.numel() for parameter in learner.parameters()),
        tuple(tick.terms or {} for tick in ticks),
        Memory(
            weights,
            _bytes(trained.values()),
            _bytes(moments),
            snapshots,
            kept.total,
            peak,
            peak_of,
        ),
        work.total,
        ticks[-1].seconds - before,
        view_seconds,
    )


def _for_views(work: Work, batches: Iterable[Batch], seconds: float) -> float:
    """Return the seconds for embedding all views, from those for the images of a few batches."""
    assert work.recipe.data.views is not None
    images = sum(len(batch.labels) for batch in batches)
    used = views_used(work.recipe.data.views, work.loader, work.total)
    share = used * work.loader.images / (images * work.runtime.world_size)
    return seconds * share


class _Kept:
    """Adds up the memory that tensors keep alive for a backward pass.

    Args:
        held: Tensors that are there anyway.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        self.total = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in held}

    def pack(self, tensor: Tensor) -> Tensor:
        """Count the memory of a tensor, once."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


def _require_gradients(missing: list[str], of: int) -> None:
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise TaskError(
            f"{len(missing)} of {of} trainable tensors got no gradient in {STEPS} steps: "
            f"{', '.join(missing[:_NAMED])}{more}. Everything that trains must reach the loss; "
            "freeze these tensors, or check the weights of the method's terms."
        )


def _held(learner: Learner) -> tuple[int, int]:
    """Return the bytes of the student, and of what the learner keeps beside it."""
    own = list(chain(learner.student.parameters(), learner.student.buffers()))
    seen = {id(tensor) for tensor in own}
    every = chain(learner.parameters(), learner.buffers())
    return _bytes(own), _bytes(tensor for tensor in every if id(tensor) not in seen)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_memory(runtime: Runtime) -> tuple[int | None, str]:
    """Return the largest memory so far in bytes, and whose it is: "device" or "process"."""
    if runtime.device.type == "cuda":
        return torch.cuda.max_memory_allocated(runtime.device), "device"
    try:
        import resource
    except ImportError:  # Windows has none
        return None, "process"
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest * (1 if sys.platform == "darwin" else 1024), "process"
