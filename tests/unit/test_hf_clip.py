"""Folders of Hugging Face's CLIP: the same features as transformers, without needing it to read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from perdure import zoo
from perdure.errors import WeightsError

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2}


def tiny(**text: Any) -> Any:
    """Return a random CLIPModel of transformers."""
    config = transformers.CLIPConfig(
        projection_dim=24,
        text_config={**SMALL, "num_attention_heads": 2, "max_position_embeddings": 16, **text},
        vision_config={**SMALL, "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
                       **{key: text[key] for key in ("hidden_act",) if key in text}},
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():  # so that no tensor can hide behind a zero or a one
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def saved(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    return path


def features(model: Any, images: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        image = model.visual_projection(model.vision_model(images).pooler_output)
        text = model.text_projection(model.text_model(tokens).pooler_output)
    return [torch.nn.functional.normalize(one, dim=-1) for one in (image, text)]


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("end", [2, 49407])
def test_features_are_those_of_transformers(tmp_path: Path, activation: str, end: int) -> None:
    model = tiny(hidden_act=activation, eos_token_id=end)
    found = zoo.load(str(saved(model, tmp_path / "clip")))
    images = torch.randn(3, 3, 32, 32)
    tokens = found.tokenizer(["a photo of a cat", "dog", ""])
    image, text = features(model, images, tokens)
    with torch.no_grad():
        torch.testing.assert_close(found.encode_image(images), image, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.encode_text(tokens), text, rtol=1e-5, atol=1e-6)
        assert float(found.scale) == pytest.approx(float(model.logit_scale.exp()))


def test_an_end_token_of_ones_own_is_found(tmp_path: Path) -> None:
    model = tiny(eos_token_id=7)
    found = zoo.load(str(saved(model, tmp_path / "clip")))
    tokens = torch.tensor([[5, 900, 7, 0, 7, 0] + [0] * 10, [3, 7] + [1] * 14])
    with torch.no_grad():
        text = features(model, torch.zeros(1, 3, 32, 32), tokens)[1]
        torch.testing.assert_close(found.encode_text(tokens), text, rtol=1e-5, atol=1e-6)


def test_pixels_are_those_of_the_folder(tmp_path: Path) -> None:
    path = saved(tiny(), tmp_path / "clip")
    assert zoo.load(str(path)).preprocess.size == 32
    record = {
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.2, 0.1],
        "resample": 2,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(record))
    pixels = zoo.load(str(path)).preprocess
    assert (pixels.mean, pixels.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert pixels.interpolation == "bilinear"


def test_parts_and_pickles_are_read_too(tmp_path: Path) -> None:
    path = saved(tiny(), tmp_path / "clip")
    whole = zoo.load(str(path))
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(weights, path / "pytorch_model.bin")
    pickled = zoo.load(str(path))
    (path / "pytorch_model.bin").unlink()
    names = {name: f"part-{position % 2}.safetensors" for position, name in enumerate(weights)}
    for part in set(names.values()):
        save_file({name: weights[name] for name in names if names[name] == part}, path / part)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    for other in (pickled, zoo.load(str(path))):
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


def test_reading_does_not_import_transformers(tmp_path: Path) -> None:
    path = saved(tiny(), tmp_path / "clip")
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        f"from perdure import zoo; zoo.load({str(path)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_no_clip_is_explained(tmp_path: Path) -> None:
    path = saved(tiny(), tmp_path / "clip")
    config = json.loads((path / "config.json").read_text())

    def with_config(**changes: Any) -> None:
        (path / "config.json").write_text(json.dumps(config | changes))

    with_config(model_type="siglip")
    with pytest.raises(WeightsError, match="type 'siglip'"):
        zoo.load(str(path))
    with_config(text_config=config["text_config"] | {"hidden_act": "relu"})
    with pytest.raises(WeightsError, match=r"text_config\.hidden_act 'relu'"):
        zoo.load(str(path))
    with_config(vision_config=config["vision_config"] | {"num_attention_heads": 0})
    with pytest.raises(WeightsError, match="sizes of a CLIP"):
        zoo.load(str(path))
    with_config(projection_dim=25)
    with pytest.raises(WeightsError, match="do not fit"):
        zoo.load(str(path))
    with_config()
    weights = load_file(path / "model.safetensors")
    save_file(weights | {"classifier.weight": torch.zeros(2, 2)}, path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"hold classifier\.weight"):
        zoo.load(str(path))
    kept = {name: value for name, value in weights.items() if "layers.1.self_attn.k" not in name}
    save_file(kept, path / "model.safetensors")
    with pytest.raises(WeightsError, match="lack a part of"):
        zoo.load(str(path))
