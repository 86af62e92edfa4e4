"""Choosing alpha on runs: what is looked at, what it costs, what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from perdure import prediction
from perdure.alpha.dynamic import Dynamic
from perdure.alpha.hidden import shorter
from perdure.alpha.layers import Task
from perdure.alpha.report import RULES, AlphaReport, Cost, Look, Options, look
from perdure.alpha.rules import entropies, entropy_shares
from perdure.alpha.select import select_alpha, write_choice
from perdure.data.datasets import open_dataset
from perdure.data.suites import SUITES
from perdure.errors import DataError, RunError, TaskError, WeightsError
from perdure.interpolation import wise_ft
from perdure.prediction import How, Unit, open_validation, predict
from perdure.predictor import Predictor
from perdure.recipe import load_recipe, parse_recipe
from perdure.run import Run
from perdure.runtime import Runtime
from perdure.subjects import find
from perdure.surgery.residual import Residual
from perdure.sweeping import Line, ends
from perdure.training import train
from perdure.zoo import random_clip

NAMES = ("taco", "banana", "tiger")
TEMPLATES = ("a photo of a {}", "a {}")
HALVES = ("seen", "hidden")
HOW = How(limit=160)
COARSE = Options(grid=(0.0, 0.5, 1.0))


class Noise:
    """Three classes of random pictures; counts how often one is read."""

    name = "noise"
    classes = NAMES
    labels: NDArray[np.int64] = np.arange(12) % 3
    reads = 0

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> torch.Tensor:
        self.reads += 1
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return finished runs of six steps from a random model: FT (with a head) and FLYP."""
    folder = tmp_path_factory.mktemp("runs")
    random_clip(0).export_open_clip(folder / "random")
    random_clip(0).save(folder / "plain")
    changes = (
        f"model.name=local-dir:{folder / 'random'}", "data.shots=1", "optim.epochs=null",
        "optim.steps=6", "optim.batch_size=16", "optim.lr=3e-3",
    )  # fmt: skip
    found = {}
    for name, recipe, more in (
        ("ft", "ft", ()),
        ("flyp", "flyp", ()),
        ("flyp-1", "flyp", ("seed=1",)),
        ("flyp-2", "flyp", ("seed=1", "optim.lr=1e-3")),
    ):
        plan = load_recipe(f"emojishift/{recipe}", (*changes, *more))
        found[name] = train(plan, folder / name).path
    return found


def accuracy(predictor: Predictor) -> float:
    unit = open_validation(SUITES["emojishift"], HOW)
    logits, labels = predict(predictor, unit.dataset, unit.templates)
    return float((logits.argmax(axis=1) == labels).mean())


@pytest.mark.parametrize("name", ["ft", "flyp"])
def test_the_curve_ends_at_zero_shot_and_at_the_run(runs: dict[str, Path], name: str) -> None:
    report = select_alpha(runs[name], method="id_one_se", how=HOW, options=COARSE)
    zero_shot, tuned = ends(find(runs[name]))
    assert [point.alpha for point in report.curve] == [0, 0.5, 1]
    assert report.curve[0].value == pytest.approx(accuracy(wise_ft(zero_shot, tuned, 0)))
    assert report.curve[-1].value == pytest.approx(accuracy(tuned))
    assert report.alpha in (0, 0.5, 1)
    assert report.n == report.cost.images == 160
    assert report.cost.forwards == 3 * 160
    json.dumps(report.to_dict(), allow_nan=False)


def test_every_image_is_decoded_once_whatever_is_measured() -> None:
    data = Noise()
    line = Line(random_clip(0), random_clip(1))
    seen = look(line, Unit(data, TEMPLATES, NAMES), How(batch_size=5), (0, 0.3, 1), [line.start])
    assert data.reads == len(data)
    assert np.array_equal(seen.edited[0], seen.shares[0])
    assert not np.allclose(seen.logits[1], seen.logits[0], atol=1e-3)


@pytest.mark.parametrize("method", RULES)
def test_only_validation_images_are_looked_at(
    runs: dict[str, Path], method: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = []

    def spy(name: str, split: str, *arguments: Any, **options: Any) -> Any:
        opened.append(split)
        return open_dataset(name, split, *arguments, **options)

    monkeypatch.setattr(prediction, "open_dataset", spy)
    options = Options(grid=(0.0, 0.5, 1.0), other=runs["flyp-1"], work=tmp_path)
    report = select_alpha(runs["flyp"], method=method, how=HOW, options=options)
    assert set(opened) <= {"val"}
    assert isinstance(report, AlphaReport)
    assert (report.alpha is None) == (method in ("stock", "mono", "lines", "dynamic"))
    assert bool(report.layers) == (method in ("stock", "mono", "lines"))
    assert bool(report.copies) == (method == "dynamic")
    json.dumps(report.to_dict(), allow_nan=False)


def rising(*values: float) -> Look:
    """Return a look at 400 images that gave these accuracies."""
    right = np.array([np.arange(400) < 400 * value for value in values], dtype=np.float64)
    return Look((0.0, 0.5, 1.0), right, np.empty((0, 400)), Cost())


def test_a_curve_that_only_rises_is_distrusted(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Task, "look", lambda task: rising(0.4, 0.6, 0.8))
    report = select_alpha(runs["flyp"], method="id_one_se", how=HOW, options=COARSE)
    assert report.alpha == 1
    assert "shows only the training domain" in report.warnings[0]
    monkeypatch.setattr(Task, "look", lambda task: rising(0.4, 0.8, 0.6))
    report = select_alpha(runs["flyp"], method="id_one_se", how=HOW, options=COARSE)
    assert (report.alpha, report.warnings) == (0.5, ())


@pytest.mark.parametrize(("task", "alpha"), [("classification", 0.5), ("retrieval", 0.8)])
def test_fixed_looks_at_nothing(runs: dict[str, Path], task: str, alpha: float) -> None:
    report = select_alpha(runs["ft"], method="fixed", options=Options(task=task))
    assert (report.alpha, report.curve, report.cost.images) == (alpha, (), 0)


def test_halves_divide_the_classes() -> None:
    whole = open_dataset("emojishift", "val")
    seen, hidden = (open_dataset("emojishift", "val", classes=f"all/{half}-3") for half in HALVES)
    assert set(seen.classes) | set(hidden.classes) == set(whole.classes)
    assert len(seen.classes) == len(hidden.classes) == 40
    assert len(seen) + len(hidden) == len(whole)
    index = int(np.flatnonzero(hidden.labels == 7)[2])
    original = np.flatnonzero(whole.labels == whole.classes.index(hidden.classes[7]))[2]
    assert torch.equal(hidden.image(index), whole.image(int(original)))
    other = open_dataset("emojishift", "val", classes="base/seen-1")
    assert set(other.classes) < set(open_dataset("emojishift", "val", classes="base").classes)
    assert len(other.classes) == 20
    for wrong in ("all/seen", "all/half-0", "all/seen--1"):
        with pytest.raises(DataError, match="there is no half"):
            open_dataset("emojishift", "val", classes=wrong)


def test_hiding_classes_trains_half_as_long_and_once(runs: dict[str, Path], tmp_path: Path) -> None:
    options = Options(grid=(0.0, 0.5, 1.0), work=tmp_path / "work", splits=2)
    report = select_alpha(runs["ft"], method="leave_concepts_out", how=HOW, options=options)
    extra = [Run(tmp_path / "work" / f"split-{number}") for number in range(2)]
    assert [run.status()["step"] for run in extra] == [3, 3]
    assert extra[1].recipe().data.classes == "all/seen-1"
    assert report.cost.steps == 6
    assert report.alpha in (0, 0.5, 1)
    assert len(report.figures["alphas"]) == 2
    parts = report.curve[1].parts
    assert set(parts) == set(HALVES)
    classes = open_dataset("emojishift", "val", classes="all/hidden-0").classes
    assert not set(extra[0].predictor().classes) & set(classes)
    before = (extra[0].path / "status.json").stat().st_mtime_ns
    again = select_alpha(runs["ft"], method="leave_concepts_out", how=HOW, options=options)
    assert (extra[0].path / "status.json").stat().st_mtime_ns == before
    assert again.curve == report.curve


def test_the_shorter_recipe() -> None:
    table = {
        "model": {"name": "perdure-tiny"}, "data": {"name": "emojishift"},
        "method": {"name": "flyp"},
        "optim": {"lr": 1, "batch_size": 8, "epochs": 3, "warmup_steps": 9},
    }  # fmt: skip
    plan = shorter(parse_recipe(table), 2, 21)
    assert (plan.optim.steps, plan.optim.epochs, plan.optim.warmup_steps) == (10, None, 4)
    with pytest.raises(TaskError, match="half already"):
        shorter(plan, 0, 10)
    table["model"] = {"name": "perdure-tiny", "init": "runs/lp"}
    with pytest.raises(TaskError, match="has seen every class"):
        shorter(parse_recipe(table), 0, 10)


def test_stock_wants_another_seed_of_the_same_recipe(runs: dict[str, Path]) -> None:
    def chosen(other: Path | None) -> AlphaReport:
        options = Options(grid=(0.0, 0.5, 1.0), other=other)
        return select_alpha(runs["flyp"], method="stock", how=HOW, options=options)

    report = chosen(runs["flyp-1"])
    assert all(0 <= share <= 1 for share in report.layers.values())
    assert -1 <= report.figures["cosine"] <= 1
    for other, message in (
        (None, "only one is given"),
        (runs["flyp"], "share seed 0"),
        (runs["flyp-2"], r"differ in optim\.lr"),
    ):
        with pytest.raises(RunError, match=message):
            chosen(other)


def test_an_edit_is_compared_with_a_plain_one_of_its_length(runs: dict[str, Path]) -> None:
    report = select_alpha(runs["flyp"], method="lines", how=HOW, options=COARSE)
    assert 0 < report.figures["control_alpha"] < 1
    layers = report.layers
    assert layers["clip.visual.proj"] == pytest.approx(1)
    first = layers["clip.visual.transformer.resblocks.0.mlp.c_fc.weight"]
    assert first == pytest.approx(report.figures["shallow"])


def test_each_image_gets_the_copy_of_its_entropies() -> None:
    start, end = random_clip(0), random_clip(1)
    images = torch.rand(6, 3, 40, 40)
    dynamic = Dynamic(start, end, [0.9, 0.1])
    found = dynamic.logits_fn(NAMES, TEMPLATES)(images)
    asked = [entropies(one.logits_fn(NAMES, TEMPLATES)(images).numpy()) for one in (start, end)]
    shares = entropy_shares(*asked)
    copies = [
        wise_ft(start, end, alpha).logits_fn(NAMES, TEMPLATES)(images) for alpha in (0.1, 0.9)
    ]
    for row, share in enumerate(shares):
        assert torch.allclose(found[row], copies[int(share > 0.5)][row], atol=1e-4)
    assert dynamic.classes == ()
    with pytest.raises(WeightsError, match="empty"):
        Dynamic(start, end, [])


def test_choices_become_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    for method in ("fixed", "mono", "lines", "dynamic"):
        report = select_alpha(runs["ft"], method=method, how=HOW, options=COARSE)  # type: ignore[arg-type]
        out = write_choice(report, runs["ft"], tmp_path / method)
        kept = json.loads((out / "alpha.json").read_text())
        assert kept["method"] == method
        with pytest.raises(RunError, match="exists already"):
            write_choice(report, runs["ft"], out)
    document = yaml.safe_load((tmp_path / "fixed" / "merge.yaml").read_text())
    assert (document["kind"], document["alpha"]) == ("wise-ft", 0.5)
    lined = yaml.safe_load((tmp_path / "lines" / "merge.yaml").read_text())
    assert (lined["kind"], lined["shares"][1], len(lined["inputs"])) == ("lines", 1.0, 2)
    report = select_alpha(runs["ft"], method="mono", how=HOW, options=COARSE)
    merged = Run(tmp_path / "mono").predictor()
    assert report.weights is not None
    assert all(
        torch.equal(merged.state_dict()[name], value) for name, value in report.weights.items()
    )
    assert accuracy(merged) == pytest.approx(report.value)
    dynamic = Dynamic.load(tmp_path / "dynamic")
    assert len(dynamic.classes) == 80
    with pytest.raises(RunError, match="needs alpha-0"):
        Dynamic.load(tmp_path)


def test_added_modules_enter_at_full_strength(runs: dict[str, Path], tmp_path: Path) -> None:
    recipe = Run(runs["flyp"]).recipe()
    adapted = Predictor.load(Path(recipe.model.name.removeprefix("local-dir:")).parent / "plain")
    adapted.attach(Residual())
    with torch.no_grad():
        for parameter in adapted.added().values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    adapted.set_alpha(0.25)
    run = Run.create(tmp_path / "adapted", recipe, Runtime("cpu"))
    run.finish(adapted, keep_states=False, step=6)
    report = select_alpha(run, method="id_one_se", how=HOW, options=COARSE)
    for point in report.curve:
        assert point.value == pytest.approx(accuracy(adapted.fold(point.alpha)), abs=1 / 160 + 1e-9)
    out = write_choice(replace(report, alpha=0.5), run, tmp_path / "half")
    expected, merged = adapted.fold(0.5).state_dict(), Run(out).predictor().state_dict()
    assert all(torch.allclose(merged[name], expected[name], atol=1e-6) for name in expected)


def test_refusals(runs: dict[str, Path]) -> None:
    with pytest.raises(TaskError, match="did you mean 'mono'"):
        select_alpha(runs["ft"], method="mno")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="scores split val itself, so no alpha"):
        select_alpha(runs["ft"], "emojishift-val", "id_one_se")
    with pytest.raises(RunError, match="not a training run"):
        select_alpha("perdure-tiny", method="fixed")
    with pytest.raises(WeightsError, match="rise from 0 to 1"):
        select_alpha(runs["ft"], method="mono", options=Options(grid=(0.5, 1.0)))
    with pytest.raises(TaskError, match="copies is 0; at least 1 is needed; splits is 4"):
        select_alpha(runs["ft"], options=Options(copies=0, splits=4))
