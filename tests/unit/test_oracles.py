"""Other people's programs give the same numbers: torchmetrics, scikit-learn, clip_benchmark."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from numpy.typing import NDArray
from sklearn import metrics as sklearn
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchmetrics.functional.classification import multiclass_calibration_error

from perdure import metrics, zoo
from perdure.data.augment import fit
from perdure.data.captions import TEMPLATES
from perdure.data.datasets import Dataset, open_dataset
from perdure.data.suites import Split, Suite
from perdure.evaluation import evaluate
from perdure.prediction import predict, spread
from perdure.predictor import Predictor

LIMIT = 120
SUITE = Suite(
    name="small",
    summary="one split",
    splits=(Split(name="sketch", role="ood", dataset="emojishift", split="sketch"),),
    templates="emojishift",
)


@pytest.fixture(params=[(400, 5, 1.0), (1000, 60, 4.0), (64, 200, 0.2)], ids=str)
def scored(request: pytest.FixtureRequest) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return logits (N, C) of some confidence, and labels, often right; some classes are absent."""
    rows, classes, sharpness = request.param
    rng = np.random.default_rng(rows)
    labels = rng.integers(0, max(2, classes - 2), rows)
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += rng.normal(1.0, 1.0, rows)
    return (sharpness * logits).astype(np.float32), labels


@pytest.mark.parametrize("bins", [10, 15])
def test_calibration_error_is_that_of_torchmetrics(
    scored: tuple[NDArray[np.float32], NDArray[np.int64]], bins: int
) -> None:
    logits, labels = scored
    expected = multiclass_calibration_error(
        torch.from_numpy(logits).softmax(dim=1),
        torch.from_numpy(labels),
        num_classes=logits.shape[1],
        n_bins=bins,
        norm="l1",
    )
    assert metrics.ece(logits, labels, bins) == pytest.approx(float(expected), abs=1e-6)


def test_scores_of_classes_are_those_of_scikit_learn(
    scored: tuple[NDArray[np.float32], NDArray[np.int64]],
) -> None:
    logits, labels = scored
    classes = np.arange(logits.shape[1])
    probabilities = torch.from_numpy(logits).double().softmax(dim=1).numpy()
    guesses = logits.argmax(axis=1)
    for found, expected in (
        (metrics.top1(logits, labels), sklearn.accuracy_score(labels, guesses)),
        (metrics.macro_f1(logits, labels), sklearn.f1_score(labels, guesses, average="macro")),
        (metrics.nll(logits, labels), sklearn.log_loss(labels, probabilities, labels=classes)),
        (
            metrics.brier(logits, labels),
            sklearn.brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False),
        ),
    ):
        assert found == pytest.approx(float(expected), abs=1e-6)


class Normalised(TorchDataset[tuple[Tensor, int]]):
    """Images as a model reads them, in the form that clip_benchmark loads."""

    def __init__(self, data: Dataset, predictor: Predictor) -> None:
        self.data, self.preprocess = data, predictor.preprocess
        self.classes = data.classes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        size, mode = self.preprocess.size, self.preprocess.interpolation
        pixels = fit(self.data.image(index), size, mode)
        return self.preprocess.normalize(pixels[None])[0], int(self.data.labels[index])


class Benchmark(NamedTuple):
    """A model and some images of EmojiShift."""

    predictor: Predictor
    data: Dataset
    images: Normalised


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    predictor = zoo.load("perdure-tiny").eval()
    data = spread(open_dataset("emojishift", "sketch"), LIMIT)
    return Benchmark(predictor, data, Normalised(data, predictor))


def test_zero_shot_scores_are_those_of_clip_benchmark(benchmark: Benchmark) -> None:
    predictor, data, images = benchmark
    classifier = zeroshot_classification.zero_shot_classifier(
        predictor.clip,
        predictor.tokenizer,
        list(data.classes),
        [template.replace("{}", "{c}") for template in TEMPLATES],
        "cpu",
        amp=False,
    )
    logits, target = zeroshot_classification.run_classification(
        predictor.clip, classifier, DataLoader(images, batch_size=50), "cpu", amp=False
    )
    ours = evaluate(predictor, SUITE, limit=LIMIT)
    label, guess = ours.outcomes["sketch"].label, ours.outcomes["sketch"].prediction
    # Its `evaluate` goes on so, but its `accuracy` turns arrays to floats, which numpy 2.4 refuses.
    theirs = logits.argmax(dim=1)
    assert 0.1 < ours["sketch"]["accuracy"] < 0.9
    assert ours["sketch"]["accuracy"] == pytest.approx(float((theirs == target).double().mean()))
    recall = sklearn.balanced_accuracy_score(label, guess)
    assert recall == pytest.approx(sklearn.balanced_accuracy_score(target, theirs), abs=1e-6)
    # Another definition: it multiplies cosines by 100 instead of the model's own scale, so its
    # order of classes is ours, and its confidences are not.
    mine = predict(predictor, data, TEMPLATES).logits / predictor.scale.item()
    assert np.allclose(mine, logits.numpy() / 100, atol=1e-6)


def test_class_features_are_those_of_clip_benchmark(benchmark: Benchmark) -> None:
    predictor, data, _ = benchmark
    names, templates = data.classes[:5], TEMPLATES[:3]
    theirs = zeroshot_classification.zero_shot_classifier(
        predictor.clip,
        predictor.tokenizer,
        list(names),
        [template.replace("{}", "{c}") for template in templates],
        "cpu",
        amp=False,
    )
    assert torch.allclose(predictor.classifier(names, templates), theirs.T, atol=1e-6)


def test_recall_both_ways_is_that_of_clip_benchmark(benchmark: Benchmark) -> None:
    predictor, data, images = benchmark
    # No text twice, or the order of equal scores would decide, which clip_benchmark leaves open.
    texts = [
        [f"{first} {data.classes[label]}, number {index}" for first in ("a photo of a", "one")]
        for index, label in enumerate(data.labels)
    ]
    batches = [
        (torch.stack([images[index][0] for index in part]), [texts[index] for index in part])
        for part in np.array_split(np.arange(len(data)), 4)
    ]
    ks = [1, 5, 10]
    theirs = zeroshot_retrieval.evaluate(
        predictor.clip, batches, predictor.tokenizer, "cpu", amp=False, recall_k_list=ks
    )
    with torch.no_grad():
        pictures = predictor.encode_image(torch.cat([part for part, _ in batches])).numpy()
        rows = predictor.tokenizer([text for own in texts for text in own])
        sentences = predictor.encode_text(rows).numpy()
    numbers = np.arange(len(data))
    owners = np.repeat(numbers, 2)
    to_texts = metrics.recall_at_k(pictures, sentences, numbers, owners, ks)
    to_images = metrics.recall_at_k(sentences, pictures, owners, numbers, ks)
    assert 0.0 < to_images[1] < to_images[10] < 1.0
    for k in ks:
        assert to_texts[k] == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)
        assert to_images[k] == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-6)
