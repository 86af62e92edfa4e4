"""Where predictors come from: bundled, open_clip, a directory or a file of weights.

Torch and open_clip are imported when a model is built, so that the list of models costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import WeightsError, nearest
from .extras import explain, require
from .files import read_json

if TYPE_CHECKING:
    from torch import nn

    from .predictor import Predictor

MODELS: dict[str, str] = {
    "perdure-tiny": "806,913 parameters, 40 px; pre-trained on EmojiShift, comes with perdure",
}
"""Bundled models; every name of open_clip works too."""

_ASSETS = Path(__file__).parent / "assets"

_CONFIG = "open_clip_config.json"

_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
"""Names under which open_clip looks for weights in a directory, in its order."""

_PIXELS = ("size", "mean", "std", "interpolation", "resize_mode")

# Of OpenAI's CLIP and everything that kept its preprocessing.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def load(name: str, weights: str | None = None) -> Predictor:
    """Return a pre-trained predictor in evaluation mode, on the CPU.

    The network is used only where the name needs it: a tag of open_clip or the Hugging Face hub,
    unless the file is in their cache.

    Args:
        name: "perdure-tiny", an architecture of open_clip ("ViT-B-16"), "ARCH/TAG",
            "local-dir:PATH", "hf-hub:ORG/REPO", or a directory that perdure, open_clip or, for a
            CLIPModel, transformers wrote.
        weights: For an architecture, a tag of open_clip, the path of a state dict, or "random".
            A file does not say its activation: weights that descend from OpenAI's need an
            architecture whose name ends in "-quickgelu". For "perdure-tiny" and directories, None
            or the path of other weights of the same architecture.

    Raises:
        WeightsError: If there is no such model, weights do not fit it, or a file is unreadable.
        DependencyError: If it needs a package that is missing.
    """
    if name in MODELS:
        return _open_directory(_ASSETS / name, name, weights)
    if name.startswith("local-dir:"):
        return _open_directory(Path(name.removeprefix("local-dir:")), name, weights)
    path = Path(name)
    if (path / "predictor.json").is_file():
        from .predictor import Predictor

        _refuse_second(name, weights)
        return Predictor.load(path).fold()
    if path.is_dir():
        from . import hf_clip

        if (path / _CONFIG).is_file() or not hf_clip.is_hf_clip(path):
            return _open_directory(path, name, weights)
        _refuse_second(name, weights)
        return _open_hf(path, name)
    if name.startswith("hf-hub:"):
        _refuse_second(name, weights)
        require("huggingface_hub", name)
        return _create(name, None, quick_gelu=False)
    return _open_architecture(name, weights)


def is_model(path: Path) -> bool:
    """Return whether a directory holds a model that `load` reads: perdure's, open_clip's, HF's."""
    from . import hf_clip

    own = any((path / file).is_file() for file in (_CONFIG, "predictor.json"))
    return own or hf_clip.is_hf_clip(path)


def random_clip(seed: int = 0, **overrides: Any) -> Predictor:
    """Return a tiny CLIP with random weights and the vocabulary of perdure-tiny, for tests.

    It takes 40 px images, embeds in 32 dimensions and builds in about 10 ms.

    Args:
        seed: Of its weights; the global random state is left alone.
        **overrides: Entries of open_clip's model_cfg; `vision_cfg` and `text_cfg` update the
            tiny ones key by key.
    """
    import torch

    from .building import build
    from .inputs import OpenClipTokenizer

    tokenizer = OpenClipTokenizer("emojishift", context_length=20)
    config: dict[str, Any] = {
        "embed_dim": 32,
        "vision_cfg": {
            "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 40,
        },
        "text_cfg": {
            "layers": 2, "width": 32, "heads": 2, "context_length": 20,
            "vocab_size": tokenizer.size,
        },
    }  # fmt: skip
    for key, value in overrides.items():
        both = isinstance(value, Mapping) and isinstance(config.get(key), dict)
        config[key] = {**config[key], **value} if both else value
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = build(config)
    pixels = {"size": config["vision_cfg"]["image_size"], "mean": [0.5] * 3, "std": [0.28] * 3}
    return _describe(clip, "random-clip", str(seed), config, pixels, "emojishift")


def _open_architecture(name: str, weights: str | None) -> Predictor:
    """Build an architecture that open_clip knows by name, with weights from a tag or file."""
    import open_clip

    known = set(open_clip.list_models())
    if name.replace("/", "-") not in known and "/" in name and weights is None:
        name, weights = name.rsplit("/", 1)
    name = name.replace("/", "-")  # open_clip also writes ViT-B/16
    if name not in known:
        raise WeightsError(
            f"no model {name!r}; {nearest(name, known | set(MODELS))} allowed are "
            f"{', '.join(MODELS)}, the architectures of open_clip.list_models(), ARCH/TAG, "
            "local-dir:PATH, hf-hub:ORG/REPO and directories of perdure.".replace("  ", " ")
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights is None:
        raise WeightsError(
            f"{name} is an architecture without weights; name them as one of its tags "
            f"({', '.join(tags) or 'it has none'}) or as the path of a state dict."
        )
    from .building import build, fill, read_weights, require_text_tower

    if weights in tags:
        require_text_tower(open_clip.get_model_config(name)["text_cfg"])
        return _create(name, weights, quick_gelu=_quick_gelu(name, weights))
    if weights != "random" and not Path(weights).is_file():
        raise WeightsError(
            f"no weights {weights!r} for {name}; {nearest(weights, tags)} allowed are its tags "
            f"({', '.join(tags) or 'it has none'}), the path of a state dict, and 'random'."
        )
    config = open_clip.get_model_config(name)
    clip = build(config)
    if weights != "random":
        fill(clip, read_weights(Path(weights)), weights)
    # The same pixels for all tags of an architecture, and so for weights that descend from them.
    pixels = open_clip.get_pretrained_cfg(name, tags[0]) if tags else {}
    return _describe(clip, name, weights, config, pixels)


def _quick_gelu(name: str, tag: str) -> bool:
    """Return whether the tag's weights need QuickGELU where the architecture says GELU.

    The wrong activation loads without complaint and costs several points of accuracy.
    """
    import open_clip

    wanted = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    has = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    if has and not wanted:
        raise WeightsError(
            f"{name} has the activation QuickGELU, but the weights {tag!r} were trained with GELU; "
            f"use {name.removesuffix('-quickgelu')}/{tag}."
        )
    return wanted and not has


def _create(name: str, tag: str | None, *, quick_gelu: bool) -> Predictor:
    """Let open_clip find, convert and load the weights; it may use the network."""
    import open_clip

    try:
        clip = open_clip.create_model(
            name, tag, force_quick_gelu=quick_gelu, require_pretrained=True, weights_only=True
        )
        config = open_clip.get_model_config(name)
    except Exception as error:  # the hub, requests, json and torch each raise their own
        explain(error, name)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise WeightsError(
            f"cannot get the weights of {name}{f'/{tag}' if tag else ''}: {reason}. They are "
            "downloaded on first use; check the network and the name, or use a file of weights."
        ) from error
    if quick_gelu:
        config["quick_gelu"] = True
    return _describe(clip, name, tag or "", config, open_clip.get_model_preprocess_cfg(clip))


def _open_directory(path: Path, name: str, weights: str | None) -> Predictor:
    """Open a directory in open_clip's layout, without network."""
    from .building import build, fill, read_weights

    files = [path / file for file in _WEIGHTS if (path / file).is_file()]
    if weights is not None:
        files = [Path(weights)]
    if not (path / _CONFIG).is_file() or not files:
        raise WeightsError(
            f"{path} holds no model; expected {_CONFIG} and {_WEIGHTS[0]}, as in the model/ "
            "directory of a run."
        )
    record = read_json(path / _CONFIG)
    if not isinstance(record, dict) or "model_cfg" not in record:
        raise WeightsError(f"{path / _CONFIG} has no model_cfg; expected open_clip's description.")
    clip = build(record["model_cfg"])
    fill(clip, read_weights(files[0]), str(files[0]))
    try:
        return _describe(
            clip, name, weights or "", record["model_cfg"], record.get("preprocess_cfg", {}),
            record.get("perdure", {}).get("vocabulary"), path,
        )  # fmt: skip
    except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        raise WeightsError(
            f"{path / _CONFIG} does not describe a model ({type(error).__name__}: {error}); "
            "restore it or make it again."
        ) from error


def _open_hf(path: Path, name: str) -> Predictor:
    """Open a directory of transformers that holds a CLIP."""
    from . import hf_clip
    from .building import build, fill

    config = hf_clip.model_config(path)
    clip = build(config)
    fill(clip, hf_clip.read_state(path), name)
    return _describe(clip, name, "", config, hf_clip.pixel_config(path))


def _describe(
    clip: nn.Module,
    name: str,
    weights: str,
    model_config: dict[str, Any],
    pixels: Mapping[str, Any],
    vocabulary: str | None = None,
    directory: Path | None = None,
) -> Predictor:
    """Add tokeniser, preprocessing and origin to a model."""
    from .inputs import OpenClipTokenizer, Preprocess, locate_vocabulary
    from .predictor import ModelSource, Predictor

    text = model_config["text_cfg"]
    if vocabulary is None:
        # open_clip picks its own class of tokeniser by these keys, and for SigLIP by the name.
        own = ("hf_tokenizer_name", "hf_model_name", "tokenizer_kwargs")
        special = any(text.get(key) for key in own) or "siglip" in name.lower()
        vocabulary = f"open_clip:{name}" if special else "clip"
    elif directory is not None:
        vocabulary = locate_vocabulary(vocabulary, directory)
    tokenizer = OpenClipTokenizer(vocabulary, int(text.get("context_length", 77)))
    rows = int(text.get("vocab_size", 49408))
    if tokenizer.size is not None and tokenizer.size > rows and "hf_model_name" not in text:
        raise WeightsError(
            f"the vocabulary {vocabulary!r} has {tokenizer.size} tokens, but {name} embeds {rows}; "
            "name the vocabulary the model was trained with."
        )
    kept = {key: pixels[key] for key in _PIXELS if pixels.get(key) is not None}
    kept.setdefault("size", model_config["vision_cfg"].get("image_size", 224))
    size = kept["size"] if isinstance(kept["size"], int) else kept["size"][0]
    if not isinstance(kept["size"], int) and len(set(kept["size"])) > 1:
        raise WeightsError(f"{name} takes images of {kept['size']} pixels; only square ones work.")
    kept["size"] = size
    preprocess = Preprocess(
        size,
        _triple(kept.setdefault("mean", _MEAN)),
        _triple(kept.setdefault("std", _STD)),
        kept.get("interpolation", "bicubic"),
    )
    source = ModelSource(name, weights, {"model_cfg": model_config, "preprocess_cfg": kept})
    return Predictor(clip, tokenizer, preprocess, source).eval()


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _refuse_second(name: str, weights: str | None) -> None:
    if weights is not None:
        raise WeightsError(f"{name} brings its own weights; found {weights!r} too, leave it out.")
