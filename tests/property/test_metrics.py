"""Metrics: bounds, what they are blind to, and relations between them."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import intervals, metrics
from perdure.errors import DataError

SEEDS = st.integers(0, 2**31)
SIZES = st.integers(1, 60)
BINS = st.integers(1, 20)


def draw(seed, rows, classes=4):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (rows, classes)).astype(np.float32)
    return logits, rng.integers(0, classes, rows)


@given(SEEDS, SIZES, BINS)
def test_bounds(seed, rows, bins):
    logits, labels = draw(seed, rows)
    for metric in (metrics.top1, metrics.macro_f1):
        assert 0.0 <= metric(logits, labels) <= 1.0
    assert 0.0 <= metrics.ece(logits, labels, bins) <= 1.0
    assert 0.0 <= metrics.brier(logits, labels) <= 2.0
    assert metrics.nll(logits, labels) >= 0.0


@given(SEEDS, SIZES)
def test_order_of_examples_is_free(seed, rows):
    logits, labels = draw(seed, rows)
    order = np.random.default_rng(seed).permutation(rows)
    for metric in (metrics.top1, metrics.macro_f1, metrics.ece, metrics.nll, metrics.brier):
        assert metric(logits[order], labels[order]) == pytest.approx(metric(logits, labels))


@given(SEEDS, SIZES)
def test_a_shift_of_logits_changes_nothing(seed, rows):
    logits, labels = draw(seed, rows)
    shifted = logits.astype(np.float64) + 5.0
    for metric in (metrics.nll, metrics.brier, metrics.top1):
        assert metric(shifted, labels) == pytest.approx(metric(logits.astype(np.float64), labels))


@given(SEEDS, SIZES, BINS, st.integers(1, 70))
def test_batches_never_lower_the_calibration_error(seed, rows, bins, batch):
    logits, labels = draw(seed, rows)
    whole = metrics.ece(logits, labels, bins)
    assert metrics.ece_batchmean(logits, labels, batch, bins) >= whole - 1e-12
    assert metrics.ece_batchmean(logits, labels, rows, bins) == pytest.approx(whole)


@given(SEEDS, SIZES, BINS)
def test_ece_lies_between_the_overall_gap_and_the_mean_gap(seed, rows, bins):
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(rows), rng.random(rows) < 0.5
    found = metrics.ece_from_confidence(confidence, correct, bins)
    gap = correct - confidence
    assert abs(gap.mean()) - 1e-12 <= found <= np.abs(gap).mean() + 1e-12


@given(SEEDS, SIZES, BINS)
def test_reliability_bins_rebuild_the_ece(seed, rows, bins):
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(rows), rng.random(rows) < 0.5
    found = metrics.reliability_bins(confidence, correct, bins)
    assert found.size.sum() == rows
    gap = np.nan_to_num(np.abs(found.accuracy - found.confidence))
    expected = metrics.ece_from_confidence(confidence, correct, bins)
    assert (found.size * gap).sum() / rows == pytest.approx(expected, abs=1e-12)


@given(SEEDS, SIZES)
def test_no_temperature_beats_the_fitted_one(seed, rows):
    logits, labels = draw(seed, rows)
    best = metrics.fit_temperature(logits, labels)
    assert 0.01 <= best <= 100.0
    lowest = metrics.nll(logits.astype(np.float64) / best, labels)
    for other in (0.01, 0.5 * best, 0.99 * best, 1.0, 1.01 * best, 2.0 * best, 100.0):
        bounded = min(max(other, 0.01), 100.0)
        assert lowest <= metrics.nll(logits.astype(np.float64) / bounded, labels) + 1e-9


@given(SEEDS, SIZES)
def test_macro_f1_of_perfect_predictions(seed, rows):
    _, labels = draw(seed, rows)
    assert metrics.macro_f1_from_predictions(labels, labels) == 1.0


@given(SEEDS, SIZES, st.floats(0.5, 0.99))
def test_bootstrap_interval_lies_within_the_values(seed, rows, level):
    values = np.random.default_rng(seed).normal(size=rows)
    low, high = metrics.bootstrap_interval(values, level, resamples=50)
    assert values.min() - 1e-12 <= low <= high <= values.max() + 1e-12


@given(SEEDS, st.integers(1, 200), st.integers(1, 40), st.sampled_from([1, 64, 1000]))
def test_bootstrap_interval_is_that_of_one_resample_at_a_time(seed, rows, resamples, draws):
    values = np.random.default_rng(seed).normal(size=rows)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, rows, rows)].mean() for _ in range(resamples)]
    with patch.object(intervals, "_DRAWS", draws):
        found = metrics.bootstrap_interval(values, 0.9, seed, resamples)
    assert found == tuple(np.quantile(means, [(1 - 0.9) / 2, (1 + 0.9) / 2]))


@given(SEEDS, st.integers(2, 40), st.integers(2, 6))
def test_examples_about_one_picture_are_drawn_together(seed, pictures, each):
    right = np.random.default_rng(seed).random(pictures) < 0.5
    repeated, of = np.repeat(right, each), np.repeat(np.arange(pictures), each)
    found = metrics.bootstrap_interval(repeated, resamples=50, of=of)
    # Examples that always agree say no more than one of them.
    np.testing.assert_allclose(found, metrics.bootstrap_interval(right, resamples=50), atol=1e-12)
    order = np.random.default_rng(seed).permutation(len(of))
    shuffled = metrics.bootstrap_interval(repeated[order], resamples=50, of=of[order])
    np.testing.assert_allclose(shuffled, found, atol=1e-12)


def test_pictures_of_every_example_are_needed():
    with pytest.raises(DataError, match=r"have shape \(3,\) and their pictures \(2,\)"):
        metrics.bootstrap_interval(np.ones(3), of=np.zeros(2, dtype=np.int64))


@given(SEEDS, SIZES)
def test_paired_bootstrap_changes_sign_with_the_order(seed, rows):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, rows))
    difference, low, high = metrics.paired_bootstrap(a, b, resamples=50)
    back = metrics.paired_bootstrap(b, a, resamples=50)
    assert back == pytest.approx((-difference, -high, -low))


@given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.integers(1, 5))
def test_recall_equals_a_stable_sort_for_every_chunk(seed, queries, gallery, chunk):
    rng = np.random.default_rng(seed)
    # Few distinct scores, so that ties are common.
    left = rng.integers(0, 2, (queries, 2)).astype(np.float64)
    right = rng.integers(0, 2, (gallery, 2)).astype(np.float64)
    gallery_labels = rng.integers(0, 3, gallery)
    query_labels = rng.choice(gallery_labels, queries)
    found = metrics.recall_at_k(left, right, query_labels, gallery_labels, (1, 2, 5), chunk)
    ranking = np.argsort(-(left @ right.T), axis=1, kind="stable")
    hits = gallery_labels[ranking] == query_labels[:, None]
    assert found == {k: pytest.approx(hits[:, :k].any(axis=1).mean()) for k in (1, 2, 5)}


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_harmonic_mean_lies_between_its_arguments(a, b):
    found = metrics.harmonic_mean(a, b)
    assert min(a, b) * (1 - 1e-12) <= found <= max(a, b) * (1 + 1e-12)
    assert found <= (a + b) / 2 + 1e-12
