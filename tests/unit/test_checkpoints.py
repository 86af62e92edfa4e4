"""Checkpoints of training scripts: read with what surrounds the weights, and never executed."""

from __future__ import annotations

import argparse
import os
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from perdure import checkpoints
from perdure.errors import WeightsError


def training_state(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what few-shot training scripts leave beside the weights, live objects included."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.002, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    inner = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    module = ModuleType("dassl.optim.lr_scheduler")

    class ConstantWarmupScheduler:
        def __init__(self) -> None:
            self.successor, self.last_epoch = inner, 3

    ConstantWarmupScheduler.__module__ = module.__name__
    ConstantWarmupScheduler.__qualname__ = "ConstantWarmupScheduler"
    module.ConstantWarmupScheduler = ConstantWarmupScheduler
    for name in ("dassl", "dassl.optim"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return {
        "epoch": 50,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": inner, "outer": ConstantWarmupScheduler(), "_last_lr": [0.1]},
        "val_result": np.float64(81.5),
        "args": argparse.Namespace(shots=16),
        "seen": defaultdict(list, {"a": [1]}),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_is_read_with_what_training_left_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    weights = OrderedDict(ctx=torch.randn(4, 8))
    path = tmp_path / "model.pth.tar-50"
    content = {"state_dict": weights, **training_state(monkeypatch)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "dassl.optim.lr_scheduler")
    found = checkpoints.read(path)
    torch.testing.assert_close(found["state_dict"]["ctx"], weights["ctx"])
    assert found["epoch"] == 50
    assert found["optimizer"]["param_groups"][0]["lr"] == 0.002
    assert isinstance(found["scheduler"]["outer"], checkpoints.Inert)
    assert isinstance(found["args"], checkpoints.Inert)
    assert list(checkpoints.state_dict(found, path)) == ["ctx"]


class Hostile:
    """Makes a directory when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self.mark),)


@pytest.mark.parametrize("place", ["scheduler", "optimizer", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, place: str, zipped: bool) -> None:
    mark, path = tmp_path / "mark", tmp_path / "model.pth.tar-50"
    content = {"state_dict": {"ctx": torch.zeros(2, 3)}, "scheduler": {}, "optimizer": {}}
    content[place] = {"ctx": Hostile(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="cannot read weights"):
        checkpoints.read(path)
    assert not mark.exists()
    # The file is one that would have run it.
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_the_reader_of_torch_is_left_as_it_was(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    path = tmp_path / "args.pt"
    torch.save({"args": argparse.Namespace()}, path)
    checkpoints.read(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(Exception, match="argparse"):
        torch.load(path, weights_only=True)


def test_prefixes_of_all_names_go_and_those_of_some_stay() -> None:
    one = torch.zeros(1)
    names = ("visual.proj", "text.model.weight")
    for prefix in ("module.", "model.", "module.model.", "module._orig_mod.", ""):
        found = checkpoints.unwrapped({prefix + name: one for name in names})
        assert tuple(found) == names
    assert set(checkpoints.unwrapped({"model.a": one, "b": one})) == {"model.a", "b"}


def test_whole_models_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(WeightsError, match=r"Save model\.state_dict\(\)"):
        checkpoints.read(path)
    torch.save({"state_dict": {"a": 3}}, path)
    with pytest.raises(WeightsError, match="no plain state dict"):
        checkpoints.state_dict(checkpoints.read(path), path)
