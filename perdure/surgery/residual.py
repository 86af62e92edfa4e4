"""Residual adapters: z + alpha s F z on the output of attention and MLP, folded into W afterwards.

Source: R-Adapter (Kim et al. 2024, arXiv 2408.05749), sections 3.2 and 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import SurgeryError
from .adapter import Adapter, DropMode
from .operations import check_alpha
from .sites import Site, Tower, check_blocks, find_sites, linear_at


@dataclass(frozen=True)
class Residual:
    """An adapter on the output of attention and of the MLP of every block.

    Raises:
        SurgeryError: If a field is out of range.
    """

    name: ClassVar[str] = "residual"
    foldable: ClassVar[bool] = True

    rank_image: int | None = None
    """Of the image tower's adapters, below its width; None for full matrices"""
    rank_text: int | None = None
    """Of the text tower's adapters, below its width; None for full matrices"""
    gate: float | None = 0.1
    """Where the trainable factor of each adapter starts; None for no factor"""
    bias: bool = False
    """Whether adapters also shift their output"""
    towers: tuple[Tower, ...] = ("image", "text")
    """Which towers get adapters"""
    blocks: tuple[int, ...] | None = None
    """Which blocks of each tower, from 0; None for all. A pool is one more block"""
    drop: float = 0.0
    """Probability in [0, 1) that an adapter is left out in training"""
    drop_mode: DropMode = "module"
    """Left out together: all of an adapter, single rows of a batch, or single positions"""
    alpha: float = 1.0
    """Strength of all adapters, >= 0"""

    def __post_init__(self) -> None:
        if not 0.0 <= self.drop < 1.0:
            raise SurgeryError(
                f"drop is {self.drop}, but must lie in [0, 1): at 1 no adapter would ever train."
            )
        check_alpha(self.alpha)
        if self.gate is not None and not (math.isfinite(self.gate) and self.gate != 0.0):
            raise SurgeryError(
                f"gate is {self.gate}, but must be finite and not 0, where nothing would train; "
                "leave it out with null."
            )
        for name, rank in (("rank_image", self.rank_image), ("rank_text", self.rank_text)):
            if rank is not None and rank < 1:
                raise SurgeryError(f"{name} is {rank}, but must be at least 1, or null for full.")
        if not self.towers or len(set(self.towers)) < len(self.towers):
            raise SurgeryError(
                f"towers are {list(self.towers)}; name image, text or both, each once."
            )
        check_blocks(self.blocks)

    def attach(self, clip: nn.Module) -> None:
        """Add the adapters; the model computes what it did, bit for bit.

        Raises:
            SurgeryError: If a tower or block has no place for them, a rank is not below the width,
                or there are adapters already.
        """
        sites = self._sites(clip)
        for site in sites:
            self._check(clip, site)
        for index, site in enumerate(sites):
            hooked, linear = clip.get_submodule(site.hooked), linear_at(clip, site.linear)
            adapter = Adapter(
                site.width, self._rank(site), gate=self.gate, bias=self.bias, drop=self.drop,
                drop_mode=self.drop_mode, alpha=self.alpha, index=index,
                device=linear.weight.device, dtype=linear.weight.dtype,
            )  # fmt: skip
            hooked.add_module("adapter", adapter.train(hooked.training))
            hooked.register_forward_hook(_adapt)

    def fold(self, clip: nn.Module, alpha: float) -> None:
        """Write the adapters into the linear layers before them, and remove them.

        Raises:
            SurgeryError: If there are none, as after a fold, or alpha is out of range.
        """
        check_alpha(alpha)
        sites = self._sites(clip)
        own = [_own(clip, site) for site in sites]
        for site, adapter in zip(sites, own, strict=True):
            adapter.fold_into(linear_at(clip, site.linear), alpha)
            hooked = clip.get_submodule(site.hooked)
            del hooked.adapter
            for key in [key for key, hook in hooked._forward_hooks.items() if hook is _adapt]:
                del hooked._forward_hooks[key]

    def set_alpha(self, clip: nn.Module, alpha: float) -> None:
        """Set the strength of all adapters.

        Raises:
            SurgeryError: If there are none, or alpha is out of range.
        """
        check_alpha(alpha)
        for adapter in [_own(clip, site) for site in self._sites(clip)]:
            adapter.alpha = alpha

    def _sites(self, clip: nn.Module) -> tuple[Site, ...]:
        return find_sites(clip, self.towers, self.blocks)

    def _rank(self, site: Site) -> int | None:
        return self.rank_image if site.tower == "image" else self.rank_text

    def _check(self, clip: nn.Module, site: Site) -> None:
        rank = self._rank(site)
        if rank is not None and rank >= site.width:
            raise SurgeryError(
                f"rank_{site.tower} is {rank}, but {site.linear} is only {site.width} wide; "
                f"allowed are 1 to {site.width - 1}, or null for full matrices."
            )
        if self.bias and linear_at(clip, site.linear).bias is None:
            raise SurgeryError(
                f"{site.linear} has no bias that an adapter's bias could fold into; set bias to "
                "false."
            )
        if hasattr(clip.get_submodule(site.hooked), "adapter"):
            raise SurgeryError(
                f"{site.hooked} has an adapter already; fold the model before adding others."
            )


def adapters(clip: nn.Module) -> dict[str, Adapter]:
    """Return all adapters of a model by the path of the module they act on."""
    found = {
        path.rpartition(".")[0]: module
        for path, module in clip.named_modules()
        if isinstance(module, Adapter)
    }
    return dict(sorted(found.items(), key=lambda item: item[1].index))


def drop_clock(clip: nn.Module, seed: int, step: int, first_row: int = 0) -> None:
    """Make the dropping of the next forward passes a function of its arguments and the adapter.

    Every process then leaves out the same, and so does a recomputed forward pass.

    Args:
        clip: Model with adapters; one without is left alone.
        seed: Of the run, >= 0.
        step: Optimiser step, >= 0.
        first_row: Number, in the batch of all processes, of this process's first row, on which
            dropping of single rows depends.
    """
    for adapter in clip.modules():
        if isinstance(adapter, Adapter):
            adapter.clock = (seed, step, first_row)


@contextmanager
def recorded_masks(clip: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Keep the masks that are drawn inside the block, by the path of the module acted on.

    A mask has 1 for kept and 0 for left out: (1,) for a module, (B, 1, ...) for rows,
    (1, L, ..., 1) for positions; one for each forward pass in training.
    """
    found = adapters(clip)
    masks: dict[str, list[Tensor]] = {path: [] for path in found}
    for path, adapter in found.items():
        adapter.masks = masks[path]
    try:
        yield masks
    finally:
        for adapter in found.values():
            adapter.masks = None


def _adapt(module: nn.Module, _args: Any, output: Any) -> Any:
    """Hook of modules acted on; finds the adapter by its module, so that copies are whole."""
    adapter = module.get_submodule("adapter")
    if isinstance(output, tuple):
        return (adapter(output[0]), *output[1:])
    return adapter(output)


def _own(clip: nn.Module, site: Site) -> Adapter:
    adapter = getattr(clip.get_submodule(site.hooked), "adapter", None)
    if not isinstance(adapter, Adapter):
        raise SurgeryError(
            f"{site.hooked} has no adapter; the model was folded already, or never adapted."
        )
    return adapter
