"""Low-rank updates: identical start, folding, the dial, gradients, counts, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from perdure.errors import SurgeryError
from perdure.predictor import Predictor
from perdure.surgery.factors import own_weight
from perdure.surgery.low_rank import TARGETS, LowRank
from perdure.surgery.operations import from_record, to_record
from perdure.weights import lerp, run_at
from perdure.zoo import load, random_clip

TIMM: dict[str, Any] = {
    "layers": None, "width": None, "patch_size": None, "head_width": None, "image_size": 32,
    "timm_model_pretrained": False,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "clip": {},
    "custom-text": {"custom_text": True},
    "layer-scale": {"vision_cfg": {"ls_init_value": 0.1}},
    "timm": {"vision_cfg": TIMM | {"timm_model_name": "test_vit", "timm_pool": "avg"}},
    "timm-pool": {
        "embed_dim": 64,
        "vision_cfg": TIMM
        | {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    },
    "timm-eva": {
        "vision_cfg": TIMM
        | {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "image_size": 224}
    },
}


def model(name: str) -> Predictor:
    predictor = random_clip(**MODELS[name])
    if name == "timm-eva":  # one of its twelve blocks says the same
        predictor.clip.visual.trunk.blocks = predictor.clip.visual.trunk.blocks[:1]
    return predictor


def inputs(predictor: Predictor) -> tuple[Tensor, Tensor]:
    size = predictor.preprocess.size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    return images, predictor.tokenizer(["taco", "a photo of a tiger", "an old map"])


def factors(clip: nn.Module) -> dict[str, Any]:
    return {
        path.removesuffix(".low_rank"): module
        for path, module in clip.named_modules()
        if path.endswith(".low_rank")
    }


def train(clip: nn.Module, size: float = 0.1) -> None:
    """Stand for a training: give every update a value."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in factors(clip).values():
            module.up.copy_(size * torch.randn(module.up.shape, generator=random))


def difference(a: Any, b: Any) -> float:
    return max(
        float((x - y).detach().abs().max()) for x, y in ((a.image, b.image), (a.text, b.text))
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_start_is_the_pre_trained_model_bit_for_bit(name, grad, training):
    predictor = model(name)
    data = inputs(predictor)
    with torch.set_grad_enabled(grad):
        before = predictor.train(training)(*data)
        LowRank(rank=3).attach(predictor.clip)
        after = predictor(*data)
    assert torch.equal(before.image, after.image)
    assert torch.equal(before.text, after.text)


@pytest.mark.parametrize("name", MODELS)
def test_folding_changes_nothing_and_is_a_line_in_the_weights(name):
    start = model(name).eval()
    data = inputs(start)
    surgery = LowRank(rank=3, scale=0.7)
    tuned = start.copy()
    surgery.attach(tuned.clip)
    train(tuned.clip)
    whole = tuned.copy()
    surgery.fold(whole.clip, 1.0)
    assert {type(m) for m in whole.modules()} == {type(m) for m in start.modules()}
    for alpha in (0.0, 0.5, 1.0):
        surgery.set_alpha(tuned.clip, alpha)
        folded = tuned.copy()
        surgery.fold(folded.clip, alpha)
        assert folded.state_dict().keys() == start.state_dict().keys()
        with torch.no_grad():
            assert difference(tuned(*data), folded(*data)) < 1e-5
        assert difference(tuned(*data), folded(*data)) < 1e-5
        between = lerp(start.state_dict(), whole.state_dict(), alpha)
        for key, value in folded.state_dict().items():
            torch.testing.assert_close(value, between[key], rtol=0, atol=1e-6)
        if alpha == 0.0:
            assert difference(tuned(*data), start(*data)) == 0.0
            assert all(torch.equal(v, between[k]) for k, v in folded.state_dict().items())
        else:
            assert difference(tuned(*data), start(*data)) > 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_every_update_acts_and_trains(name):
    """Attention that reads a layer's weight without calling the layer must see its update too."""
    predictor = model(name).eval()
    LowRank(rank=2).attach(predictor.clip)
    data = inputs(predictor)
    train(predictor.clip)
    with torch.no_grad():
        before = predictor(*data)
        for path, module in factors(predictor.clip).items():
            kept = module.up.clone()
            module.up.zero_()
            assert difference(predictor(*data), before) > 1e-7, path
            module.up.copy_(kept)
    found = predictor(*data)
    (found.image @ found.text.T).diagonal().sum().backward()
    for path, module in factors(predictor.clip).items():
        assert module.down.grad is not None, path
        assert module.down.grad.any(), path
        assert module.up.grad.any(), path


def test_no_gradient_of_a_whole_matrix_is_made():
    """Training costs a forward pass and the gradients of activations: two thirds."""
    student = random_clip(vision_cfg={"width": 256, "head_width": 64}).train()
    images, _ = inputs(student)

    def cost() -> int:
        with FlopCounterMode(display=False) as flops:
            student.encode_image(images.requires_grad_()).square().sum().backward()
        return int(flops.get_total_flops())

    whole = cost()
    LowRank(rank=1).attach(student.clip)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_("low_rank" in name)
    assert cost() < 0.72 * whole


def test_gradients_are_those_of_the_whole_matrix():
    """dL/dB = scale dL/dW A^T and dL/dA = scale B^T dL/dW, with dL/dW from the folded model."""
    surgery = LowRank(rank=2, scale=1.5)
    predictor = random_clip().eval()
    surgery.attach(predictor.clip)
    train(predictor.clip)
    folded = predictor.copy()
    surgery.fold(folded.clip, 1.0)
    data = inputs(predictor)
    for one in (predictor, folded):
        found = one(*data)
        (found.image @ found.text.T).diagonal().sum().backward()
    for path, module in factors(predictor.clip).items():
        whole = own_weight(folded.clip.get_submodule(path)).grad
        torch.testing.assert_close(module.up.grad, 1.5 * whole @ module.down.T)
        torch.testing.assert_close(module.down.grad, 1.5 * module.up.T @ whole)


def test_other_ways_to_call_attention_see_the_update():
    attention = random_clip().clip.visual.transformer.resblocks[0].attn
    holder = random_clip().clip
    holder.visual.transformer.resblocks[0].attn = attention
    surgery = LowRank(rank=2, towers=("image",), blocks=(0,))
    surgery.attach(holder)
    train(holder)
    query, key = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    calls: tuple[tuple[tuple[Tensor, ...], dict[str, Any]], ...] = (
        ((query, key, key), {"need_weights": False}),
        ((query, query, query), {}),
        ((query, query, query), {"need_weights": False, "attn_mask": torch.zeros(5, 5)}),
        ((query[0], query[0], query[0]), {"need_weights": False}),
    )
    before = [attention(*args, **options)[0] for args, options in calls]
    surgery.fold(holder, 1.0)
    for (args, options), expected in zip(calls, before, strict=True):
        torch.testing.assert_close(attention(*args, **options)[0], expected, rtol=0, atol=1e-6)


def test_copies_are_independent_and_weights_can_be_run_in_place():
    predictor = random_clip().eval()
    surgery = LowRank(rank=2)
    surgery.attach(predictor.clip)
    train(predictor.clip)
    data = inputs(predictor)
    expected = predictor(*data)
    other = predictor.copy()
    surgery.set_alpha(other.clip, 0.0)
    train(other.clip, 3.0)
    assert difference(predictor(*data), expected) == 0.0
    names = [name for name, _ in predictor.named_parameters() if name.endswith("low_rank.up")]
    parameters = dict(predictor.named_parameters())
    zeros = {name: torch.zeros_like(parameters[name]) for name in names}
    plain = predictor.copy()
    surgery.fold(plain.clip, 0.0)
    assert difference(run_at(predictor, zeros, *data), plain(*data)) == 0.0
    base = {"clip.visual.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(96, 32)}
    assert difference(run_at(predictor, base, *data), expected) > 1e-3


def test_counts_are_rank_times_in_plus_out():
    predictor = load("perdure-tiny")
    before = sum(parameter.numel() for parameter in predictor.parameters())
    LowRank(rank=11).attach(predictor.clip)
    assert sum(parameter.numel() for parameter in predictor.parameters()) - before == 107_008
    sizes = {"in_proj": 4, "out_proj": 2, "mlp_in": 5, "mlp_out": 5}
    for target in TARGETS:
        predictor = random_clip()  # two blocks of width 32 in each tower
        LowRank(rank=3, targets=(target,), towers=("text",), blocks=(1,)).attach(predictor.clip)
        added = [p for n, p in predictor.named_parameters() if "low_rank" in n]
        assert sum(parameter.numel() for parameter in added) == 3 * sizes[target] * 32


def test_the_base_keeps_its_names_and_values():
    predictor = random_clip()
    before = copy.deepcopy(predictor.state_dict())
    LowRank().attach(predictor.clip)
    after = predictor.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert set(after) - set(before) == {
        f"clip.{path}.low_rank.{factor}"
        for path in LowRank().layers(predictor.clip)
        for factor in ("up", "down")
    }


def test_half_precision_and_autocast():
    predictor = random_clip().eval()
    surgery = LowRank(rank=2)
    surgery.attach(predictor.clip)
    train(predictor.clip)
    data = inputs(predictor)
    expected = predictor(*data)
    with torch.autocast("cpu", torch.bfloat16):
        assert difference(predictor(*data), expected) < 0.03
    assert predictor.clip.half().visual.transformer.resblocks[0].attn.low_rank.up.dtype == (
        torch.float16
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"scale": 0.0}, "scale is 0"),
        ({"alpha": -1.0}, "alpha is -1"),
        ({"targets": ()}, "targets are"),
        ({"targets": ("qkv",)}, "in_proj, out_proj"),
        ({"towers": ("image", "image")}, "each once"),
        ({"blocks": ()}, "null for all"),
    ],
)
def test_wrong_fields_are_refused(options, message):
    with pytest.raises(SurgeryError, match=message):
        LowRank(**options)


def test_what_has_no_place_is_refused():
    with pytest.raises(SurgeryError, match=r"no tower has the blocks \[7\]; allowed are 0 to 1"):
        LowRank(blocks=(1, 7)).attach(random_clip().clip)
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}
    with pytest.raises(SurgeryError, match="Adapt the other tower alone"):
        LowRank().attach(random_clip(vision_cfg=resnet).clip)
    clip = random_clip().clip
    LowRank(targets=("mlp_in",)).attach(clip)
    with pytest.raises(SurgeryError, match="already"):
        LowRank().attach(clip)
    assert set(factors(clip)) == set(LowRank(targets=("mlp_in",)).layers(clip))
    LowRank(targets=("mlp_in",)).fold(clip, 1.0)
    with pytest.raises(SurgeryError, match="folded already"):
        LowRank(targets=("mlp_in",)).fold(clip, 1.0)

    class Quantised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x

    clip.visual.transformer.resblocks[0].mlp.c_fc = Quantised(32, 128)
    with pytest.raises(SurgeryError, match="Quantised"):
        LowRank().attach(clip)
    assert not factors(clip)


def test_records_round_trip():
    surgery = LowRank(rank=7, scale=0.5, targets=("mlp_in",), towers=("text",), blocks=(0, 1))
    assert from_record(to_record(surgery)) == surgery
