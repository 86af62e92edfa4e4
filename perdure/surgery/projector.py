"""Projector: a small network behind the image tower, into the space of another model.

Source: PromptKD (Li et al., CVPR 2024, arXiv 2403.02781), section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import SurgeryError
from .operations import require_whole


@dataclass(frozen=True)
class Projector:
    """Linear, batch normalisation, ReLU, linear, from the model's embedding to another's.

    From then on images no longer live in the space of the model's own texts: such a predictor
    scores with the class rows of its head.

    Raises:
        SurgeryError: If a field is out of range.
    """

    name: ClassVar[str] = "projector"
    foldable: ClassVar[bool] = False
    text_apart: ClassVar[bool] = True

    width_in: int
    """Of the model's own embedding"""
    width_out: int
    """Of the other model's"""
    alpha: float = 1.0
    """Always 1: the projector is there or not"""

    def __post_init__(self) -> None:
        require_whole(self.alpha, "a projector has")
        if min(self.width_in, self.width_out) < 1:
            raise SurgeryError(
                f"widths are {self.width_in} and {self.width_out}, but must be at least 1."
            )

    def attach(self, clip: nn.Module) -> None:
        """Add the projector, from torch's usual first weights.

        Raises:
            SurgeryError: If there is one.
        """
        visual = clip.get_submodule("visual")
        if hasattr(visual, "projector"):
            raise SurgeryError("the image tower has a projector already.")
        like = next(visual.parameters())
        layers = Layers(self.width_in, self.width_out).to(like.device, like.dtype)
        visual.add_module("projector", layers.train(visual.training))
        visual.register_forward_hook(_project)

    def fold(self, clip: nn.Module, alpha: float) -> None:
        """Do nothing: the projector stays.

        Raises:
            SurgeryError: If there is none, or alpha is not 1.
        """
        self.set_alpha(clip, alpha)

    def set_alpha(self, clip: nn.Module, alpha: float) -> None:
        """Do nothing.

        Raises:
            SurgeryError: If there is none, or alpha is not 1.
        """
        require_whole(alpha, "a projector has")
        layers_of(clip)


class Layers(nn.Module):
    """The layers of a projector.

    Args:
        width_in: Of the embeddings it takes.
        width_out: Of those it makes.
    """

    bypassed: bool
    """Whether the image tower ends before them"""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        # Batch normalisation takes out any constant, so a bias before it would do nothing.
        self.first = nn.Linear(width_in, width_out, bias=False)
        self.norm = nn.BatchNorm1d(width_out)
        self.last = nn.Linear(width_out, width_out)
        self.bypassed = False

    def forward(self, x: Tensor) -> Tensor:
        """Project embeddings (B, D), (B, D').

        A single row has no variance: it takes the running statistics in training, too.
        """
        h = self.first(x)
        if self.training and len(h) < 2:
            norm = self.norm
            mean, var = norm.running_mean, norm.running_var
            h = nn.functional.batch_norm(h, mean, var, norm.weight, norm.bias, eps=norm.eps)
        else:
            h = self.norm(h)
        projected: Tensor = self.last(torch.relu(h))
        return projected


def layers_of(clip: nn.Module) -> Layers:
    """Return the live layers of a model's projector.

    Raises:
        SurgeryError: If there is none.
    """
    found = getattr(clip.get_submodule("visual"), "projector", None)
    if not isinstance(found, Layers):
        raise SurgeryError("the image tower has no projector.")
    return found


@contextmanager
def without_projector(clip: nn.Module) -> Iterator[Layers]:
    """Let the image tower end before its projector inside the block, and get its layers.

    The rows of all processes can then be normalised together, which gives the same statistics on
    every one of them.
    """
    layers = layers_of(clip)
    layers.bypassed = True
    try:
        yield layers
    finally:
        layers.bypassed = False


def _project(visual: nn.Module, _args: Any, output: Any) -> Any:
    """Hook of the image tower."""
    layers: Any = visual.get_submodule("projector")
    return output if layers.bypassed else layers(output)
