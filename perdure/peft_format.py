"""Folders of the peft library: low-rank updates out of perdure and into it.

The library wraps nn.MultiheadAttention with the update of the joint matrix of queries, keys and
values, and puts the update of the output matrix one level below: `base_layer.out_proj`. How often
the installed version adds that one is measured (`peft_library`), and factors are written and read
so that perdure and this version of peft compute the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .adapters import base_record, fill, open_base, require_base
from .errors import SurgeryError, WeightsError
from .files import read_json, whole_directory, write_json
from .peft_library import measure_peft
from .predictor import Predictor
from .surgery.factors import CHILD, own_weight
from .surgery.low_rank import TARGETS, LowRank, Target
from .surgery.sites import Tower

CONFIG = "adapter_config.json"
"""Its presence makes a directory a folder of peft"""

_TENSORS = "adapter_model.safetensors"

_BASE = "perdure.json"
"""Written beside peft's files, which know no hash of the base model"""

_PREFIX = "base_model.model."

_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None), "bias": ("none", None), "modules_to_save": (None, []),
    "fan_in_fan_out": (False, None), "lora_bias": (False, None), "layer_replication": (None, []),
    "target_parameters": (None, []), "trainable_token_indices": (None, []),
}  # fmt: skip
"""Options of peft, and the values under which a folder holds plain low-rank updates"""


def is_peft(path: Path) -> bool:
    """Return whether a path is a directory in the layout of peft."""
    return (path / CONFIG).is_file()


def write_peft(predictor: Predictor, path: Path) -> None:
    """Write the low-rank updates of a predictor as a folder of peft, whole or not at all.

    The strength alpha becomes a part of `lora_alpha`, because peft has no other dial. Where only
    one of the two matrices of nn.MultiheadAttention has an update, the other gets one of zeros.

    Raises:
        DependencyError: If the library is not installed.
        SurgeryError: If anything but one set of low-rank updates was added.
        WeightsError: If there is a head, or the base model has no name.
    """
    if len(predictor.surgeries) != 1 or not isinstance(predictor.surgeries[0], LowRank):
        names = ", ".join(surgery.name for surgery in predictor.surgeries) or "nothing"
        raise SurgeryError(
            f"a folder of peft holds one set of low-rank updates, but to this model was added: "
            f"{names}. Runs of the method lora have one; export others with --to open_clip or "
            "adapters."
        )
    if predictor.head is not None:
        raise WeightsError("a folder of peft has no place for a linear head; use --to open_clip.")
    surgery = predictor.surgeries[0]
    clip = predictor.clip
    version, times = measure_peft()
    tensors: dict[str, Tensor] = {}
    targets = set()
    for layer in surgery.layers(clip):
        factors = clip.get_submodule(layer).get_submodule(CHILD)
        wrapped = _attention_around(clip, layer)
        targets.add(wrapped or layer)
        up = factors.up if wrapped is None else factors.up / times
        tensors |= _pair(layer, wrapped, factors.down, up)
    for wrapped in targets:
        module = clip.get_submodule(wrapped)
        if isinstance(module, nn.MultiheadAttention):
            for layer in (wrapped, f"{wrapped}.out_proj"):
                rows, columns = own_weight(clip.get_submodule(layer)).shape
                zeros = torch.zeros(surgery.rank, columns), torch.zeros(rows, surgery.rank)
                own = None if layer == wrapped else wrapped
                tensors = _pair(layer, own, *zeros) | tensors
    base = base_record(predictor)
    strength = surgery.rank * surgery.scale * surgery.alpha
    config = {
        "peft_type": "LORA",
        "peft_version": version,
        "task_type": None,
        "base_model_name_or_path": "/".join(filter(None, (base["name"], base["weights"]))),
        "inference_mode": True,
        "r": surgery.rank,
        "lora_alpha": int(strength) if strength == int(strength) else strength,
        "lora_dropout": 0.0,
        "bias": "none",
        # A text, and not a list: names in a list would also fit layers whose names end in them.
        "target_modules": "|".join(re.escape(name) for name in sorted(targets)),
    }
    with whole_directory(path) as fresh:
        save_file(tensors, fresh / _TENSORS, {"format": "pt"})
        write_json(fresh / CONFIG, config)
        write_json(fresh / _BASE, {"base": base, "out_proj_times": times})


def read_peft(path: Path, base: Predictor | None = None) -> Predictor:
    """Put the updates in a folder of peft on a model, in evaluation mode.

    Needs the library only where it must be asked how it adds the update of an attention's output
    matrix, which a folder that perdure has written says itself.

    Layers of one tower and kind that the folder leaves out get an update of zeros. Ranks that
    differ are filled up with zeros.

    Args:
        path: The folder.
        base: The model, kept and changed; None loads the one that the folder names.

    Raises:
        DependencyError: If the library is needed and not installed.
        WeightsError: If a file is damaged, the folder holds something else than plain low-rank
            updates, or they do not fit the model.
    """
    config = read_json(path / CONFIG)
    _require_plain(config, path)
    tensors = _read_tensors(path)
    if base is None:
        base = open_base(_base_of(config, path), path)
    elif (path / _BASE).is_file():
        require_base(base, _base_of(config, path), path)
    pairs = {
        layer: _pair_of(layer, name, tensors, config, path)
        for layer, name in _stems(tensors, path).items()
    }
    for layer, (down, up) in pairs.items():
        if _attention_around(base.clip, layer) and up.any():
            pairs[layer] = (down, _times(path) * up)
    surgery = _surgery(base.clip, pairs, path)
    with torch.random.fork_rng(devices=[]):  # the random start is overwritten
        base.attach(surgery)
    values: dict[str, Tensor] = {}
    for layer in surgery.layers(base.clip):
        rows, columns = own_weight(base.clip.get_submodule(layer)).shape
        empty = torch.zeros(1, columns), torch.zeros(rows, 1)
        down, up = pairs.get(layer, empty)
        stem = f"clip.{layer}.{CHILD}"
        values |= {f"{stem}.down": down, f"{stem}.up": up}
    fill(base.added(), values, path)
    return base.eval()


def _times(path: Path) -> float:
    """Return how often an update of attention's output matrix counts in a folder."""
    if (path / _BASE).is_file():
        times = read_json(path / _BASE).get("out_proj_times")
        if isinstance(times, (int, float)) and times > 0:
            return float(times)
        raise WeightsError(f"{path / _BASE} has no out_proj_times; remove it, or restore it.")
    return measure_peft()[1]


def _attention_around(clip: nn.Module, layer: str) -> str | None:
    """Return the nn.MultiheadAttention whose output layer this is; None for other layers."""
    path, _, _ = layer.rpartition(".")
    around = dict(clip.named_modules()).get(path)
    return path if isinstance(around, nn.MultiheadAttention) else None


def _pair(layer: str, wrapped: str | None, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """Return a pair of factors under peft's names."""
    name = layer if wrapped is None else f"{wrapped}.base_layer.{layer.rpartition('.')[2]}"
    return {
        f"{_PREFIX}{name}.lora_A.weight": down.detach().contiguous(),
        f"{_PREFIX}{name}.lora_B.weight": up.detach().contiguous(),
    }


def _require_plain(config: Mapping[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise WeightsError(
            f"{path} holds {config.get('peft_type')!r} of peft; perdure reads LORA only."
        )
    for key, allowed in _PLAIN.items():
        if config.get(key) not in allowed:
            raise WeightsError(
                f"{path / CONFIG} has {key} = {config[key]!r}, which is more than plain low-rank "
                "updates; merge it with peft (merge_and_unload) and load the merged weights."
            )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    file = path / _TENSORS
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"cannot read {file} ({error}). Only safetensors are read, because other files of "
            "peft may run code; save the adapter again with a newer peft."
        ) from error


def _base_of(config: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return what the folder says about its base model."""
    if (path / _BASE).is_file():
        base = read_json(path / _BASE).get("base")
        keys = ("name", "weights", "sha256")
        if isinstance(base, dict) and all(isinstance(base.get(key), str) for key in keys):
            return {key: base[key] for key in keys}
        raise WeightsError(f"{path / _BASE} does not name a base model; remove it, or restore it.")
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise WeightsError(
            f"{path / CONFIG} names no base model; write the name of an open_clip model, such as "
            "ViT-B-16/openai, as base_model_name_or_path."
        )
    return {"name": name, "weights": ""}


def _stems(tensors: Mapping[str, Tensor], path: Path) -> dict[str, str]:
    """Return the layers that have a pair of factors, with peft's names of them."""
    stems: dict[str, str] = {}
    for key in tensors:
        stem, _, leaf = key.removesuffix(".weight").rpartition(".")
        if leaf not in ("lora_A", "lora_B") or not key.startswith(_PREFIX):
            raise WeightsError(f"{path} holds {key!r}, which is no factor of a low-rank update.")
        name = stem.removeprefix(_PREFIX)
        stems[name.replace(".base_layer.", ".")] = name
    return stems


def _pair_of(
    layer: str, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path
) -> tuple[Tensor, Tensor]:
    """Return the factors of a layer with the scale inside the second, down and up."""
    keys = [f"{_PREFIX}{name}.{part}.weight" for part in ("lora_A", "lora_B")]
    down, up = (tensors.get(key) for key in keys)
    if down is None or up is None or down.dim() != 2 or up.dim() != 2 or len(down) != up.shape[1]:
        raise WeightsError(f"{path} holds no two fitting factors for {layer}; it is damaged.")
    named = name.partition(".base_layer.")[0]  # an output matrix goes with its attention
    strength = _by_pattern(config.get("alpha_pattern"), named, config.get("lora_alpha", 8))
    rank = len(down)
    scale = float(strength) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return down, scale * up


def _by_pattern(patterns: Any, layer: str, default: Any) -> Any:
    """Return the value of the first pattern that fits the end of a layer's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return default


def _surgery(clip: nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]], path: Path) -> LowRank:
    """Return the smallest surgery that has a place for every layer."""
    rank = max((len(down) for down, _ in pairs.values()), default=1)
    towers: list[Tower] = []
    kinds: dict[str, Target] = {}
    left = set(pairs)
    for tower in ("image", "text"):
        try:
            found = LowRank(towers=(tower,)).layers(clip)
        except SurgeryError:
            continue
        if left & found.keys():
            towers.append(tower)
            kinds |= {layer: found[layer] for layer in left & found.keys()}
            left -= found.keys()
    if left or not pairs:
        raise WeightsError(
            f"{path} changes {', '.join(sorted(left)[:3]) or 'nothing'}"
            f"{f' and {len(left) - 3} more' if len(left) > 3 else ''}, which are no linear maps of "
            "the model's blocks; merge it with peft (merge_and_unload) and load the merged weights."
        )
    targets = tuple(target for target in TARGETS if target in kinds.values())
    return LowRank(rank=rank, targets=targets, towers=tuple(towers))
