"""The training steps that are compared, by name: the published pattern and perdure's own loop."""

from collections.abc import Callable
from typing import Any

import torch

from perdure.batch import Batch
from perdure.learner import Learner
from perdure.loop import steps
from perdure.method import Context
from perdure.methods.flyp import Flyp
from perdure.methods.tracer import Tracer
from perdure.optim import make
from perdure.optim_spec import OptimSpec
from perdure.runtime import Runtime
from perdure.towers import checkpoint

from .pattern import BATCH, Action, inputs, published, shape

LENGTH = 25_030
"""Optimiser steps of the published ImageNet runs"""


def ours(method: Any, batch: Batch, checkpointing: bool = False) -> Action:
    """Return a step of perdure's own loop that logs nothing."""
    predictor = shape()
    trimmed = batch._replace(tokens=predictor.trim(batch.tokens))
    context = Context(LENGTH, (), (), shape)
    learner: Learner = method.build(predictor, context).train()
    if checkpointing:
        checkpoint(learner.student.clip)
    spec = OptimSpec(lr=1e-5, weight_decay=0.1, batch_size=BATCH, epochs=1)
    optimizer, schedule = make(learner, spec, LENGTH)
    runtime = Runtime("cpu", threads=1)

    def forever() -> Any:
        while True:
            yield trimmed

    ticks = steps(learner, forever(), optimizer, schedule, runtime, read=lambda step: False)
    next(ticks)  # the first step distils nothing
    return lambda: next(ticks)


STEPS: dict[str, Callable[[], Action]] = {
    "FLYP, published pattern": lambda: published(shape().clip, inputs(), tracer=False),
    "FLYP, perdure": lambda: ours(Flyp(), inputs()),
    "TRACER, published pattern": lambda: published(shape().clip, inputs(), tracer=True),
    "TRACER, perdure": lambda: ours(Tracer(cross_norm_weight=0.05), inputs()),
    "TRACER, perdure, bf16 teacher": lambda: ours(
        Tracer(cross_norm_weight=0.05, teacher_precision="bf16"), inputs()
    ),
    "TRACER, perdure, checkpointing": lambda: ours(
        Tracer(cross_norm_weight=0.05), inputs(), checkpointing=True
    ),
}
"""Name to a builder of the step"""


def prepare() -> None:
    """Make counters and clocks comparable."""
    torch.set_num_threads(1)
    # Its fused attention escapes the counter; the published codes' layout never takes that path.
    torch.backends.mha.set_fastpath_enabled(False)
