"""Residual adapters: identity at the start, folding, dropping, copies, saving, other towers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from perdure import zoo
from perdure.errors import SurgeryError, WeightsError
from perdure.predictor import Predictor
from perdure.surgery.operations import from_record, to_record
from perdure.surgery.residual import Residual, adapters, drop_clock, recorded_masks
from perdure.surgery.sites import find_sites
from perdure.weights import run_at

KINDS = {
    "full": Residual(),
    "low rank": Residual(rank_image=3, rank_text=5),
    "bias": Residual(rank_image=3, bias=True),
    "no gate": Residual(gate=None),
    "image alone": Residual(towers=("image",)),
    "one block": Residual(rank_text=2, blocks=(1,)),
}


def trained(surgery: Residual, seed: int = 0) -> Predictor:
    """Return a predictor whose adapters are anything but zero."""
    predictor = zoo.random_clip(seed)
    predictor.attach(surgery)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in predictor.added().values():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=random))
    return predictor


def inputs(predictor: Predictor, count: int = 3) -> tuple[Tensor, Tensor]:
    size = predictor.preprocess.size
    pixels = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return pixels, predictor.tokenizer(["a taco", "a tiger on a hill", "two whales"][:count])


@torch.no_grad()
def rows(predictor: Predictor) -> Tensor:
    return torch.cat(predictor(*inputs(predictor))[:2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_a_new_adapter_changes_no_bit(kind: str, training: bool) -> None:
    predictor = zoo.random_clip()
    predictor.train(training)
    expected = rows(predictor)
    predictor.attach(KINDS[kind])
    assert len(predictor.added()) > 0
    assert all(adapter.training == training for adapter in adapters(predictor.clip).values())
    assert torch.equal(rows(predictor), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_folded_and_unfolded_agree_and_the_folded_is_plain(kind: str, alpha: float) -> None:
    predictor = trained(KINDS[kind])
    predictor.set_alpha(alpha)
    plain = predictor.fold()
    start = zoo.random_clip()
    assert plain.surgeries == ()
    assert plain.added() == {}
    assert list(plain.state_dict()) == list(start.state_dict())
    assert not any(module._forward_hooks for module in plain.modules())
    assert (rows(plain) - rows(predictor)).abs().max() < 1e-5
    assert (rows(plain) - rows(start)).abs().max() > (1e-3 if alpha else -1)
    if alpha == 0:
        assert torch.equal(rows(plain), rows(start))
        assert torch.equal(rows(predictor), rows(start))


def test_only_the_layers_before_an_adapter_change() -> None:
    start, plain = zoo.random_clip().state_dict(), trained(KINDS["full"]).fold().state_dict()
    changed = {name for name in start if not torch.equal(start[name], plain[name])}
    ends = ("attn.out_proj.weight", "mlp.c_proj.weight", "attn.out_proj.bias", "mlp.c_proj.bias")
    # The biases of attention start at zero, and R b of a zero b is zero.
    assert changed <= {name for name in start if name.endswith(ends)}
    assert {name for name in start if name.endswith(ends[:2])} <= changed


def test_inside_the_block_it_is_plain_and_afterwards_every_bit_is_back() -> None:
    predictor = trained(KINDS["full"])
    before = {name: value.clone() for name, value in predictor.state_dict().items()}
    expected = rows(predictor)
    with predictor.folded(0.5) as plain:
        assert plain is predictor
        assert torch.equal(rows(predictor), rows(plain.fold()))
        assert plain.added() == {}
        with pytest.raises(SurgeryError, match="no added modules, or is folded"):
            plain.folded().__enter__()
    assert len(predictor.added()) == len(trained(KINDS["full"]).added())
    assert all(torch.equal(before[name], value) for name, value in predictor.state_dict().items())
    assert torch.equal(rows(predictor), expected)


def test_folding_twice_is_refused() -> None:
    predictor = trained(KINDS["full"])
    surgery = predictor.surgeries[0]
    surgery.fold(predictor.clip, 1.0)
    with pytest.raises(SurgeryError, match="folded already"):
        surgery.fold(predictor.clip, 1.0)
    with pytest.raises(SurgeryError, match="no added modules"):
        trained(KINDS["full"]).fold(1.0).fold(0.5)


def test_a_copy_is_independent() -> None:
    predictor = trained(KINDS["low rank"])
    other = predictor.copy()
    expected = rows(other)
    with torch.no_grad():
        for parameter in predictor.added().values():
            parameter.add_(1)
    predictor.set_alpha(0.5)
    assert torch.equal(rows(other), expected)
    assert other.surgeries[0].alpha == 1.0
    assert not torch.equal(rows(predictor), expected)


def test_weights_can_be_swapped_in_from_outside() -> None:
    predictor = trained(KINDS["full"])
    other = trained(KINDS["full"], seed=7)
    weights = {name: value.detach() for name, value in other.added().items()}
    with torch.no_grad():
        found = run_at(predictor, weights, *inputs(predictor))
        for name, value in predictor.added().items():
            value.copy_(weights[name])
    assert torch.equal(torch.cat(found[:2]), rows(predictor))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_with_its_strength(kind: str, tmp_path: Path) -> None:
    predictor = trained(KINDS[kind])
    predictor.set_alpha(0.25)
    predictor.save(tmp_path / "p")
    loaded = Predictor.load(tmp_path / "p")
    assert loaded.surgeries == predictor.surgeries
    assert loaded.surgeries[0].alpha == 0.25
    assert loaded.added().keys() == predictor.added().keys()
    assert torch.equal(rows(loaded), rows(predictor.eval()))
    record = json.loads((tmp_path / "p" / "predictor.json").read_text())
    assert record["format"] == 2
    predictor.fold().save(tmp_path / "plain")
    record = json.loads((tmp_path / "plain" / "predictor.json").read_text())
    assert record["format"] == 1
    assert "surgeries" not in record


def test_what_open_clip_gets_is_folded(tmp_path: Path) -> None:
    predictor = trained(KINDS["full"])
    predictor.set_alpha(0.5)
    predictor.export_open_clip(tmp_path / "m")
    loaded = zoo.load(f"local-dir:{tmp_path / 'm'}")
    assert torch.equal(rows(loaded), rows(predictor.fold()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_surgery_is_written_and_read(kind: str) -> None:
    record = json.loads(json.dumps(to_record(KINDS[kind])))
    assert from_record(record) == KINDS[kind]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"name": "residuall"}, "did you mean 'residual'"),
        ({}, "called None"),
        ("residual", "called None"),
        ({"name": "residual", "drop": 2.0}, "drop is 2.0"),
        ({"name": "residual", "drop": "much"}, "drop = 'much'"),
        ({"name": "residual", "rank": 3}, "no field rank"),
        ({"name": "residual", "towers": ["sound"]}, "towers.0 = 'sound'"),
    ],
)
def test_nonsense_is_no_surgery(record: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        from_record(record)


@pytest.mark.parametrize(
    "entries",
    [
        3,
        "residual",
        [None],
        {"name": "residual"},
        [{"name": "residual", "rank_image": 10**9}],
        [{"name": "residual", "blocks": [7]}],
        [{"name": "residual", "alpha": -1}],
        [{"name": "residual"}, {"name": "residual"}],
        [{"name": "residual", "rank_image": 2}],
        [],
    ],
)
def test_a_file_with_other_surgeries_is_refused(entries: Any, tmp_path: Path) -> None:
    trained(KINDS["full"]).save(tmp_path / "p")
    file = tmp_path / "p" / "predictor.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"surgeries": entries}))
    with pytest.raises(WeightsError):
        Predictor.load(tmp_path / "p")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"drop": 1.0}, "drop is 1.0"),
        ({"drop": float("nan")}, "drop is nan"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"gate": 0.0}, "gate is 0.0"),
        ({"rank_image": 0}, "rank_image is 0"),
        ({"towers": ()}, "towers are"),
        ({"towers": ("text", "text")}, "each once"),
        ({"blocks": ()}, "at least one"),
        ({"blocks": (-1,)}, "counting from 0"),
    ],
)
def test_fields_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        Residual(**values)


@pytest.mark.parametrize(
    ("surgery", "message"),
    [
        (Residual(rank_image=32), "rank_image is 32"),
        (Residual(blocks=(0, 2)), r"no tower has the blocks \[2\]; allowed are 0 to 1"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_anything_is_added(
    surgery: Residual, message: str
) -> None:
    predictor = zoo.random_clip()
    with pytest.raises(SurgeryError, match=message):
        predictor.attach(surgery)
    assert predictor.added() == {}
    assert adapters(predictor.clip) == {}


def test_a_second_set_of_adapters_is_refused() -> None:
    predictor = trained(KINDS["full"])
    with pytest.raises(SurgeryError, match="has an adapter already"):
        predictor.attach(Residual())


def test_a_resnet_says_what_to_do_instead() -> None:
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}
    predictor = zoo.random_clip(vision_cfg=resnet)
    with pytest.raises(SurgeryError, match=r"ModifiedResNet.*towers: \[text\].*flyp"):
        predictor.attach(Residual())
    predictor.attach(Residual(towers=("text",)))
    assert len(adapters(predictor.clip)) == 4


def test_sites_name_the_output_of_attention_and_the_last_layer_of_the_mlp() -> None:
    sites = find_sites(zoo.random_clip().clip)
    assert len(sites) == 8
    first, second = sites[:2]
    assert (first.hooked, first.linear) == (
        "visual.transformer.resblocks.0.attn",
        "visual.transformer.resblocks.0.attn.out_proj",
    )
    assert second.hooked == second.linear == "visual.transformer.resblocks.0.mlp.c_proj"
    assert {site.width for site in sites} == {32}


def test_frozen_weights_get_no_gradient_and_stay() -> None:
    predictor = trained(Residual(rank_image=4, rank_text=4)).train()
    predictor.requires_grad_(False)
    for parameter in predictor.added().values():
        parameter.requires_grad_(True)
    before = {name: value.clone() for name, value in predictor.state_dict().items()}
    optimizer = torch.optim.AdamW(predictor.added().values(), lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        pairs = predictor(*inputs(predictor))
        (pairs.image - pairs.text).square().sum().backward()
        optimizer.step()
    for name, value in predictor.named_parameters():
        assert torch.equal(before[name], value) == (name not in predictor.added())
        assert (value.grad is None) == (name not in predictor.added())


def test_data_parallel_wrappers_take_steps_in_which_adapters_are_left_out() -> None:
    plain, wrapped = (trained(Residual(drop=0.5)).train() for _ in range(2))
    for predictor in (plain, wrapped):
        predictor.requires_grad_(False)
        for parameter in predictor.added().values():
            parameter.requires_grad_(True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        several = nn.parallel.DistributedDataParallel(wrapped)
        for step in range(3):
            for module, predictor in ((plain, plain), (several, wrapped)):
                drop_clock(predictor.clip, 0, step)
                pairs = module(*inputs(predictor))
                (pairs.image - pairs.text).square().sum().backward()
        found = {name: value.grad for name, value in wrapped.added().items()}
        for name, value in plain.added().items():
            torch.testing.assert_close(found[name], value.grad)
    finally:
        dist.destroy_process_group()


def test_a_dropped_adapter_costs_nothing_and_gets_a_zero_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor = trained(Residual(drop=0.5)).train()
    pairs = inputs(predictor)
    calls: list[Tensor] = []

    def linear(*args: Any) -> Tensor:
        calls.append(args[1])
        return nn.functional.linear(*args)

    monkeypatch.setattr("perdure.surgery.adapter.functional", SimpleNamespace(linear=linear))
    drop_clock(predictor.clip, seed=0, step=2)
    with recorded_masks(predictor.clip) as masks:
        out = predictor(*pairs)
    out.image.sum().add(out.text.sum()).backward()
    kept = {path for path, drawn in masks.items() if drawn[0].item()}
    assert 0 < len(kept) < len(masks)
    assert len(calls) == len(kept)
    for path, adapter in adapters(predictor.clip).items():
        assert adapter.weight is not None
        assert adapter.weight.grad is not None
        assert bool(adapter.weight.grad.any()) == (path in kept)
