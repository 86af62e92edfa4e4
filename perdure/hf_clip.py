"""CLIP in the layout of Hugging Face, as open_clip's CLIP: tensor by tensor, without transformers.

Both compute the same function; they differ in names, in attention weights that one keeps apart and
the other in one matrix, and in projections that one stores transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoints
from .errors import WeightsError
from .files import read_json

CONFIG = "config.json"

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_PIXELS = "preprocessor_config.json"

_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
"""Name to whether it is the approximation that OpenAI's weights were trained with"""

_RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers"""

_EPSILON = 1e-5
"""Of layer norms, in open_clip"""

_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}

_NAMES = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # so spelt by Hugging Face
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}

_TRANSPOSED = {
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
}

_TOWERS = {"text_model.encoder.layers.": "transformer.resblocks.",
           "vision_model.encoder.layers.": "visual.transformer.resblocks."}  # fmt: skip


def is_hf_clip(path: Path) -> bool:
    """Return whether a path is a directory with a model of transformers, of whatever kind."""
    if not (path / CONFIG).is_file():
        return False
    return any((path / name).is_file() for name in (*_WEIGHTS, *_INDEX))


def model_config(path: Path) -> dict[str, Any]:
    """Return open_clip's `model_cfg` for the architecture that a `config.json` describes.

    Args:
        path: The directory.

    Raises:
        WeightsError: If it describes no CLIP, or one that open_clip's CLIP cannot compute.
    """
    file = path / CONFIG
    record = read_json(file)
    kind = record.get("model_type") if isinstance(record, dict) else None
    if kind != "clip":
        raise WeightsError(
            f"{file} describes a model of type {kind!r}; of Hugging Face's folders perdure reads "
            "those of type 'clip' (CLIPModel). Others, such as SigLIP, have weights for open_clip "
            "on the hub: perdure takes those as hf-hub:ORG/REPO or ARCH/TAG."
        )
    text = _defaults(record, "text_config", _TEXT)
    vision = _defaults(record, "vision_config", _VISION)
    for part, tower in (("text_config", text), ("vision_config", vision)):
        for key, allowed in (
            ("hidden_act", list(_ACTIVATIONS)),
            ("layer_norm_eps", [_EPSILON]),
            ("num_channels", [3]),
        ):
            if tower.get(key, allowed[0]) not in allowed:
                raise WeightsError(
                    f"{file} has {part}.{key} {tower[key]!r}; allowed: "
                    f"{', '.join(map(str, allowed))}, as in every CLIP that was published."
                )
    if text["hidden_act"] != vision["hidden_act"]:
        raise WeightsError(
            f"{file} has activations {text['hidden_act']} and {vision['hidden_act']}; open_clip "
            "uses one for both towers."
        )
    try:
        return _translated(record, text, vision)
    except (TypeError, ValueError, ZeroDivisionError, KeyError) as error:
        raise WeightsError(
            f"{file} does not describe the sizes of a CLIP ({type(error).__name__}: {error}); "
            "restore it or save the model again."
        ) from None


def _translated(
    record: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any]
) -> dict[str, Any]:
    pooled = {}
    if text["eos_token_id"] not in (2, 49407):  # 2 stands for the largest id, by their convention
        pooled = {"pool_type": "eos", "eos_id": text["eos_token_id"]}
    return {
        "embed_dim": record.get("projection_dim", 512),
        "quick_gelu": _ACTIVATIONS[vision["hidden_act"]],
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "layers": text["num_hidden_layers"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
            **pooled,
        },
    }


_TEXT: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "layer_norm_eps": _EPSILON, "eos_token_id": 49407,
}  # fmt: skip
"""What a configuration leaves out where it is so, as published for ViT-B/32"""

_VISION: dict[str, Any] = {
    "image_size": 224, "patch_size": 32, "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu",
    "layer_norm_eps": _EPSILON,
}  # fmt: skip


def pixel_config(path: Path) -> dict[str, Any]:
    """Return open_clip's `preprocess_cfg`, as far as a `preprocessor_config.json` says it."""
    file = path / _PIXELS
    record = read_json(file) if file.is_file() else {}
    size = record.get("crop_size", record.get("size"))
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", size.get("height"))
    found = {
        "size": size,
        "mean": record.get("image_mean"),
        "std": record.get("image_std"),
        "interpolation": _RESAMPLING.get(record.get("resample", 3)),
    }
    return {key: value for key, value in found.items() if value is not None}


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the weights in a directory under open_clip's names.

    Raises:
        WeightsError: If a file is missing or damaged, or holds a tensor that is not CLIP's.
    """
    state: dict[str, Tensor] = {}
    for file in _files(path):
        state |= checkpoints.state_dict(checkpoints.read(file), file)
    return converted(state, str(path))


def converted(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Rename the tensors of a `CLIPModel`, and join those of attention.

    Args:
        state: Under the names of transformers.
        where: Of the weights, for messages.

    Raises:
        WeightsError: If one has no place in CLIP, or a part of an attention is missing.
    """
    found: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        tower = next((one for one in _TOWERS if name.startswith(one)), None)
        if name.endswith(".position_ids"):  # counted, not learned; older files hold it
            continue
        if name in _NAMES:
            found[_NAMES[name]] = tensor
        elif name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif tower is None:
            raise _unexpected(name, where)
        else:
            number, _, rest = name.removeprefix(tower).partition(".")
            part, _, kind = rest.rpartition(".")
            block = f"{_TOWERS[tower]}{number}."
            if part in _LAYER:
                found[f"{block}{_LAYER[part]}.{kind}"] = tensor
            elif part in _ATTENTION:
                joined.setdefault(f"{block}attn.in_proj_{kind}", {})[part] = tensor
            else:
                raise _unexpected(name, where)
    for name, parts in joined.items():
        if parts.keys() != set(_ATTENTION):
            raise WeightsError(
                f"the weights of {where} lack a part of {name}: there are {', '.join(parts)} of "
                f"{', '.join(_ATTENTION)}. The file is damaged or incomplete."
            )
        found[name] = torch.cat([parts[part] for part in _ATTENTION])
    return found


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
"""In the order of open_clip's joined matrix"""


def _defaults(record: Mapping[str, Any], part: str, defaults: dict[str, Any]) -> dict[str, Any]:
    given = record.get(part) or record.get(f"{part}_dict") or {}
    return {**defaults, **{key: value for key, value in given.items() if value is not None}}


def _files(path: Path) -> list[Path]:
    """Return the files of weights: one, or the parts that an index names."""
    for name in _WEIGHTS:
        if (path / name).is_file():
            return [path / name]
    index = next(path / name for name in _INDEX if (path / name).is_file())
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(one, str) for one in parts.values()):
        raise WeightsError(f"{index} has no weight_map from tensors to files; it is damaged.")
    names = sorted(set(parts.values()))
    if any(Path(name).name != name for name in names):
        raise WeightsError(f"{index} names files outside its directory; it is damaged.")
    return [path / name for name in names]


def _unexpected(name: str, where: str) -> WeightsError:
    return WeightsError(
        f"the weights of {where} hold {name}, which is no tensor of Hugging Face's CLIPModel. "
        "Save the CLIPModel itself with save_pretrained, without heads or adapters around it "
        "(adapters of peft: merge_and_unload first)."
    )
