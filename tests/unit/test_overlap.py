"""Overlap of label maps against golden numbers, torchmetrics and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.segmentation import MeanIoU

from perdure.errors import DataError
from perdure.overlap import Overlap, confusion, iou, miou, miou_interval, overlap, overlap_scores

SINGLE = 1e-6


def maps(seed, classes=5, size=(6, 7), unknown=True):
    rng = np.random.default_rng(seed)
    prediction = rng.integers(0, classes, size)
    truth = rng.integers(-1 if unknown else 0, classes, size)
    return prediction, truth


def counts_of(prediction, truth, classes=5):
    return overlap(confusion(prediction, truth, classes))


def test_golden_confusion_and_scores(golden):
    data = golden("r_adapter_ovseg")
    classes = int(data["miou/num_classes"])
    truth = np.where(data["miou/gt_255_is_ignored"] == 255, -1, data["miou/gt_255_is_ignored"])
    matrix = confusion(data["miou/pred"], truth, classes)
    np.testing.assert_array_equal(matrix, data["miou/confusion_rows_pred_cols_gt"])
    # Counts are added over images, not scores.
    parts = [
        confusion(one, other, classes) for one, other in zip(data["miou/pred"], truth, strict=True)
    ]
    np.testing.assert_array_equal(sum(parts), matrix)
    found = overlap_scores(overlap(matrix))
    keys = ("miou", "fwiou", "class_accuracy", "pixel_accuracy")
    expected = data["miou/mIoU_fwIoU_mACC_pACC"]
    np.testing.assert_allclose([100 * found[key] for key in keys], expected, rtol=1e-9)
    per_class = 100 * iou(overlap(matrix))
    known = ~np.isnan(data["miou/iou_per_class_nan_if_absent_from_gt"])
    np.testing.assert_allclose(
        per_class[known], data["miou/iou_per_class_nan_if_absent_from_gt"][known], rtol=1e-9
    )
    # One class that is nowhere in the truth was predicted: it counts as 0 unless asked otherwise.
    assert 100 * found["miou_truth"] == pytest.approx(per_class[known].mean())
    assert found["miou_truth"] > found["miou"]


@pytest.mark.parametrize("seed", range(5))
def test_mean_iou_is_that_of_torchmetrics_over_the_whole_set(seed):
    prediction, truth = maps(seed, unknown=False)
    oracle = MeanIoU(num_classes=5, input_format="index")
    oracle.update(torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None])
    found = miou(counts_of(prediction, truth))
    assert found == pytest.approx(float(oracle.compute()), abs=SINGLE)


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_properties_of_the_mean(seed, classes):
    prediction, truth = maps(seed, classes)
    counts = counts_of(prediction, truth, classes)
    value = miou(counts)
    if not (truth >= 0).any():
        assert np.isnan(value)
        return
    assert 0 <= value <= 1
    # Whatever is predicted where nobody knows the truth changes nothing.
    other = np.where(truth < 0, (prediction + 1) % classes, prediction)
    np.testing.assert_array_equal(counts_of(other, truth, classes), counts)
    # Names of classes have no order.
    order = np.random.default_rng(seed).permutation(classes)
    renamed = counts_of(order[prediction], np.where(truth < 0, -1, order[truth]), classes)
    assert miou(renamed) == pytest.approx(value)
    # Truth is perfect, and more classes that are nowhere change nothing.
    assert miou(counts_of(np.maximum(truth, 0), truth, classes)) == 1
    assert miou(counts_of(prediction, truth, classes + 3)) == pytest.approx(value)
    # Nothing predicted is worth nothing, and raises no false alarm.
    nothing = counts_of(np.full_like(truth, classes), truth, classes)
    assert miou(nothing) == 0
    assert nothing.predicted.sum() == 0
    scores = overlap_scores(counts)
    assert scores["miou"] <= scores["miou_truth"] <= scores["class_accuracy"] + 1e-12


def test_interval_is_that_of_resampled_images():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 30, (12, 4))
    hit = (truth * rng.random((12, 4))).astype(np.int64)
    predicted = hit + rng.integers(0, 9, (12, 4))
    counts = Overlap(hit, truth, predicted)
    low, high = miou_interval(counts, resamples=120, seed=3)
    again = np.random.default_rng(3)
    rows = np.concatenate([again.integers(0, 12, (size, 12)) for size in (50, 50, 20)])
    plain = [miou(Overlap(*(part[row].sum(axis=0) for part in counts))) for row in rows]
    np.testing.assert_allclose([low, high], np.quantile(plain, [0.025, 0.975]), rtol=1e-12)
    assert low < miou(Overlap(*(part.sum(axis=0) for part in counts))) < high


def test_interval_of_equal_images_is_a_point():
    counts = Overlap(*(np.tile(row, (5, 1)) for row in ([3, 0], [4, 0], [3, 2])))
    assert miou_interval(counts) == (pytest.approx(3 / 8), pytest.approx(3 / 8))


@pytest.mark.parametrize(
    ("prediction", "truth", "words"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), "2 x 3 pixels and the truth 3 x 2"),
        (np.full((1, 1), 4), np.zeros((1, 1), int), "go from 4 to 4; allowed is 0 to 3"),
        (np.zeros((1, 1), int), np.full((1, 1), 3), "go from 3 to 3; allowed is -1"),
        (np.zeros((1, 1), int), np.full((1, 1), -2), "-2"),
    ],
)
def test_what_cannot_be_counted_is_refused(prediction, truth, words):
    with pytest.raises(DataError, match=words):
        confusion(prediction, truth, 3)


def test_no_known_pixel_and_no_image_are_refused():
    none = np.zeros(3, dtype=np.int64)
    with pytest.raises(DataError, match="no pixel has a known label"):
        overlap_scores(Overlap(none, none, none))
    empty = np.zeros((0, 3), dtype=np.int64)
    with pytest.raises(DataError, match="no images"):
        miou_interval(Overlap(empty, empty, empty))
