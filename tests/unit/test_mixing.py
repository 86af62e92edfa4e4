"""Merging of tensors: published numbers, the peft library as oracle, closed forms, ranges."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perdure import mixing, task_vectors
from perdure.weights import lerp

Golden = Callable[[str], dict[str, np.ndarray]]
NAME = "mergetune_merge_baselines"


@pytest.fixture
def numbers(golden: Golden) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in golden(NAME).items()}


@pytest.fixture
def vectors(numbers: dict[str, Tensor]) -> list[Tensor]:
    return [numbers[f"theta{n}"] - numbers["theta0"] for n in (1, 2)]


@pytest.fixture
def peft() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what peft imports
        from peft.utils import merge_utils
    return merge_utils


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> bool:
    return torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


def test_published_interpolation(numbers: dict[str, Tensor]) -> None:
    for alpha, expected in zip(numbers["wise/alphas"], numbers["wise/merged"], strict=True):
        ends = ({"w": numbers["theta0"]}, {"w": numbers["theta1"]})
        assert close(lerp(*ends, float(alpha))["w"], expected)


def test_published_interpolation_with_fisher_information(numbers: dict[str, Tensor]) -> None:
    ends = (numbers["theta0"], numbers["theta1"])
    known = (numbers["wise/fisher0"], numbers["wise/fisher1"])
    floor = float(numbers["wise/fisher_floor"])
    assert floor == 1e-8
    for alpha, expected in zip(numbers["wise/alphas"], numbers["wise/merged_fisher"], strict=True):
        shares = (1 - float(alpha), float(alpha))
        assert close(mixing.fisher(ends, known, shares, floor), expected)


def test_published_sums_trims_and_signs(numbers: dict[str, Tensor], vectors: list[Tensor]) -> None:
    weights = numbers["peft/weights"].tolist()
    density = float(numbers["peft/density"])
    assert close(task_vectors.combine(vectors, weights), numbers["peft/task_arithmetic"])
    trimmed = [task_vectors.trim(vector, density) for vector in vectors]
    assert [int(one.count_nonzero()) for one in trimmed] == [10, 10]
    assert close(task_vectors.combine(trimmed, weights), numbers["peft/magnitude_prune"])
    assert close(task_vectors.ties(vectors, weights, density), numbers["peft/ties_total"])
    found = task_vectors.ties(vectors, weights, density, "frequency")
    assert close(found, numbers["peft/ties_frequency"])
    kept = [task_vectors.trim(vector, 0.25) for vector in vectors]
    assert close(torch.stack(kept), numbers["mergekit/magnitude_density0.25"])


def test_published_dropping(numbers: dict[str, Tensor], vectors: list[Tensor]) -> None:
    weights = numbers["peft/weights"].tolist()
    masks = numbers["peft/dare_mask_seed0_density0.5"]
    one = torch.Generator().manual_seed(0)
    draws = [torch.bernoulli(torch.full((40,), 0.5), generator=one) for _ in vectors]
    assert torch.equal(torch.stack(draws), masks)
    for signs, key in ((None, "dare_linear_seed0"), ("total", "dare_ties_seed0")):
        generator = torch.Generator().manual_seed(0)
        found = task_vectors.dare(vectors, weights, 0.5, [generator, generator], signs)  # type: ignore[arg-type]
        assert close(found, numbers[f"peft/{key}"])


def test_published_arc(numbers: dict[str, Tensor]) -> None:
    for t, expected in zip(numbers["mergekit/slerp_t"], numbers["mergekit/slerp"], strict=True):
        assert close(mixing.slerp(numbers["theta0"], numbers["theta1"], float(t)), expected)


@pytest.mark.parametrize("ratio", [1.0, 0.1])
def test_published_regression_mean(numbers: dict[str, Tensor], ratio: float) -> None:
    matrices = [numbers["regmean/W1"], numbers["regmean/W2"]]
    grams = [numbers["regmean/gram1"], numbers["regmean/gram2"]]
    assert close(mixing.regmean(matrices, grams, ratio), numbers[f"regmean/merged_ratio{ratio}"])


@pytest.mark.parametrize("density", [0.0, 0.1, 0.35, 0.9])
@pytest.mark.parametrize("majority", ["total", "frequency"])
def test_peft_gives_the_same(peft: Any, density: float, majority: Any) -> None:
    tensors = [torch.randn(6, 7) for _ in range(3)]
    weights = torch.tensor([0.2, 1.0, 0.7])
    listed = weights.tolist()
    expected = peft.ties(tensors, weights, density, majority)
    assert close(task_vectors.ties(tensors, listed, density, majority), expected, 1e-6)
    expected = peft.task_arithmetic(tensors, weights)
    assert close(task_vectors.combine(tensors, listed), expected, 1e-6)
    trimmed = [task_vectors.trim(tensor, density) for tensor in tensors]
    expected = peft.magnitude_prune(tensors, weights, density)
    assert close(task_vectors.combine(trimmed, listed), expected, 1e-6)
    if density:
        for ours, theirs in ((None, peft.dare_linear), (majority, peft.dare_ties)):
            more = () if ours is None else (majority,)
            torch.manual_seed(3)
            expected = theirs(tensors, weights, density, *more)
            torch.manual_seed(3)
            found = task_vectors.dare(tensors, listed, density, [None] * 3, ours)
            assert close(found, expected, 1e-6)


def test_a_vote_of_zero_elects_plus_and_trimmed_entries_do_not_count() -> None:
    vectors = [torch.tensor([1.0, -2.0, 3.0, 0.0]), torch.tensor([-1.0, 2.0, -4.0, 0.0])]
    assert task_vectors.elect(vectors).tolist() == [1, 1, -1, 1]
    assert task_vectors.elect(vectors, "frequency").tolist() == [1, 1, 1, 1]
    assert task_vectors.ties(vectors, [1.0, 1.0], 1.0).tolist() == [1, 2, -4, 0]
    assert task_vectors.ties(vectors, [1.0, 1.0], 0.25).tolist() == [0, 0, -4, 0]


def test_of_equal_entries_the_first_stay() -> None:
    assert task_vectors.trim(torch.tensor([1.0, -2.0, 2.0, -2.0, 1.0]), 0.4).tolist() == [
        0,
        -2,
        2,
        0,
        0,
    ]
    assert task_vectors.trim(torch.ones(5), 0.0).count_nonzero() == 0
    assert task_vectors.trim(torch.zeros(5), 1.0).count_nonzero() == 0


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    st.integers(0, 40),
    st.integers(1, 5),
)
def test_a_cut_over_parts_is_that_of_the_whole(values: list[float], keep: int, parts: int) -> None:
    whole = torch.tensor(values, dtype=torch.float32)
    keep = min(keep, len(values))
    place = task_vectors.cut(lambda: whole.chunk(parts), keep)
    kept = task_vectors.trim_at(whole, place)
    order = sorted(whole.abs().tolist(), reverse=True)[:keep]
    assert sorted(kept.abs().tolist(), reverse=True)[:keep] == order
    assert torch.equal(kept[kept != 0], whole[kept != 0])
    assert int(kept.count_nonzero()) <= keep


def test_dropping_keeps_the_mean_and_depends_on_the_generator_alone() -> None:
    vector = torch.full((20000,), 3.0)
    dropped = task_vectors.drop(vector, 0.3, torch.Generator().manual_seed(1))
    assert dropped.unique().tolist() == pytest.approx([0.0, 10.0])
    assert float(dropped.mean()) == pytest.approx(3.0, abs=4 * 10 * (0.21 / 20000) ** 0.5)
    torch.manual_seed(77)
    assert torch.equal(dropped, task_vectors.drop(vector, 0.3, torch.Generator().manual_seed(1)))
    assert torch.equal(task_vectors.drop(vector, 1.0), vector)


@given(st.floats(0, 1), st.integers(0, 50))
def test_the_arc_of_unit_vectors_stays_on_the_sphere(t: float, seed: int) -> None:
    a, b = (v / v.norm() for v in torch.randn(2, 5, generator=torch.Generator().manual_seed(seed)))
    point = mixing.slerp(a, b, t)
    assert float(point.norm()) == pytest.approx(1.0, abs=1e-4)
    angle = torch.arccos((a * b).sum().clamp(-1, 1))
    assert float(torch.arccos((a * point).sum().clamp(-1, 1))) == pytest.approx(
        t * float(angle), abs=2e-3
    )


def test_the_arc_is_straight_where_there_is_no_angle() -> None:
    a = torch.tensor([1.0, 2.0])
    assert torch.equal(mixing.slerp(a, 3 * a, 0.5), 2 * a)
    assert torch.equal(mixing.slerp(a, torch.zeros(2), 0.5), a / 2)
    assert torch.equal(mixing.slerp(a, -a, 0.25), a / 2)
    for t, end in ((0.0, a), (1.0, a.flip(0))):
        assert torch.equal(mixing.slerp(a, a.flip(0), t), end)


def test_without_information_fisher_merging_is_the_mean() -> None:
    tensors = list(torch.randn(3, 4))
    nothing = [torch.zeros(4)] * 3
    assert close(mixing.fisher(tensors, nothing, [1.0] * 3), torch.stack(tensors).mean(0), 1e-6)
    known = [torch.tensor([1.0, 0, 0, 1]), torch.tensor([0, 1.0, 0, 3]), torch.zeros(4)]
    found = mixing.fisher(tensors, known, [1.0] * 3, floor=1e-12)
    assert close(found[:2], torch.stack([tensors[0][0], tensors[1][1]]), 1e-5)
    assert float(found[3]) == pytest.approx(float(tensors[0][3] + 3 * tensors[1][3]) / 4, rel=1e-5)


def test_regression_mean_minimises_the_difference_of_outputs() -> None:
    inputs = [torch.randn(50, 4, dtype=torch.float64) * scale for scale in (1.0, 2.0)]
    maps = [torch.randn(3, 4, dtype=torch.float64) for _ in inputs]
    grams = [x.T @ x / len(x) for x in inputs]
    found = mixing.regmean(maps, grams, ratio=1.0)
    design = torch.cat(inputs)
    target = torch.cat([x @ w.T for x, w in zip(inputs, maps, strict=True)])
    assert close(found, torch.linalg.lstsq(design, target).solution.T, 1e-6)


def test_regression_mean_of_singular_inputs_is_the_mean_where_nothing_was_seen() -> None:
    gram = torch.diag(torch.tensor([1.0, 2.0, 0.0]))
    maps = [torch.randn(2, 3) for _ in range(2)]
    found = mixing.regmean(maps, [gram, gram])
    assert close(found, torch.stack(maps).mean(0), 1e-5)
    nowhere = torch.zeros(3, 3)
    assert close(mixing.regmean(maps, [nowhere, nowhere]), torch.stack(maps).mean(0), 1e-5)
    assert close(mixing.regmean([maps[0]] * 2, [gram, nowhere]), maps[0], 1e-5)


def test_stock_of_orthogonal_opposite_and_equal_updates() -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert float(task_vectors.model_stock([x, y]).norm()) == pytest.approx(0.0, abs=1e-12)
    assert close(task_vectors.model_stock([x, x, x]), x, 1e-7)
    assert float(task_vectors.model_stock([x, -x]).norm()) == 0.0
    assert float(task_vectors.model_stock([x, torch.zeros(2)]).norm()) == 0.0
    tilted = torch.tensor([1.0, 1.0])
    share = 2 * 0.5**0.5 / (0.5**0.5 + 1)
    assert close(task_vectors.model_stock([x, tilted]), share * (x + tilted) / 2, 1e-6)


def test_a_mean_of_halves_is_computed_in_float32() -> None:
    values = [torch.tensor([1.0, 1.0 + 2**-10], dtype=torch.float16) for _ in range(2)]
    assert task_vectors.combine(values, [0.5, 0.5]).dtype == torch.float32
    assert mixing.mean(iter([torch.tensor(3), torch.tensor(5)]), [1.0, 2.0]).item() == 5
