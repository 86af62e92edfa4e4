"""Metrics against golden numbers, closed forms and their error messages."""

import numpy as np
import pytest

from perdure import metrics
from perdure.errors import DataError

SINGLE = 4e-7  # the source computes metrics in float32


@pytest.fixture
def calibration(golden):
    data = golden("tracer_eval")
    return data["cal__logits"], data["cal__labels"], data


def test_golden_accuracy_and_f1(calibration):
    logits, labels, data = calibration
    assert metrics.top1(logits, labels) == pytest.approx(float(data["cal__top1"]), rel=SINGLE)
    assert metrics.macro_f1(logits, labels) == pytest.approx(
        float(data["cal__macro_f1"]), rel=SINGLE
    )


def test_golden_ece_over_the_whole_set(calibration):
    logits, labels, data = calibration
    found = metrics.ece(logits, labels, bins=10)
    assert found == pytest.approx(float(data["cal__ece_full"]), rel=SINGLE)


def test_golden_ece_over_batches(calibration):
    logits, labels, data = calibration
    for size, expected in zip(
        data["cal__ece_batched_sizes"], data["cal__ece_batched"], strict=True
    ):
        found = metrics.ece_batchmean(logits, labels, int(size))
        assert found == pytest.approx(float(expected), rel=SINGLE)


def test_golden_ece_on_bin_edges(golden):
    data = golden("tracer_eval")
    probabilities, labels = data["edge__probs"], data["edge__labels"]
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    found = metrics.ece_from_confidence(confidence, correct, 10)
    assert found == pytest.approx(float(data["edge__ece"]), rel=SINGLE)


def test_golden_f1_averages_over_classes_that_occur(golden):
    data = golden("tracer_eval")
    found = metrics.macro_f1_from_predictions(data["f1__pred"], data["f1__y"])
    assert found == pytest.approx(float(data["f1__macro"]), rel=SINGLE)


def test_softmax_keeps_its_type_and_survives_large_logits():
    logits = np.array([[1000.0, 0.0], [0.0, -1000.0]])
    np.testing.assert_array_equal(metrics.softmax(logits), [[1, 0], [1, 0]])
    assert metrics.softmax(logits.astype(np.float16)).dtype == np.float32
    assert metrics.softmax(logits.astype(np.float32)).dtype == np.float32
    assert metrics.softmax(logits).dtype == np.float64


def test_top1_takes_the_first_of_equal_logits():
    assert metrics.top1(np.zeros((2, 3)), np.array([0, 1])) == 0.5


def test_exactly_certain_predictions_have_their_own_bin():
    confidence = np.array([0.95, 1.0])
    correct = np.array([True, False])
    # One bin together would give |0.5 - 0.975|.
    assert metrics.ece_from_confidence(confidence, correct, 10) == pytest.approx(0.5 * 0.05 + 0.5)
    bins = metrics.reliability_bins(confidence, correct, 10)
    assert bins.size[-1] == 2
    assert bins.confidence[-1] == pytest.approx(0.975)


def test_reliability_bins():
    confidence = np.array([0.1, 0.3, 0.3, 0.9])
    bins = metrics.reliability_bins(confidence, np.array([False, True, False, True]), 5)
    np.testing.assert_array_equal(bins.size, [1, 2, 0, 0, 1])
    np.testing.assert_allclose(bins.accuracy, [0, 0.5, np.nan, np.nan, 1])
    np.testing.assert_allclose(bins.confidence, [0.1, 0.3, np.nan, np.nan, 0.9])


def test_nll_and_brier():
    logits, labels = np.log(np.array([[0.25, 0.75], [0.5, 0.5]])), np.array([0, 1])
    assert metrics.nll(logits, labels) == pytest.approx(-np.log(0.25 * 0.5) / 2)
    assert metrics.brier(logits, labels) == pytest.approx((2 * 0.75**2 + 2 * 0.25) / 2)


@pytest.mark.parametrize("true", [0.3, 1.0, 7.0])
def test_fit_temperature_recovers_it(true):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (40000, 4))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    assert metrics.fit_temperature(logits * true, labels) == pytest.approx(true, rel=0.03)


def test_fit_temperature_stays_in_range():
    logits = np.array([[3.0, 0.0], [0.0, 3.0]])
    assert 0.01 <= metrics.fit_temperature(logits, np.array([0, 1])) < 1.0
    assert metrics.fit_temperature(logits, np.array([1, 0])) == pytest.approx(100.0)
    assert metrics.fit_temperature(np.zeros((2, 2)), np.array([0, 1])) == 1.0


def test_bootstrap_interval_has_the_width_of_theory():
    values = np.arange(4000) % 4 == 0
    low, high = metrics.bootstrap_interval(values)
    error = np.sqrt(0.25 * 0.75 / 4000)
    assert low == pytest.approx(0.25 - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(0.25 + 1.96 * error, abs=0.2 * error)
    assert metrics.bootstrap_interval(values) == (low, high)
    assert metrics.bootstrap_interval(values, seed=1) != (low, high)
    narrow = metrics.bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_paired_bootstrap_cancels_what_both_share():
    rng = np.random.default_rng(0)
    hard = rng.random(2000)
    difference, low, high = metrics.paired_bootstrap(hard + 0.01, hard)
    assert (difference, low, high) == pytest.approx((0.01, 0.01, 0.01))


def test_recall_breaks_ties_by_index():
    queries = np.array([[1.0, 0.0], [1.0, 0.0]])
    gallery = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = metrics.recall_at_k(queries, gallery, np.array([0, 1]), np.array([0, 1, 2]), ks=(1, 2))
    assert found == {1: 0.5, 2: 1.0}


def test_recall_needs_one_positive_only():
    gallery = np.eye(3)
    found = metrics.recall_at_k(np.eye(3)[:1], gallery, np.array([7]), np.array([7, 3, 7]), ks=(1,))
    assert found == {1: 1.0}


def test_recall_names_queries_without_positives():
    with pytest.raises(DataError, match=r"1 of 2 queries .* first is query 1 with label 9"):
        metrics.recall_at_k(np.eye(2), np.eye(2), np.array([0, 9]), np.array([0, 1]))


def test_golden_accuracy_and_f1_of_the_few_shot_evaluator(golden):
    known = golden("mergetune_metrics")
    logits, labels = known["eval/logits"], known["eval/labels"]
    assert 100 * metrics.top1(logits, labels) == pytest.approx(float(known["eval/accuracy"]))
    assert 100 * (1 - metrics.top1(logits, labels)) == pytest.approx(
        float(known["eval/error_rate"])
    )
    assert 100 * metrics.macro_f1(logits, labels) == pytest.approx(float(known["eval/macro_f1"]))


def test_golden_harmonic_means_of_published_base_and_novel_accuracies(golden):
    known = golden("mergetune_metrics")
    found = [
        metrics.harmonic_of_means([base], [novel])
        for base, novel in zip(known["hm/base"], known["hm/novel"], strict=True)
    ]
    np.testing.assert_allclose(found, known["hm/formula"], rtol=1e-12)
    np.testing.assert_allclose(found, known["hm/published"], atol=0.0051)  # printed to .01


def test_golden_mean_of_harmonic_means_is_another_number(golden):
    known = golden("mergetune_metrics")
    for row, mean in zip(known["perdataset/hm"], known["perdataset/mean_of_hm"], strict=True):
        # Base and novel accuracies with these harmonic means, far apart.
        found = metrics.mean_of_harmonics(row * 3, row * 0.6)
        assert found == pytest.approx(mean, rel=1e-12)
        assert metrics.harmonic_of_means(row * 3, row * 0.6) == pytest.approx(mean, rel=1e-12)
    apart = ([0.9, 0.3], [0.3, 0.9])
    assert metrics.harmonic_of_means(*apart) == pytest.approx(0.6)
    assert metrics.mean_of_harmonics(*apart) == pytest.approx(0.45)
    with pytest.raises(DataError):
        metrics.harmonic_of_means([0.5], [0.5, 0.6])


def test_interval_of_a_harmonic_mean_is_that_of_resampled_images():
    rng = np.random.default_rng(0)
    base, novel = rng.random(400) < 0.8, rng.random(300) < 0.5
    found = metrics.harmonic_interval([base], [novel], resamples=4000)
    draws = [
        metrics.harmonic_mean(
            rng.choice(base, len(base)).mean(), rng.choice(novel, len(novel)).mean()
        )
        for _ in range(4000)
    ]
    np.testing.assert_allclose(found, np.quantile(draws, [0.025, 0.975]), atol=0.004)
    assert metrics.harmonic_interval([np.ones(3, bool)], [np.ones(2, bool)]) == (1.0, 1.0)
    with pytest.raises(DataError, match="at least one set"):
        metrics.harmonic_interval([base], [])


def test_harmonic_mean():
    assert metrics.harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert metrics.harmonic_mean(0.0, 0.0) == 0.0


@pytest.mark.parametrize(
    "metric",
    [
        metrics.top1,
        metrics.macro_f1,
        metrics.ece,
        metrics.nll,
        metrics.brier,
        metrics.fit_temperature,
    ],
)
def test_wrong_arrays_are_named(metric):
    with pytest.raises(DataError, match=r"shape \(2, 3\) and labels \(3,\)"):
        metric(np.zeros((2, 3)), np.zeros(3, dtype=int))
    with pytest.raises(DataError, match=r"N >= 1"):
        metric(np.zeros((0, 3)), np.zeros(0, dtype=int))
    with pytest.raises(DataError, match=r"labels span 1 to 3; they must lie in 0 to 2"):
        metric(np.zeros((2, 3)), np.array([1, 3]))


def test_confidences_are_probabilities():
    for wrong in (np.array([1.5]), np.array([-0.1]), np.array([np.nan])):
        with pytest.raises(DataError, match=r"must lie in \[0, 1\]"):
            metrics.ece_from_confidence(wrong, np.array([True]))
    with pytest.raises(DataError, match="expected"):
        metrics.bootstrap_interval(np.zeros(0))
    with pytest.raises(DataError, match="expected"):
        metrics.recall_at_k(np.eye(2), np.eye(2), np.arange(3), np.arange(2))


def test_the_interval_of_macro_f1_is_that_of_resampled_images() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    predictions = np.where(rng.random(200) < 0.6, labels, rng.integers(0, 5, 200))
    low, high = metrics.macro_f1_interval(predictions, labels)
    plain = []
    for _ in range(1000):
        kept = rng.integers(0, 200, 200)
        plain.append(metrics.macro_f1_from_predictions(predictions[kept], labels[kept]))
    expected = np.quantile(plain, [0.025, 0.975])
    assert np.abs(expected - [low, high]).max() < 0.012
    assert low < metrics.macro_f1_from_predictions(predictions, labels) < high
    assert metrics.macro_f1_interval(labels, labels) == (1.0, 1.0)
