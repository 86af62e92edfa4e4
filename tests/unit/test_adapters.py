"""Adapter-only checkpoints: round trip, another base refused, damage, use as a subject."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from perdure import exporting, zoo
from perdure.adapters import RECORD, hash_of_base, is_adapters, read_adapters, write_adapters
from perdure.errors import RunError, SurgeryError, WeightsError
from perdure.exporting import export_adapters
from perdure.merging import merge
from perdure.opening import load_student
from perdure.predictor import Predictor
from perdure.recipe import ModelSpec
from perdure.subjects import find
from perdure.surgery.low_rank import LowRank
from perdure.surgery.residual import Residual

SURGERIES = {
    "low-rank": LowRank(rank=3, scale=0.7, alpha=0.5),
    "part": LowRank(rank=2, targets=("in_proj",), towers=("text",), blocks=(1,)),
    "residual": Residual(alpha=0.25),
    "residual-ranks": Residual(rank_image=3, rank_text=2, bias=True, gate=None),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of a model that builds in milliseconds."""
    path = tmp_path_factory.mktemp("base") / "model"
    zoo.random_clip(0).export_open_clip(path)
    return f"local-dir:{path}"


def adapted(base: str, *surgeries: Any) -> Predictor:
    """Return a model with added modules that have some values, as after a training."""
    predictor = zoo.load(base)
    random = torch.Generator().manual_seed(1)
    for surgery in surgeries:
        predictor.attach(surgery)
    with torch.no_grad():
        for name, value in predictor.added().items():
            if not name.endswith(("down", "gate")):
                value.copy_(0.1 * torch.randn(value.shape, generator=random))
    return predictor.eval()


def same(a: Predictor, b: Predictor) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in mine.items()
    )


def embed(predictor: Predictor) -> Tensor:
    images = torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return predictor.encode_image(images)


@pytest.mark.parametrize("name", SURGERIES)
def test_a_round_trip_is_bit_for_bit(base: str, tmp_path: Path, name: str) -> None:
    predictor = adapted(base, SURGERIES[name])
    write_adapters(predictor, tmp_path / "kept", {"name": "lora", "momentum": 0.99})
    again = read_adapters(tmp_path / "kept")
    assert same(predictor, again)
    assert again.surgeries == predictor.surgeries
    assert not again.training
    assert torch.equal(embed(again), embed(predictor))
    stored = load_file(tmp_path / "kept" / "adapters.safetensors")
    assert stored.keys() == predictor.added().keys()
    record = json.loads((tmp_path / "kept" / RECORD).read_text())
    assert record["method"]["momentum"] == 0.99
    assert record["base"]["sha256"] == hash_of_base(zoo.load(base))
    assert same(again.fold(), predictor.fold())


def test_two_surgeries_on_one_model(base: str, tmp_path: Path) -> None:
    predictor = adapted(base, Residual(rank_image=2, rank_text=2), LowRank(rank=2))
    write_adapters(predictor, tmp_path / "kept")
    assert same(read_adapters(tmp_path / "kept"), predictor)


def test_another_base_is_refused(base: str, tmp_path: Path) -> None:
    write_adapters(adapted(base, LowRank()), tmp_path / "kept")
    with pytest.raises(WeightsError, match="made for another base model") as caught:
        read_adapters(tmp_path / "kept", zoo.random_clip(1))
    assert hash_of_base(zoo.random_clip(1))[:16] in str(caught.value)
    zoo.random_clip(1).export_open_clip(tmp_path / "moved")
    record = json.loads((tmp_path / "kept" / RECORD).read_text())
    record["base"]["name"] = f"local-dir:{tmp_path / 'moved'}"
    (tmp_path / "kept" / RECORD).write_text(json.dumps(record))
    with pytest.raises(WeightsError, match="made for another base model"):
        find(tmp_path / "kept").predictor()
    record["base"]["name"] = "perdure-tny"
    (tmp_path / "kept" / RECORD).write_text(json.dumps(record))
    with pytest.raises(WeightsError, match=r"needs its base model, but .*perdure-tiny"):
        find(tmp_path / "kept").predictor()


def test_one_changed_number_makes_another_base(base: str, tmp_path: Path) -> None:
    predictor = adapted(base, LowRank())
    with torch.no_grad():
        predictor.clip.logit_scale.add_(1e-6)
    with pytest.raises(WeightsError, match=r"model\.init"):
        write_adapters(predictor, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_what_cannot_be_kept_apart_is_refused(base: str, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="no added modules"):
        write_adapters(zoo.load(base), tmp_path / "kept")
    predictor = adapted(base, LowRank())
    predictor.set_head(("taco", "tiger"), ("{}",))
    with pytest.raises(WeightsError, match="linear head"):
        write_adapters(predictor, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def spoil_tensor(folder: Path) -> None:
    file = folder / "adapters.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({**tensors, name: torch.zeros(7, 7)}, file)


def spoil_name(folder: Path) -> None:
    file = folder / "adapters.safetensors"
    tensors = load_file(file)
    tensors["clip.other"] = tensors.pop(next(iter(tensors)))
    save_file(tensors, file)


def spoil_file(folder: Path) -> None:
    (folder / "adapters.safetensors").write_bytes(b"x" * 40)


def spoil_record(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | changes))


SPOILT = [
    (spoil_tensor, "is \\(7, 7\\), expected"),
    (spoil_name, "missing clip"),
    (spoil_file, "cannot be read"),
    (lambda folder: spoil_record(folder, format=2), "reads format 1"),
    (lambda folder: spoil_record(folder, base="perdure-tiny"), "does not name a base"),
    (lambda folder: spoil_record(folder, surgeries=[{"name": "brain"}]), "surgery is called"),
    (lambda folder: spoil_record(folder, surgeries=[]), "does not name a base"),
    (lambda folder: (folder / RECORD).write_text("[1]"), "instead of an object"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_a_damaged_directory_is_refused(
    base: str, tmp_path: Path, spoil: Any, message: str
) -> None:
    write_adapters(adapted(base, LowRank(rank=2)), tmp_path / "kept")
    spoil(tmp_path / "kept")
    with pytest.raises((WeightsError, RunError), match=message):
        read_adapters(tmp_path / "kept")


def test_it_is_a_subject_for_all_verbs(base: str, tmp_path: Path) -> None:
    predictor = adapted(base, LowRank(rank=2, alpha=0.5))
    write_adapters(predictor, tmp_path / "kept")
    subject = find(tmp_path / "kept")
    assert same(subject.predictor(), predictor.fold())
    assert same(subject.unfolded(), predictor)
    merged = merge("wise-ft", [base, tmp_path / "kept"], tmp_path / "merged", alpha=1.0)
    assert same(merged.predictor(), predictor.fold(1.0))  # the share is the dial of wise-ft
    student = load_student(ModelSpec(name=base, init=tmp_path / "kept"), 0)
    assert same(student, predictor)
    with pytest.raises(WeightsError, match="names its own base model"):
        find(str(tmp_path / "kept"), "openai").predictor()


def test_export_reads_back_and_leaves_nothing_wrong(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapters(adapted(base, LowRank(rank=3)), tmp_path / "kept")
    assert export_adapters(tmp_path / "kept", tmp_path / "again") is None
    assert is_adapters(tmp_path / "again")
    assert same(read_adapters(tmp_path / "again"), read_adapters(tmp_path / "kept"))
    lost = export_adapters(tmp_path / "kept", tmp_path / "small", rank=1)
    assert lost is not None
    assert same(read_adapters(tmp_path / "small"), lost.predictor)
    with pytest.raises(RunError, match="exists already"):
        export_adapters(tmp_path / "kept", tmp_path / "small")
    monkeypatch.setattr(exporting, "read_adapters", lambda path: zoo.load(base))
    with pytest.raises(KeyError):
        export_adapters(tmp_path / "kept", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
