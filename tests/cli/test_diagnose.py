"""What fine-tuning did to a run, from the command line."""

import json
from pathlib import Path

import pytest

from perdure.data import datasets

from .conftest import Perdure

WHERE = ("--suite", "emojishift-val", "--limit", "60", "--images", "24")


@pytest.fixture(autouse=True)
def _rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open every embedded split once for all commands of a test; drawing them takes long."""
    kept: dict[object, object] = {}
    opened = datasets.open_dataset

    def again(*arguments: object, **options: object) -> object:
        key = (arguments, tuple(sorted(options.items())))
        if key not in kept:
            kept[key] = opened(*arguments, **options)  # type: ignore[arg-type]
        return kept[key]

    for place in ("perdure.prediction", "perdure.opening"):
        monkeypatch.setattr(f"{place}.open_dataset", again)


def test_a_diagnosis_is_a_report_and_files(
    perdure: Perdure, tmp_path: Path, model: str, short: list[str]
) -> None:
    assert perdure("train", "emojishift/ft", "--out", "ft", *short).code == 0
    answer = perdure("diagnose", "ft", *WHERE)
    assert answer.code == 0, answer.err
    assert answer.out.startswith(f"ft (seed 0) against {model}, suite emojishift-val\n")
    for words in ("Accuracy, mean confidence", "changed sides", "CKA shifted", "random %"):
        assert words in answer.out
    folder = tmp_path / "ft" / "diagnosis"
    assert sorted(path.name for path in folder.iterdir()) == [
        "diagnosis.json", "flips.json", "flips.png", "layers.png", "report.txt",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    assert answer.out.partition("\n\nWrote")[0] in (folder / "report.txt").read_text()
    answer = perdure("diagnose", "ft", *WHERE, "--json", "--out", "again")
    found = json.loads(answer.out)
    assert found.pop("out") == "again"
    assert found == json.loads((folder / "diagnosis.json").read_text())
    assert found["images"] == {"training": 24, "id": 24, "shifted": 24, "prompts": 24}
    assert found["shifted"] == ["val_shift"]
    flips = json.loads((tmp_path / "again" / "flips.json").read_text())["splits"]
    for name, entry in found["answers"].items():
        assert entry["n"] == flips[name]["n"] == 60
        for side in ("right_to_wrong", "wrong_to_right"):
            assert entry[side]["count"] == len(flips[name][side])
        gained = entry["wrong_to_right"]["count"] - entry["right_to_wrong"]["count"]
        assert entry["accuracy"]["value"] == pytest.approx(gained / 60)
    layers = {one["name"]: one for one in found["update"]["layers"]}
    assert layers["head.weight"]["norm"] > 0
    assert 0 < layers["visual.conv1.weight"]["inside"] <= 1
    assert layers["text_projection"]["norm"] == 0  # ft leaves the text tower alone
    assert layers["token_embedding.weight"]["rank"] is None
    assert "Wrote" in perdure("diagnose", "ft", *WHERE).out  # takes the place of the first


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    perdure: Perdure, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("perdure.diagnosis.diagnose.diagnose", work)
    (tmp_path / "file").write_text("kept")
    answer = perdure("diagnose", model, "--against", model, *WHERE, "--out", "file/diagnosis")
    assert answer.code == 2
    assert "cannot write file/diagnosis" in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_does_not_apply_is_said(
    perdure: Perdure, tmp_path: Path, model: str, short: list[str]
) -> None:
    steps = [part.replace("optim.epochs=null", "optim.schedule=cosine") for part in short]
    changes = ("--set", "optim.epochs=null", "--set", "optim.warmup_epochs=0")
    assert perdure("train", "emojishift/coop", "--out", "coop", *steps, *changes).code == 0
    answer = perdure("diagnose", "coop", *WHERE)
    assert answer.code == 0, answer.err
    assert "What 'slots' added cannot be folded into the weights" in answer.out
    assert "random %" not in answer.out
    assert "class rows" in answer.out
    found = json.loads((tmp_path / "coop" / "diagnosis" / "diagnosis.json").read_text())
    assert found["update"] == {"groups": [], "layers": []}
    assert [one["place"] for one in found["similarity"]["prompts"]] == ["class rows"]
    same = perdure("diagnose", model, "--against", model, *WHERE, "--out", "same")
    assert same.code == 0, same.err
    found = json.loads((tmp_path / "same" / "diagnosis.json").read_text())
    assert found["answers"]["val"]["right_to_wrong"]["count"] == 0
    assert not (tmp_path / "same" / "flips.png").exists()


def test_wrong_diagnoses_are_explained(perdure: Perdure, tmp_path: Path, model: str) -> None:
    (tmp_path / "there").mkdir()
    for arguments, words in (
        ((model,), "is not a run, so there is no folder for it"),
        ((model, "--out", "x"), "not a training run, so it does not say what it started from"),
        ((model, "--out", "there"), "there exists already"),
        ((model, "--suite", "emojishit"), "no suite"),
        ((model, "--against", model, "--out", "x", "--energy", "2"), "energy is 2"),
        (("nowhere/run",), "nowhere/run"),
    ):
        answer = perdure("diagnose", *arguments)
        assert answer.code == 2
        assert words in " ".join(answer.err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
