"""A CLIP out of open_clip's configuration and a file of weights, without network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from . import checkpoints
from .errors import WeightsError
from .extras import require


def build(model_config: Mapping[str, Any]) -> nn.Module:
    """Build a CLIP with random weights from an open_clip `model_cfg`, without network.

    Raises:
        WeightsError: If the configuration is not one of a two-tower CLIP.
        DependencyError: If its text tower needs a package that is missing.
    """
    from open_clip import CLIP, CustomTextCLIP

    config = copy.deepcopy(dict(model_config)) if isinstance(model_config, Mapping) else {}
    require_text_tower(config.get("text_cfg"))
    if "multimodal_cfg" in config:
        raise WeightsError(
            "the configuration has a multimodal decoder (CoCa); perdure fine-tunes two-tower "
            "models, those with vision_cfg and text_cfg alone."
        )
    try:
        custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
        config["vision_cfg"].pop("timm_model_pretrained", None)
        config["text_cfg"].pop("hf_model_pretrained", None)
        if "hf_model_name" in config["text_cfg"]:
            config["text_cfg"]["hf_model_pretrained"] = False
        model: nn.Module = (CustomTextCLIP if custom else CLIP)(**config)
    except Exception as error:  # towers check little, so a wrong number may break them anywhere
        raise WeightsError(
            f"cannot build a CLIP from this configuration ({type(error).__name__}: {error}); "
            "expected open_clip's "
            "model_cfg with embed_dim, vision_cfg and text_cfg."
        ) from error
    return model


def require_text_tower(text_config: Any) -> None:
    """Make sure that the packages of a text tower are there.

    Args:
        text_config: open_clip's `text_cfg`, or whatever stands in its place.

    Raises:
        DependencyError: If it is a tower of Hugging Face without their package.
    """
    name = text_config.get("hf_model_name") if isinstance(text_config, Mapping) else None
    if name:
        require("transformers", f"the text tower {name}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict, on the CPU, from safetensors or a plain torch checkpoint.

    Unwraps what training scripts put around it, see `checkpoints`. Pickled objects are refused:
    unpickling them would run code from the file.

    Raises:
        WeightsError: If the file is missing, damaged, or holds more than tensors.
    """
    return checkpoints.state_dict(checkpoints.read(path), path)


def fill(clip: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load a state dict into a CLIP; every tensor must find its place.

    Raises:
        WeightsError: If one is missing, unexpected or of another shape; names the first three.
    """
    # Present in OpenAI's and older files, but not weights.
    for name in ("input_resolution", "context_length", "vocab_size", "attn_mask"):
        state.pop(name, None)
    own = clip.state_dict()
    for name in ("logit_scale", "logit_bias"):  # () or (1,), depending on the version
        if name in state and name in own and state[name].numel() == own[name].numel():
            state[name] = state[name].reshape(own[name].shape)
    wrong = [f"missing {name}" for name in own if name not in state]
    wrong += [f"unexpected {name}" for name in state if name not in own]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(
            f"the weights of {where} do not fit the architecture: {'; '.join(wrong[:3])}{more}. "
            "Name the architecture they were trained with."
        )
    clip.load_state_dict(state)
