"""Runs whose predictor has added modules: files, scores, merges, sweeps, temperatures, exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from perdure import zoo
from perdure.calibration import calibrate
from perdure.calibration import stored as stored_temperature
from perdure.data.suites import Split, Suite
from perdure.errors import RunError
from perdure.evaluation import evaluate
from perdure.exporting import export_open_clip
from perdure.groups import _alpha_curve
from perdure.interpolation import soup, wise_ft
from perdure.merging import merge
from perdure.opening import load_student
from perdure.predicting import predict_files
from perdure.prediction import How
from perdure.predictor import Predictor
from perdure.recipe import ModelSpec, parse_recipe
from perdure.records import read
from perdure.run import Run
from perdure.runtime import Runtime
from perdure.subjects import find, hash_of_file
from perdure.surgery.residual import Residual
from perdure.sweeping import sweep_run

LIMIT = 40
SUITE = Suite(
    name="small",
    summary="one split",
    splits=(
        Split(name="id", role="id", dataset="emojishift", split="id"),
        Split(name="sketch", role="ood", dataset="emojishift", split="sketch"),
    ),
    templates="emojishift",
)
RECIPE = {
    "model": {"name": "perdure-tiny"},
    "data": {"name": "emojishift"},
    "method": {"name": "flyp"},
    "optim": {"lr": 1e-4, "epochs": 1, "batch_size": 64},
    "seed": 3,
}


def trained(alpha: float = 0.25, seed: int = 0) -> Predictor:
    predictor = zoo.load("perdure-tiny")
    predictor.attach(Residual(rank_image=4, rank_text=4))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in predictor.added().values():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=random))
    predictor.set_alpha(alpha)
    return predictor


def finished(path: Path, predictor: Predictor) -> Path:
    run = Run.create(path, parse_recipe(RECIPE, "test"), Runtime("cpu"))
    run.finish(predictor, keep_states=False)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("runs") / "run", trained())


def same(first: Predictor, second: Predictor, exact: bool = True) -> bool:
    others = second.state_dict()
    return first.state_dict().keys() == others.keys() and all(
        torch.equal(value, others[name])
        if exact
        else torch.allclose(value, others[name], atol=1e-6)
        for name, value in first.state_dict().items()
    )


def test_the_run_keeps_both_forms_and_is_read_folded(run: Path) -> None:
    assert len(Run(run).predictor().added()) > 0
    assert json.loads((run / "predictor" / "predictor.json").read_text())["format"] == 2
    plain = trained().fold()
    assert same(zoo.load(f"local-dir:{run / 'model'}"), plain)
    assert same(find(run).predictor(), plain)
    assert same(find(run).predictor(1.0), trained().fold(1.0))
    assert same(zoo.load(str(run / "predictor")), plain)
    start = ModelSpec(name="perdure-tiny", init=run)
    assert same(load_student(start, 0), trained())  # methods fold it where they must
    assert same(load_student(start, 0).plain(), plain)


def test_scores_are_those_of_its_own_strength(run: Path) -> None:
    found = evaluate(run, SUITE, limit=LIMIT)["id"]
    unfolded = evaluate(trained(), SUITE, limit=LIMIT)["id"]
    full = evaluate(trained(1.0), SUITE, limit=LIMIT)["id"]
    assert found["nll"] == pytest.approx(unfolded["nll"], rel=1e-4)
    assert found["nll"] != pytest.approx(full["nll"], rel=1e-2)


def test_wise_ft_takes_the_tuned_end_at_full_strength(run: Path, tmp_path: Path) -> None:
    start, tuned = zoo.load("perdure-tiny"), trained()
    merged = wise_ft(start, tuned, 0.5)
    assert same(merged, wise_ft(start, tuned.fold(1.0), 0.5))
    assert same(merged, tuned.fold(0.5), exact=False)
    assert len(tuned.added()) > 0
    out = merge("wise-ft", ["perdure-tiny", run], tmp_path / "merged", alpha=0.5)
    assert same(out.predictor(), merged)
    as_start = merge("wise-ft", [run, run], tmp_path / "line", alpha=0.0)
    assert same(as_start.predictor(), tuned.fold())


def test_soups_take_members_at_their_own_strength(run: Path, tmp_path: Path) -> None:
    other = trained(0.5, seed=1)
    expected = soup([trained().fold(), other.fold()])
    assert same(soup([trained(), other]), expected)
    second = finished(tmp_path / "second", other)
    assert same(merge("soup", [run, second], tmp_path / "soup").predictor(), expected)


def test_a_sweep_goes_to_full_strength_and_holds_the_run_itself(tmp_path: Path) -> None:
    path = finished(tmp_path / "run", trained(0.3))
    found = sweep_run(path, SUITE, alphas=(0.0, 1.0), how=How(limit=LIMIT))
    assert sorted(found) == [0.0, 0.3, 1.0]
    full = evaluate(trained().fold(1.0), SUITE, limit=LIMIT)
    assert found[1.0]["id"]["nll"] == pytest.approx(full["id"]["nll"], rel=1e-5)
    own = json.loads((path / "scores" / "small.json").read_text())
    assert own["splits"] == json.loads(json.dumps(found[0.3].splits))
    record = read(path, "small")
    assert record.strength == 0.3
    curve = _alpha_curve(record, ())
    assert [point.position for point in curve.points] == [0.0, 0.3, 1.0]


def test_without_a_sweep_the_run_stands_at_its_strength(run: Path) -> None:
    evaluate(run, SUITE, limit=LIMIT)
    record = read(run, "small")
    assert [point.position for point in _alpha_curve(record, ()).points] == [0.25]


def test_a_temperature_belongs_to_a_strength(tmp_path: Path) -> None:
    path = finished(tmp_path / "run", trained())
    calibrate(path, how=How(limit=LIMIT))
    assert stored_temperature(find(path)) is not None
    changed = Run(path).predictor()
    changed.set_alpha(0.75)
    before = hash_of_file(path / "predictor" / "predictor.safetensors")
    changed.save(path / "predictor")
    assert hash_of_file(path / "predictor" / "predictor.safetensors") == before
    with pytest.raises(RunError, match="fitted to other weights"):
        stored_temperature(find(path))


def test_exports_and_predictions_are_folded(run: Path, tmp_path: Path) -> None:
    difference = export_open_clip(run, tmp_path / "out")
    assert max(difference) < 1e-6
    assert same(zoo.load(f"local-dir:{tmp_path / 'out'}"), trained().fold())
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    asked = ([tmp_path / "a.png"], ["taco", "tiger"], ["a {}"])
    expected = predict_files(run / "model", *asked).probabilities
    np.testing.assert_allclose(predict_files(run, *asked).probabilities, expected, rtol=1e-4)


def test_merges_record_what_they_were_made_of(run: Path, tmp_path: Path) -> None:
    merge("soup", [run, run], tmp_path / "soup")
    inputs = yaml.safe_load((tmp_path / "soup" / "merge.yaml").read_text())["inputs"]
    stronger = finished(tmp_path / "stronger", trained(1.0))
    merge("soup", [stronger, stronger], tmp_path / "other")
    others = yaml.safe_load((tmp_path / "other" / "merge.yaml").read_text())["inputs"]
    assert inputs[0]["sha256"] != others[0]["sha256"]
