"""Pictures go through the tower in parts, and weights move no more often than they must."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from perdure import passes
from perdure.errors import WeightsError
from perdure.prediction import Tour, put
from perdure.sweeping import Line
from perdure.weights import lerp
from perdure.zoo import random_clip


class Tower(nn.Module):
    """What can be seen of an image tower from outside."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.visual = nn.Module()
        self.visual.positional_embedding = nn.Parameter(torch.zeros(tokens, 2))


@given(st.integers(0, 300), st.integers(1, 400))
@settings(deadline=None, max_examples=60)
def test_parts_are_all_pictures_in_order_and_neither_large_nor_few(
    images: int, tokens: int
) -> None:
    rows = torch.arange(images).reshape(-1, 1, 1, 1)
    found = passes.parts(Tower(tokens), rows)
    assert torch.equal(torch.cat(found), rows)
    sizes = [len(part) for part in found]
    if len(sizes) > 1:
        assert min(sizes) >= passes.FEWEST
        assert max(sizes) - min(sizes) <= 1
        threads = torch.get_num_threads()
        assert max(sizes) * tokens < 2 * passes.TOKENS * threads or max(sizes) < 2 * passes.FEWEST


def test_towers_of_unknown_kind_get_all_pictures_at_once() -> None:
    clip = nn.Module()
    clip.visual = nn.Linear(2, 2)
    images = torch.zeros(5000, 1)
    assert passes.parts(clip, images)[0] is images


def test_parts_change_no_bit_of_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = random_clip().eval()
    images = torch.randn(50, 3, predictor.preprocess.size, predictor.preprocess.size)
    score, seen = predictor.logits_fn(("a", "b"), ("{}",)), []
    whole = score(images)
    encode = predictor.clip.encode_image
    monkeypatch.setattr(predictor.clip, "encode_image", lambda x: seen.append(len(x)) or encode(x))
    monkeypatch.setattr(passes, "TOKENS", 1)
    assert torch.equal(score(images), whole)
    assert seen == [5, 5] + [4] * 10


def test_a_tour_goes_forth_and_back_and_moves_only_between_positions() -> None:
    moved: list[float] = []
    tour = Tour({at: lambda at=at: moved.append(at) for at in (0.0, 0.5, 1.0)})
    assert [list(tour), list(tour), list(tour)] == [[0, 0.5, 1], [1, 0.5, 0], [0, 0.5, 1]]
    assert moved == [0, 0.5, 1, 0.5, 0, 0.5, 1]


def test_a_tour_that_was_left_goes_on_with_all_positions() -> None:
    moved: list[float] = []
    tour = Tour({at: lambda at=at: moved.append(at) for at in (0.0, 1.0)})
    assert next(iter(tour)) == 0
    assert list(tour) == [1, 0]
    assert moved == [0, 1, 0]


@given(st.floats(-0.5, 1.5))
@settings(deadline=None, max_examples=10)
def test_a_line_moves_to_the_very_weights_of_lerp(alpha: float) -> None:
    line = Line(random_clip(0), random_clip(1))
    wanted = lerp(line.start, line.end, alpha)
    line.at(alpha)()
    assert all(torch.equal(value, wanted[name]) for name, value in line.moving.state_dict().items())


def test_a_line_leaves_both_ends_as_they_are() -> None:
    ends = random_clip(0), random_clip(1)
    before = [{n: v.clone() for n, v in end.state_dict().items()} for end in ends]
    line = Line(*ends)
    for alpha in (0.3, 1.0, 0.0):
        line.at(alpha)()
    for end, old in zip(ends, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in end.state_dict().items())


def test_weights_of_another_shape_are_not_put() -> None:
    predictor = random_clip()
    wrong = {**predictor.state_dict(), "clip.logit_scale": torch.zeros(7)}
    with pytest.raises(WeightsError, match=r"clip\.logit_scale"):
        put(predictor, wrong)
