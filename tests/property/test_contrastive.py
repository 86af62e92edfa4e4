"""Multi-positive losses: what they are blind to, their bounds, and what they turn into."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid, normalize

from perdure import losses
from perdure.batch import Pairs

SEEDS = st.integers(0, 2**31)
ROWS = st.integers(1, 9)
CLASSES = st.integers(1, 5)
SCALES = st.floats(0.5, 100.0)
MARGINS = st.floats(-0.2, 0.5)
SMOOTHING = st.floats(0.0, 0.9)
BIAS = torch.tensor(-5.0, dtype=torch.float64)


def draw(seed, rows, scale, classes):
    generator = torch.Generator().manual_seed(seed)
    image, text = (
        normalize(torch.randn(rows, 5, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    labels = torch.randint(classes, (rows,), generator=generator)
    return Pairs(image, text, torch.tensor(scale, dtype=torch.float64)), labels


def both(pairs, labels, margin, smoothing):
    yield losses.mpm_nce(pairs, labels, margin, smoothing)
    yield losses.mpm_sigmoid(pairs, labels, BIAS, margin, smoothing)


def close(a, b):
    return torch.isclose(a, b, rtol=1e-9, atol=1e-11)


@given(SEEDS, ROWS, SCALES, CLASSES, MARGINS, SMOOTHING)
def test_order_of_rows_is_free(seed, rows, scale, classes, margin, smoothing):
    pairs, labels = draw(seed, rows, scale, classes)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    shuffled = Pairs(pairs.image[order], pairs.text[order], pairs.scale)
    found = both(pairs, labels, margin, smoothing)
    again = both(shuffled, labels[order], margin, smoothing)
    assert all(map(close, found, again))


@given(SEEDS, ROWS, SCALES, CLASSES, MARGINS, SMOOTHING)
def test_names_of_labels_and_modalities_are_free(seed, rows, scale, classes, margin, smoothing):
    pairs, labels = draw(seed, rows, scale, classes)
    swapped = Pairs(pairs.text, pairs.image, pairs.scale)
    found = both(pairs, labels, margin, smoothing)
    again = both(swapped, 7 - 3 * labels, margin, smoothing)
    assert all(map(close, found, again))


@given(SEEDS, ROWS, SCALES, CLASSES, MARGINS, SMOOTHING)
def test_losses_and_gradients_are_finite_and_not_negative(
    seed, rows, scale, classes, margin, smoothing
):
    pairs, labels = draw(seed, rows, scale, classes)
    single = Pairs(*(tensor.float().requires_grad_() for tensor in pairs))
    for loss in both(single, labels, margin, smoothing):
        assert torch.isfinite(loss)
        assert loss >= -1e-6
        assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(loss, single))


@given(SEEDS, ROWS, SCALES)
def test_distinct_labels_are_info_nce_exactly(seed, rows, scale):
    pairs, _ = draw(seed, rows, scale, 1)
    labels = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(losses.mpm_nce(pairs, labels), losses.info_nce(pairs))


@given(SEEDS, ROWS, SCALES)
def test_distinct_labels_are_the_pairwise_sigmoid_loss(seed, rows, scale):
    pairs, _ = draw(seed, rows, scale, 1)
    logits = losses.similarity(pairs) + BIAS
    signs = 2 * torch.eye(rows, dtype=torch.float64) - 1
    expected = -logsigmoid(signs * logits).sum() / rows
    assert close(losses.mpm_sigmoid(pairs, torch.arange(rows), BIAS), expected)


@given(SEEDS, st.integers(2, 9), SCALES, CLASSES, MARGINS, SMOOTHING)
def test_it_is_the_cross_entropy_with_shared_targets(seed, rows, scale, classes, margin, smoothing):
    pairs, labels = draw(seed, rows, scale, classes)
    found = losses.mpm_nce(pairs, labels, margin, smoothing)
    total = torch.zeros((), dtype=torch.float64)
    for image, text in ((pairs.image, pairs.text), (pairs.text, pairs.image)):
        for i in range(rows):
            same = labels == labels[i]
            logits = scale * (text @ image[i] + margin * (~same).double())
            log, others = logits.log_softmax(0), rows - int(same.sum())
            spread = smoothing if others else 0.0
            total = total - (1 - spread) * log[same].mean()
            if others:
                total = total - spread * log[~same].mean()
    assert close(found, total / (2 * rows))


@given(SEEDS, ROWS, SCALES, CLASSES)
def test_a_margin_on_negatives_makes_the_task_harder(seed, rows, scale, classes):
    pairs, labels = draw(seed, rows, scale, classes)
    easy, hard = both(pairs, labels, 0.0, 0.0), both(pairs, labels, 0.1, 0.0)
    assert all(b >= a - 1e-12 for a, b in zip(easy, hard, strict=True))
