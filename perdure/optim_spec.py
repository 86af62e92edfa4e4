"""The table `optim` of a recipe: which optimiser, how long, and how the rate goes. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from .method import Count, NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class OptimSpec:
    """Optimiser and schedule, in optimiser steps; unknown keys are faults."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive
    head_lr: Positive | None = None
    """Rate of the linear head; None for `lr`"""
    weight_decay: NonNegative = 0.0
    """Towards zero, not towards the pre-trained weights"""
    decay: Literal["all", "matrices"] = "all"
    """"matrices" spares biases, gains and all else with fewer than two dimensions"""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW"""
    eps: Positive = 1e-8
    """Of AdamW"""
    momentum: NonNegative = 0.9
    """Of SGD"""
    batch_size: Count
    """Global, over all processes"""
    epochs: Count | None = None
    steps: Count | None = None
    """Length in optimiser steps, instead of epochs"""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the run in which the rate rises"""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps in which the rate rises, instead of a share"""
    schedule: Literal["cosine", "constant", "cosine-epochs"] = "cosine"
    """How the rate goes on after the warm-up: along half a cosine to 0, or as it is.
    "cosine-epochs" changes it between epochs only, as published recipes of prompt learners do"""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """First epochs of "cosine-epochs" that are run at `warmup_lr`"""
    warmup_lr: Positive = 1e-5
    """Constant rate in the warm-up of "cosine-epochs" schedules"""
    clip_norm: Positive | None = None
    """Largest norm of the (unscaled) gradient; None, as published by TRACER, does not clip"""

    def __post_init__(self) -> None:
        """Refuse two answers, or none, to one question."""
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if self.warmup and self.warmup_steps is not None:
            raise ValueError("give warmup (a share) or warmup_steps, not both")
        if self.schedule == "cosine-epochs":
            if self.epochs is None:
                raise ValueError("schedule is 'cosine-epochs', which needs epochs and not steps")
            if self.warmup or self.warmup_steps:
                raise ValueError("schedule is 'cosine-epochs', whose warm-up is warmup_epochs")
        elif self.warmup_epochs:
            raise ValueError(
                "warmup_epochs belongs to the schedule 'cosine-epochs'; use warmup or warmup_steps"
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the length of the run in optimiser steps."""
        return self.steps if self.steps is not None else (self.epochs or 1) * steps_per_epoch

    def warmup_length(self, total_steps: int) -> int:
        """Return the number of steps in which the rate rises."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round(self.warmup * total_steps)
