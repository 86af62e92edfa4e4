"""Mask prompts: the authors' tower in numbers, images without masks, and everything refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from perdure import building, towers, zoo
from perdure.adapters import read_adapters, write_adapters
from perdure.errors import SurgeryError
from perdure.predictor import Predictor
from perdure.surgery.mask_prompts import MaskPrompts, Tokens
from perdure.surgery.operations import from_record, to_record
from perdure.surgery.residual import Residual
from perdure.surgery.visual_prompts import VisualPrompts
from tests.regions_seen import as_seen

TIMM: dict[str, Any] = {
    "custom_text": True, "embed_dim": 96,
    "vision_cfg": {
        "image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none",
    },
}  # fmt: skip


def prompted(depth: int | None = 2, **changes: Any) -> Predictor:
    predictor = zoo.random_clip(**changes)
    predictor.attach(MaskPrompts(depth))
    with torch.no_grad():
        for value in predictor.added().values():
            value.mul_(20)
    return predictor


def pixels(predictor: Predictor, number: int = 3) -> Tensor:
    size = predictor.preprocess.size
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0))


def tokens(predictor: Predictor) -> Tokens:
    found = predictor.clip.visual.mask_prompts
    assert isinstance(found, Tokens)
    return found


@pytest.fixture
def authors(golden: Any) -> tuple[Any, dict[str, Tensor]]:
    """The image tower of the golden file, and its numbers."""
    numbers = {key: torch.tensor(value) for key, value in golden("r_adapter_ovseg").items()}
    numbers = {key[11:]: one for key, one in numbers.items() if key.startswith("maskprompt/")}
    clip: Any = building.build(
        {
            "embed_dim": 16, "quick_gelu": True,
            "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 64, "layers": 3},
            "text_cfg": {
                "context_length": 4, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1,
            },
        }
    )  # fmt: skip
    MaskPrompts(int(numbers["depth"])).attach(clip)
    state = {key[6:]: one for key, one in numbers.items() if key.startswith("param/")}
    state["mask_prompts.weight"] = state.pop("mask_embedding")
    clip.visual.load_state_dict(state)
    return clip.eval(), numbers


@torch.no_grad()
def test_golden_tower_with_and_without_masks(authors: tuple[Any, dict[str, Tensor]]) -> None:
    clip, numbers = authors
    images = torch.cat([numbers["images"], numbers["masks"]], dim=1)
    for _ in range(2):  # what one pass leaves behind must not reach the next
        for given, name in ((images, "out_with_mask"), (images[:, :3], "out_without_mask")):
            found = towers.encode_image(clip, given)
            torch.testing.assert_close(found, numbers[name], atol=4e-6, rtol=0)
    alone = torch.cat([towers.encode_image(clip, image[None]) for image in images])
    torch.testing.assert_close(alone, numbers["out_with_mask"], atol=4e-6, rtol=0)
    assert towers.encode_image(clip, images[:0]).shape == (0, 16)


KINDS: dict[str, dict[str, Any]] = {"class-token": {}, "map-pool": TIMM}


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_masks_are_embedded_as_ever(kind: str) -> None:
    predictor, plain = prompted(**KINDS[kind]), zoo.random_clip(**KINDS[kind])
    images = pixels(predictor)
    expected = plain.encode_image(images)
    assert torch.equal(predictor.encode_image(images), expected)
    assert not torch.allclose(predictor.encode_image(as_seen(images, predictor)), expected)
    assert torch.equal(predictor.encode_image(images), expected)
    assert predictor.takes_masks
    assert not plain.takes_masks
    assert plain.state_dict().keys() < predictor.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_patch_counts_if_one_of_its_pixels_does(kind: str) -> None:
    predictor = prompted(**KINDS[kind])
    images = pixels(predictor, 1)
    side = images.shape[2]
    masks = torch.zeros(1, 1, side, side)
    masks[..., side - 1, side - 1] = 1  # of the last patch

    def seen(changed: Tensor) -> Tensor:
        return predictor.encode_image(torch.cat([changed, masks], dim=1))

    first, last = images.clone(), images.clone()
    first[..., 0, 0] += 5
    last[..., side - 2, side - 2] += 5
    assert torch.equal(seen(first), seen(images))
    assert not torch.allclose(seen(last), seen(images))
    masks.fill_(1)  # nothing is outside
    assert torch.equal(seen(first), predictor.encode_image(first))


@torch.no_grad()
def test_zeros_at_the_input_are_what_blanked_patches_are() -> None:
    predictor, plain = prompted(1), zoo.random_clip()
    images = as_seen(pixels(predictor), predictor)
    images[:, 3, 16:] = 0  # two rows of patches are left
    blank = images[:, :3] * images[:, 3:]  # the mean colour is zero, and the convolution unbiased
    assert not torch.allclose(predictor.encode_image(images), plain.encode_image(blank))
    predictor.set_alpha(0.0)
    torch.testing.assert_close(predictor.encode_image(images), plain.encode_image(blank))


def test_tokens_before_examples_give_the_same() -> None:
    predictor = prompted()
    images = as_seen(pixels(predictor), predictor)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        turned = predictor.encode_image(images)  # such towers turn their attention around
    with torch.autocast("cpu", torch.bfloat16):
        plain = predictor.encode_image(images)
    torch.testing.assert_close(turned, plain.detach(), rtol=0.02, atol=0.02)


def test_other_added_modules_stand_beside_them() -> None:
    both = prompted(2)
    both.attach(Residual(alpha=0.5))
    both.attach(VisualPrompts(2, 2), seed=1)
    images = as_seen(pixels(both), both)
    seen: dict[str, Tensor] = {}
    block: Any = both.clip.visual.transformer.resblocks[0]
    block.register_forward_hook(lambda _m, _a, output: seen.__setitem__("first", output))
    folded = both.fold()
    assert [one.name for one in folded.surgeries] == ["mask-prompts", "visual-prompts"]
    torch.testing.assert_close(folded.encode_image(images), both.encode_image(images))
    found, rows = seen["first"], tokens(both).weight[1]
    background = tokens(both).background
    assert background is not None
    assert found.shape[1] == 1 + len(rows) + 2, "class token, patches, visual prompts"
    assert torch.equal(found[0, 1:-2][background[0]], rows[background[0]])
    assert not torch.isin(found[0, -2:], rows).any()


def test_default_depth_first_values_and_what_strength_means() -> None:
    predictor = zoo.random_clip(vision_cfg={"layers": 5})
    predictor.attach(MaskPrompts())
    (weight,) = predictor.added().values()
    patches = (predictor.preprocess.size // 8) ** 2
    assert weight.shape == (3, patches, 32)
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert tokens(prompted(None)).weight.shape[0] == 2, "as many as there are blocks"
    strong = prompted()
    images = as_seen(pixels(strong), strong)
    expected = tokens(strong).weight.detach() * 0.25
    weak = strong.fold(0.25)
    strong.set_alpha(0.25)
    assert torch.equal(tokens(weak).weight, expected), "linear in the strength"
    assert weak.surgeries == (MaskPrompts(2),)
    torch.testing.assert_close(weak.encode_image(images), strong.encode_image(images))


def test_copies_files_and_records_keep_them(tmp_path: Path) -> None:
    zoo.random_clip().export_open_clip(tmp_path / "base")
    predictor = zoo.load(f"local-dir:{tmp_path / 'base'}")
    predictor.attach(MaskPrompts(2))
    images = as_seen(pixels(predictor), predictor)
    expected = predictor.encode_image(images)
    twin = predictor.copy()
    with torch.no_grad():
        for value in twin.added().values():
            value.normal_()
    assert torch.equal(predictor.encode_image(images), expected)
    assert not torch.allclose(twin.encode_image(images), expected)
    predictor.set_alpha(0.5)
    expected = predictor.encode_image(images)
    predictor.save(tmp_path / "predictor")
    write_adapters(predictor, tmp_path / "adapters")
    for again in (
        Predictor.load(tmp_path / "predictor"), read_adapters(tmp_path / "adapters")
    ):  # fmt: skip
        assert torch.equal(again.encode_image(images), expected)
        assert again.surgeries == (MaskPrompts(2, 0.5),)
    assert from_record(to_record(MaskPrompts(2, 0.5))) == MaskPrompts(2, 0.5)
    with pytest.raises(SurgeryError, match=r"'mask-prompts' added cannot be folded"):
        predictor.export_open_clip(tmp_path / "model")


def test_what_cannot_be_is_refused_with_what_to_do() -> None:
    with pytest.raises(SurgeryError, match="depth is 0, but must be at least 1"):
        MaskPrompts(0)
    with pytest.raises(SurgeryError, match=r"alpha is -1"):
        MaskPrompts(alpha=-1)
    with pytest.raises(SurgeryError, match="has 2 blocks; allowed are 1 to 2"):
        prompted(3)
    with pytest.raises(SurgeryError, match="already"):
        prompted().attach(MaskPrompts())
    with pytest.raises(SurgeryError, match="no mask prompts"):
        MaskPrompts().set_alpha(zoo.random_clip().clip, 1.0)
    with pytest.raises(SurgeryError, match=r"VisionTransformer. drops patches"):
        prompted(vision_cfg={"patch_dropout": 0.5})
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}
    with pytest.raises(SurgeryError, match=r"ModifiedResNet. has no transformer blocks"):
        prompted(vision_cfg=resnet)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
    image = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 32}
    hugging: nn.Module = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=16)
    )
    with pytest.raises(SurgeryError, match=r"CLIPModel.*by one convolution, as open_clip's ViT"):
        MaskPrompts().attach(hugging)
