"""The shared objective: which contrastive loss, on which rows, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perdure import losses, objective, zoo
from perdure.batch import Batch
from perdure.distillation import Distillation
from perdure.errors import RecipeError, TaskError
from perdure.method import Context, parse_method
from perdure.methods.flyp import Flyp
from perdure.objective import Contrastive
from perdure.predictor import Predictor

CONTEXT = Context(4, ("taco", "tiger"), ("{}",), zoo.random_clip)


def batch() -> Batch:
    tokens = zoo.random_clip().tokenizer(["a taco", "a photo of a tiger", "taco"])
    return Batch(torch.randn(3, 3, 40, 40), tokens, torch.tensor([0, 1, 0]))


def term(method: Contrastive, student: Predictor, data: Batch) -> torch.Tensor:
    return objective.objective(student, data, 1, method).terms["contrastive"]


@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_switch_switches_one_thing(margin: float, smoothing: float) -> None:
    student, data = zoo.random_clip(init_logit_bias=-5.0), batch()
    pairs, bias = student(data.images, data.tokens), student.clip.logit_bias
    expected = {
        "info_nce": losses.info_nce(pairs, smoothing, margin=margin),
        "mpm_nce": losses.mpm_nce(pairs, data.labels, margin, smoothing),
        "mpm_sigmoid": losses.mpm_sigmoid(pairs, data.labels, bias, margin, smoothing),
    }
    for name, value in expected.items():
        method = Contrastive(contrastive=name, margin=margin, smoothing=smoothing)  # type: ignore[arg-type]
        assert torch.equal(term(method, student, data), value)
    assert len({value.item() for value in expected.values()}) == 3


def test_a_margin_without_many_positives_is_that_of_distinct_labels() -> None:
    student, data = zoo.random_clip(), batch()
    distinct = data._replace(labels=torch.arange(3))
    one = term(Contrastive(margin=0.1), student, data)
    assert torch.equal(one, term(Contrastive(contrastive="mpm_nce", margin=0.1), student, distinct))
    assert one > term(Contrastive(), student, data)


def test_labels_are_gathered_only_where_they_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[Any] = []

    def gather(labels: torch.Tensor) -> torch.Tensor:
        gathered.append(labels)
        return labels

    monkeypatch.setattr(objective, "gather_labels", gather)
    student, data = zoo.random_clip(), batch()
    term(Contrastive(), student, data)
    assert not gathered
    term(Contrastive(contrastive="mpm_nce"), student, data)
    assert len(gathered) == 1
    assert gathered[0] is data.labels


def test_the_sigmoid_loss_needs_a_model_with_its_bias() -> None:
    with pytest.raises(TaskError, match=r"has no logit_bias.*use 'mpm_nce'"):
        Flyp(contrastive="mpm_sigmoid").build(zoo.random_clip(), CONTEXT)
    student = zoo.random_clip(init_logit_bias=-5.0)
    learner = Flyp(contrastive="mpm_sigmoid").build(student, CONTEXT)
    sum(learner(batch(), 1).terms.values(), torch.zeros(())).backward()
    assert student.clip.logit_bias.grad is not None


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"contrastive": "mpm"}, "method.contrastive: found 'mpm'"),
        ({"margin": float("nan")}, "method.margin"),
        ({"margin": 3}, "method.margin: found 3"),
        ({"smoothing": 1.0}, "method.smoothing: found 1.0"),
    ],
)
def test_nonsense_is_refused(table: dict[str, Any], fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        parse_method({"name": "flyp", **table})


def test_nobody_builds_a_teacher_that_nobody_needs() -> None:
    assert Distillation(strength=0).distiller(zoo.random_clip(), CONTEXT) is None
    assert Distillation(strength=0).distiller(zoo.random_clip(), CONTEXT, always=True) is not None
