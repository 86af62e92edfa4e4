"""Where modules can be added: the linear layers that end attention and MLP of transformer blocks.

An adapter stands directly behind such a layer, before LayerScale, LayerNorm or the residual
addition, so that both are one linear map and can be folded into one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from ..errors import SurgeryError

Tower = Literal["image", "text"]

Part = Literal["attention", "mlp"]


@dataclass(frozen=True)
class Site:
    """One place in a model, named by the paths of its modules."""

    tower: Tower
    block: int
    """Counts from 0 in each tower; an attention pool counts as one more block"""
    part: Part
    hooked: str
    """Module whose output an adapter changes; of a tuple its first element, (..., width)"""
    linear: str
    """`nn.Linear` that an adapter folds into"""
    width: int
    """Of the output"""


class Family(NamedTuple):
    """Where one kind of tower keeps its blocks, and the layers in each of them."""

    tower: Tower
    blocks: str
    """Path of the list of blocks in the model"""
    attention: str
    """Path in a block of the linear layer that ends attention"""
    mlp: str
    """Path in a block of the linear layer that ends the MLP"""
    pool: tuple[str, str, str] | None = None
    """Path of an attention pool in the model, and those of its two layers in it"""


_BERT = ("attention.output.dense", "output.dense")

FAMILIES = (
    # open_clip: its own ViT, timm's towers (SigLIP, EVA), both text towers, text towers of HF
    Family("image", "visual.transformer.resblocks", "attn.out_proj", "mlp.c_proj"),
    Family(
        "image", "visual.trunk.blocks", "attn.proj", "mlp.fc2",
        ("visual.trunk.attn_pool", "proj", "mlp.fc2"),
    ),
    Family("text", "transformer.resblocks", "attn.out_proj", "mlp.c_proj"),
    Family("text", "text.transformer.resblocks", "attn.out_proj", "mlp.c_proj"),
    Family("text", "text.transformer.encoder.layer", *_BERT),
    # Hugging Face: CLIP and SigLIP, BLIP, FLAVA
    Family(
        "image", "vision_model.encoder.layers", "self_attn.out_proj", "mlp.fc2",
        ("vision_model.head", "attention.out_proj", "mlp.fc2"),
    ),
    Family("image", "vision_model.encoder.layers", "self_attn.projection", "mlp.fc2"),
    Family("image", "image_model.encoder.layer", *_BERT),
    Family("text", "text_model.encoder.layers", "self_attn.out_proj", "mlp.fc2"),
    Family("text", "text_encoder.encoder.layer", *_BERT),
    Family("text", "text_model.encoder.layer", *_BERT),
)  # fmt: skip
"""The known towers; the first family whose layers are all there is the one."""

_FIRST_NORMS = ("ln_1", "norm1", "layer_norm1")
"""Of open_clip, of timm, of Hugging Face"""


def find_sites(
    clip: nn.Module,
    towers: Sequence[Tower] = ("image", "text"),
    blocks: Sequence[int] | None = None,
) -> tuple[Site, ...]:
    """Return the sites of some towers: two per block, in the order of the forward pass.

    Args:
        clip: The model.
        towers: Which towers.
        blocks: Which blocks of each tower, from 0; None for all.

    Raises:
        SurgeryError: If a tower has no transformer blocks of a known family, or no tower has one
            of the blocks.
    """
    sites = tuple(site for tower in towers for site in _tower_sites(clip, tower))
    if blocks is None:
        return sites
    absent = sorted(set(blocks) - {site.block for site in sites})
    if absent:
        last = max(site.block for site in sites)
        raise SurgeryError(
            f"no tower has the blocks {absent}; allowed are 0 to {last}, or null for all."
        )
    return tuple(site for site in sites if site.block in blocks)


def find_blocks(clip: nn.Module, tower: Tower) -> tuple[str, ...]:
    """Return the paths of a tower's transformer blocks, in the order of the forward pass.

    An attention pool is none of them.

    Raises:
        SurgeryError: If the tower has no transformer blocks of a known family.
    """
    family, count = _family(clip, tower)
    return tuple(f"{family.blocks}.{index}" for index in range(count))


def first_norm(clip: nn.Module, block: str) -> str:
    """Return the name, in a block, of the layer norm that its attention reads through.

    Args:
        clip: The model.
        block: Path of the block.

    Raises:
        SurgeryError: If the block normalises elsewhere, as those of BERT do.
    """
    for name in _FIRST_NORMS:
        if _module_at(clip, f"{block}.{name}") is not None:
            return name
    raise SurgeryError(
        f"{block} ({type(clip.get_submodule(block)).__name__}) does not begin with a layer norm; "
        "parallel adapters need pre-norm blocks, such as those of CLIP, SigLIP and EVA."
    )


def check_blocks(blocks: Sequence[int] | None) -> None:
    """Refuse a choice of blocks that fits no model.

    Raises:
        SurgeryError: If it is empty or counts below 0.
    """
    if blocks is not None and (not blocks or min(blocks) < 0):
        raise SurgeryError(
            f"blocks are {list(blocks)}; name at least one, counting from 0, or null for all."
        )


def linear_at(clip: nn.Module, path: str) -> nn.Linear:
    """Return the linear layer at a path.

    Raises:
        SurgeryError: If there is something else.
    """
    layer = _module_at(clip, path)
    if not isinstance(layer, nn.Linear):
        raise SurgeryError(
            f"{path} is {type(layer).__name__}, but nn.Linear is needed to fold an adapter into; "
            "load the model without quantised layers."
        )
    return layer


def _tower_sites(clip: nn.Module, tower: Tower) -> Iterator[Site]:
    family, count = _family(clip, tower)
    for block, (path, attention, mlp) in enumerate(_places(clip, family, count)):
        yield _site(clip, tower, block, "attention", f"{path}.{attention}")
        yield _site(clip, tower, block, "mlp", f"{path}.{mlp}")


def _family(clip: nn.Module, tower: Tower) -> tuple[Family, int]:
    """Return the family of a tower and the number of its blocks."""
    for family in FAMILIES:
        blocks = _module_at(clip, family.blocks) if family.tower == tower else None
        if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or len(blocks) == 0:
            continue
        if all(_has_layers(clip, *place) for place in _places(clip, family, len(blocks))):
            return family, len(blocks)
    raise SurgeryError(_unknown(clip, tower))


def _places(clip: nn.Module, family: Family, count: int) -> list[tuple[str, str, str]]:
    """Return path and layers of every block, and of the pool if there is one."""
    layers = (family.attention, family.mlp)
    places = [(f"{family.blocks}.{index}", *layers) for index in range(count)]
    if family.pool is not None and _module_at(clip, family.pool[0]) is not None:
        places.append(family.pool)
    return places


def _has_layers(clip: nn.Module, path: str, *layers: str) -> bool:
    return all(isinstance(_module_at(clip, f"{path}.{layer}"), nn.Linear) for layer in layers)


def _site(clip: nn.Module, tower: Tower, block: int, part: Part, linear: str) -> Site:
    # nn.MultiheadAttention reads the weights of its output layer without calling the layer.
    around = linear.rpartition(".")[0]
    whole = isinstance(_module_at(clip, around), nn.MultiheadAttention)
    width = linear_at(clip, linear).out_features
    return Site(tower, block, part, around if whole else linear, linear, width)


def _module_at(clip: nn.Module, path: str) -> nn.Module | None:
    try:
        return clip.get_submodule(path)
    except AttributeError:
        return None


def _unknown(clip: nn.Module, tower: Tower) -> str:
    """Say what a tower is and what to do instead."""
    names = ("visual", "vision_model") if tower == "image" else ("text", "text_model")
    module = next((m for name in names if (m := _module_at(clip, name)) is not None), clip)
    trunk = _module_at(module, "trunk")
    kind = type(module if trunk is None else trunk).__name__
    other = "text" if tower == "image" else "image"
    return (
        f"the {tower} tower ({kind}) has no transformer blocks that modules can be added to; "
        "allowed are the ViT and text towers of open_clip, ViTs of timm (SigLIP, EVA) and Hugging "
        f"Face's CLIP, SigLIP, BLIP and FLAVA. Adapt the other tower alone (towers: [{other}]), "
        "or train all weights with the methods flyp or tracer."
    )
