"""Folders of peft: the library computes what perdure does, in both directions."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from perdure import exporting, peft_format, zoo
from perdure.adapters import write_adapters
from perdure.errors import DependencyError, SurgeryError, WeightsError
from perdure.exporting import Difference, export_peft
from perdure.peft_format import CONFIG, read_peft, write_peft
from perdure.peft_library import load_with_peft, measure_peft
from perdure.predictor import Predictor
from perdure.subjects import find
from perdure.surgery.low_rank import LowRank
from perdure.surgery.residual import Residual

pytestmark = pytest.mark.filterwarnings(
    "ignore:All adapters are already merged:UserWarning", "ignore:Already unmerged:UserWarning"
)  # peft says so in every forward pass of attention

SURGERIES = {
    "all": LowRank(rank=3, scale=0.7, alpha=0.5),
    "in": LowRank(rank=2, targets=("in_proj",)),
    "out": LowRank(rank=2, targets=("out_proj", "mlp_out"), towers=("text",), blocks=(1,)),
    "mlp": LowRank(rank=2, targets=("mlp_in", "mlp_out"), towers=("image",)),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of a model that builds in milliseconds."""
    path = tmp_path_factory.mktemp("base") / "model"
    zoo.random_clip(0).export_open_clip(path)
    return f"local-dir:{path}"


def adapted(base: str, surgery: Any) -> Predictor:
    predictor = zoo.load(base)
    predictor.attach(surgery)
    with torch.no_grad():
        for name, value in predictor.added().items():
            if not name.endswith("down"):
                value.normal_(std=0.1)
    return predictor.eval()


def embed(predictor: Predictor, clip: Any = None) -> tuple[Tensor, Tensor]:
    """Return unit embeddings of images and texts, by another model if one is given."""
    images = torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    tokens = predictor.tokenizer(["taco", "a photo of a tiger", "an old map"])
    clip = predictor.clip if clip is None else clip
    with torch.no_grad():
        return clip.encode_image(images, normalize=True), clip.encode_text(tokens, normalize=True)


def difference(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", SURGERIES)
def test_peft_computes_what_perdure_does(base: str, tmp_path: Path, name: str) -> None:
    predictor = adapted(base, SURGERIES[name])
    expected = embed(predictor)
    assert difference(expected, embed(zoo.load(base))) > 1e-3
    write_peft(predictor, tmp_path / "folder")
    theirs = load_with_peft(zoo.load(base).clip, tmp_path / "folder")
    assert difference(embed(predictor, theirs), expected) < 1e-5
    again = read_peft(tmp_path / "folder")
    assert difference(embed(again), expected) < 1e-5
    again.set_alpha(0.0)
    assert difference(embed(again), embed(zoo.load(base))) == 0.0
    assert difference(embed(find(tmp_path / "folder").predictor()), expected) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"r": 3, "lora_alpha": 5, "target_modules": ["attn"]},
        {"r": 4, "target_modules": ["c_fc", "c_proj"], "use_rslora": True},
        {
            "r": 2,
            "target_modules": ["attn", "c_fc"],
            "rank_pattern": {"c_fc": 5},
            "alpha_pattern": {"resblocks.1.attn": 3},
        },
    ],
    ids=("attention", "rslora", "patterns"),
)
def test_what_peft_has_saved_is_read(base: str, tmp_path: Path, options: dict[str, Any]) -> None:
    predictor = zoo.load(base)
    config = peft.LoraConfig(**options, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(zoo.load(base).clip, config).eval()
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_" in name:
                    value.mul_(0.3)
        model.save_pretrained(tmp_path / "folder")
    expected = embed(predictor, model)
    assert difference(expected, embed(predictor)) > 1e-3
    assert difference(embed(read_peft(tmp_path / "folder", predictor)), expected) < 1e-5
    with pytest.raises(WeightsError, match="names no base model"):
        read_peft(tmp_path / "folder")


def test_export_is_checked_with_the_library(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapters(adapted(base, LowRank(rank=2)), tmp_path / "kept")
    assert max(export_peft(tmp_path / "kept", tmp_path / "folder")) < 1e-5
    config = json.loads((tmp_path / "folder" / CONFIG).read_text())
    assert config["base_model_name_or_path"] == base
    assert config["peft_version"] == peft.__version__
    far = Difference(0.0, 0.5, 0.0)
    monkeypatch.setattr(exporting, "compare", lambda source, clip: far)
    with pytest.raises(WeightsError, match="does not reach every layer"):
        export_peft(tmp_path / "kept", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_the_installed_library_is_measured() -> None:
    version, times = measure_peft()
    assert version == peft.__version__
    assert times in (1.0, 2.0)


def test_without_the_library_an_own_folder_is_read_and_nothing_is_written(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = adapted(base, LowRank(rank=2))
    write_peft(predictor, tmp_path / "folder")
    measure_peft.cache_clear()
    monkeypatch.setitem(sys.modules, "peft", None)
    assert difference(embed(read_peft(tmp_path / "folder")), embed(predictor)) < 1e-5
    with pytest.raises(DependencyError, match=r"pip install 'perdure\[peft\]'"):
        write_peft(predictor, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    (tmp_path / "folder" / "perdure.json").unlink()
    with pytest.raises(DependencyError, match="peft"):
        read_peft(tmp_path / "folder")


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | values))


def rename(folder: Path, old: str, new: str) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k.replace(old, new): v for k, v in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip


SPOILT = [
    (lambda folder: change(folder, peft_type="IA3"), "LORA only"),
    (lambda folder: change(folder, use_dora=True), "use_dora = True"),
    (lambda folder: change(folder, modules_to_save=["proj"]), "merge_and_unload"),
    (lambda folder: rename(folder, "lora_B", "lora_C"), "no factor"),
    (lambda folder: rename(folder, "resblocks.1", "resblocks.9"), "no linear maps"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "Only safetensors"),
    (lambda folder: (folder / "perdure.json").write_text("{}"), "does not name a base"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_what_is_not_plain_low_rank_is_refused(
    base: str, tmp_path: Path, spoil: Any, message: str
) -> None:
    write_peft(adapted(base, LowRank(rank=2)), tmp_path / "folder")
    spoil(tmp_path / "folder")
    with pytest.raises(WeightsError, match=message):
        read_peft(tmp_path / "folder")


def test_another_base_and_other_surgeries_are_refused(base: str, tmp_path: Path) -> None:
    write_peft(adapted(base, LowRank(rank=2)), tmp_path / "folder")
    with pytest.raises(WeightsError, match="made for another base model"):
        read_peft(tmp_path / "folder", zoo.random_clip(1))
    with pytest.raises(SurgeryError, match="was added: residual"):
        write_peft(adapted(base, Residual()), tmp_path / "other")
    assert not peft_format.is_peft(tmp_path / "other")
