"""Folding: exact ends, the line it shares with WiSE-FT, and agreement with the unfolded model."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.interpolation import wise_ft
from perdure.predictor import Predictor
from perdure.surgery.residual import Residual
from perdure.zoo import random_clip

alphas = st.floats(0, 1)
ranks = st.none() | st.integers(1, 31)
surgeries = st.builds(
    Residual,
    rank_image=ranks,
    rank_text=ranks,
    gate=st.none() | st.sampled_from([-0.5, 0.1, 2.0]),
    bias=st.booleans(),
    towers=st.sampled_from([("image",), ("text",), ("image", "text")]),
    blocks=st.none() | st.sampled_from([(0,), (1,), (0, 1)]),
    alpha=alphas,
)


def trained(surgery: Residual, seed: int) -> Predictor:
    predictor = random_clip(seed % 3)
    predictor.attach(surgery)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in predictor.added().values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))
    return predictor


@torch.no_grad()
def rows(predictor: Predictor) -> Tensor:
    pixels = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    return torch.cat(predictor(pixels, predictor.tokenizer(["a taco", "two tigers"]))[:2])


FEW = settings(max_examples=12)
"""Each example builds models; the kinds of surgery are also listed in the unit tests"""


@FEW
@given(surgery=surgeries, alpha=alphas, seed=st.integers(0, 99))
def test_folding_at_alpha_is_interpolating_with_the_start(
    surgery: Residual, alpha: float, seed: int
) -> None:
    start, predictor = random_clip(seed % 3), trained(surgery, seed)
    folded = predictor.fold(alpha).state_dict()
    for merged in (wise_ft(start, predictor.fold(1.0), alpha), wise_ft(start, predictor, alpha)):
        for name, value in merged.state_dict().items():
            torch.testing.assert_close(folded[name], value, rtol=1e-5, atol=1e-6)


@FEW
@given(surgery=surgeries, seed=st.integers(0, 99))
def test_a_folded_model_agrees_and_a_strength_of_zero_is_the_start(
    surgery: Residual, seed: int
) -> None:
    predictor = trained(surgery, seed)
    before = {name: value.clone() for name, value in predictor.state_dict().items()}
    unfolded = rows(predictor)
    torch.testing.assert_close(rows(predictor.fold()), unfolded, rtol=0, atol=1e-5)
    with predictor.folded() as plain:
        torch.testing.assert_close(rows(plain), unfolded, rtol=0, atol=1e-5)
    assert torch.equal(rows(predictor), unfolded)
    assert all(torch.equal(before[name], value) for name, value in predictor.state_dict().items())
    start = random_clip(seed % 3)
    for name, value in predictor.fold(0.0).state_dict().items():
        assert torch.equal(value, start.state_dict()[name])
    predictor.set_alpha(0.0)
    assert torch.equal(rows(predictor), rows(start))
