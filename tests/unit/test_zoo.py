"""Where models come from: names, files, activations and refusals, all without network."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from perdure import zoo
from perdure.errors import WeightsError
from perdure.predictor import Predictor

ARCH = "perdure-test"
CONFIG: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32},
    "text_cfg": {"layers": 1, "width": 8, "heads": 2, "context_length": 12, "vocab_size": 49408},
}


@pytest.fixture
def arch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make open_clip know a tiny architecture, plain and with QuickGELU, and a tag for each."""
    from open_clip import factory, pretrained

    models = {ARCH: CONFIG, f"{ARCH}-quickgelu": CONFIG | {"quick_gelu": True}}
    for name, config in models.items():
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)
    weights = tmp_path / "tag.safetensors"
    save_file(state(), weights)
    pixels = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}
    tags = {
        "plain": {"file": str(weights), **pixels},
        "quick": {"file": str(weights), "quick_gelu": True, **pixels},
        "broken": {"file": str(tmp_path / "absent.safetensors"), **pixels},
    }
    for name in models:
        monkeypatch.setitem(pretrained._PRETRAINED, name, tags)
    return ARCH


def state(seed: int = 7) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            name: value.clone() for name, value in open_clip.CLIP(**CONFIG).state_dict().items()
        }


def activation(predictor: Predictor) -> str:
    return type(predictor.clip.visual.transformer.resblocks[0].mlp.gelu).__name__


def test_random_clip_depends_on_its_seed_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = zoo.random_clip(1), zoo.random_clip(1), zoo.random_clip(2)
    assert torch.equal(before, torch.get_rng_state())
    first = dict(one.state_dict())
    assert all(torch.equal(first[name], value) for name, value in same.state_dict().items())
    assert not torch.equal(first["clip.visual.proj"], other.clip.visual.proj)
    assert one.preprocess.size == 40
    assert not one.training


def test_listing_models_and_methods_needs_no_torch() -> None:
    code = (
        "import sys, perdure.zoo, perdure.method; "
        "perdure.zoo.MODELS, perdure.method.METHODS; "
        "print(sorted({'torch', 'open_clip'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_tag_brings_weights_and_pixels(arch: str) -> None:
    for predictor in (zoo.load(arch, "plain"), zoo.load(f"{arch}/plain")):
        assert torch.equal(predictor.clip.visual.proj, state()["visual.proj"])
        assert predictor.preprocess.size == 32
        assert predictor.preprocess.mean == (0.1, 0.2, 0.3)
        assert predictor.preprocess.interpolation == "bilinear"
        assert predictor.source.name == arch
        assert predictor.source.weights == "plain"
        assert predictor.tokenizer.vocabulary == "clip"
        assert predictor.tokenizer(["a taco"]).shape == (1, 12)


def test_weights_trained_with_quick_gelu_get_it(arch: str, tmp_path: Path) -> None:
    predictor = zoo.load(arch, "quick")
    assert activation(predictor) == "QuickGELU"
    predictor.save(tmp_path / "p")
    assert activation(Predictor.load(tmp_path / "p")) == "QuickGELU"
    assert activation(zoo.load(f"{arch}-quickgelu", "quick")) == "QuickGELU"
    assert activation(zoo.load(arch, "plain")) == "GELU"


def test_weights_trained_with_gelu_are_not_run_with_quick_gelu(arch: str) -> None:
    with pytest.raises(WeightsError, match=f"use {arch}/plain"):
        zoo.load(f"{arch}-quickgelu", "plain")


def test_openai_tags_are_known_to_need_quick_gelu() -> None:
    assert zoo._quick_gelu("ViT-B-16", "openai")
    assert not zoo._quick_gelu("ViT-B-16-quickgelu", "openai")
    assert not zoo._quick_gelu("ViT-B-16", "laion2b_s34b_b88k")


def test_a_missing_download_is_explained(arch: str) -> None:
    with pytest.raises(WeightsError, match="check the network"):
        zoo.load(arch, "broken")
    with pytest.raises(WeightsError, match="check the network"):
        zoo.load("hf-hub:perdure-test/absent")


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "module", "safetensors", "half"])
def test_files_of_weights(arch: str, wrapped: str, tmp_path: Path) -> None:
    weights = state()
    path = tmp_path / "w.pt"
    if wrapped == "safetensors":
        path = tmp_path / "w.safetensors"
        save_file(weights, path)
    elif wrapped == "state_dict":
        torch.save({"state_dict": weights, "epoch": 3}, path)
    elif wrapped == "module":
        torch.save({f"module.{name}": value for name, value in weights.items()}, path)
    elif wrapped == "half":
        torch.save({name: value.half() for name, value in weights.items()}, path)
    else:
        extra = {
            "input_resolution": torch.tensor(32),
            "logit_scale": weights["logit_scale"].view(1),
        }
        torch.save(weights | extra, path)
    predictor = zoo.load(arch, str(path))
    tolerance = 1e-3 if wrapped == "half" else 0.0
    torch.testing.assert_close(
        predictor.clip.visual.proj.data, weights["visual.proj"], rtol=tolerance, atol=tolerance
    )
    assert predictor.clip.visual.proj.dtype == torch.float32
    assert predictor.preprocess.mean == (0.1, 0.2, 0.3)


class _Bomb:
    def __reduce__(self) -> Any:
        return print, ("foreign code ran",)


def test_files_that_run_code_are_refused(
    arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb, module, script = (tmp_path / name for name in ("bomb.pt", "module.pt", "script.pt"))
    bomb.write_bytes(pickle.dumps(_Bomb()))
    torch.save(nn.Linear(1, 1), module)
    torch.save({"state_dict": state(), "bomb": _Bomb()}, tmp_path / "wrapped.pt")
    for path in (bomb, module, tmp_path / "wrapped.pt"):
        with pytest.raises(WeightsError, match="would run their code"):
            zoo.load(arch, str(path))
    script.write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(WeightsError, match="cannot read weights"):
        zoo.load(arch, str(script))
    assert "foreign" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {1: torch.ones(1)}, torch.ones(2)])
def test_files_without_a_state_dict_are_refused(arch: str, content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="no plain state dict"):
        zoo.load(arch, str(tmp_path / "w.pt"))


def test_weights_that_do_not_fit_are_named(arch: str, tmp_path: Path) -> None:
    weights = state()
    weights["visual.proj"] = torch.zeros(16, 9)
    weights["foreign"] = weights.pop("ln_final.bias")
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        zoo.load(arch, str(tmp_path / "w.safetensors"))
    for part in ("missing ln_final.bias", "unexpected foreign", "visual.proj is (16, 9)"):
        assert part in str(caught.value)


def test_random_weights_may_be_asked_for(arch: str) -> None:
    predictor = zoo.load(arch, "random")
    assert predictor.source.weights == "random"


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("perdure-tinny", None, "did you mean 'perdure-tiny'"),
        ("ViT-B-61", "openai", "did you mean 'ViT-B-16'"),
        ("ViT-B-16", None, "architecture without weights.*openai"),
        ("ViT-B-16", "openay", "did you mean 'openai'"),
        ("ViT-B/16", None, "ViT-B-16 is an architecture"),
        ("ViT-B-16/openay", None, "no weights 'openay'"),
        ("hf-hub:someone/something", "openai", "brings its own weights"),
        ("local-dir:/nowhere", None, "holds no model"),
    ],
)
def test_names_that_lead_nowhere(name: str, weights: str | None, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        zoo.load(name, weights)


def test_directories_of_perdure_and_of_open_clip(tmp_path: Path) -> None:
    predictor = zoo.random_clip(4)
    predictor.save(tmp_path / "predictor")
    predictor.export_open_clip(tmp_path / "model")
    for name in (
        str(tmp_path / "predictor"),
        str(tmp_path / "model"),
        f"local-dir:{tmp_path}/model",
    ):
        loaded = zoo.load(name)
        assert torch.equal(loaded.clip.visual.proj, predictor.clip.visual.proj)
        assert loaded.tokenizer.vocabulary == "emojishift"
        assert loaded.preprocess == predictor.preprocess
    with pytest.raises(WeightsError, match="brings its own weights"):
        zoo.load(str(tmp_path / "predictor"), "other")
    (tmp_path / "model" / "open_clip_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds no model"):
        zoo.load(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multimodal_cfg": {}}, "CoCa"),
        ({"vision_cfg": None}, "cannot build a CLIP"),
        ({"embed_dims": 3}, "cannot build a CLIP"),
        ({"text_cfg": {"layers": 1, "width": 8, "heads": 2, "vocab_size": 100}}, "1715 tokens"),
    ],
)
def test_configurations_that_fit_no_clip(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    zoo.random_clip().export_open_clip(tmp_path)
    record = json.loads((tmp_path / "open_clip_config.json").read_text())
    record["model_cfg"] |= change
    (tmp_path / "open_clip_config.json").write_text(json.dumps(record))
    if "text_cfg" in change:
        clip = open_clip.CLIP(**record["model_cfg"])
        save_file(dict(clip.state_dict()), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(WeightsError, match=message):
        zoo.load(str(tmp_path))


def test_only_square_images(tmp_path: Path) -> None:
    zoo.random_clip().export_open_clip(tmp_path)
    record = json.loads((tmp_path / "open_clip_config.json").read_text())
    record["preprocess_cfg"]["size"] = [40, 48]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(record))
    with pytest.raises(WeightsError, match="only square"):
        zoo.load(str(tmp_path))


def test_the_bundled_model_opens_here_and_in_plain_open_clip(tmp_path: Path) -> None:
    predictor = zoo.load("perdure-tiny")
    count = sum(parameter.numel() for parameter in predictor.parameters())
    assert zoo.MODELS["perdure-tiny"].startswith(f"{count:,} parameters")
    assert predictor.tokenizer.vocabulary == "emojishift"
    assert predictor.preprocess.size == 40
    assert all(parameter.dtype == torch.float32 for parameter in predictor.parameters())
    predictor.export_open_clip(tmp_path / "model")
    images, tokens = torch.randn(2, 3, 40, 40), predictor.tokenizer(["a taco", "a tiger"])
    bundled = Path(zoo.__file__).parent / "assets" / "perdure-tiny"
    for path in (tmp_path / "model", bundled):
        plain = open_clip.create_model(f"local-dir:{path}").eval()
        with torch.no_grad():
            assert torch.equal(plain.encode_image(images), predictor.clip.encode_image(images))
            assert torch.equal(plain.encode_text(tokens), predictor.clip.encode_text(tokens))
