"""Modules inside the towers, as few-shot training scripts write them: of MMA and of PromptKD.

Names of tensors are those of the public programs, which count blocks from 1 in the one and from 0
in the other. Shapes say the rest; what no file says is as published, and is stated here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from . import checkpoints
from .errors import SurgeryError, WeightsError
from .foreign_contexts import CLOSE
from .predictor import Predictor
from .surgery.operations import Surgery
from .surgery.projector import Projector
from .surgery.side import Side
from .surgery.sites import find_blocks
from .surgery.visual_prompts import VisualPrompts

ETA = 0.001
"""Factor of MMA's adapters in every published setting; files do not hold it"""

_SIDE = re.compile(
    r"(?:adapter_learner\.)?(text|visual|shared)_adapter\.(\d+)\.(down\.0|up|0)\.(weight|bias)"
)
_SIDE_BUFFERS = ("token_embedding", "tokenized_prompts")
"""Of the training classes"""
_PARTS = ("text.down.0", "text.up", "visual.down.0", "visual.up", "shared.0")
"""Layers of an adapter at one depth"""

_TOWER = "image_encoder."
_PROJECTOR = "VPT_image_trans."
_FIRST_PROMPTS = f"{_TOWER}VPT"
_MORE_PROMPTS = re.compile(rf"{re.escape(_TOWER)}transformer\.resblocks\.(\d+)\.VPT_shallow")
_LAYERS = {
    "conv1.0.weight": "first.weight",
    "conv1.1.weight": "norm.weight",
    "conv1.1.bias": "norm.bias",
    "conv1.1.running_mean": "norm.running_mean",
    "conv1.1.running_var": "norm.running_var",
    "conv1.3.weight": "last.weight",
    "conv1.3.bias": "last.bias",
}
"""Layers of a projector, there and here"""


def has_other_prompts(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has parts of a kind that is not read, as of MaPLe."""
    if has_side_adapters(state) or any(name.startswith(_PROJECTOR) for name in state):
        return False
    if any(name.rpartition(".")[2] == "ctx" for name in state):  # contexts, and not only those
        return any("VPT" in name for name in state)
    return any("_ctx" in name or "adapter." in name or "VPT" in name for name in state)


def has_side_adapters(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has adapters as MMA trains them."""
    return any(_SIDE.fullmatch(name) for name in state)


def has_student(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has the projector of a student as PromptKD trains it."""
    return any(name.startswith(_PROJECTOR) for name in state)


def refuse(
    state: dict[str, Tensor], base: Predictor, classes: Sequence[str], file: Path
) -> NoReturn:
    """Explain what cannot be read.

    Raises:
        WeightsError: Always.
    """
    inside = [name for name in state if re.search(r"VPT|_ctx|adapter\.", name)]
    raise WeightsError(
        f"{file} holds {', '.join(sorted(inside)[:3])}: modules inside the towers, as of MaPLe or "
        "PromptSRC. Of few-shot methods perdure reads CoOp, KgCoOp, MMA and PromptKD; train such a "
        "host with perdure (perdure list methods) and name that run."
    )


def read_side_adapters(
    state: dict[str, Tensor], base: Predictor, classes: Sequence[str], file: Path
) -> Predictor:
    """Return a base with the adapters of MMA.

    Args:
        state: Names to tensors.
        base: Changed.
        classes: Not needed: adapters fit any names.
        file: For messages.

    Raises:
        WeightsError: If layers are missing, or do not fit the base or each other.
    """
    found: dict[int, dict[str, Tensor]] = {}
    others = []
    for name, value in state.items():
        if match := _SIDE.fullmatch(name):
            tower, block, part, kind = match.groups()
            found.setdefault(int(block), {})[f"{tower}.{part}.{kind}"] = value.float()
        elif name.removeprefix("adapter_learner.").split(".")[0] not in _SIDE_BUFFERS:
            others.append(name)
    if others:
        checkpoints.remark(
            f"{file}: {len(others)} tensors beside the adapters ({', '.join(sorted(others)[:3])}) "
            "are left out; they are the base's."
        )
    if 0 in found:
        raise WeightsError(
            f"{file} has an adapter 0, which changes the embeddings of words and patches; perdure "
            "has adapters beside blocks only, from 1. No published setting uses 0."
        )
    counts = {tower: len(find_blocks(base.clip, tower)) for tower in ("image", "text")}
    depths = sorted(found)
    if len(set(counts.values())) > 1 or depths[-1] > counts["image"]:
        raise WeightsError(
            f"{file} has adapters beside blocks {depths[0]} to {depths[-1]}, counted in both "
            f"towers from 1, but {base.source.name} has {counts['image']} blocks in the image "
            f"tower and {counts['text']} in the text tower. Name the base they were trained on, "
            "such as ViT-B-16/openai."
        )
    wanted = [f"{part}.{kind}" for part in _PARTS for kind in ("weight", "bias")]
    missing = [
        f"{depth}: {name}" for depth in depths for name in wanted if name not in found[depth]
    ]
    if missing:
        raise WeightsError(
            f"{file} lacks layers of adapters: {_some(missing)}. Expected text_adapter.N, "
            "visual_adapter.N and shared_adapter.N for the same N."
        )
    _require_matrix(found[depths[0]]["shared.0.weight"], f"shared_adapter.{depths[0]}.0", file)
    rank = len(found[depths[0]]["shared.0.weight"])
    blocks = tuple(depth - 1 for depth in depths)
    upper = tuple(range(counts["image"] // 3, counts["image"]))
    base.drop_head()
    _attach(base, Side(rank=rank, eta=ETA, blocks=None if blocks == upper else blocks), file)
    tensors = {}
    for tower, mine in (("visual", "image"), ("text", "text")):
        paths = find_blocks(base.clip, mine)  # type: ignore[arg-type]
        for depth in depths:
            for part, ours in (("down.0", "down"), ("up", "up")):
                for kind in ("weight", "bias"):
                    name = f"clip.{paths[depth - 1]}.side.{ours}.{kind}"
                    tensors[name] = found[depth][f"{tower}.{part}.{kind}"]
    for place, depth in enumerate(depths):
        for kind in ("weight", "bias"):
            tensors[f"clip.side_shared.{place}.{kind}"] = found[depth][f"shared.0.{kind}"]
    _fill(base, tensors, file)
    return base


def read_student(
    state: dict[str, Tensor], base: Predictor, classes: Sequence[str], file: Path
) -> Predictor:
    """Return a base with the visual prompts and the projector of a student of PromptKD.

    The class rows are its teacher's, which the file does not hold; until a recipe of promptkd, or
    `keep_rows`, brings them, the student can score nothing.

    Args:
        state: Names to tensors.
        base: Changed.
        classes: Not needed.
        file: For messages.

    Raises:
        WeightsError: If layers are missing, do not fit the base, or the frozen tower beside them is
            that of another base.
    """
    layers = {
        name.removeprefix(_PROJECTOR): value.float()
        for name, value in state.items()
        if name.startswith(_PROJECTOR)
    }
    missing = [_PROJECTOR + name for name in _LAYERS if name not in layers]
    if missing:
        raise WeightsError(
            f"{file} has no whole projector of a student: it lacks {_some(missing)}. Expected a "
            "checkpoint of PromptKD's second stage."
        )
    prompts = {0: state[_FIRST_PROMPTS]} if _FIRST_PROMPTS in state else {}
    prompts |= {
        int(m[1]): one for name, one in state.items() if (m := _MORE_PROMPTS.fullmatch(name))
    }
    if sorted(prompts) != list(range(len(prompts))):
        raise WeightsError(
            f"{file} has visual prompts in blocks {sorted(prompts)}, counted from 0; expected all "
            "blocks from the first on."
        )
    _check_tower(state, base, file)
    base.drop_head()
    _require_matrix(_flat(layers["conv1.0.weight"]), f"{_PROJECTOR}conv1.0", file)
    out, inside = layers["conv1.0.weight"].shape[:2]
    tensors = {}
    if prompts:
        _require_matrix(prompts[0], _FIRST_PROMPTS, file)
        blocks = find_blocks(base.clip, "image")
        default = len(prompts) == max(1, 3 * len(blocks) // 4)
        tokens = prompts[0].shape[0]
        _attach(base, VisualPrompts(tokens, None if default else len(prompts)), file)
        names = [name for name in base.added() if name.endswith(".prompts.weight")]
        first = [name for name in names if not any(f".{block}." in name for block in blocks)]
        tensors = {first[0]: prompts[0].float()} | {
            f"clip.{blocks[place]}.prompts.weight": prompts[place].float()
            for place in sorted(prompts)[1:]
        }
    _attach(base, Projector(inside, out), file)
    own = "clip.visual.projector."
    tensors |= {own + ours: _flat(layers[theirs]) for theirs, ours in _LAYERS.items()}
    if (bias := layers.get("conv1.0.bias")) is not None:  # a constant before a normalisation
        mean = tensors[f"{own}norm.running_mean"]
        if bias.shape != mean.shape:
            raise WeightsError(
                f"{_PROJECTOR}conv1.0.bias in {file} has shape {tuple(bias.shape)}; expected "
                f"{tuple(mean.shape)}."
            )
        tensors[f"{own}norm.running_mean"] = mean - bias
    _fill(base, tensors, file)
    return base


def _check_tower(state: Mapping[str, Tensor], base: Predictor, file: Path) -> None:
    """Refuse the student of another base: its frozen image tower is in the file."""
    own = base.clip.state_dict()
    for name, value in state.items():
        if not name.startswith(_TOWER) or "VPT" in name:
            continue
        ours = own.get(f"visual.{name.removeprefix(_TOWER)}")
        if ours is None:
            fault = "which that model has not"
        elif ours.shape != value.shape:
            fault = f"{tuple(value.shape)}, is {tuple(ours.shape)} in that model"
        elif float((value.float() - ours).norm()) > CLOSE * float(ours.float().norm()):
            fault = "has other values"
        else:
            continue
        raise WeightsError(
            f"{file} holds a student of another model than {base.source.name}: {name} {fault}. "
            "Name the model it was trained from, such as ViT-B-16/openai."
        )


def _attach(base: Predictor, surgery: Surgery, file: Path) -> None:
    try:
        base.attach(surgery)
    except SurgeryError as error:
        raise WeightsError(f"{file} does not fit {base.source.name}: {error}") from None


def _fill(base: Predictor, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Give modules that were just added their weights.

    Raises:
        WeightsError: If shapes differ or numbers are not finite; names some.
    """
    own = base.state_dict()
    wrong = [
        f"{name.removeprefix('clip.')} is {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in tensors.items()
        if own[name].shape != value.shape
    ]
    if wrong:
        raise WeightsError(
            f"the added modules in {file} do not fit {base.source.name}: {_some(wrong)}. Name the "
            "base model they were trained on: the image tower of ViT-B/16 is 768 wide, its text "
            "tower 512, and both embed in 512."
        )
    broken = [
        name.removeprefix("clip.") for name, value in tensors.items() if not value.isfinite().all()
    ]
    if broken:
        raise WeightsError(f"{file} holds numbers that are not finite: {_some(broken)}.")
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


def _require_matrix(value: Tensor, name: str, file: Path) -> None:
    if value.ndim != 2 or 0 in value.shape:
        raise WeightsError(
            f"{name} in {file} has shape {tuple(value.shape)}; expected a matrix, not an empty one."
        )


def _flat(weight: Tensor) -> Tensor:
    """Return the weight of a 1 x 1 convolution as that of a linear layer."""
    return weight.flatten(1) if weight.ndim == 4 else weight


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
