"""The predictor: exact trimming, class weights, heads, and what saving keeps."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from perdure import towers, zoo
from perdure.errors import RunError, SurgeryError, TaskError, WeightsError
from perdure.inputs import EMOJISHIFT_VOCABULARY, OpenClipTokenizer, Preprocess
from perdure.predictor import ModelSource, Predictor

NAMES = ("taco", "fire engine", "tiger")
TEMPLATES = ("a photo of a {}", "a rendering of a {}", "{}")
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {},
    "resnet": {"vision_cfg": RESNET},
    "custom-text": {"custom_text": True},
    "quick-gelu": {"quick_gelu": True},
    "eos-pool": {"text_cfg": {"pool_type": "eos", "eos_id": 1714}},
    "projection-layer": {"text_cfg": {"proj_bias": True}},
    "no-projection": {"text_cfg": {"proj_type": "none"}},
}


@pytest.fixture
def predictor() -> Predictor:
    return zoo.random_clip()


def images(predictor: Predictor, count: int = 2) -> Tensor:
    size = predictor.preprocess.size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_forward_gives_unit_rows_and_the_scale(predictor: Predictor) -> None:
    pairs = predictor(images(predictor), predictor.tokenizer(["a taco", "a tiger"]))
    assert pairs.image.shape == pairs.text.shape == (2, 32)
    torch.testing.assert_close(pairs.image.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(pairs.text.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(pairs.scale, torch.tensor(1 / 0.07))
    assert pairs.scale.shape == ()


@pytest.mark.parametrize("tower", TOWERS)
def test_trimming_changes_no_embedding_and_no_gradient(tower: str) -> None:
    predictor = zoo.random_clip(**TOWERS[tower])
    tokens = predictor.tokenizer(["a photo of a fire engine", "taco", "two tigers and a whale"])
    short = predictor.trim(tokens)
    assert short.shape[1] < tokens.shape[1]
    whole = nn.functional.normalize(predictor.clip.encode_text(tokens), dim=1)
    trimmed = predictor.encode_text(short)
    assert (whole - trimmed).abs().max() < 1e-6
    torch.testing.assert_close(whole, predictor.encode_text(tokens), rtol=0, atol=0)

    weight = torch.randn(whole.shape)
    parameters = [p for p in predictor.parameters() if p.requires_grad]
    for one, two in zip(
        torch.autograd.grad((whole * weight).sum(), parameters, allow_unused=True),
        torch.autograd.grad((trimmed * weight).sum(), parameters, allow_unused=True),
        strict=True,
    ):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"pool_type": "last"}])
def test_towers_that_see_what_follows_get_all_tokens(text: dict[str, Any]) -> None:
    predictor = zoo.random_clip(text_cfg=text)
    tokens = predictor.tokenizer(["a taco"])
    assert predictor.trim(tokens).shape == tokens.shape
    whole = nn.functional.normalize(predictor.clip.encode_text(tokens), dim=1)
    torch.testing.assert_close(predictor.encode_text(tokens), whole, rtol=0, atol=0)


def test_a_text_of_full_length_is_kept_whole(predictor: Predictor) -> None:
    tokens = predictor.tokenizer(["taco " * 40, "taco"])
    assert predictor.trim(tokens).shape == (2, 20)
    assert predictor.trim(tokens[:0]).shape == (0, 20)


def test_class_features_normalise_prompts_then_their_mean(predictor: Predictor) -> None:
    prompts = predictor.prompts(NAMES, TEMPLATES)
    assert prompts.shape == (3, 3, 20)
    rows = predictor.encode_text(predictor.tokenizer([t.format(NAMES[1]) for t in TEMPLATES]))
    expected = nn.functional.normalize(rows.mean(dim=0), dim=0)
    torch.testing.assert_close(predictor.class_features(prompts)[1], expected)


def test_class_features_pass_gradients_to_the_text_tower(predictor: Predictor) -> None:
    predictor.class_features(predictor.prompts(NAMES, TEMPLATES))[:, 0].sum().backward()
    assert predictor.clip.text_projection.grad.abs().sum() > 0


@pytest.mark.parametrize(("names", "templates"), [((), ("{}",)), (("taco",), ())])
def test_no_prompts_from_nothing(
    predictor: Predictor, names: tuple[str, ...], templates: tuple[str, ...]
) -> None:
    with pytest.raises(TaskError, match="at least one of each"):
        predictor.prompts(names, templates)


def test_templates_must_have_a_place_for_the_name(predictor: Predictor) -> None:
    with pytest.raises(TaskError, match="no place for the class name"):
        predictor.prompts(["taco"], ["a photo"])


class _Table(nn.Module):
    """Stands in for a CLIP whose embeddings are known."""

    def __init__(self, texts: Tensor, log_scale: Tensor) -> None:
        super().__init__()
        self.texts = texts
        self.logit_scale = nn.Parameter(log_scale)

    def encode_image(self, images: Tensor) -> Tensor:
        return images

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.texts[tokens[:, 0]]


class _Numbers:
    vocabulary = None
    context_length = 1

    def __call__(self, texts: Any) -> Tensor:
        return torch.tensor([[int(text)] for text in texts])


def test_class_weights_and_logits_match_the_golden_head(
    golden: Callable[[str], dict[str, np.ndarray]],
) -> None:
    data = {name: torch.from_numpy(value) for name, value in golden("tracer_eval").items()}
    texts = data["head__text_embeddings"]
    clip = _Table(texts.flatten(0, 1), data["head__logit_scale_log"])
    preprocess = Preprocess(1, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    predictor = Predictor(clip, _Numbers(), preprocess, ModelSource("table", "", {}))
    features = predictor.class_features(torch.arange(20).view(5, 4, 1))
    torch.testing.assert_close(features * predictor.scale, data["head__weight"])
    logits = predictor.logits(data["head__image_features"], features)
    torch.testing.assert_close(logits, data["head__logits"])


def test_a_new_head_scores_as_the_text_tower_does(predictor: Predictor) -> None:
    pixels = images(predictor)
    expected = predictor.logits_fn(NAMES, TEMPLATES)(pixels)
    state = torch.get_rng_state()
    predictor.set_head(NAMES, TEMPLATES)
    assert torch.equal(state, torch.get_rng_state())
    assert predictor.head is not None
    assert predictor.classes == NAMES
    assert predictor.templates == TEMPLATES
    torch.testing.assert_close(predictor.head_logits(predictor.encode_image(pixels)), expected)
    torch.testing.assert_close(predictor.logits_fn(NAMES, TEMPLATES)(pixels), expected)
    scored = predictor.logits(pixels, predictor.classifier(NAMES, TEMPLATES))
    torch.testing.assert_close(scored, expected)


def test_a_trained_head_scores_its_classes_and_the_text_tower_all_others(
    predictor: Predictor,
) -> None:
    pixels = images(predictor)
    by_text = predictor.logits_fn(["whale", "taco"], TEMPLATES)(pixels)
    predictor.set_head(NAMES, TEMPLATES)
    assert predictor.head is not None
    with torch.no_grad():
        predictor.head.weight.mul_(2)
        predictor.head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        trained = predictor.head_logits(predictor.encode_image(pixels))
    found = predictor.logits_fn(["tiger", "taco"], TEMPLATES)(pixels)
    torch.testing.assert_close(found, trained[:, [2, 0]])
    torch.testing.assert_close(predictor.logits_fn(["whale", "taco"], TEMPLATES)(pixels), by_text)
    predictor.drop_head()
    assert predictor.head is None
    assert predictor.classes == ()
    with pytest.raises(TaskError, match="no linear head"):
        predictor.head_logits(torch.zeros(1, 32))


def test_two_classes_of_one_name_keep_their_own_rows(predictor: Predictor) -> None:
    predictor.set_head(("missile", "taco", "missile"), TEMPLATES)
    assert predictor.head is not None
    with torch.no_grad():
        predictor.head.bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
    logits = predictor.logits_fn(("missile", "taco", "missile"), TEMPLATES)(images(predictor))
    torch.testing.assert_close(logits[:, 2], logits[:, 0] + 5)


def test_scorers_are_frozen_and_their_logits_float32_under_autocast(predictor: Predictor) -> None:
    score = predictor.logits_fn(NAMES, TEMPLATES)
    with torch.autocast("cpu", torch.bfloat16):
        logits = score(images(predictor))
        features = predictor.encode_image(images(predictor))
    assert logits.dtype == features.dtype == torch.float32
    assert not logits.requires_grad
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))


def test_copies_share_the_tokenizer_and_nothing_else(predictor: Predictor) -> None:
    predictor.set_head(NAMES, TEMPLATES)
    predictor.train()
    other = predictor.copy()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    assert other.tokenizer is predictor.tokenizer
    assert other.classes == NAMES
    assert not other.training
    assert predictor.training


def test_folding_a_plain_model_is_a_copy(predictor: Predictor) -> None:
    folded = predictor.fold()
    assert folded is not predictor
    torch.testing.assert_close(dict(folded.state_dict()), dict(predictor.state_dict()))
    with pytest.raises(SurgeryError, match="no added modules"):
        predictor.fold(0.5)


def test_pixels_are_normalised_per_channel() -> None:
    preprocess = Preprocess(2, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    found = preprocess.normalize(pixels)
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([-1.0, 3.0, 0.2]))


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("head", [False, True])
def test_saved_and_loaded_predictors_score_equally(tower: str, head: bool, tmp_path: Path) -> None:
    predictor = zoo.random_clip(seed=3, **TOWERS[tower])
    if head:
        predictor.set_head(NAMES, TEMPLATES)
        assert predictor.head is not None
        nn.init.normal_(predictor.head.bias)
    predictor.save(tmp_path / "p")
    loaded = Predictor.load(tmp_path / "p")
    pixels = images(predictor)
    expected = predictor.logits_fn(NAMES, TEMPLATES)(pixels)
    assert torch.equal(loaded.logits_fn(NAMES, TEMPLATES)(pixels), expected)
    assert loaded.source == predictor.source
    assert loaded.preprocess == predictor.preprocess
    assert loaded.classes == predictor.classes
    assert not loaded.training
    assert [file.name for file in tmp_path.iterdir()] == ["p"]


def test_a_vocabulary_that_is_a_file_travels_with_the_predictor(tmp_path: Path) -> None:
    merges = gzip.decompress(EMOJISHIFT_VOCABULARY.read_bytes())
    (tmp_path / "own.gz").write_bytes(gzip.compress(merges))
    predictor = zoo.random_clip()
    predictor.tokenizer = OpenClipTokenizer(str(tmp_path / "own.gz"), 20)
    predictor.save(tmp_path / "p")
    predictor.export_open_clip(tmp_path / "m")
    (tmp_path / "own.gz").unlink()
    for loaded in (Predictor.load(tmp_path / "p"), zoo.load(f"local-dir:{tmp_path / 'm'}")):
        texts = ["a fire engine"]
        assert torch.equal(loaded.tokenizer(texts), predictor.tokenizer(texts))


def test_a_failed_save_leaves_the_old_predictor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = zoo.random_clip()
    predictor.save(tmp_path / "p")
    old = predictor.logits_fn(NAMES, TEMPLATES)(images(predictor))

    def fail(*args: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perdure.stored.save_model", fail)
    with pytest.raises(RunError, match="No space left"):
        zoo.random_clip(seed=1).save(tmp_path / "p")
    loaded = Predictor.load(tmp_path / "p")
    assert torch.equal(loaded.logits_fn(NAMES, TEMPLATES)(images(predictor)), old)
    assert [file.name for file in tmp_path.iterdir()] == ["p"]


def test_damaged_and_newer_files_are_refused(tmp_path: Path) -> None:
    predictor = zoo.random_clip()
    predictor.save(tmp_path / "p")
    weights = tmp_path / "p" / "predictor.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cannot load"):
        Predictor.load(tmp_path / "p")
    record = json.loads((tmp_path / "p" / "predictor.json").read_text())
    (tmp_path / "p" / "predictor.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(WeightsError, match="format 99"):
        Predictor.load(tmp_path / "p")
    with pytest.raises(RunError, match="does not exist"):
        Predictor.load(tmp_path / "nothing")


def test_a_tokenizer_without_a_name_cannot_be_saved(tmp_path: Path) -> None:
    predictor = zoo.random_clip()
    predictor.tokenizer = _Numbers()
    with pytest.raises(WeightsError, match="no named vocabulary"):
        predictor.save(tmp_path / "p")


@pytest.mark.parametrize("tower", ["vit", "resnet", "custom-text", "quick-gelu"])
def test_plain_open_clip_opens_the_export_with_equal_features(tower: str, tmp_path: Path) -> None:
    predictor = zoo.random_clip(seed=5, **TOWERS[tower])
    predictor.set_head(NAMES, TEMPLATES)
    predictor.export_open_clip(tmp_path / "model")
    plain = open_clip.create_model(f"local-dir:{tmp_path / 'model'}").eval()
    pixels, tokens = images(predictor), predictor.tokenizer(["a taco", "a fire engine"])
    with torch.no_grad():
        assert torch.equal(plain.encode_image(pixels), predictor.clip.encode_image(pixels))
        assert torch.equal(plain.encode_text(tokens), predictor.clip.encode_text(tokens))
        assert torch.equal(plain.logit_scale, predictor.clip.logit_scale)
    assert plain.visual.preprocess_cfg["mean"] == [0.5, 0.5, 0.5]
    assert plain.visual.preprocess_cfg["std"] == [0.28, 0.28, 0.28]
    head = load_file(tmp_path / "model" / "head.safetensors")
    assert head["weight"].shape == (3, 32)
    assert head["bias"].shape == (3,)
    stored = json.loads((tmp_path / "model" / "classes.json").read_text())
    assert stored == {"classes": list(NAMES), "templates": list(TEMPLATES)}


def test_the_export_has_no_head_where_there_is_none(predictor: Predictor, tmp_path: Path) -> None:
    predictor.export_open_clip(tmp_path / "model")
    files = {"open_clip_config.json", "open_clip_model.safetensors"}
    assert {file.name for file in (tmp_path / "model").iterdir()} == files


@pytest.mark.parametrize(("tower", "width"), [("vit", 32), ("resnet", 256), ("custom-text", 32)])
def test_projections_are_live_and_end_in_the_embedding(tower: str, width: int) -> None:
    clip = zoo.random_clip(**TOWERS[tower]).clip
    visual, text = towers.visual_projection(clip), towers.text_projection(clip)
    assert visual.shape == (width, 32)
    assert text.shape == (32, 32)
    visual.sum().backward()
    assert any(parameter.grad is not None for parameter in clip.visual.parameters())


def test_a_tower_without_a_projection_says_so() -> None:
    clip = zoo.random_clip(text_cfg={"proj_type": "none"}).clip
    with pytest.raises(TaskError, match="text tower does not end in one linear map"):
        towers.text_projection(clip)
    clip.visual.proj = None
    with pytest.raises(TaskError, match="VisionTransformer"):
        towers.visual_projection(clip)
