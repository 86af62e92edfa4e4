"""Rules that choose alpha, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perdure.alpha import rules, weights
from perdure.errors import WeightsError
from perdure.zoo import random_clip

GRID = np.linspace(0, 1, 21)


def test_a_concave_curve_is_left_one_error_below_its_top() -> None:
    # 0.8 - (a - 0.6)^2 falls by 0.01 at a distance of 0.1 from the top.
    curve = 0.8 - (GRID - 0.6) ** 2
    assert rules.one_standard_error(GRID, curve, 0.0101) == pytest.approx(0.5)
    assert rules.one_standard_error(GRID, curve, 0.0) == pytest.approx(0.6)
    assert rules.best(GRID, curve) == pytest.approx(0.6)
    assert not rules.still_rises(GRID, curve, 0.01, 0.5)


def test_a_rising_curve_is_left_late_and_distrusted() -> None:
    curve = 0.5 + 0.3 * GRID
    chosen = rules.one_standard_error(GRID, curve, 0.0301)  # 0.03 is a tenth of the way
    assert chosen == pytest.approx(0.9)
    assert rules.still_rises(GRID, curve, 0.0301, chosen)


def test_a_plateau_is_left_where_it_begins_and_trusted() -> None:
    curve = np.minimum(0.5 + GRID, 0.9)
    chosen = rules.one_standard_error(GRID, curve, 0.001)
    assert chosen == pytest.approx(0.4)
    assert not rules.still_rises(GRID, curve, 0.001, chosen)


def test_a_falling_curve_stays_at_zero_and_a_flat_one_too() -> None:
    assert rules.one_standard_error(GRID, 0.9 - 0.2 * GRID, 0.01) == 0.0
    assert rules.one_standard_error(GRID, np.full(21, 0.5), 0.01) == 0.0


def test_never_below_what_is_surely_better_than_zero_shot() -> None:
    # The top is 1.5 errors above zero-shot: 0.25 is within one error of it, but not yet better.
    values = [0.5, 0.506, 0.512, 0.515]
    assert rules.one_standard_error([0, 0.25, 0.5, 1], values, 0.01) == 0.5


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.floats(0, 0.2))
def test_the_choice_is_on_the_grid_and_within_its_promise(
    values: list[float], error: float
) -> None:
    alphas = list(np.linspace(0, 1, len(values)))
    chosen = rules.one_standard_error(alphas, values, error)
    at = alphas.index(chosen)
    better = [value > values[0] + error for value in values]
    assert values[at] >= max(values) - error - 1e-9 or at == better.index(True)


def test_paired_errors_see_only_disagreement() -> None:
    correct = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]], dtype=np.float64)
    errors = rules.paired_errors(correct)
    assert errors[1] == errors[2] == 0
    assert errors[0] == pytest.approx(np.std([0, 0, 1, 0], ddof=1) / 2)
    assert rules.standard_errors(np.arange(100) % 2.0) == pytest.approx(0.05)


def test_harmonic_error_is_the_first_order_change() -> None:
    def mean(a: float, b: float) -> float:
        return 2 * a * b / (a + b)

    step = 1e-6
    slopes = [
        (mean(0.6 + step, 0.3) - mean(0.6, 0.3)) / step,
        (mean(0.6, 0.3 + step) - mean(0.6, 0.3)) / step,
    ]
    found = rules.harmonic_error(0.6, 0.3, 0.02, 0.05)
    assert found == pytest.approx(np.hypot(slopes[0] * 0.02, slopes[1] * 0.05), rel=1e-4)
    assert rules.harmonic_error(0, 0, 0.1, 0.1) == 0


@pytest.mark.parametrize(("cosine", "share"), [(1, 1), (0.5, 2 / 3), (0, 0), (-0.4, 0)])
def test_stock_share(cosine: float, share: float) -> None:
    assert weights.stock_share(cosine) == pytest.approx(share)
    assert weights.stock_share(0.5, runs=3) == pytest.approx(0.75)


def test_stock_takes_every_tensor_by_its_own_angle() -> None:
    start = {"same": torch.ones(2), "across": torch.zeros(2), "count": torch.tensor(3)}
    first = {
        "same": torch.tensor([2.0, 1]),
        "across": torch.tensor([1.0, 0]),
        "count": start["count"],
    }
    second = {
        "same": torch.tensor([4.0, 1]),
        "across": torch.tensor([0, 5.0]),
        "count": start["count"],
    }
    stocked, cosines = weights.stock(start, first, second)
    assert stocked["same"].tolist() == [3, 1]  # parallel updates: their mean
    assert stocked["across"].tolist() == [0, 0]  # orthogonal updates: the start
    assert cosines.tolist() == pytest.approx([1, 0])
    with pytest.raises(WeightsError, match="moved by both"):
        weights.stock(start, first, start)
    with pytest.raises(WeightsError, match="same start"):
        weights.stock(start, first, {**second, "same": torch.ones(3)})


def test_mono_split_of_4_2_1() -> None:
    split = weights.mono_split(np.array([4.0, 2.0, 1.0]), rank=2)
    assert split.gap == pytest.approx(0.0625)
    assert split.tail == pytest.approx(0.2182, abs=5e-5)
    assert split.low == pytest.approx(0.2671, abs=5e-5)
    assert split.high == pytest.approx(0.7329, abs=5e-5)
    # 16 of 21 is 76 %, 20 of 21 is 95 %.
    assert weights.mono_split(np.array([4.0, 2.0, 1.0])).rank == 2
    assert weights.mono_split(np.array([4.0, 2.0, 1.0]), energy=0.76).rank == 1
    assert weights.mono_split(np.array([4.0, 2.0, 1.0]), rank=3).low == 0


def test_mono_leaves_updates_of_rank_1_and_vectors_alone() -> None:
    start = {"matrix": torch.randn(6, 4), "bias": torch.randn(4), "still": torch.ones(3, 3)}
    end = {
        "matrix": start["matrix"] + torch.outer(torch.randn(6), torch.randn(4)),
        "bias": torch.randn(4),
        "still": start["still"],
    }
    edited = weights.mono(start, end)
    assert all(torch.allclose(edited[name], end[name], atol=1e-5) for name in end)
    assert weights.norm_ratio(start, end, edited) == pytest.approx(1, abs=1e-5)


def test_mono_scales_the_parts_of_a_spectrum() -> None:
    start = {"matrix": torch.zeros(3, 3)}
    edited = weights.mono(start, {"matrix": torch.diag(torch.tensor([4.0, 2.0, 1.0]))})["matrix"]
    assert edited.diag().tolist() == pytest.approx([4 * 0.7329, 2 * 0.7329, 0.2671], abs=5e-4)
    half = weights.norm_ratio(start, {"matrix": torch.eye(3)}, {"matrix": torch.eye(3) / 2})
    assert half == pytest.approx(0.5)


def test_depths_of_towers() -> None:
    names = list(random_clip(0, vision_cfg={"layers": 3}).state_dict())
    found = weights.depths(names)
    assert found["clip.visual.transformer.resblocks.1.attn.in_proj_weight"] == 0.5
    assert found["clip.visual.transformer.resblocks.2.mlp.c_fc.bias"] == 1
    assert found["clip.transformer.resblocks.0.ln_1.weight"] == 0
    assert found["clip.transformer.resblocks.1.ln_1.weight"] == 1
    for name in (
        "clip.visual.conv1.weight",
        "clip.positional_embedding",
        "clip.visual.ln_pre.bias",
    ):
        assert found[name] == 0, name
    for name in ("clip.visual.proj", "clip.text_projection", "clip.logit_scale", "head.weight"):
        assert weights.depths([*names, "head.weight"])[name] == 1, name
    resnet = weights.depths(["visual.layer1.0.conv1.weight", "visual.layer1.1.bn1.weight",
                           "visual.layer2.0.conv2.weight", "visual.conv1.weight"])  # fmt: skip
    assert list(resnet.values()) == [0, 0.5, 1, 0]


def test_lines_ends_and_slope() -> None:
    start, end = random_clip(0).state_dict(), random_clip(1).state_dict()
    edited = weights.lines(start, end, alpha=1.0, shallow=0.5)
    last, first = "clip.visual.proj", "clip.visual.transformer.resblocks.0.mlp.c_fc.weight"
    assert torch.allclose(edited[last], end[last])
    assert torch.allclose(edited[first], (start[first] + end[first]) / 2)
    whole = weights.lines(start, end, alpha=0.0, shallow=0.0)
    assert all(torch.equal(whole[name], start[name]) for name in start)


def test_entropy_shares() -> None:
    shares = rules.entropy_shares(np.array([1.0, 0.7, 2000.0]), np.array([0.5, 0.7, 0.0]))
    assert shares.tolist() == pytest.approx([0.6225, 0.5, 1.0], abs=5e-5)
    logits = np.array([[0.0, 0.0], [1000.0, 0.0]], dtype=np.float32)
    assert rules.entropies(logits).tolist() == pytest.approx([np.log(2), 0])


def test_centres_find_the_clusters() -> None:
    values = np.array([0.1, 0.12, 0.5, 0.52, 0.9, 0.88, 0.89])
    assert rules.centres(values, 3).tolist() == pytest.approx([0.11, 0.51, 0.89])
    assert rules.centres(np.full(5, 0.3), 4).tolist() == [0.3]
    assert rules.nearest_centre(np.array([0.0, 0.6]), np.array([0.1, 0.5])).tolist() == [0, 1]
