"""The benchmark of steps on contexts: its pattern costs what the public code does, perdure less."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.prompts import (
    OFFICIAL,
    TOLERANCE,
    apart,
    cached,
    case,
    ours,
    pattern,
    texts_embedded,
)
from benchmarks.steps import prepare
from perdure.inputs import OpenClipTokenizer
from perdure.predictor import Predictor
from perdure.zoo import random_clip


@pytest.fixture(autouse=True)
def prepared() -> Iterator[None]:
    """Set torch up as the benchmark does; it must not stay so, for other tests compare bits."""
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    prepare()
    yield
    torch.set_num_threads(threads)
    torch.backends.mha.set_fastpath_enabled(fast)


def small() -> Predictor:
    predictor = random_clip(text_cfg={
        "layers": 1, "width": 32, "heads": 2, "context_length": 77, "vocab_size": 49408,
    })  # fmt: skip
    predictor.tokenizer = OpenClipTokenizer("clip", 77)
    return predictor.train()


def test_both_steps_have_the_same_loss_and_gradient() -> None:
    found = case(6, 5, small)
    before = [value.clone() for value in found.learner.parameters()]
    assert max(apart(found, ours(found))) <= TOLERANCE
    assert max(apart(found, ours(cached(found)))) <= TOLERANCE
    assert all(torch.equal(a, b) for a, b in zip(before, found.learner.parameters(), strict=True))
    assert float(ours(found)()) == pytest.approx(float(pattern(found)()), rel=TOLERANCE)


def test_an_evaluation_embeds_its_class_prompts_once() -> None:
    found = case(8, 5, small)
    images = found.batch.images
    names = tuple(f"thing {number}" for number in range(5))
    assert texts_embedded(found.learner.export(), names, images) == 1


@pytest.mark.slow
@pytest.mark.parametrize("size", OFFICIAL)
def test_the_pattern_has_the_published_flops_perdure_a_fifth_and_cached_views_a_25th_at_most(
    size: tuple[int, int],
) -> None:
    found = case(*size)
    flops = []
    for action in (pattern(found), ours(found), ours(cached(found))):
        with FlopCounterMode(display=False) as counter:
            action()
        flops.append(counter.get_total_flops() / 1e9)
    assert flops[0] == pytest.approx(OFFICIAL[size], rel=0.02)
    assert flops[1] <= 0.2 * flops[0]
    assert flops[2] <= flops[0] / 25
    assert max(apart(found, ours(found))) <= TOLERANCE
