"""Barriers: published scans, closed forms, and a permuted network whose barrier must be seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perdure import metrics, towers
from perdure.data.loading import eval_batches
from perdure.data.suites import suite
from perdure.errors import DataError, RunError, WeightsError
from perdure.evaluation import evaluate
from perdure.figures import path as draw
from perdure.path import PathScan, scan
from perdure.prediction import How, Unit, open_suite, predict
from perdure.predictor import Predictor
from perdure.surgery.slots import Slots
from perdure.zoo import random_clip

Golden = Callable[[str], dict[str, np.ndarray]]
HOW = How(limit=24)
SUITE = "emojishift-val"
TEMPLATES = ("a photo of a {}",)


@pytest.mark.parametrize("line", ["zero_to_ft", "zero_to_cont", "ft_to_cont"])
def test_published_scans(golden: Golden, line: str) -> None:
    found = {
        key.rpartition("/")[2]: value
        for key, value in golden("mergetune_quadratic").items()
        if key.startswith(f"scan/{line}/")
    }
    assert metrics.loss_barrier(found["loss"], found["t"]) == pytest.approx(
        float(found["loss_barrier"]), abs=1e-12
    )
    assert metrics.accuracy_barrier(found["acc"], found["t"]) == pytest.approx(
        float(found["acc_barrier"]), abs=1e-12
    )


def test_published_barrier_of_a_permuted_network(golden: Golden) -> None:
    found = golden("mergetune_quadratic")
    barrier = metrics.loss_barrier(found["perm/loss"], found["perm/t"])
    assert barrier == pytest.approx(float(found["perm/barrier"]), abs=1e-12)
    assert barrier == pytest.approx(0.2537, abs=1e-4)
    # The same loss at both ends, because permuted hidden units are the same function.
    assert found["perm/loss"][0] == pytest.approx(found["perm/loss"][-1], abs=1e-12)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.floats(-5, 5))
def test_barriers_are_never_negative_and_ignore_straight_lines(
    values: list[float], slope: float
) -> None:
    curve = np.array(values)
    t = np.linspace(0, 1, len(curve))
    barrier = metrics.loss_barrier(curve)
    assert barrier >= 0
    assert metrics.loss_barrier(curve + slope * t) == pytest.approx(barrier, abs=1e-9)
    assert metrics.accuracy_barrier(-curve) == barrier
    assert metrics.loss_barrier(t**2) == 0.0
    assert metrics.barriers(np.stack([curve, t**2]))[0] == barrier


def test_a_barrier_needs_a_line() -> None:
    for losses, t in (
        (np.ones(1), None),
        (np.ones(3), np.array([0.0, 0.6, 0.5])),
        (np.ones(3), np.array([0.0, 0.5, 0.9])),
        (np.ones(3), np.array([0.0, 1.0])),
    ):
        with pytest.raises(DataError, match="two or more points"):
            metrics.loss_barrier(losses, t)


def test_the_ends_have_exactly_their_own_scores() -> None:
    models = [random_clip(seed) for seed in range(3)]
    found = scan(models, SUITE, points=3, how=HOW)
    assert [(one.start, one.end, one.control) for one in found.segments] == [
        ("A", "B", False), ("B", "C", False), ("A", "C", True),
    ]  # fmt: skip
    alone = [evaluate(model, SUITE, limit=24) for model in models]
    for segment, (first, last) in zip(found.segments, [(0, 1), (1, 2), (0, 2)], strict=True):
        for split, curve in segment.splits.items():
            for place, model in ((0, first), (-1, last)):
                assert curve.accuracy[place] == alone[model][split]["accuracy"]
                assert curve.nll[place] == alone[model][split]["nll"]
            assert curve.n == 24
            low, high = curve.loss_barrier.low, curve.loss_barrier.high
            assert low <= curve.loss_barrier.value <= high + 1e-9
            assert curve.accuracy[curve.lowest] == min(curve.accuracy)


def test_the_middle_is_the_mean_of_the_weights() -> None:
    ends = [random_clip(0), random_clip(1)]
    found = scan(ends, SUITE, points=3, how=HOW)
    middle = random_clip(0)
    halves = [model.state_dict() for model in ends]
    middle.load_state_dict({name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]})
    expected = evaluate(middle, SUITE, limit=24)
    for split, curve in found.segments[0].splits.items():
        assert curve.nll[1] == pytest.approx(expected[split]["nll"], rel=1e-4)


def test_a_zero_shot_end_is_scored_with_a_head_where_the_other_has_one() -> None:
    tuned = random_clip(1)
    names = ("taco", "banana", "tiger")
    tuned.set_head(names, ("a {}",))
    found = scan([random_clip(0), tuned], SUITE, points=2, how=HOW)
    assert found.segments[0].splits["val"].n == 24


class Noise:
    """Random images that are labelled by a model, which is right about all of them."""

    name = "noise"
    classes = ("taco", "banana", "tiger", "piano", "rocket", "anchor")
    captioned = False

    def __init__(self, model: Predictor) -> None:
        self.labels = np.arange(60) % len(self.classes)
        images = torch.stack([self.image(index) for index in range(60)])
        with torch.no_grad():  # a head of which some row is largest for any image
            features = model.encode_image(model.preprocess.normalize(images))
            model.set_head(self.classes, TEMPLATES)
            assert model.head is not None
            centred = features - features.mean(0)
            model.head.weight.copy_(5 * centred[:6] / centred[:6].norm(dim=1, keepdim=True))
            model.head.bias.copy_(-features.mean(0) @ model.head.weight.T)
            model.head.weight.mul_(1 / centred.norm(dim=1).mean())
            model.head.bias.mul_(1 / centred.norm(dim=1).mean())
        self.labels = predict(model, self, TEMPLATES).logits.argmax(axis=1)

    def __len__(self) -> int:
        return 60

    def image(self, index: int) -> Tensor:
        drawn = torch.Generator().manual_seed(index)
        coarse = torch.rand(1, 3, 4, 4, generator=drawn)
        return (255 * torch.nn.functional.interpolate(coarse, (40, 40))[0]).to(torch.uint8)


def test_permuted_hidden_units_show_a_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function at both ends, and another one between them."""
    model = random_clip(0, vision_cfg={"layers": 1})
    mlp: Any = model.clip.visual.transformer.resblocks[0].mlp
    with torch.no_grad():  # or else the block hardly matters
        mlp.c_fc.weight.mul_(10)
        mlp.c_proj.weight.mul_(10)
    data = Noise(model)
    permuted = model.copy()
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    other: Any = permuted.clip.visual.transformer.resblocks[0].mlp
    with torch.no_grad():
        other.c_fc.weight.copy_(mlp.c_fc.weight[order])
        other.c_fc.bias.copy_(mlp.c_fc.bias[order])
        other.c_proj.weight.copy_(mlp.c_proj.weight[:, order])
    unit = Unit(data, TEMPLATES, Noise.classes)
    assert len(set(unit.dataset.labels.tolist())) > 2
    split = suite(SUITE).splits[0]
    monkeypatch.setattr("perdure.path.open_suite", lambda *_: iter([(split, unit)]))
    found = scan([model, permuted], SUITE, points=5).segments[0].splits["val"]
    assert found.accuracy[0] == found.accuracy[-1] == 1.0
    assert found.nll[0] == pytest.approx(found.nll[-1], rel=1e-4)
    assert found.loss_barrier.value > 0.1
    assert found.loss_barrier.low > 0
    assert found.accuracy_barrier.value > 0.1
    none = scan([model, model], SUITE, points=5).segments[0].splits["val"]
    assert none.loss_barrier.value == pytest.approx(0.0, abs=1e-5)
    assert none.accuracy_barrier.value == 0.0


def test_class_rows_are_mixed_raw_and_normalised_afterwards() -> None:
    ends = [random_clip(0), random_clip(0)]
    with torch.no_grad():
        ends[1].clip.text_projection.mul_(3.0)
        ends[1].clip.token_embedding.weight.add_(
            0.02 * torch.randn(ends[1].clip.token_embedding.weight.shape)
        )
    found = scan(ends, SUITE, points=3, space="classifier", how=HOW)
    assert found.space == "classifier"
    for place, model in ((0, ends[0]), (-1, ends[1])):
        alone = evaluate(model, SUITE, limit=24)
        for split, curve in found.segments[0].splits.items():
            assert curve.accuracy[place] == alone[split]["accuracy"]
            assert curve.nll[place] == alone[split]["nll"]
    with pytest.raises(WeightsError, match="image towers differ"):
        scan([random_clip(0), random_clip(1)], SUITE, points=3, space="classifier", how=HOW)


def with_contexts(seed: int) -> Predictor:
    """Return the model of seed 0 with contexts that have moved."""
    model = random_clip(0)
    model.attach(Slots(count=2))
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.added().values():
            value.add_(0.5 * torch.randn(value.shape, generator=drawn))
    return model


def test_learned_contexts_move_from_their_start_or_as_classifiers() -> None:
    tuned = with_contexts(1)
    found = scan([random_clip(0), tuned], SUITE, points=3, how=HOW)
    ends = (tuned.fold(0.0), tuned.fold(0.5), tuned)
    for place, model in enumerate(ends):
        alone = evaluate(model, SUITE, limit=24)
        for split, curve in found.segments[0].splits.items():
            assert curve.nll[place] == pytest.approx(alone[split]["nll"], rel=1e-5)
    # As classifiers the zero-shot end keeps its own templates.
    rows = scan([random_clip(0), tuned], SUITE, points=2, space="classifier", how=HOW)
    zero_shot = evaluate(random_clip(0), SUITE, limit=24)
    for split, curve in rows.segments[0].splits.items():
        assert curve.nll[0] == zero_shot[split]["nll"]


def test_raw_rows_of_single_prompts_are_mixed_before_they_are_normalised() -> None:
    ends = [with_contexts(1), with_contexts(2)]
    found = scan(ends, SUITE, points=3, space="classifier", how=HOW)
    _, unit = next(iter(open_suite(suite(SUITE), HOW)))
    with torch.no_grad():
        raw = [
            towers.encode_text(end.clip, end.prompts(unit.names, unit.templates)[:, 0])
            for end in ends
        ]
        images = torch.cat(list(eval_batches(unit.dataset, ends[0].preprocess, 24)))
        rows = towers.unit((raw[0] + raw[1]) / 2)
        logits = ends[0].scale * ends[0].encode_image(images) @ rows.T
    expected = metrics.nll(logits.numpy(), unit.dataset.labels)
    assert found.segments[0].splits["val"].nll[1] == pytest.approx(expected, rel=1e-5)


def test_wrong_questions_are_refused() -> None:
    model = random_clip(0)
    with pytest.raises(RunError, match="two or three models; found 1"):
        scan([model], SUITE)
    with pytest.raises(RunError, match="points is 1"):
        scan([model, model], SUITE, points=1)
    with pytest.raises(RunError, match="space is 'loss'"):
        scan([model, model], SUITE, space="loss")  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="differ in shape"):
        scan([model, random_clip(0, embed_dim=16)], SUITE)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    models = [random_clip(seed) for seed in range(3)]
    for count in (2, 3):
        found = scan(models[:count], SUITE, points=3, how=How(limit=8))
        out = draw(found, tmp_path / f"{count}.png")
        assert out.read_bytes().startswith(b"\x89PNG")
        assert isinstance(found, PathScan)
        assert found.to_dict()["segments"][0]["splits"]["val"]["loss_barrier"].keys() == {
            "value", "low", "high",
        }  # fmt: skip
