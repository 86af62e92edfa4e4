"""Tuned models that other programs wrote: prompts, adapters, whole CLIPs, CLIPs with a linear head.

A file says little about itself, so everything is told from the names of its tensors, and checked
against the base model it is put on. What a file holds beside that is left out and named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import building, checkpoints, foreign_contexts, foreign_modules, stored, zoo
from .errors import WeightsError
from .predictor import Predictor

COMPONENTS = ("prompt_learner", "adapter_learner", "VLPromptLearner")
"""Directories in which few-shot training scripts keep the checkpoints of what they trained"""

_EPOCH = re.compile(r"model\.pth\.tar-(\d+)|model-(\d+)\.pth\.tar")
_BEST = "model-best.pth.tar"

_CLASSIFIER = ("image_encoder.model.", "classification_head.")


class _Form(NamedTuple):
    """A kind of content."""

    fits: Callable[[Mapping[str, Tensor]], bool]
    read: Callable[[dict[str, Tensor], Predictor, Sequence[str], Path], Predictor]


def is_foreign(path: Path) -> bool:
    """Return whether a path is something that `read_tuned` may read; looks into no file."""
    if path.is_dir():
        return zoo.is_model(path) or _checkpoints_in(path) is not None
    return path.is_file()


def read_tuned(path: Path, base: Predictor, classes: Sequence[str] = ()) -> Predictor:
    """Return the model that a checkpoint makes of its base, in evaluation mode, on the CPU.

    Warns about what a checkpoint holds and nobody uses.

    Args:
        path: One of: learned contexts of CoOp or KgCoOp, adapters of MMA or a student of PromptKD,
            as a file or the directory of an experiment; a state dict of a whole open_clip model;
            that of a model with a linear head as WiSE-FT trains it; a directory of open_clip or,
            for a CLIPModel, of transformers.
        base: The model it was trained from; left as it is.
        classes: Names of the training classes, in their order; needed where something belongs to
            each class, because files hold no names.

    Raises:
        WeightsError: If the file is missing, damaged or of no known form, holds objects that would
            have to be executed, or was trained from another base.
    """
    if path.is_dir() and zoo.is_model(path):
        return _same_architecture(zoo.load(str(path)), base, path)
    file = _file_in(path) if path.is_dir() else path
    state = checkpoints.state_dict(checkpoints.read(file), file)
    form = next(one for one in _FORMS if one.fits(state))
    return form.read(state, base.copy(), classes, file).eval()


def _checkpoints_in(path: Path) -> Path | None:
    """Return the directory of checkpoints that a directory is or has; None if there is none."""
    for place in (path, *(path / name for name in COMPONENTS)):
        if place.is_dir() and any(_is_checkpoint(file) for file in place.iterdir()):
            return place
    return None


def _is_checkpoint(file: Path) -> bool:
    return file.name == _BEST or _EPOCH.fullmatch(file.name) is not None


def _file_in(path: Path) -> Path:
    """Return the checkpoint of the last epoch in a directory, or else the best one."""
    place = _checkpoints_in(path)
    if place is None:
        raise WeightsError(
            f"{path} holds no tuned model. Expected checkpoints such as model.pth.tar-50 or "
            f"{_BEST}, there or in {', '.join(COMPONENTS)}; or a directory of open_clip "
            "(open_clip_config.json) or transformers (config.json)."
        )
    epochs = {}
    for file in place.iterdir():
        if found := _EPOCH.fullmatch(file.name):
            epochs[int(found[1] or found[2])] = file
    if not epochs:
        return place / _BEST
    chosen = epochs[max(epochs)]
    if len(epochs) > 1 or (place / _BEST).is_file():
        others = sorted(file.name for file in place.iterdir() if _is_checkpoint(file))
        checkpoints.remark(
            f"{place} holds {', '.join(others)}; took the last epoch, {chosen.name}, as published "
            "tables of CoOp do. Name another file to take that."
        )
    return chosen


def _with_head(
    state: dict[str, Tensor], base: Predictor, classes: Sequence[str], file: Path
) -> Predictor:
    """Read an image tower, its linear head and whatever is there of the text tower."""
    towers_of, head_of = _CLASSIFIER
    head = {
        name.removeprefix(head_of): value.float()
        for name, value in state.items()
        if name.startswith(head_of)
    }
    clip = {
        name.removeprefix(towers_of): value
        for name, value in state.items()
        if name.startswith(towers_of)
    }
    weight = head.get("weight")
    width = base.source.config["model_cfg"]["embed_dim"]
    if weight is None or weight.ndim != 2 or weight.shape[1] != width:
        shape = "no weight" if weight is None else f"a weight of {tuple(weight.shape)}"
        raise WeightsError(
            f"{file} has a linear head with {shape}, but {base.source.name} embeds in {width} "
            "dimensions; name the architecture it was trained with."
        )
    if len(weight) != len(classes):
        known = f"{len(classes)} classes are known here" if classes else "no class is known here"
        raise WeightsError(
            f"{file} has a linear head of {len(weight)} classes, but {known} and the file holds no "
            "names. Use it as model.init of a recipe whose data have these classes in this order, "
            f"or delete {head_of}* from the state dict to read the towers alone."
        )
    bias = head.get("bias", torch.zeros(len(weight)))
    if bias.shape != (len(weight),):
        raise WeightsError(
            f"{file} has a linear head of {len(weight)} classes with a bias of "
            f"{tuple(bias.shape)}; expected ({len(weight)},). The file is damaged."
        )
    if clip:
        _fill_image_tower(base, clip, file)
    base.head = stored.empty_head(width, len(classes))
    with torch.no_grad():
        base.head.weight.copy_(weight)
        base.head.bias.copy_(bias)
    base.classes, base.templates = tuple(classes), ()
    return base


def _whole(
    state: dict[str, Tensor], base: Predictor, classes: Sequence[str], file: Path
) -> Predictor:
    """Read a whole CLIP, or an image tower saved without the text tower."""
    towers_of = _CLASSIFIER[0]
    state = {name.removeprefix(towers_of): value for name, value in state.items()}
    base.drop_head()
    _fill_image_tower(base, state, file)
    return base


def _fill_image_tower(base: Predictor, state: dict[str, Tensor], file: Path) -> None:
    """Fill in a CLIP, the text tower of which may be missing as a whole."""
    own = base.clip.state_dict()
    text = {name for name in own if not name.startswith("visual.") and name != "logit_scale"}
    if text and not text & state.keys() and any(name.startswith("visual.") for name in state):
        checkpoints.remark(f"{file} has no text tower; it is taken from {base.source.name}.")
        state |= {name: own[name] for name in text}
        state.setdefault("logit_scale", own["logit_scale"])
    building.fill(base.clip, {name: value.float() for name, value in state.items()}, str(file))


def _same_architecture(found: Predictor, base: Predictor, path: Path) -> Predictor:
    ours = {name: tuple(value.shape) for name, value in found.clip.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in base.clip.state_dict().items()}
    if ours != theirs:
        raise WeightsError(
            f"{path} holds another architecture than {base.source.name}, the base it is used "
            f"with; use {path} as model.name too, or name the base it was tuned from."
        )
    return found


_FORMS = (
    _Form(foreign_modules.has_other_prompts, foreign_modules.refuse),
    _Form(foreign_contexts.has_contexts, foreign_contexts.read_contexts),
    _Form(foreign_modules.has_side_adapters, foreign_modules.read_side_adapters),
    _Form(foreign_modules.has_student, foreign_modules.read_student),
    _Form(lambda state: any(name.startswith(_CLASSIFIER[1]) for name in state), _with_head),
    _Form(lambda state: True, _whole),
)
"""In the order in which they are tried"""
