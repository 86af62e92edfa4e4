"""The method of docs/adding-a-method.md keeps the contract, taken from that page alone."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import perdure.method
from perdure import zoo
from perdure.batch import Batch
from perdure.errors import RecipeError
from perdure.exporting import export_open_clip
from perdure.learner import Learner
from perdure.method import METHODS, Context, import_methods, known_methods, parse_method
from perdure.recipe import Recipe, load_recipe
from perdure.training import train

from .blocks import ROOT, blocks

FILES = {
    block.title: block.body for block in blocks(ROOT / "docs" / "adding-a-method.md") if block.title
}
STEPS = 4


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the page's file by its name, as `--import` does in the directory it is in."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    zoo.random_clip().save(tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(perdure.method, "METHODS", dict(METHODS))
    monkeypatch.setitem(sys.modules, "keep_features", None)
    del sys.modules["keep_features"]  # restored, that is absent, after the test
    import_methods("keep_features")
    return import_module("keep_features")


def recipe(**changes: Any) -> Recipe:
    options = {
        "model.name": "clip",
        "data.shots": 1,
        "optim.batch_size": 32,
        "optim.epochs": "null",
        "optim.steps": STEPS,
        "run.save_every": 2,
        "run.log_every": 1,
        **changes,
    }
    assignments = tuple(f"{key}={value}" for key, value in options.items())
    return load_recipe("keep-features.yaml", assignments)


def build(strength: float) -> Learner:
    context = Context(STEPS, ("taco", "tiger"), ("a photo of a {}",), zoo.random_clip)
    method = parse_method({"name": "keep-features", "strength": strength})
    return method.build(zoo.random_clip(), context).train()


def batch(learner: Learner) -> Batch:
    size = learner.student.preprocess.size
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    texts = learner.student.tokenizer(["a taco", "a tiger", "two tacos", "a blue tiger"])
    return Batch(images, texts, torch.arange(4))


def test_the_term_is_zero_at_the_start_and_the_strength_times_the_distance_later(
    module: ModuleType,
) -> None:
    learner = build(strength=3.0)
    data = batch(learner)
    first = learner(data, 1)
    assert set(first.terms) == {"contrastive", "keep"}
    assert first.terms["keep"].item() == pytest.approx(0.0, abs=1e-6)
    start = learner.export()(data.images, data.tokens)
    with torch.no_grad():
        for parameter in learner.student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    now = learner.student(data.images, data.tokens)
    gaps = [(now.image - start.image).square().sum(1), (now.text - start.text).square().sum(1)]
    expected = 3.0 * (gaps[0] + gaps[1]).mean()
    assert expected > 0.01
    torch.testing.assert_close(learner(data, 2).terms["keep"], expected)
    assert set(build(strength=0.0)(data, 1).terms) == {"contrastive"}


def test_it_trains_resumes_bit_by_bit_and_exports(module: ModuleType, tmp_path: Path) -> None:
    class Kill(Exception):
        pass

    def kill(tick: Any, total: int) -> None:
        if tick.step == 3:
            raise Kill

    whole = train(recipe(**{"optim.lr": 1e-3}), tmp_path / "whole")
    with pytest.raises(Kill):
        train(recipe(**{"optim.lr": 1e-3}), tmp_path / "parts", progress=kill)
    parts = train(recipe(**{"optim.lr": 1e-3}), tmp_path / "parts", resume=True)
    expected, found = (
        load_file(one.path / "predictor" / "predictor.safetensors") for one in (whole, parts)
    )
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    rows = [json.loads(line) for line in (whole.path / "log.jsonl").read_text().splitlines()]
    assert rows[0]["terms"]["keep"] == pytest.approx(0.0, abs=1e-6)
    assert rows[-1]["terms"]["keep"] > 1e-4
    assert max(export_open_clip(whole.path, tmp_path / "plain")) < 1e-4


def test_options_are_checked_like_those_of_our_own_methods(module: ModuleType) -> None:
    with pytest.raises(RecipeError, match=r"method\.strength: found -1"):
        recipe(**{"method.strength": -1})
    with pytest.raises(RecipeError, match=r"method\.strenght.*did you mean 'strength'"):
        recipe(**{"method.strenght": 1})


def test_an_installed_package_offers_it_by_an_entry_point(tmp_path: Path) -> None:
    group, _, lines = FILES["pyproject.toml"].partition('[project.entry-points."perdure.methods"]')
    name, target = lines.strip().splitlines()[0].replace('"', "").split(" = ")
    assert 'name = "perdure-keep-features"' in group
    site = tmp_path / "site"
    about = site / "perdure_keep_features-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "keep_features.py").write_text(FILES["keep_features.py"])
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: perdure-keep-features\n")
    (about / "entry_points.txt").write_text(f"[perdure.methods]\n{name} = {target}\nft = x:Y\n")
    code = (
        "import sys\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(site)!r}]\n"
        "from perdure.method import METHODS, known_methods, method_class\n"
        "known = known_methods()\n"
        "assert known['keep-features'].summary == 'from perdure-keep-features', known\n"
        "assert known['ft'] == METHODS['ft'], 'a foreign package replaced ours'\n"
        "assert 'torch' not in sys.modules\n"
        "print(method_class('keep-features').name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "keep-features"
    assert "keep-features" not in known_methods()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "ModuleNotFoundError"),
        ("import nothing_like_this\n", "broken_method.py line 1"),
        ("x = 1\ny = x +\n", "SyntaxError"),
        ("raise ValueError('later')\n", "ValueError: later.*broken_method.py line 1"),
    ],
)
def test_modules_that_cannot_be_imported(
    text: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if text is not None:
        (tmp_path / "broken_method.py").write_text(text)
    with pytest.raises(RecipeError, match=f"(?s)cannot import 'broken_method'.*{reason}"):
        import_methods("broken_method")
