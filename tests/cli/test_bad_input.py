"""Damaged, foreign, hostile and unwritable: one paragraph, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from perdure.recipe import load_recipe
from perdure.states import complete_states
from perdure.training import train
from perdure.zoo import random_clip

from .conftest import Perdure

BREAKS_AT = 3


class Stop(Exception):
    """Ends a training as a kill would: nothing of ours handles it."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a finished run and one stopped after step 4, 3 being saved too."""
    place = tmp_path_factory.mktemp("kept")
    random_clip().save(place / "clip")
    text = f"""
model: {{name: {place / "clip"}}}
data: {{name: emojishift, shots: 1}}
method: {{name: flyp}}
optim: {{lr: 1.0e-3, batch_size: 16, steps: 6}}
run: {{save_every: 1, log_every: 1, device: cpu, threads: 1}}
"""
    (place / "mine.yaml").write_text(text)
    recipe = load_recipe(place / "mine.yaml")
    train(recipe, place / "finished")

    def stop(tick: Any, total: int) -> None:
        if tick.step == 5:
            raise Stop

    with pytest.raises(Stop):
        train(recipe, place / "stopped", progress=stop)
    return place


@pytest.fixture
def copy(kept: Path, tmp_path: Path) -> Path:
    """Return an empty working directory with copies of the recipe and both runs."""
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(perdure: Perdure, folder: Path, *arguments: object, says: tuple[str, ...]) -> None:
    """Run a command that must fail in one paragraph and leave every file as it was."""
    before = contents(folder)
    answer = perdure(*arguments)
    text = " ".join(answer.err.split())
    assert answer.code == 2, text
    assert answer.out == ""
    assert "Traceback" not in text
    assert [line.startswith("Error: ") for line in answer.err.splitlines()].count(True) == 1
    for part in says:
        assert part in text
    after = contents(folder)
    assert after.keys() == before.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"stopped/status.json"}  # says that the run failed, and why


RESUME = ("train", "mine.yaml", "--out", "stopped", "--resume")


@pytest.mark.parametrize("name", ["learner.safetensors", "optimizer.safetensors", "cursor.json"])
def test_a_state_cut_short_is_passed_over(perdure: Perdure, copy: Path, name: str) -> None:
    newest = complete_states(copy / "stopped" / "state")[-1]
    assert newest.name == "step_00000004"
    file = newest / name
    file.write_bytes(file.read_bytes()[:-10])
    answer = perdure(*RESUME)
    assert answer.code == 0, answer.err
    assert "Resumed after step 3 of 6." in answer.err
    weights = "predictor/predictor.safetensors"
    assert (copy / "stopped" / weights).read_bytes() == (copy / "finished" / weights).read_bytes()


@pytest.mark.parametrize("name", ["learner.safetensors", "optimizer.safetensors", "cursor.json"])
def test_a_state_with_other_bytes_is_refused(perdure: Perdure, copy: Path, name: str) -> None:
    file = complete_states(copy / "stopped" / "state")[-1] / name
    file.write_bytes(b"\xff" * file.stat().st_size)
    refused(perdure, copy, *RESUME, says=("step_00000004",))


def test_a_state_of_a_newer_format_is_refused(perdure: Perdure, copy: Path) -> None:
    file = complete_states(copy / "stopped" / "state")[-1] / "cursor.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 9'))
    refused(perdure, copy, *RESUME, says=("another format than 1", "env.json"))


NEWER: dict[str, tuple[object, ...]] = {
    "resume": ("train", "mine.yaml", "--out", "finished", "--resume"),
    "init": ("train", "mine.yaml", "--out", "x", "--set", "model.init=finished"),
    "eval": ("eval", "finished", "--limit", 8),
    "merge": ("merge", "soup", "finished", "--out", "x"),
    "report": ("report", "finished"),
    "predict": ("predict", "finished", ".", "--classes", "mine.yaml"),
    "calibrate": ("calibrate", "finished"),
    "export": ("export", "finished", "--to", "open_clip", "--out", "x"),
}


@pytest.mark.parametrize("verb", NEWER)
def test_a_run_of_a_newer_version_is_refused_by_every_verb(
    perdure: Perdure, copy: Path, verb: str
) -> None:
    (copy / "picture.png").write_bytes(b"")
    file = copy / "finished" / "env.json"
    record = json.loads(file.read_text())
    assert record["format"] == 1
    record["format"], record["versions"]["perdure"] = 2, "9.1"
    file.write_text(json.dumps(record))
    says = ("finished has format 2", "written by perdure 9.1", "reads formats up to 1")
    refused(perdure, copy, *NEWER[verb], says=says)


def test_a_run_older_than_its_number_is_read(perdure: Perdure, copy: Path) -> None:
    file = copy / "finished" / "env.json"
    record = json.loads(file.read_text())
    del record["format"]
    file.write_text(json.dumps(record))
    assert perdure("eval", "finished", "--limit", 8).code == 0
    file.unlink()
    assert perdure(*NEWER["resume"]).code == 0


def test_a_state_of_another_model_is_refused(perdure: Perdure, copy: Path) -> None:
    state = complete_states(copy / "stopped" / "state")[-1]
    random_clip(embed_dim=16).save(copy / "small")
    recipe = (copy / "mine.yaml").read_text()
    (copy / "other.yaml").write_text(recipe.replace("steps: 6", "steps: 1"))
    change = ("--set", "run.keep=true", "--set", "model.name=small")
    assert perdure("train", "other.yaml", "--out", "other", *change).code == 0
    foreign = complete_states(copy / "other" / "state")[-1]
    shutil.rmtree(state)
    shutil.copytree(foreign, state)
    refused(perdure, copy, *RESUME, says=("does not fit this run", "Delete it to resume"))


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_a_result_cut_short_is_refused(perdure: Perdure, copy: Path, cut: int) -> None:
    file = copy / "finished" / "predictor" / "predictor.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    says = ("predictor.safetensors", "damaged")
    refused(perdure, copy, "eval", "finished", "--limit", 8, says=says)
    refused(perdure, copy, "merge", "soup", "finished", "--out", "soup", says=says)


def test_a_result_of_a_newer_format_is_refused(perdure: Perdure, copy: Path) -> None:
    file = copy / "finished" / "predictor" / "predictor.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 3'))
    refused(perdure, copy, "eval", "finished", says=("has format 3", "reads formats 1 and 2"))


def test_a_recipe_with_a_key_of_a_newer_version_is_refused(perdure: Perdure, copy: Path) -> None:
    file = copy / "stopped" / "recipe.yaml"
    file.write_text(file.read_text() + "quantum: 1\n")
    refused(perdure, copy, *RESUME, says=("quantum", "unknown key"))


@pytest.mark.parametrize("name", ["recipe.yaml", "status.json"])
@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe\x00", b"{"], ids=repr)
def test_a_damaged_run_is_refused(perdure: Perdure, copy: Path, name: str, content: bytes) -> None:
    (copy / "stopped" / name).write_bytes(content)
    refused(perdure, copy, *RESUME, says=(name,))


def test_an_unfinished_run_has_no_result(perdure: Perdure, copy: Path) -> None:
    refused(perdure, copy, "eval", "stopped", says=("holds no finished run", "--resume"))


def test_another_recipe_is_refused(perdure: Perdure, copy: Path) -> None:
    says = ("another recipe", "optim.lr: 0.001 -> 0.5", "method.name: 'flyp' -> 'ft'")
    change = ("--set", "optim.lr=0.5", "--set", "method.name=ft")
    refused(perdure, copy, *RESUME, *change, says=says)


class Hostile:
    """Leaves a mark where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("mark"),)


@pytest.mark.parametrize("form", ["zip", "raw"])
@pytest.mark.parametrize("verb", ["train", "eval"])
def test_a_hostile_checkpoint_is_refused_and_never_executed(
    perdure: Perdure, tmp_path: Path, form: str, verb: str
) -> None:
    content = {"state_dict": {"logit_scale": torch.zeros(())}, "optimizer": Hostile()}
    if form == "zip":
        torch.save(content, "epoch_10.pt")
    else:
        Path("epoch_10.pt").write_bytes(pickle.dumps(content))
    arguments: tuple[object, ...] = ("eval", "ViT-B-32", "--weights", "epoch_10.pt")
    if verb == "train":
        change = ("--set", "model.name=ViT-B-32", "--set", "model.weights=epoch_10.pt")
        arguments = ("train", "emojishift/ft", "--out", "run", "--set", "data.shots=1", *change)
    refused(perdure, tmp_path, *arguments, says=("epoch_10.pt", "refused", "safetensors"))
    assert not Path("mark").exists()
    with open("epoch_10.pt", "rb") as file:  # the mark would have been made
        if form == "raw":
            pickle.load(file)
            assert Path("mark").exists()


@pytest.mark.parametrize("out", ["taken/run", "taken/deep/er/run", "x" * 300])
def test_a_place_that_cannot_be_written_is_named(
    perdure: Perdure, tmp_path: Path, short: list[str], out: str
) -> None:
    Path("taken").write_text("a file, not a directory")
    arguments = ("train", "emojishift/ft", "--out", out, *short)
    refused(perdure, tmp_path, *arguments, says=(out[:20],))
    refused(perdure, tmp_path, "show", "emojishift", "--out", f"{out}/a.png", says=(out[:20],))
    refused(perdure, tmp_path, "demo", "--quick", "--out", out, says=(out[:20],))


def test_scores_that_cannot_be_written_are_named(perdure: Perdure, copy: Path) -> None:
    (copy / "finished" / "scores").write_text("a file, not a directory")
    refused(perdure, copy, "eval", "finished", "--limit", 8, says=("scores", "cannot write"))
    merge = ("merge", "soup", "finished", "finished", "--out", "mine.yaml/soup")
    refused(perdure, copy, *merge, says=("mine.yaml/soup", "cannot write"))


def test_damaged_scores_are_named(perdure: Perdure, copy: Path) -> None:
    assert perdure("eval", "finished", "--limit", 8).code == 0
    scores = copy / "finished" / "scores"
    outcomes = scores / "emojishift.outcomes.npz"
    good = outcomes.read_bytes()
    shutil.copytree(copy / "finished", copy / "again")
    file = copy / "again" / "recipe.yaml"
    file.write_text(file.read_text().replace("flyp", "carot").replace("smoothing: 0.0", ""))
    outcomes.write_bytes(good[:100])
    refused(perdure, copy, "report", "finished", "again", says=(outcomes.name, "cannot be read"))
    outcomes.write_bytes(good)
    record = json.loads((scores / "emojishift.json").read_text())
    for broken in ({}, {**record, "splits": [1]}, {**record, "splits": {"id": {}}}):
        (scores / "emojishift.json").write_text(json.dumps(broken))
        refused(perdure, copy, "report", "finished", "again", says=("cannot be read",))


def test_a_loss_that_is_not_finite_names_step_and_terms_and_keeps_the_last_state(
    perdure: Perdure, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure.batch import Step
    from perdure.methods.flyp import FlypLearner

    forward = FlypLearner.forward

    def broken(self: FlypLearner, batch: Any, step: int) -> Step:
        found = forward(self, batch, step)
        factor = float("nan") if step == BREAKS_AT else 1.0
        terms = {name: value * factor for name, value in found.terms.items()}
        return Step({**terms, "fine": torch.zeros(())}, found.stats)

    with monkeypatch.context() as patch:
        patch.setattr(FlypLearner, "forward", broken)
        answer = perdure("train", "mine.yaml", "--out", "run")
    assert answer.code == 2
    text = " ".join(answer.err.split())
    assert f"not finite at step {BREAKS_AT} (contrastive = nan, fine = 0)" in text
    assert "Traceback" not in text
    run = copy / "run"
    assert [path.name for path in complete_states(run / "state")][-1] == "step_00000002"
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", 2)
    assert not (run / "predictor").exists()
    answer = perdure("train", "mine.yaml", "--out", "run", "--resume")
    assert answer.code == 0
    weights = "predictor/predictor.safetensors"
    assert (run / weights).read_bytes() == (copy / "finished" / weights).read_bytes()


def test_a_missing_extra_is_named_with_its_command(
    perdure: Perdure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure.method import METHODS, Entry

    entry = Entry("perdure_plugin_that_is_not_installed:Method", "from elsewhere")
    monkeypatch.setitem(METHODS, "elsewhere", entry)
    arguments = ("train", "emojishift/ft", "--out", "x", "--set", "method.name=elsewhere")
    refused(perdure, tmp_path, *arguments, says=("elsewhere", "cannot be imported"))


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    perdure: Perdure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    says = ("hf-hub:a/b needs the package huggingface_hub", "pip install huggingface_hub")
    refused(perdure, tmp_path, "eval", "hf-hub:a/b", "--out", "x", says=says)
    monkeypatch.setitem(sys.modules, "transformers", None)
    model = ("--set", "model.name=roberta-ViT-B-32", "--set", "model.weights=random")
    says = ("the text tower roberta-base needs", "pip install 'perdure[hf]'")
    refused(perdure, tmp_path, "train", "emojishift/flyp", "--out", "x", *model, says=says)
