"""Preflight: real steps, gradients proved per tensor, bytes that add up, nothing written."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from perdure.batch import Step
from perdure.errors import RunError, TaskError
from perdure.learner import Learner
from perdure.method import METHODS, Entry
from perdure.preflight import preflight
from perdure.recipe import parse_recipe
from perdure.zoo import random_clip


class Partial(Learner):
    """Trains four tensors, of which some reach the loss, and one only at its second step."""

    def __init__(self, student, used):
        super().__init__(student)
        self.student.requires_grad_(False)
        for name in ("now", "later", "zero", "never"):
            self.register_parameter(name, nn.Parameter(torch.ones(4)))
        if used == "most":
            self.never.requires_grad_(False)
        self.used = used

    def forward(self, batch, step):
        if self.used == "none":
            return Step({"constant": torch.ones(())}, {})
        loss = self.now.square().sum() + 0.0 * self.zero.sum()
        return Step({"loss": loss + self.later.sum() if step > 1 else loss}, {})


@dataclass(frozen=True)
class PartialMethod:
    name: ClassVar[str] = "partial"
    paper: ClassVar[str] = "https://example.org"

    used: str = "most"

    def build(self, student, context):
        return Partial(student, self.used)


@pytest.fixture(autouse=True)
def _partial_method(monkeypatch):
    monkeypatch.setitem(METHODS, "partial", Entry(f"{__name__}:PartialMethod", "for tests"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    random_clip().save(path / "tiny")
    return str(path / "tiny")


@pytest.fixture
def make(clip):
    def recipe(method, optim=None, **options):
        return parse_recipe(
            {
                "model": {"name": clip},
                "data": {"name": "emojishift", "shots": 1},
                "method": {"name": method, **options},
                "optim": {"lr": 1e-3, "batch_size": 16, "steps": 7, **(optim or {})},
                "run": {"device": "cpu", "threads": 1},
            }
        )

    return recipe


@pytest.mark.parametrize("method", ["ft", "l2sp", "flyp", "carot", "tracer"])
def test_every_tensor_of_every_method_gets_a_gradient(make, method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = preflight(make(method))
    assert all(tensor.moved for tensor in found.tensors)
    assert 0 < found.trainable <= found.parameters
    assert len(found.losses) == 2
    assert found.total_steps == 7
    assert found.seconds == pytest.approx(7 * found.seconds_per_step)
    assert found.seconds > 0
    assert list(tmp_path.iterdir()) == []
    json.dumps(found.to_dict(), allow_nan=False)


def test_bytes_add_up(make):
    student = sum(each.numel() for each in random_clip().parameters())
    plain, teacher = preflight(make("flyp")), preflight(make("tracer"))
    assert plain.memory.weights >= 4 * student
    assert plain.memory.gradients == 4 * plain.trainable
    # Two moments per number, and one step count per tensor.
    assert plain.memory.optimizer == 8 * plain.trainable + 4 * len(plain.tensors)
    assert plain.memory.snapshots == 0
    assert teacher.memory.snapshots >= 4 * teacher.trainable
    assert plain.memory.peak > plain.memory.known
    assert plain.memory.peak_of == "process"


def test_the_second_step_counts_and_zero_is_told_from_none(make):
    found = preflight(make("partial"))
    assert {tensor.name: tensor.moved for tensor in found.tensors} == {
        "now": True,
        "later": True,
        "zero": False,
    }


def test_tensors_without_gradient_are_named(make):
    with pytest.raises(TaskError, match=r"1 of 4 trainable tensors got no gradient.*: never\."):
        preflight(make("partial", used="all"))
    with pytest.raises(TaskError, match=r"4 of 4 .*now, later, zero, never"):
        preflight(make("partial", used="none"))


def test_one_step_is_enough_where_there_is_only_one(make):
    with pytest.raises(TaskError, match="later"):
        preflight(make("partial", {"steps": 1}))
    assert len(preflight(make("flyp", {"steps": 1})).losses) == 1


def test_equal_tensors_are_grouped(make):
    groups = preflight(make("flyp")).groups()
    name = "student.clip.transformer.resblocks.*.mlp.c_fc.weight"
    assert (name, (128, 32), 2) in groups
    assert sum(count for _, _, count in groups) == len(preflight(make("flyp")).tensors)


def test_missing_start_is_reported(make, tmp_path):
    recipe = make("ft")
    model = dataclasses.replace(recipe.model, init=tmp_path / "nowhere")
    with pytest.raises(RunError, match="does not exist"):
        preflight(dataclasses.replace(recipe, model=model))
