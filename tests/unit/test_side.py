"""Side adapters: the published numbers, what they add and where, and that they can be copied."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from perdure import building, zoo
from perdure.errors import SurgeryError
from perdure.predictor import Predictor
from perdure.surgery.operations import from_record, to_record
from perdure.surgery.side import Side, scale_gradient
from perdure.weights import run_at, trainable

Golden = Callable[[str], dict[str, np.ndarray]]

DEEP = {"vision_cfg": {"layers": 5}}
TIMM: dict[str, Any] = {
    "custom_text": True, "embed_dim": 96,
    "vision_cfg": {
        "image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none",
    },
}  # fmt: skip


def adapted(side: Side, seed: int = 0, **changes: Any) -> Predictor:
    predictor = zoo.random_clip(**changes)
    predictor.attach(side, seed)
    return predictor


@torch.no_grad()
def rows(predictor: Predictor) -> Tensor:
    size = predictor.preprocess.size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return torch.cat(predictor(pixels, predictor.tokenizer(["a taco", "two tigers"]))[:2])


def sided(predictor: Predictor) -> list[str]:
    return [name for name, module in predictor.clip.named_modules() if hasattr(module, "side")]


def test_the_branch_is_what_the_formula_says() -> None:
    side = Side(rank=3, eta=0.2)
    predictor = adapted(side)
    block: Any = predictor.clip.visual.transformer.resblocks[1]
    own, shared = block.side, predictor.clip.side_shared[1]
    with torch.no_grad():
        for parameter in predictor.added().values():
            parameter.normal_()
        x = torch.randn(2, 5, 32)
        h = torch.relu(block.ln_1(x) @ own.down.weight.T + own.down.bias)
        h = torch.relu(h @ shared.weight.T + shared.bias)
        added = 0.2 * (h @ own.up.weight.T + own.up.bias)
        found = block(x)
        side.set_alpha(predictor.clip, 0.0)
        plain = block(x)
        torch.testing.assert_close(found - plain, added, rtol=1e-4, atol=1e-5)
        side.set_alpha(predictor.clip, 0.5)
        torch.testing.assert_close(block(x) - plain, 0.5 * added, rtol=1e-4, atol=1e-5)


def test_first_weights_are_kaiming_normal_by_outputs_and_biases_zero() -> None:
    predictor = adapted(Side(rank=64), vision_cfg={"width": 512, "head_width": 64})
    added = predictor.added()
    for name, value in added.items():
        if name.endswith("bias"):
            assert not value.any()
        else:
            assert float(value.detach().std()) == pytest.approx(
                (2 / value.shape[0]) ** 0.5, rel=0.1
            ), name
    again, other = (adapted(Side(rank=64), seed, vision_cfg={"width": 512, "head_width": 64})
                    for seed in (0, 1))  # fmt: skip
    assert all(torch.equal(value, again.added()[name]) for name, value in added.items())
    assert any(not torch.equal(value, other.added()[name]) for name, value in added.items())


def test_the_published_adapters_of_vit_b_16_have_674560_numbers() -> None:
    import open_clip

    config = open_clip.get_model_config("ViT-B-16")
    with torch.device("meta"):
        clip = building.build(config)
        before = sum(parameter.numel() for parameter in clip.parameters())
        Side().attach(clip)
    assert sum(parameter.numel() for parameter in clip.parameters()) - before == 674_560
    assert [name for name, module in clip.named_modules() if hasattr(module, "side")] == [
        *(f"visual.transformer.resblocks.{block}" for block in range(4, 12)),
        *(f"transformer.resblocks.{block}" for block in range(4, 12)),
    ]


def test_towers_of_different_depth_are_paired_from_the_top() -> None:
    predictor = adapted(Side(rank=4), **DEEP)
    clip: Any = predictor.clip
    assert sided(predictor) == [
        "visual.transformer.resblocks.3", "visual.transformer.resblocks.4",
        "transformer.resblocks.0", "transformer.resblocks.1",
    ]  # fmt: skip
    for depth in (0, 1):
        with torch.no_grad():
            before = rows(predictor)
            clip.side_shared[depth].weight.add_(1.0)
        changed = (rows(predictor) - before).abs().amax(dim=1) > 0
        assert changed.all(), "both towers go through every shared layer"


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (Side(blocks=(1,)), ["visual.transformer.resblocks.1", "transformer.resblocks.1"]),
        (Side(towers=("text",), blocks=(0,)), ["transformer.resblocks.0"]),
        (Side(towers=("image",)), [f"visual.transformer.resblocks.{n}" for n in (0, 1)]),
    ],
    ids=["one", "text", "image"],
)
def test_towers_and_blocks_can_be_chosen(side: Side, expected: list[str]) -> None:
    assert sided(adapted(side)) == expected


@pytest.mark.parametrize("changes", [{}, DEEP, TIMM], ids=["open_clip", "deep", "timm"])
def test_at_alpha_0_the_model_is_clip_exactly_and_at_1_it_is_near(changes: dict[str, Any]) -> None:
    text = {"text_cfg": {"context_length": 20}} if changes is TIMM else {}
    plain = zoo.random_clip(**changes, **text)
    base = rows(plain)
    predictor = adapted(Side(eta=0.001), **changes, **text)
    fresh = rows(predictor)
    assert not torch.equal(fresh, base)
    assert (fresh - base).abs().max() < 0.05
    predictor.set_alpha(0.0)
    assert torch.equal(rows(predictor), base)
    assert plain.state_dict().keys() < predictor.state_dict().keys()


@given(factor=st.floats(1e-3, 1e3), seed=st.integers(0, 9))
def test_scaling_is_the_identity_forward_and_a_factor_backward(factor: float, seed: int) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x.requires_grad_()
    y = scale_gradient(x, factor)
    assert torch.equal(y, x)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, factor * 2 * x.detach())


@pytest.mark.parametrize("eta", [0.001, 0.05, 2.0])
def test_scaling_multiplies_adapters_gradients_and_leaves_those_of_inputs(eta: float) -> None:
    gradients = []
    for scaled in (True, False):
        predictor = adapted(Side(rank=4, eta=eta, scale_gradients=scaled)).double()
        images = torch.randn(
            2, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        predictor.encode_image(images)[:, 0].sum().backward()
        own = {name: p.grad for name, p in predictor.added().items() if p.grad is not None}
        gradients.append((images.grad, own))
    (x_scaled, scaled), (x_plain, plain) = gradients
    torch.testing.assert_close(x_scaled, x_plain, rtol=1e-9, atol=1e-15)
    assert len(scaled) == 2 * 4 + 2 * 2
    # Block 1 alone gets its gradient through no further adapter.
    last = [name for name in scaled if "resblocks.1" in name]
    for name in last:
        torch.testing.assert_close(scaled[name], plain[name] / eta, rtol=1e-9, atol=1e-15)
    for name in scaled:
        torch.testing.assert_close(scaled[name], plain[name] / eta, rtol=1e-9, atol=1e-15)


def test_shared_layers_have_one_name_survive_files_copies_and_borrowed_weights(
    tmp_path: Path,
) -> None:
    predictor = adapted(Side(rank=4, eta=0.5))
    state = predictor.state_dict()
    assert len({value.data_ptr() for value in state.values() if value.numel()}) == len(
        [value for value in state.values() if value.numel()]
    )
    expected = rows(predictor)
    predictor.save(tmp_path / "predictor")
    assert torch.equal(rows(Predictor.load(tmp_path / "predictor")), expected)
    twin = predictor.copy()
    with torch.no_grad():
        for parameter in twin.clip.side_shared.parameters():
            parameter.add_(1.0)
    assert torch.equal(rows(predictor), expected)
    assert ((rows(twin) - expected).abs().amax(dim=1) > 0).all(), "both towers use the copy's own"
    pixels = torch.zeros(2, 3, 40, 40)
    tokens = predictor.tokenizer(["a taco", "two tigers"])
    borrowed = run_at(predictor, trainable(twin), pixels, tokens)
    for one, two in zip(borrowed, twin(pixels, tokens), strict=True):
        assert torch.equal(one, two)


def test_other_copies_of_a_tower_are_whole() -> None:
    predictor = adapted(Side(rank=4, eta=0.5))
    pixels = torch.randn(1, 3, 40, 40)
    tower: Any = copy.deepcopy(predictor.clip.visual)
    assert torch.equal(tower(pixels), predictor.clip.visual(pixels))


def test_a_record_makes_an_equal_surgery() -> None:
    side = Side(rank=4, eta=0.05, towers=("text",), blocks=(0,), scale_gradients=False, alpha=0.5)
    assert from_record(to_record(side)) == side


def test_what_cannot_be_is_refused_with_what_to_do() -> None:
    for wrong, text in (
        ({"rank": 0}, "rank is 0"), ({"eta": 0.0}, "eta is 0.0"), ({"towers": ()}, "name image"),
        ({"blocks": ()}, "name at least one"), ({"alpha": -1.0}, "alpha is -1.0"),
    ):  # fmt: skip
        with pytest.raises(SurgeryError, match=text):
            Side(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SurgeryError, match="has 2; allowed are 0 to 1"):
        adapted(Side(blocks=(2,)), **DEEP)
    predictor = adapted(Side())
    with pytest.raises(SurgeryError, match="already"):
        predictor.attach(Side(towers=("text",)))
    with pytest.raises(SurgeryError, match="no side adapters"):
        Side().set_alpha(zoo.random_clip().clip, 0.5)
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}
    with pytest.raises(SurgeryError, match=r"Adapt the other tower alone \(towers: \[text\]\)"):
        adapted(Side(), vision_cfg=resnet)
    post_norm = zoo.random_clip()
    block: Any = post_norm.clip.transformer.resblocks[0]
    block.after, block.ln_1 = block.ln_1, None
    del block.ln_1
    block.add_module("ln_last", nn.Identity())
    with pytest.raises(SurgeryError, match="does not begin with a layer norm"):
        post_norm.attach(Side())


@given(alpha=st.floats(0, 2))
def test_a_strength_can_be_written_into_the_adapters_which_stay(alpha: float) -> None:
    predictor = adapted(Side(rank=4, eta=0.5))
    folded = predictor.fold(alpha)
    predictor.set_alpha(alpha)
    torch.testing.assert_close(rows(folded), rows(predictor), rtol=1e-5, atol=1e-6)
    assert [surgery.alpha for surgery in folded.surgeries] == [1.0]
