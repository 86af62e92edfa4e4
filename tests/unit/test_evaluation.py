"""Evaluation: metrics of whole arrays, score files, sweeps that decode once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from perdure import metrics, zoo
from perdure.data.suites import Split, Suite
from perdure.errors import DataError, RunError, WeightsError
from perdure.evaluation import evaluate, measure
from perdure.interpolation import wise_ft
from perdure.prediction import How, Outputs, Precision, Unit, gather, predict, spread, stay
from perdure.predictor import Predictor
from perdure.sweeping import Line, sweep, sweep_run
from perdure.zoo import random_clip

NAMES = ("taco", "banana", "tiger", "motor boat")
TEMPLATES = ("a photo of a {}", "a {}")
LIMIT = 80
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


class Blobs:
    """Four classes of coloured noise; counts how often an image is read."""

    name = "blobs"
    classes = NAMES
    captioned = False

    def __init__(self, n: int = 24) -> None:
        self.labels: NDArray[np.int64] = np.arange(n) % len(NAMES)
        self.reads = 0

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        self.reads += 1
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=generator)


SUITE = Suite(
    name="small",
    summary="two splits",
    splits=(
        Split(name="id", role="id", dataset="emojishift", split="id"),
        Split(name="sketch", role="ood", dataset="emojishift", split="sketch"),
    ),
    templates="emojishift",
)


@pytest.fixture(scope="module")
def tuned() -> Predictor:
    return random_clip(1)


def test_outputs_are_the_predictors_logits_in_order() -> None:
    predictor, data = random_clip(0), Blobs()
    outputs = predict(predictor, data, TEMPLATES, batch_size=7)
    images = torch.stack([data.image(index) for index in range(len(data))])
    score = predictor.logits_fn(NAMES, TEMPLATES)
    expected = score(predictor.preprocess.normalize(images)).numpy()
    assert outputs.logits.dtype == np.float32
    assert np.allclose(outputs.logits, expected, atol=1e-4)
    assert (outputs.labels == data.labels).all()


def test_batch_size_changes_nothing() -> None:
    data = Blobs()
    small, large = (
        predict(random_clip(0), data, TEMPLATES, batch_size=size).logits for size in (5, 24)
    )
    assert np.allclose(small, large, atol=1e-5)


def test_columns_take_the_largest_logit_of_their_names() -> None:
    data = Blobs()
    plain = predict(random_clip(0), data, TEMPLATES)
    grouped = predict(random_clip(0), data, TEMPLATES, columns=((0, 2), (1,), (3,)))
    expected = np.stack([plain.logits[:, [0, 2]].max(1), *plain.logits[:, [1, 3]].T], axis=1)
    assert np.allclose(grouped.logits, expected, atol=1e-5)


def test_a_trained_head_scores_instead_of_the_text_tower() -> None:
    predictor = random_clip(0)
    predictor.set_head(NAMES, TEMPLATES)
    assert predictor.head is not None
    with torch.no_grad():
        predictor.head.bias[2] = 1e4
    assert (predict(predictor, Blobs(), TEMPLATES).logits.argmax(axis=1) == 2).all()


def test_logits_that_are_not_finite_are_an_error() -> None:
    predictor = random_clip(0)
    with torch.no_grad():
        next(predictor.clip.visual.parameters()).fill_(float("nan"))
    with pytest.raises(WeightsError, match="not finite"):
        predict(predictor, Blobs(), TEMPLATES)


def test_metrics_are_those_of_the_whole_arrays() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(300, 5)).astype(np.float32)
    labels = generator.integers(0, 5, 300)
    values = measure(Outputs(logits, labels), temperature=2.0)
    assert values["n"] == 300
    assert values["accuracy"] == metrics.top1(logits, labels)
    assert values["ece"] == metrics.ece(logits, labels, bins=15)
    assert values["ece10"] == metrics.ece(logits, labels, bins=10)
    assert values["nll_scaled"] == pytest.approx(metrics.nll(logits / 2, labels))
    low, high = values["interval"]
    assert low < values["accuracy"] < high


def test_spread_takes_images_of_every_class() -> None:
    data = Blobs(400)
    data.labels = np.repeat(np.arange(4), 100)
    part = spread(data, 40)
    assert np.bincount(part.labels).tolist() == [10, 10, 10, 10]
    assert torch.equal(part.image(39), data.image(399))
    assert spread(data, 400) is data
    with pytest.raises(DataError, match="limit is 0"):
        spread(data, 0)


def test_scores_say_what_they_depend_on(tuned: Predictor) -> None:
    scores = evaluate(tuned, SUITE, limit=LIMIT, temperature=True)
    document = scores.to_dict()
    assert document["suite"] == "small"
    assert document["definition"] == SUITE.definition
    assert len(document["templates_sha256"]) == 12
    assert document["transform"]["size"] == 40
    assert document["temperature"] > 0
    assert json.loads(json.dumps(document)) is not None
    for split, role in (("id", "id"), ("sketch", "ood")):
        entry = scores[split]
        assert (entry["role"], entry["metric"], entry["n"]) == (role, "accuracy", LIMIT)
        assert entry["classifier"] == "text"
        assert {"macro_f1", "ece", "ece10", "nll", "brier", "ece_scaled"} <= entry.keys()
        assert scores.outcomes[split].correct.mean() == pytest.approx(entry["accuracy"])


def saved_run(path: Path, predictor: Predictor) -> Path:
    predictor.save(path / "predictor")
    recipe = {
        "model": {"name": "start", "weights": None},
        "method": {"name": "flyp"},
        "seed": 3,
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return path


def test_a_run_keeps_its_scores_and_outcomes(tmp_path: Path, tuned: Predictor) -> None:
    run = saved_run(tmp_path / "run", tuned)
    scores = evaluate(run, SUITE, limit=LIMIT)
    stored = json.loads((run / "scores" / "small.json").read_text())
    assert stored == json.loads(json.dumps(scores.to_dict()))
    assert stored["seed"] == 3
    with np.load(run / "scores" / "small.outcomes.npz") as arrays:
        assert sorted(arrays) == sorted(
            f"{split}/{part}"
            for split in ("id", "sketch")
            for part in ("label", "prediction", "confidence")
        )
        assert arrays["id/confidence"].dtype == np.float32
    assert sorted(path.name for path in (run / "scores").iterdir()) == [
        "small.json",
        "small.outcomes.npz",
    ]


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 0\n")
    with pytest.raises(RunError, match="--resume"):
        evaluate(tmp_path, SUITE)


def test_unknown_suite_is_refused_before_loading() -> None:
    with pytest.raises(DataError, match="did you mean 'emojishift'"):
        evaluate("no-such-model", "emojishft")


def test_sweep_equals_merging_and_evaluating_each_point(tuned: Predictor) -> None:
    start = random_clip(0)
    found = sweep(start, tuned, SUITE, alphas=(0.0, 0.5, 1.0), how=How(limit=LIMIT, batch_size=32))
    for alpha, scores in found.items():
        single = evaluate(wise_ft(start, tuned, alpha), SUITE, limit=LIMIT)
        for split in ("id", "sketch"):
            assert scores[split]["nll"] == pytest.approx(single[split]["nll"], abs=1e-5)


def test_half_precision_is_that_of_the_weights_at_each_point(tuned: Predictor) -> None:
    start, data = random_clip(0), Blobs()
    unit, line = Unit(data, TEMPLATES, NAMES), Line(start, tuned)
    moves = {alpha: line.at(alpha) for alpha in (0.0, 0.5, 1.0)}
    found = gather(line.moving, moves, unit, How(precision="bf16", batch_size=10))
    for alpha in moves:
        merged = wise_ft(start, tuned, alpha)
        whole, half = (
            gather(merged, {0.0: stay}, unit, How(precision=each, batch_size=10))[0.0].logits
            for each in PRECISIONS
        )
        assert half.dtype == np.float32
        assert np.allclose(found[alpha].logits, half, atol=1e-5)
        assert 1e-4 < np.abs(half - whole).max() < 0.02 * merged.scale.item()


def test_sweep_decodes_every_image_once(monkeypatch: pytest.MonkeyPatch, tuned: Predictor) -> None:
    data = Blobs()
    monkeypatch.setattr("perdure.prediction.open_dataset", lambda *_, **__: data)
    seen: list[int] = []
    how = How(batch_size=10, progress=seen.append)
    sweep(random_clip(0), tuned, SUITE, alphas=(0.0, 0.5, 1.0), how=how)
    assert data.reads == 2 * len(data)
    assert sum(seen) == 3 * 2 * len(data)


def test_sweep_leaves_both_ends_alone(tuned: Predictor) -> None:
    start = random_clip(0)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    sweep(start, tuned, SUITE, alphas=(0.5,), how=How(limit=LIMIT))
    assert all(torch.equal(start.state_dict()[name], value) for name, value in before.items())


def test_sweep_of_a_run_starts_at_its_own_model(
    tmp_path: Path, tuned: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "load", lambda name, weights=None: random_clip(0))
    run = saved_run(tmp_path / "run", tuned)
    found = sweep_run(run, SUITE, alphas=(0.0, 1.0), how=How(limit=LIMIT))
    stored = json.loads((run / "scores" / "small.sweep.json").read_text())
    assert [point["alpha"] for point in stored["points"]] == [0.0, 1.0]
    assert stored["points"][1]["splits"] == json.loads(json.dumps(found[1.0].splits))
    assert "splits" not in stored
    with pytest.raises(RunError, match="not a training run"):
        sweep_run("perdure-tiny", SUITE)


def test_alphas_outside_the_line_are_refused(tuned: Predictor) -> None:
    with pytest.raises(WeightsError, match="alphas"):
        sweep(random_clip(0), tuned, SUITE, alphas=(0.0, 1.5))


def test_no_temperature_is_fitted_on_the_images_that_are_scored():
    from perdure.data.suites import suite
    from perdure.prediction import How, open_validation

    with pytest.raises(DataError, match="scores split val itself"):
        open_validation(suite("emojishift-val"), How())
    assert len(open_validation(suite("emojishift"), How()).dataset) == 1600
