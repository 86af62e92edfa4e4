"""Learned contexts of CoOp and KgCoOp, as few-shot training scripts write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoints, towers
from .errors import WeightsError
from .predictor import Predictor
from .surgery.slots import Slots, contexts, frame, text_tokens

WORDS = "a photo of a"
"""What four contexts start as in every published setting"""

CLOSE = 0.02
"""Relative difference of weights that half precision can make"""

_LEARNER = "prompt_learner."
_UNUSED = ("bias_vectors", "meta_net.", "adapter.")
"""In files of KgCoOp, which never uses them"""


def has_contexts(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has contexts, alone or in a whole few-shot model."""
    return "ctx" in state or f"{_LEARNER}ctx" in state


def read_contexts(
    state: dict[str, Tensor], base: Predictor, classes: Sequence[str], file: Path
) -> Predictor:
    """Return a base with learned contexts before class names.

    Raises:
        WeightsError: If they belong to another model or other classes, or come with other parts.
    """
    if "ctx" not in state:  # of a whole few-shot model, whose towers are those of the base
        others = sum(not name.startswith(_LEARNER) for name in state)
        checkpoints.remark(
            f"{file}: {others} tensors beside {_LEARNER}* are left out; they are the base's."
        )
        state = {
            name.removeprefix(_LEARNER): value
            for name, value in state.items()
            if name.startswith(_LEARNER)
        }
    learned = state.pop("ctx").float()
    start = state.pop("token_prefix", None)
    state.pop("token_suffix", None)  # embeddings of the training classes' names
    unused = sorted(name for name in state if name.startswith(_UNUSED))
    if unused:
        checkpoints.remark(
            f"{file}: {', '.join(unused)} left out; KgCoOp saves them and never uses them."
        )
    unknown = sorted(set(state) - set(unused))
    if unknown:
        raise WeightsError(
            f"{file} holds learned contexts and also {', '.join(unknown[:3])}, which CoOp and "
            "KgCoOp do not have. Of methods with other parts perdure reads none; save ctx alone "
            "if the contexts can stand without them."
        )
    text: Any = towers.text_tower(base.clip)
    if getattr(text, "token_embedding", None) is None:
        raise WeightsError(
            f"{file} holds contexts, which belong to a text tower of open_clip's CLIP; that of "
            f"{base.source.name} is a {type(text).__name__}. Name the base they were learned on."
        )
    table: Tensor = text.token_embedding.weight
    _check_contexts(learned, table.shape[1], base, classes, file)
    if start is not None and start.ndim > 1 and start.numel():
        _check_start(start.float().flatten(0, -2)[0], table, base, file)
    words = tuple(text_tokens(base.tokenizer, WORDS))
    count = learned.shape[-2]
    base.drop_head()
    base.attach(
        Slots(
            count,
            words if len(words) == count else None,
            classes=tuple(classes) if learned.ndim == 3 else (),
        )
    )
    with torch.no_grad():
        contexts(base.clip).contexts.copy_(learned.flatten(0, -2))
    return base


def _check_contexts(
    learned: Tensor, width: int, base: Predictor, classes: Sequence[str], file: Path
) -> None:
    """Refuse contexts that are no contexts of this model and these classes."""
    if learned.ndim not in (2, 3) or 0 in learned.shape or not learned.isfinite().all():
        raise WeightsError(
            f"{file} holds ctx of shape {tuple(learned.shape)}; expected finite numbers (M, W), M "
            "context vectors of the text tower's width, or (C, M, W) with vectors of each class."
        )
    if learned.shape[-1] != width:
        raise WeightsError(
            f"the contexts in {file} are {learned.shape[-1]} wide, but the text tower of "
            f"{base.source.name} reads vectors of {width}. Name the base model they were learned "
            "on: 512 is the width of ViT-B/32, ViT-B/16 and RN50, 768 that of ViT-L/14."
        )
    if learned.ndim == 3 and len(learned) != len(classes):
        known = f"{len(classes)} classes are known here" if classes else "no class is known here"
        raise WeightsError(
            f"the contexts in {file} belong to {len(learned)} classes, one set of "
            f"{learned.shape[1]} vectors for each, but {known} and the file holds no names. Use "
            "it as model.init of a recipe whose data have these classes in this order; on other "
            "classes such contexts mean nothing."
        )


def _check_start(found: Tensor, table: Tensor, base: Predictor, file: Path) -> None:
    """Refuse contexts of another base: files keep its embedding of the start of a text."""
    start = frame(base.tokenizer)[0]
    if not start or found.shape != table.shape[1:]:
        return
    own = table[start[0]].detach().float()
    if float((found - own).norm() / own.norm()) > CLOSE:
        raise WeightsError(
            f"the contexts in {file} were learned on another model than {base.source.name} "
            f"{base.source.weights}: the embedding of the start of a text differs. Name that "
            "model, such as ViT-B-16/openai."
        )
