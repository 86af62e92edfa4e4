"""Visual prompts: a slow tower written out beside the hooks, layouts, copies and records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perdure import building, zoo
from perdure.errors import SurgeryError
from perdure.predictor import Predictor
from perdure.surgery.operations import from_record, to_record
from perdure.surgery.projector import Projector
from perdure.surgery.visual_prompts import VisualPrompts

KINDS: dict[str, dict[str, Any]] = {
    "class-token": {"vision_cfg": {"layers": 4}},
    "mean-without-ln-pre": {"vision_cfg": {"layers": 4, "pool_type": "avg", "no_ln_pre": True}},
}
TIMM: dict[str, Any] = {
    "custom_text": True, "embed_dim": 96,
    "vision_cfg": {
        "image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none",
    },
}  # fmt: skip


def prompted(prompts: VisualPrompts, **changes: Any) -> Predictor:
    predictor = zoo.random_clip(**changes)
    predictor.attach(prompts)
    return predictor


def pixels(predictor: Predictor) -> Tensor:
    size = predictor.preprocess.size
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def written_out(predictor: Predictor, images: Tensor, depth: int) -> Tensor:
    """Embed images as the papers describe it, without hooks: prompts at the input and 2..depth."""
    plain: Any = zoo.random_clip(**KINDS_OF[id(predictor)]).clip.visual
    own: Any = predictor.clip.visual
    x = plain.conv1(images).flatten(2).transpose(1, 2)
    first = plain.class_embedding.expand(len(images), 1, -1)
    x = torch.cat([first, x], dim=1) + plain.positional_embedding
    n = x.shape[1]
    tokens = [own.ln_pre.prompts.weight]
    tokens += [own.transformer.resblocks[index].prompts.weight for index in range(1, depth)]
    x = plain.ln_pre(torch.cat([x, tokens[0].expand(len(images), -1, -1)], dim=1))
    for index, block in enumerate(plain.transformer.resblocks):
        if 0 < index < depth:
            x = torch.cat([x[:, :n], tokens[index].expand(len(images), -1, -1)], dim=1)
        x = block(x)
    x = x[:, :n]
    pooled = plain.ln_post(x)
    pooled = pooled[:, 1:].mean(dim=1) if plain.pool_type == "avg" else pooled[:, 0]
    return torch.nn.functional.normalize(pooled @ plain.proj, dim=-1)


KINDS_OF: dict[int, dict[str, Any]] = {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 3, 4])
def test_the_tower_is_the_one_of_the_papers(kind: str, depth: int) -> None:
    predictor = prompted(VisualPrompts(2, depth), **KINDS[kind])
    KINDS_OF[id(predictor)] = KINDS[kind]
    with torch.no_grad():
        for value in predictor.added().values():
            value.normal_()
    assert len(predictor.added()) == depth
    images = pixels(predictor)
    found = predictor.encode_image(images)
    expected = written_out(predictor, images, depth)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, zoo.random_clip(**KINDS[kind]).encode_image(images))


def test_tokens_before_examples_give_the_same() -> None:
    predictor = prompted(VisualPrompts(2, 2))
    images = pixels(predictor)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        turned = predictor.encode_image(images)  # such towers turn their attention around
    with torch.autocast("cpu", torch.bfloat16):
        plain = predictor.encode_image(images)
    torch.testing.assert_close(turned, plain.detach(), rtol=0.02, atol=0.02)


def test_fresh_prompts_are_small_random_and_count() -> None:
    predictor = prompted(VisualPrompts(64), vision_cfg={"layers": 8})
    added = predictor.added()
    assert len(added) == 6, "three quarters of the blocks"
    for value in added.values():
        assert value.shape == (64, 32)
        assert float(value.detach().std()) == pytest.approx(0.02, rel=0.1)
    images = pixels(predictor)
    plain = zoo.random_clip(vision_cfg={"layers": 8})
    assert not torch.equal(predictor.encode_image(images), plain.encode_image(images))
    assert plain.state_dict().keys() < predictor.state_dict().keys()


def test_pools_of_timm_do_not_see_them_and_blocks_do() -> None:
    predictor = prompted(VisualPrompts(2), **TIMM)
    seen: dict[str, int] = {}
    trunk: Any = predictor.clip.visual.trunk
    for name in ("attn_pool", "blocks.0", "blocks.8"):
        trunk.get_submodule(name).register_forward_hook(
            lambda _m, args, _o, name=name: seen.__setitem__(name, args[0].shape[1])
        )
    predictor.encode_image(pixels(predictor))
    assert seen["blocks.0"] == seen["blocks.8"] == seen["attn_pool"] + 2


def test_copies_files_and_records_keep_them(tmp_path: Path) -> None:
    predictor = prompted(VisualPrompts(2, 2))
    images = pixels(predictor)
    expected = predictor.encode_image(images)
    predictor.save(tmp_path / "predictor")
    assert torch.equal(Predictor.load(tmp_path / "predictor").encode_image(images), expected)
    twin = predictor.copy()
    with torch.no_grad():
        for value in twin.added().values():
            value.add_(1.0)
    assert torch.equal(predictor.encode_image(images), expected)
    assert not torch.equal(twin.encode_image(images), expected)
    for surgery in (VisualPrompts(2, 2), Projector(3, 5)):
        assert from_record(to_record(surgery)) == surgery


def test_what_cannot_be_is_refused_with_what_to_do() -> None:
    for make in (lambda: VisualPrompts(0), lambda: VisualPrompts(2, 0), lambda: Projector(0, 1)):
        with pytest.raises(SurgeryError, match="at least 1"):
            make()
    with pytest.raises(SurgeryError, match="has 2 blocks; allowed are 1 to 2"):
        prompted(VisualPrompts(2, 3))
    with pytest.raises(SurgeryError, match="already"):
        prompted(VisualPrompts()).attach(VisualPrompts())
    with pytest.raises(SurgeryError, match="no visual prompts"):
        VisualPrompts().set_alpha(zoo.random_clip().clip, 1.0)
    with pytest.raises(SurgeryError, match=r"alpha is 0\.5, but visual prompts have no strength"):
        prompted(VisualPrompts()).set_alpha(0.5)
    rotary = building.build(
        {
            "custom_text": True, "embed_dim": 32,
            "text_cfg": {
                "context_length": 20, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2,
            },
            "vision_cfg": {
                "image_size": 224, "timm_model_name": "eva02_tiny_patch14_224",
                "timm_pool": "token", "timm_proj": None,
            },
        }
    )  # fmt: skip
    with pytest.raises(SurgeryError, match=r"Eva.*Leave the prompts out \(prompts: 0\)"):
        VisualPrompts().attach(rotary)
