"""Towers that are not open_clip's own ViT: timm with pools and LayerScale, and Hugging Face."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from perdure import building
from perdure.errors import SurgeryError
from perdure.surgery.low_rank import LowRank
from perdure.surgery.residual import Residual, adapters
from perdure.surgery.sites import find_sites

Embed = Callable[[Any], Tensor]

TEXT = {"context_length": 20, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2}
SIGLIP_TEXT = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    # As SigLIP: a map pool and no projection; test_vit3 also has LayerScale and a register.
    "timm-map-pool": {
        "custom_text": True, "embed_dim": 96, "init_logit_bias": -10, "text_cfg": SIGLIP_TEXT,
        "vision_cfg": {
            "image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map",
            "timm_proj": "none",
        },
    },
    "timm-eva02": {
        "custom_text": True, "embed_dim": 32, "text_cfg": TEXT,
        "vision_cfg": {
            "image_size": 224, "timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token",
            "timm_proj": None,
        },
    },
    "layer-scale": {
        "embed_dim": 32, "text_cfg": {**TEXT, "ls_init_value": 0.1},
        "vision_cfg": {
            "image_size": 40, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8,
            "ls_init_value": 0.1,
        },
    },
    "custom-text": {
        "custom_text": True, "embed_dim": 32, "text_cfg": TEXT,
        "vision_cfg": {
            "image_size": 40, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8,
        },
    },
}  # fmt: skip
BLOCKS = {"timm-map-pool": (9 + 1, 2), "timm-eva02": (12, 2), "layer-scale": (2, 2),
          "custom-text": (2, 2)}  # fmt: skip

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
VISION = {**SMALL, "image_size": 32, "patch_size": 16}
WORDS = {
    **SMALL, "vocab_size": 100, "max_position_embeddings": 20, "pad_token_id": 0,
    "bos_token_id": 98, "eos_token_id": 99, "sep_token_id": 97,
}  # fmt: skip


def open_clip_model(name: str) -> tuple[nn.Module, Embed]:
    size = OPEN_CLIP[name]["vision_cfg"]["image_size"]
    pixels, tokens = torch.randn(2, 3, size, size), torch.randint(1, 99, (2, 20))

    def embed(clip: Any) -> Tensor:
        return torch.cat([clip.encode_image(pixels), clip.encode_text(tokens)])

    return building.build(OPEN_CLIP[name]), embed


def hugging_face_model(name: str) -> tuple[nn.Module, Embed]:
    """Build a tiny model with random weights, and what embeds images and texts in one space."""
    made: dict[str, Callable[[], nn.Module]] = {
        "hf-clip": lambda: transformers.CLIPModel(
            transformers.CLIPConfig(text_config=WORDS, vision_config=VISION, projection_dim=16)
        ),
        "hf-siglip": lambda: transformers.SiglipModel(
            transformers.SiglipConfig(text_config=WORDS, vision_config=VISION)
        ),
        "hf-blip": lambda: transformers.BlipForImageTextRetrieval(
            transformers.BlipConfig(
                text_config={**WORDS, "encoder_hidden_size": 32}, vision_config=VISION,
                projection_dim=16, image_text_hidden_size=16,
            )
        ),
        "hf-flava": lambda: transformers.FlavaModel(
            transformers.FlavaConfig(
                text_config=WORDS, image_config=VISION, multimodal_config=SMALL, hidden_size=32,
                projection_dim=16,
            )
        ),
    }  # fmt: skip
    pixels, tokens = torch.randn(2, 3, 32, 32), torch.randint(1, 97, (2, 20))
    tokens[:, -1] = 99

    def embed(model: Any) -> Tensor:
        if name == "hf-blip":
            image = model.vision_model(pixel_values=pixels)[0][:, 0]
            text = model.text_encoder(input_ids=tokens, return_dict=True)[0][:, 0]
            return torch.cat([model.vision_proj(image), model.text_proj(text)])
        if name == "hf-flava":
            image = model.image_model(pixel_values=pixels)[0][:, 0]
            text = model.text_model(input_ids=tokens)[0][:, 0]
            return torch.cat([model.image_projection(image), model.text_projection(text)])
        image = model.vision_model(pixel_values=pixels).pooler_output
        return torch.cat([image, model.text_model(input_ids=tokens).pooler_output])

    return made[name](), embed


BLOCKS |= {"hf-clip": (2, 2), "hf-siglip": (2 + 1, 2), "hf-blip": (2, 2), "hf-flava": (2, 2)}


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_every_tower_starts_as_it_was_and_folds(name: str) -> None:
    model, embed = (open_clip_model if name in OPEN_CLIP else hugging_face_model)(name)
    model.eval()
    start = embed(model)
    keys = list(model.state_dict())
    own = sum(p.numel() for p in model.parameters())

    surgery = Residual(rank_image=3)
    surgery.attach(model)
    assert torch.equal(embed(model), start)
    sites = find_sites(model)
    counts = [sum(site.tower == tower for site in sites) for tower in ("image", "text")]
    assert tuple(counts) == tuple(2 * blocks for blocks in BLOCKS[name])
    expected = sum(
        (2 * 3 * site.width if site.tower == "image" else site.width**2) + 1 for site in sites
    )
    assert sum(p.numel() for p in model.parameters()) - own == expected

    for adapter in adapters(model).values():
        for parameter in adapter.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    for alpha in (0.0, 0.5, 1.0):
        folded = copy.deepcopy(model)
        surgery.fold(folded, alpha)
        surgery.set_alpha(model, alpha)
        unfolded = embed(model)
        assert list(folded.state_dict()) == keys
        assert torch.allclose(embed(folded), unfolded, rtol=1e-5, atol=1e-5 * float(start.std()))
        assert torch.equal(unfolded, start) == (alpha == 0)


LAYERS = {"timm-eva02": 4, "timm-map-pool": 4, "layer-scale": 4, "custom-text": 4,
          "hf-clip": 6, "hf-siglip": 6, "hf-blip": 4, "hf-flava": 6}  # fmt: skip
"""Linear maps of the first image block; separate queries, keys and values make two more"""


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_low_rank_updates_reach_every_map_of_every_tower(name: str) -> None:
    model, embed = (open_clip_model if name in OPEN_CLIP else hugging_face_model)(name)
    model.eval()
    start = embed(model)
    keys = list(model.state_dict())
    types = [type(module) for module in model.modules()]
    surgery = LowRank(rank=2)
    surgery.attach(model)
    assert torch.equal(embed(model), start)
    paths = surgery.layers(model)
    assert len(LowRank(towers=("image",), blocks=(0,)).layers(model)) == LAYERS[name]
    for path in list(paths)[: LAYERS[name]] + list(paths)[-6:]:
        update = model.get_submodule(path).low_rank
        update.up.normal_()
        assert not torch.equal(embed(model), start), path
        update.up.zero_()
    for path in paths:
        model.get_submodule(path).low_rank.up.normal_(std=0.1)
    for alpha in (0.0, 0.5, 1.0):
        folded = copy.deepcopy(model)
        surgery.fold(folded, alpha)
        surgery.set_alpha(model, alpha)
        unfolded = embed(model)
        assert list(folded.state_dict()) == keys
        assert [type(module) for module in folded.modules()] == types
        assert torch.allclose(embed(folded), unfolded, rtol=1e-5, atol=1e-5 * float(start.std()))
        assert torch.equal(unfolded, start) == (alpha == 0)


@pytest.mark.parametrize(
    ("vision", "kind"),
    [
        ({"timm_model_name": "test_convnext", "timm_pool": "avg", "image_size": 160}, "ConvNeXt"),
        ({"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}, "ResNet"),
    ],
)
def test_towers_without_transformer_blocks_are_refused(vision: dict[str, Any], kind: str) -> None:
    clip = building.build({"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT})
    with pytest.raises(SurgeryError, match=rf"image tower \(\w*{kind}\).*towers: \[text\]"):
        Residual().attach(clip)
    assert adapters(clip) == {}
    Residual(towers=("text",)).attach(clip)
    assert len(adapters(clip)) == 4


def test_a_pool_is_one_more_block() -> None:
    clip, _ = open_clip_model("timm-map-pool")
    last = [site for site in find_sites(clip, ("image",)) if site.block == 9]
    assert [site.linear for site in last] == [
        "visual.trunk.attn_pool.proj",
        "visual.trunk.attn_pool.mlp.fc2",
    ]
    Residual(towers=("image",), blocks=(9,)).attach(clip)
    assert list(adapters(clip)) == [site.hooked for site in last]
