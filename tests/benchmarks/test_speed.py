"""The benchmark of steps: its pattern costs what the published codes do, perdure less."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.pattern import OFFICIAL, VOCABULARY, counted, inputs
from benchmarks.steps import STEPS, ours, prepare
from perdure.methods.flyp import Flyp

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def prepared() -> Iterator[None]:
    """Set torch up as the benchmark does; it must not stay so, for other tests compare bits."""
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    prepare()
    yield
    torch.set_num_threads(threads)
    torch.backends.mha.set_fastpath_enabled(fast)


@pytest.fixture(scope="module")
def found(prepared: None) -> dict[str, tuple[float, int, int]]:
    return {name: counted(build()) for name, build in STEPS.items()}


@pytest.mark.parametrize("method", OFFICIAL)
def test_the_pattern_has_the_published_counts(
    found: dict[str, tuple[float, int, int]], method: str
) -> None:
    gflop, operators = OFFICIAL[method]
    flops, count, waits = found[f"{method.upper()}, published pattern"]
    assert flops == pytest.approx(gflop, rel=0.02)
    assert count == pytest.approx(operators, rel=0.02)
    assert waits > 180


def test_a_step_computes_less_and_waits_for_nothing(
    found: dict[str, tuple[float, int, int]],
) -> None:
    flops = {name: counts[0] for name, counts in found.items()}
    assert flops["FLYP, perdure"] < 0.77 * flops["FLYP, published pattern"]
    assert flops["TRACER, perdure"] < 0.77 * flops["TRACER, published pattern"]
    assert flops["TRACER, perdure"] < 1.34 * flops["FLYP, perdure"]
    for name, (_, operators, waits) in found.items():
        if "perdure" in name:
            assert waits == 0
            assert operators < 4100


def test_texts_of_full_length_cost_as_much_as_published() -> None:
    batch = inputs()
    tokens = batch.tokens.clamp(min=1, max=VOCABULARY - 2)
    tokens[:, -1] = VOCABULARY - 1
    flops, _, _ = counted(ours(Flyp(), batch._replace(tokens=tokens)))
    assert flops == pytest.approx(OFFICIAL["flyp"][0], rel=0.001)
