"""The installed peft library, asked what it does: where a folder is tried, and what it adds twice.

Its versions up to 0.21.2 add the update of an attention's output matrix twice, in training and in
merging alike (https://github.com/huggingface/peft/pull/3774). How often the installed one does is
measured.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import WeightsError
from .extras import require


@cache
def measure_peft() -> tuple[str, float]:
    """Return the version of peft, and how often it adds the update of attention's output matrix.

    Raises:
        DependencyError: If the library is not installed.
    """
    peft = _peft()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft finds merging twice strange, too
        probe = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 1)})
        before = probe["attention"].get_parameter("out_proj.weight").detach().clone()
        config = peft.LoraConfig(
            r=1, lora_alpha=1, target_modules=["attention"], init_lora_weights=False
        )
        model = peft.get_peft_model(probe, config)
        layer = model.base_model.model["attention"].base_layer.out_proj
        update = layer.get_delta_weight("default").detach().clone()
        after = model.merge_and_unload()["attention"].out_proj.weight.detach()
    times = float(((after - before) * update).sum() / update.square().sum())
    return str(peft.__version__), float(round(times))


def load_with_peft(clip: nn.Module, path: Path) -> nn.Module:
    """Let the peft library itself put a folder on a model, in evaluation mode.

    Args:
        clip: Plain; peft changes it.
        path: The folder.

    Raises:
        DependencyError: If the library is not installed.
        WeightsError: If it cannot read the folder.
    """
    peft = _peft()
    try:
        model: nn.Module = peft.PeftModel.from_pretrained(clip, str(path))
    except Exception as error:  # json, torch, safetensors and peft itself each raise their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise WeightsError(f"peft cannot load {path} ({reason}).") from error
    return model.eval()


def _peft() -> Any:
    require("peft", "a folder of the peft library")
    import peft

    return peft
