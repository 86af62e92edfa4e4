"""The adapter itself: the authors' numbers, dropping, counts, and what a folded model costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from perdure import building, zoo
from perdure.predictor import Predictor
from perdure.surgery.adapter import Adapter
from perdure.surgery.residual import Residual, adapters, drop_clock, recorded_masks
from perdure.weights import Snapshot

Golden = dict[str, NDArray[Any]]
ALPHAS = {"000": 0.0, "025": 0.25, "040": 0.4, "050": 0.5, "080": 0.8, "100": 1.0}


def tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(values))


def adapter_of(part: Golden, **options: Any) -> Adapter:
    """Build an adapter with stored numbers, in float64."""
    width = (part["F"] if "F" in part else part["Umat"]).shape[0]
    rank = part["D"].shape[0] if "D" in part else None
    made = Adapter(width, rank, dtype=torch.float64, **options)
    names = {"F": made.weight, "D": made.down, "Umat": made.up}
    with torch.no_grad():
        for name, parameter in names.items():
            if parameter is not None:
                parameter.copy_(tensor(part[name]))
        assert made.gate is not None
        made.gate.copy_(tensor(part["s"]).squeeze())
    return made


def case(golden: Golden, name: str) -> Golden:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): golden[key] for key in golden if key.startswith(prefix)}


@pytest.fixture
def published(golden: Callable[[str], Golden]) -> Golden:
    return golden("r_adapter_adapter")


def test_a_fresh_adapter_is_the_published_one(published: Golden) -> None:
    part = case(published, "full_init")
    fresh = Adapter(6, dtype=torch.float64)
    assert fresh.weight is not None
    assert fresh.gate is not None
    np.testing.assert_array_equal(fresh.weight.detach().numpy(), part["F"])
    assert float(fresh.gate.detach()) == pytest.approx(float(part["s"][0]), abs=1e-7)
    assert torch.equal(fresh(tensor(part["x"])), tensor(part["y_train"]))
    low = Adapter(8, 3)
    assert low.down is not None
    assert low.up is not None
    assert 0 < float(low.down.detach().abs().max()) <= (6 / (8 + 3)) ** 0.5
    assert not low.up.any()


@pytest.mark.parametrize(
    "name", ["full_s010", "full_s037", "bottleneck_released", "lowrank_patched"]
)
def test_outputs_are_the_published_ones(published: Golden, name: str) -> None:
    part = case(published, name)
    for key, expected in part.items():
        if not key.startswith("y_"):
            continue
        adapter = adapter_of(part)
        adapter.alpha = 1.0 if key == "y_train_nodrop" else ALPHAS[key[-3:]]
        found = adapter(tensor(part["x"]))
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-12)


def test_gradients_are_the_published_ones(published: Golden) -> None:
    part = case(published, "full_s037")
    adapter = adapter_of(part)
    adapter(tensor(part["x"])).square().sum().mul(0.5).backward()
    assert adapter.weight is not None
    assert adapter.gate is not None
    assert adapter.weight.grad is not None
    assert adapter.gate.grad is not None
    expected = part["grad_F_half_sumsq"], part["grad_s_half_sumsq"][0]
    np.testing.assert_allclose(adapter.weight.grad, expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(adapter.gate.grad, expected[1], rtol=1e-12)


@pytest.mark.parametrize("name", [f"drop_p{p}_seed{seed}" for p in (20, 50) for seed in (1, 2, 3)])
def test_dropped_positions_are_the_published_ones(
    published: Golden, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = case(published, name)
    adapter = adapter_of(part, drop=float(part["p"]), drop_mode="sample")
    mask = tensor(part["keep_mask_dim0"]).view(-1, 1, 1)
    monkeypatch.setattr(adapter, "_mask", lambda z: mask)
    found = adapter(tensor(part["x"])).detach().numpy()
    np.testing.assert_allclose(found, part["y_train"], rtol=0, atol=1e-7)
    adapter.eval().alpha = 0.5
    found = adapter(tensor(part["x"])).detach().numpy()
    np.testing.assert_allclose(found, part["y_eval_alpha050"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["out_proj_8to8", "c_proj_32to8", "lowrank_alpha050"])
def test_folded_layers_are_the_published_ones(golden: Callable[[str], Golden], name: str) -> None:
    part = case(golden("r_adapter_merge"), name)
    points = {key[5:8]: key[:9] for key in part if key.startswith("alpha")} or {"050": ""}
    for digits, prefix in points.items():
        linear = nn.Linear(part["W"].shape[1], part["W"].shape[0], dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(tensor(part["W"]))
            linear.bias.copy_(tensor(part["b"]))
        adapter = adapter_of(part, alpha=ALPHAS[digits])
        x = tensor(part["x"])
        found = {"y_unmerged": adapter(linear(x))}
        adapter.fold_into(linear, ALPHAS[digits])
        found |= {"W_merged": linear.weight, "b_merged": linear.bias, "y_merged": linear(x)}
        for key, value in found.items():
            expected = part[f"{prefix}{key}"]
            np.testing.assert_allclose(value.detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["m0900", "m0999"])
def test_accumulated_factors_are_the_published_ones(
    golden: Callable[[str], Golden], name: str
) -> None:
    part = case(golden("r_adapter_ema"), name)
    average = Snapshot({"F": tensor(part["F_ema"][0]), "s": tensor(part["s_ema"][0])})
    for step in range(len(part["F_live_after_step"])):
        live = {key: tensor(part[f"{key}_live_after_step"][step]) for key in ("F", "s")}
        average.mix_(live, 1 - float(part["momentum"]))
        for key, value in average.values().items():
            np.testing.assert_allclose(value, part[f"{key}_ema"][step + 1], rtol=1e-12, atol=1e-15)
    product = average.values()["s"] * average.values()["F"]
    np.testing.assert_allclose(product, part["product_of_emas_final"], rtol=1e-12, atol=1e-15)


@pytest.fixture
def tiny(golden: Callable[[str], Golden]) -> Golden:
    return golden("r_adapter_clip")


def published_clip(tiny: Golden, weights: str | None, **options: Any) -> Any:
    """Build the authors' tiny CLIP; `weights` names a set of adapters."""
    clip: Any = building.build(
        {
            "embed_dim": 16,
            "quick_gelu": True,
            "vision_cfg": {
                "layers": 2, "width": 64, "head_width": 64, "patch_size": 4, "image_size": 8,
            },
            "text_cfg": {
                "layers": 1, "width": 64, "heads": 1, "context_length": 6, "vocab_size": 20,
            },
        }
    )  # fmt: skip
    building.fill(
        clip, {key: tensor(value) for key, value in case(tiny, "param").items()}, "golden"
    )
    if weights is None:
        return clip.eval()
    Residual(**options).attach(clip)
    parts = {"attn": "attn", "c_proj": "mlp"}
    for path, adapter in adapters(clip).items():
        block, _, end = path.replace(".mlp.", ".").rpartition(".")
        stored = f"{weights}/{block}.adapter_{parts[end]}"
        assert adapter.weight is not None
        assert adapter.gate is not None
        with torch.no_grad():
            adapter.weight.copy_(tensor(tiny[f"{stored}.f.weight"]))
            adapter.gate.copy_(tensor(tiny[f"{stored}.s"]).squeeze())
    return clip.eval()


def require_features(clip: Any, tiny: Golden, name: str, end: str = "") -> None:
    with torch.no_grad():
        image = clip.encode_image(tensor(tiny["images"]), normalize=True)
        text = clip.encode_text(tensor(tiny["tokens"]), normalize=True)
    for found, kind in ((image, "image"), (text, "text")):
        expected = tiny[f"{name}/{kind}_features{end}"]
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


def test_a_whole_model_computes_the_published_features(tiny: Golden) -> None:
    require_features(published_clip(tiny, None), tiny, "zero_shot")
    live = published_clip(tiny, "live")
    require_features(live, tiny, "train_nodrop_live")
    Residual().set_alpha(live, 0.5)
    require_features(live, tiny, "eval_live_alpha050")


@pytest.mark.parametrize("digits", ["000", "025", "050", "080", "100"])
def test_a_folded_model_computes_the_published_features(tiny: Golden, digits: str) -> None:
    clip = published_clip(tiny, "ema")
    Residual().set_alpha(clip, ALPHAS[digits])
    require_features(clip, tiny, f"eval_ema_alpha{digits}")
    Residual().fold(clip, ALPHAS[digits])
    require_features(clip, tiny, f"eval_ema_alpha{digits}", "_merged")
    if digits == "050":
        for key, expected in case(tiny, "eval_ema_alpha050/merged").items():
            tower, rest = key.split(".", 1)
            path = {"visual": "visual.transformer.resblocks", "text": "transformer.resblocks"}
            found = clip.get_parameter(f"{path[tower]}.{rest}").detach().numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_dropping_positions_computes_the_published_features(
    tiny: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = float(tiny["train_drop_p50/p"])
    clip = published_clip(tiny, "live", drop=drop, drop_mode="token").train()
    for path, adapter in adapters(clip).items():
        words = path.split(".")
        tower = "visual" if words[0] == "visual" else "text"
        part = "mlp" if words[-1] == "c_proj" else "attn"
        block = words[words.index("resblocks") + 1]
        mask = tensor(tiny[f"train_drop_p50/keep_mask/{tower}.{block}.{part}"]).view(1, -1, 1)
        monkeypatch.setattr(adapter, "_mask", lambda z, mask=mask: mask)
    require_features(clip, tiny, "train_drop_p50")


COUNTS = {
    # architecture: (all of its own weights in %, full rank, r = 4, r = 64, r = 128)
    "ViT-B-32": (13.5, 20_447_280, 245_808, 3_932_208, 7_864_368),
    "ViT-B-16": (13.7, 20_447_280, 245_808, 3_932_208, 7_864_368),
    "ViT-L-14": (15.1, 64_487_496, 540_744, 8_650_824, 17_301_576),
    "ViT-L-14-336": (15.1, 64_487_496, 540_744, 8_650_824, 17_301_576),
    "ViT-H-14": (15.7, 155_189_360, 1_048_688, 16_777_328, 33_554_544),
    "ViT-bigG-14": (14.6, 370_671_776, 1_933_472, 30_933_152, 61_866_144),
}


@pytest.mark.parametrize("name", COUNTS)
def test_numbers_of_parameters_are_those_of_the_formula(name: str) -> None:
    share, *counts = COUNTS[name]
    with torch.device("meta"):
        clip = building.build(open_clip.get_model_config(name))
    own = sum(p.numel() for p in clip.parameters())
    for rank, expected in zip((None, 4, 64, 128), counts, strict=True):
        surgery = Residual(rank_image=rank, rank_text=rank)
        surgery.attach(clip)
        assert sum(p.numel() for p in clip.parameters()) - own == expected
        if rank is None:
            assert round(100 * expected / own, 1) == share
        surgery.fold(clip, 1.0)
        assert sum(p.numel() for p in clip.parameters()) == own


@pytest.mark.parametrize("rank", [1, 4, 31])
def test_a_low_rank_is_really_low(rank: int) -> None:
    predictor = zoo.random_clip()
    predictor.attach(Residual(rank_image=rank, rank_text=rank))
    for adapter in adapters(predictor.clip).values():
        assert sum(p.numel() for p in adapter.parameters()) == 2 * 32 * rank + 1


class Operations(TorchDispatchMode):
    """Names of all operations that are carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rank", [None, 1, 4, 31])
def test_a_folded_model_does_what_a_plain_one_does(rank: int | None) -> None:
    predictor = zoo.random_clip()
    plain = zoo.random_clip()
    predictor.attach(Residual(rank_image=rank, rank_text=rank))
    folded = predictor.fold(0.5)

    def work(subject: Predictor) -> tuple[list[str], int]:
        operations, flops = Operations(), FlopCounterMode(display=False)
        with torch.no_grad(), flops, operations:
            subject(torch.zeros(2, 3, 40, 40), subject.tokenizer(["a taco", "a tiger"]))
        return operations.names, flops.get_total_flops()

    assert work(folded) == work(plain)
    assert work(predictor.eval())[1] > work(plain)[1]


# Dropping


def dropping(mode: Any, drop: float = 0.2, seed: int = 0) -> Adapter:
    adapter = Adapter(4, drop=drop, drop_mode=mode, gate=None, index=seed)
    assert adapter.weight is not None
    nn.init.normal_(adapter.weight)
    return adapter


@pytest.mark.parametrize(
    ("mode", "shape", "count"),
    [("module", (1,), 10_000), ("sample", (20, 1, 1), 500), ("token", (1, 25, 1), 400)],
)
def test_masks_have_the_shape_of_their_mode_and_its_frequency(
    mode: Any, shape: tuple[int, ...], count: int
) -> None:
    adapter = dropping(mode)
    z = torch.randn(20, 25, 4)
    whole = adapter.eval()(z).detach() - z
    adapter.train()
    adapter.masks = []
    for step in range(count):
        adapter.clock = (0, step, 0)
        if step >= 20:
            adapter._mask(z)
        else:
            branch = adapter(z).detach() - z
            mask = adapter.masks[-1]
            assert mask.shape == shape
            torch.testing.assert_close(branch, (mask / 0.8 * whole).expand_as(z))
            left_out = (mask == 0).expand(20, 25, 1).squeeze(-1)
            assert not branch[left_out].any()
    draws = torch.cat([mask.flatten() for mask in adapter.masks])
    assert len(draws) == 10_000
    assert abs(float(draws.mean()) - 0.8) < 3 * (0.8 * 0.2 / 10_000) ** 0.5


@pytest.mark.parametrize("mode", ["module", "sample", "token"])
def test_the_mean_over_masks_is_the_output_without_dropping(mode: Any) -> None:
    adapter = dropping(mode, drop=0.5)
    z = torch.randn(6, 5, 4)
    expected = adapter.eval()(z).detach()
    adapter.train()
    runs = []
    for step in range(2_000):
        adapter.clock = (1, step, 0)
        runs.append(adapter(z).detach())
    mean = torch.stack(runs).mean(dim=0)
    branch = (expected - z).abs()
    assert ((mean - expected).abs() <= 4.5 * branch / 2_000**0.5 + 1e-5).all()


@pytest.mark.parametrize("mode", ["module", "sample", "token"])
def test_evaluation_and_a_probability_of_zero_leave_nothing_out(mode: Any) -> None:
    z = torch.randn(3, 5, 4)
    adapter, without = dropping(mode, drop=0.9), dropping(mode, drop=0.0)
    without.load_state_dict(adapter.state_dict())
    adapter.masks = []
    assert torch.equal(adapter.eval()(z), without.train()(z))
    assert adapter.masks == []


@pytest.mark.parametrize("mode", ["module", "sample", "token"])
def test_draws_depend_on_seed_step_and_adapter_alone(mode: Any) -> None:
    def masks(seed: int, step: int, noise: int) -> list[Tensor]:
        torch.manual_seed(noise)
        predictor = zoo.random_clip()
        predictor.attach(Residual(drop=0.5, drop_mode=mode))
        predictor.train()
        drop_clock(predictor.clip, seed, step)
        with recorded_masks(predictor.clip) as drawn:
            predictor(torch.zeros(6, 3, 40, 40), predictor.tokenizer(["a taco"] * 6))
        return [one[0] for one in drawn.values()]

    def equal(first: list[Tensor], second: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    assert equal(masks(0, 1, noise=0), masks(0, 1, noise=1))
    assert not equal(masks(0, 1, noise=0), masks(0, 2, noise=0))
    assert not equal(masks(0, 1, noise=0), masks(1, 1, noise=0))
    one = masks(0, 1, noise=0)
    assert any(a.shape == b.shape and not torch.equal(a, b) for a in one for b in one)


def test_rows_are_left_out_by_their_number_in_the_whole_batch() -> None:
    z = torch.randn(8, 5, 4)
    adapter = dropping("sample", drop=0.5)
    adapter.clock = (3, 4, 0)
    whole = adapter(z)
    parts = []
    for first in (0, 5):
        adapter.clock = (3, 4, first)
        parts.append(adapter(z[first : first + 5 if first == 0 else None]))
    torch.testing.assert_close(torch.cat(parts), whole)


def test_without_a_clock_torch_decides() -> None:
    adapter = dropping("token", drop=0.5)
    adapter.masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        adapter(torch.zeros(1, 64, 4))
    first, again, other = adapter.masks
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_masks_are_kept_only_inside_the_block() -> None:
    predictor = zoo.random_clip()
    predictor.attach(Residual(drop=0.5))
    predictor.train()
    with recorded_masks(predictor.clip) as masks:
        predictor.encode_image(torch.zeros(1, 3, 40, 40))
    predictor.encode_image(torch.zeros(1, 3, 40, 40))
    assert sorted(len(drawn) for drawn in masks.values()) == [0] * 4 + [1] * 4
    assert next(iter(masks)) == "visual.transformer.resblocks.0.attn"


def test_half_precision_keeps_its_type() -> None:
    adapter = Adapter(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert adapter(torch.randn(2, 3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    half = Adapter(4, dtype=torch.bfloat16)
    assert half(torch.randn(2, 3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
