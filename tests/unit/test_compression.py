"""Compression: the truncated SVD, its bounds on weights and outputs, energies, sizes on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perdure import zoo
from perdure.adapters import read_adapters, write_adapters
from perdure.compression import compress
from perdure.errors import SurgeryError
from perdure.predictor import Predictor
from perdure.surgery.low_rank import LowRank
from perdure.surgery.residual import Residual

SURGERIES: dict[str, Any] = {
    "low-rank": LowRank(rank=6, scale=0.7, alpha=0.5),
    "full": Residual(alpha=0.5),
    "ranks": Residual(rank_image=6, rank_text=5, bias=True, gate=-0.3, alpha=0.5),
}


def adapted(*surgeries: Any) -> Predictor:
    predictor = zoo.random_clip()
    random = torch.Generator().manual_seed(1)
    for surgery in surgeries:
        predictor.attach(surgery)
    with torch.no_grad():
        for name, value in predictor.added().items():
            if not name.endswith("gate"):
                value.copy_(0.1 * torch.randn(value.shape, generator=random))
    return predictor.eval()


def matrices(predictor: Predictor) -> dict[str, Tensor]:
    """Return scale B A or s F of every place, by the path of the layer."""
    found = {}
    for path, module in predictor.clip.named_modules():
        leaf = path.rpartition(".")[2]
        if leaf == "low_rank":
            product = module.scale * module.up @ module.down
        elif leaf == "adapter":
            gate = 1.0 if module.gate is None else module.gate
            product = gate * (module.up @ module.down if module.weight is None else module.weight)
        else:
            continue
        found[path.rpartition(".")[0]] = product.detach().double()
    return found


@pytest.mark.parametrize("how", [{"rank": 2}, {"energy": 0.8}], ids=str)
@pytest.mark.parametrize("name", SURGERIES)
def test_bounds_are_the_norms_of_the_error(name: str, how: dict[str, Any]) -> None:
    predictor = adapted(SURGERIES[name])
    found = compress(predictor, **how)
    before, after = matrices(predictor), matrices(found.predictor)
    assert {layer.path for layer in found.layers} == before.keys()
    squares = 0.0
    for layer in found.layers:
        error = 0.5 * (before[layer.path] - after[layer.path])
        assert torch.linalg.matrix_rank(after[layer.path], atol=1e-6) == layer.rank
        assert float(error.norm()) == pytest.approx(layer.bound, rel=1e-4)
        assert float(torch.linalg.matrix_norm(error, 2)) == pytest.approx(layer.largest, rel=1e-4)
        assert 0 < layer.largest <= layer.bound
        squares += layer.bound**2
        # The nearest matrix of that rank: no other one of it can have a smaller error.
        sigma = torch.linalg.svdvals(0.5 * before[layer.path])
        assert layer.bound == pytest.approx(float(sigma[layer.rank :].norm()), rel=1e-6)
        held = 1 - layer.bound**2 / float(sigma.square().sum())
        assert layer.energy == pytest.approx(held, rel=1e-6)
        if "energy" in how:
            assert layer.energy >= 0.8
            smaller = float(sigma[: layer.rank - 1].square().sum() / sigma.square().sum())
            assert smaller < 0.8
    assert found.bound == pytest.approx(math.sqrt(squares))


@pytest.mark.parametrize("name", SURGERIES)
def test_outputs_of_a_layer_change_by_no_more_than_the_bound(name: str) -> None:
    predictor = adapted(SURGERIES[name])
    found = compress(predictor, rank=2)
    for layer in found.layers:
        pair = [one.clip.get_submodule(layer.path) for one in (predictor, found.predictor)]
        leaf = "low_rank" if hasattr(pair[0], "low_rank") else "adapter"
        first, second = (module.get_submodule(leaf) for module in pair)
        width = (
            (first.down if first.weight is None else first.weight).shape[1]
            if (leaf == "adapter")
            else first.down.shape[1]
        )
        x = torch.randn(50, width)
        with torch.no_grad():
            error = (first(x) - second(x)).norm(dim=1)
        assert bool((error <= layer.largest * x.norm(dim=1) * 1.001 + 1e-6).all())
        assert float((error / x.norm(dim=1)).max()) > 0.1 * layer.largest


@pytest.mark.parametrize("name", SURGERIES)
def test_whole_energy_loses_nothing_but_rounding(name: str) -> None:
    predictor = adapted(SURGERIES[name])
    found = compress(predictor, energy=1.0)
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        difference = predictor.encode_image(images) - found.predictor.encode_image(images)
    if name != "full":  # the last rank of a full matrix goes
        assert found.bound == 0.0
        assert float(difference.abs().max()) < 1e-6
    weak = predictor.copy()
    weak.set_alpha(0.0)
    zero = compress(weak, rank=1)
    assert zero.bound == 0.0
    with torch.no_grad():
        assert torch.equal(zero.predictor.encode_image(images), weak.encode_image(images))


def test_the_base_stays_and_the_source_too() -> None:
    predictor = adapted(Residual(bias=True))
    before = {name: value.clone() for name, value in predictor.state_dict().items()}
    found = compress(predictor, rank=3).predictor
    after = found.state_dict()
    start = zoo.random_clip().state_dict()
    assert all(torch.equal(after[name], value) for name, value in start.items())
    assert all(torch.equal(before[n], value) for n, value in predictor.state_dict().items())
    kept = [name for name in before if name.endswith(("adapter.gate", "adapter.bias"))]
    assert kept
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert found.surgeries[0] == Residual(rank_image=3, rank_text=3, bias=True)


def test_unequal_ranks_take_no_room_on_disk(tmp_path: Path) -> None:
    """Ranks that an energy leaves out at one place only are zeros in memory and absent on disk."""
    predictor = zoo.random_clip()
    predictor.export_open_clip(tmp_path / "base")
    predictor = zoo.load(f"local-dir:{tmp_path / 'base'}")
    predictor.attach(LowRank(rank=5))
    with torch.no_grad():
        for name, value in predictor.added().items():
            value.normal_()
            if name.endswith("up") and ".0." in name:
                value[:, 1:] = 0
    found = compress(predictor, energy=0.999)
    ranks = {layer.path: layer.rank for layer in found.layers}
    assert set(ranks.values()) == {1, 5}
    write_adapters(found.predictor, tmp_path / "small")
    again = read_adapters(tmp_path / "small")
    state = again.state_dict()
    assert all(torch.equal(state[n], value) for n, value in found.predictor.state_dict().items())
    write_adapters(predictor, tmp_path / "large")
    size, whole = (
        (tmp_path / name / "adapters.safetensors").stat().st_size for name in ("small", "large")
    )
    assert size < 0.7 * whole


def test_untrained_modules_compress_to_themselves() -> None:
    predictor = zoo.random_clip()
    predictor.attach(LowRank(rank=4))
    found = compress(predictor, energy=0.9)
    assert found.bound == 0.0
    assert {(layer.rank, layer.energy) for layer in found.layers} == {(1, 1.0)}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "not both or neither"),
        ({"rank": 2, "energy": 0.5}, "not both or neither"),
        ({"rank": 0}, "at least 1"),
        ({"energy": 0.0}, r"in \(0, 1\]"),
        ({"energy": 1.5}, r"in \(0, 1\]"),
    ],
)
def test_wrong_options_are_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        compress(adapted(LowRank()), **how)
    with pytest.raises(SurgeryError, match="no added modules"):
        compress(zoo.random_clip(), rank=1)
