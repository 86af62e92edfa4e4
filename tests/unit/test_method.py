"""The table of methods and the parsing of their options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import perdure.learner
import perdure.method
from perdure import zoo
from perdure.batch import Batch, Step
from perdure.errors import RecipeError
from perdure.learner import Learner, evaluating, train_only
from perdure.method import METHODS, Entry, method_class, parse_method, register
from perdure.methods.ft import Ft
from perdure.methods.tracer import Tracer


@dataclass(frozen=True)
class Bare:
    """A method without options."""

    name: ClassVar[str] = "bare"
    paper: ClassVar[str] = ""


def test_a_name_alone_gives_the_defaults() -> None:
    assert parse_method({"name": "tracer"}) == Tracer()
    assert parse_method({"name": "ft"}) == Ft()


def test_options_are_converted_to_their_types() -> None:
    method = parse_method({"name": "tracer", "beta": "7e-1", "teacher_every": 5, "strength": 1})
    assert method == Tracer(beta=0.7, teacher_every=5, strength=1.0)


def test_all_faults_come_at_once_with_key_value_and_hint() -> None:
    table = {
        "name": "tracer",
        "feature_wieght": 1,
        "beta": 0,
        "teacher": "wmaa",
        "teacher_every": 1.5,
        "strength": float("nan"),
        "colour": "red",
    }
    with pytest.raises(RecipeError) as caught:
        parse_method(table)
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    for part in (
        "method.feature_wieght: tracer has no such key; did you mean 'feature_weight'?",
        "method.beta: found 0;",
        "method.teacher: found 'wmaa';",
        "method.teacher_every: found 1.5;",
        "method.strength: found nan;",
        "method.colour: tracer has no such key; allowed: contrastive, margin, smoothing,",
    ):
        assert any(line.startswith(part) for line in lines), part


@pytest.mark.parametrize("name", [None, 3, "tracr"])
def test_unknown_names(name: object) -> None:
    with pytest.raises(RecipeError, match=r"method\.name.*allowed: carot, coop, flyp, ft"):
        parse_method({"name": name})


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(RecipeError, match="did you mean 'tracer'"):
        method_class("tracr")


def test_registered_methods_are_parsed_like_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perdure.method, "METHODS", dict(METHODS))
    register("bare", f"{__name__}:Bare", "nothing")
    register("bare", f"{__name__}:Bare", "nothing, again")
    method = parse_method({"name": "bare"})
    assert (method.name, type(method).__name__) == ("bare", "Bare")
    with pytest.raises(RecipeError, match="allowed: none"):
        parse_method({"name": "bare", "x": 1})
    with pytest.raises(RecipeError, match="already belongs to"):
        register("bare", "elsewhere:Bare", "another")


@pytest.mark.parametrize("target", ["perdure.absent:X", "perdure.method:Absent", "nonsense"])
def test_targets_that_cannot_be_imported(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "odd", Entry(target, ""))
    with pytest.raises(RecipeError, match="cannot be imported"):
        method_class("odd")


def test_the_learner_is_found_beside_the_method() -> None:
    assert perdure.method.Learner is perdure.learner.Learner
    with pytest.raises(AttributeError, match="Absent"):
        _ = perdure.method.Absent  # type: ignore[attr-defined]


def test_a_learner_must_say_what_its_loss_is() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Learner(nn.Identity())  # type: ignore[abstract, arg-type]


def test_after_step_does_nothing_by_default() -> None:
    class Silent(Learner):
        def forward(self, batch: Batch, step: int) -> Step:
            return Step({}, {})

    learner = Silent(nn.Linear(1, 1))  # type: ignore[arg-type]
    before = torch.cat([p.flatten() for p in learner.parameters()])
    learner.after_step(1)
    assert torch.equal(before, torch.cat([p.flatten() for p in learner.parameters()]))


def test_train_only_frees_the_parts_and_freezes_the_rest() -> None:
    student = zoo.random_clip()
    student.set_head(("taco", "tiger"), ("{}",))
    student.requires_grad_(False)
    assert student.head is not None
    train_only(student, student.clip.visual, student.head)
    free = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in free} == {"clip", "head"}
    every = {name for name, _ in student.named_parameters()}
    assert free == {name for name in every if name.startswith(("clip.visual.", "head."))}


def test_positions_that_the_architecture_fixes_never_train() -> None:
    student = zoo.random_clip(vision_cfg={"pos_embed_type": "sin_cos_2d"})
    train_only(student, student.clip)
    fixed = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert fixed == ["clip.visual.positional_embedding"]
    # Also on the copy of a student whose text tower was frozen.
    train_only(student, student.clip.visual)
    other = student.copy()
    train_only(other, other.clip)
    assert sum(not parameter.requires_grad for parameter in other.parameters()) == 1


def test_evaluating_puts_every_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(1)).train()
    model[1].eval()

    def fail() -> None:
        with evaluating(model):
            assert not any(part.training for part in model.modules())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [part.training for part in model.modules()] == [True, True, False]
