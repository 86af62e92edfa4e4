"""Losses: bounds, what they are blind to, and the identities between them."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from perdure import losses
from perdure.batch import Pairs

SEEDS = st.integers(0, 2**31)
ROWS = st.integers(1, 9)
SCALES = st.floats(0.5, 60.0)
DISTILL = (
    losses.feature_distill,
    losses.relational_kl,
    losses.interactive_nce,
    losses.cross_kl,
    losses.logit_distill,
)
DIVERGENCES = (losses.feature_distill, losses.relational_kl, losses.cross_kl)


def draw(seed, rows, scale):
    generator = torch.Generator().manual_seed(seed)
    image, text = (
        normalize(torch.randn(rows, 5, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    return Pairs(image, text, torch.tensor(scale, dtype=torch.float64))


def close(a, b):
    return torch.isclose(a, b, rtol=1e-9, atol=1e-11)


@given(SEEDS, ROWS, SCALES, SCALES)
def test_order_of_rows_is_free(seed, rows, scale, other):
    student, teacher = draw(seed, rows, scale), draw(seed + 1, rows, other)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    shuffled = [Pairs(p.image[order], p.text[order], p.scale) for p in (student, teacher)]
    for loss in DISTILL:
        assert close(loss(student, teacher), loss(*shuffled))
    assert close(losses.info_nce(student, 0.1), losses.info_nce(shuffled[0], 0.1))


@given(SEEDS, ROWS, SCALES)
def test_a_rotation_of_the_whole_space_changes_nothing(seed, rows, scale):
    student, teacher = draw(seed, rows, scale), draw(seed + 1, rows, scale)
    square = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turn = torch.linalg.qr(square)[0]
    turned = [Pairs(p.image @ turn, p.text @ turn, p.scale) for p in (student, teacher)]
    for loss in DISTILL:
        assert close(loss(student, teacher), loss(*turned))


@given(SEEDS, ROWS, SCALES)
def test_the_two_modalities_play_the_same_part(seed, rows, scale):
    student, teacher = draw(seed, rows, scale), draw(seed + 1, rows, scale)
    swapped = [Pairs(p.text, p.image, p.scale) for p in (student, teacher)]
    for loss in DISTILL:
        assert close(loss(student, teacher), loss(*swapped))


@given(SEEDS, ROWS, SCALES, SCALES)
def test_bounds(seed, rows, scale, other):
    student, teacher = draw(seed, rows, scale), draw(seed + 1, rows, other)
    for loss in DISTILL:
        assert loss(student, teacher) >= -1e-12
    assert losses.feature_distill(student, teacher) <= 8.0
    assert losses.info_nce(student) >= 0.0


@given(SEEDS, ROWS, SCALES)
def test_a_student_that_equals_its_teacher(seed, rows, scale):
    pairs = draw(seed, rows, scale)
    for loss in DIVERGENCES:
        assert loss(pairs, pairs).abs() < 1e-12
    assert close(losses.interactive_nce(pairs, pairs), losses.info_nce(pairs))


@given(SEEDS, ROWS, SCALES, SCALES)
def test_logit_distill_pulls_twice_as_hard_as_relational_kl(seed, rows, scale, other):
    student, teacher = draw(seed, rows, scale), draw(seed + 1, rows, other)
    student = Pairs(*(tensor.requires_grad_() for tensor in student))
    twice = torch.autograd.grad(losses.logit_distill(student, teacher), student)
    once = torch.autograd.grad(losses.relational_kl(student, teacher), student)
    assert all(
        torch.allclose(a, 2 * b, rtol=1e-9, atol=1e-11) for a, b in zip(twice, once, strict=True)
    )


@given(SEEDS, ROWS, SCALES)
def test_smoothing_mixes_with_the_uniform_target(seed, rows, scale):
    pairs = draw(seed, rows, scale)
    logits = losses.similarity(pairs)
    target = 0.8 * torch.eye(rows, dtype=torch.float64) + 0.2 / rows
    expected = -(target * logits.log_softmax(1)).sum(1).mean() / 2
    expected -= (target * logits.T.log_softmax(1)).sum(1).mean() / 2
    assert close(losses.info_nce(pairs, smoothing=0.2), expected)


@given(SEEDS, ROWS)
def test_class_kl_ignores_a_shift_of_logits(seed, rows):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, 4, generator=generator, dtype=torch.float64)
    found = losses.class_kl(student, teacher)
    assert found >= 0.0
    assert close(found, losses.class_kl(student + 3.0, teacher - 2.0))


@given(SEEDS)
def test_cross_norm_is_that_of_the_product(seed):
    generator = torch.Generator().manual_seed(seed)
    visual = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    text = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    expected = torch.trace(visual.T @ visual @ text.T @ text).sqrt()
    assert close(losses.cross_norm(visual, text), expected)
    assert close(losses.cross_norm(visual, text), losses.cross_norm(text, visual))
