"""Own pictures from the command line: train and evaluate in real layouts, and what goes wrong."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import Perdure

COLOURS = {"red_cup": (200, 40, 40), "green_leaf": (40, 180, 60), "blue_boat": (50, 70, 210)}
SHORT = (
    "model.name=perdure-tiny",
    "model.weights=null",
    "optim.batch_size=6",
    "optim.epochs=6",
    "optim.lr=1.0e-3",
)


def draw(file: Path, colour: tuple[int, int, int], seed: int) -> None:
    """Write a noisy picture of a colour that is not square."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(-30, 30, size=(36, 48, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes, divided, with one shifted set that has two of them, brighter."""
    root = tmp_path / "pictures"
    for name, colour in COLOURS.items():
        for split, count in (("train", 4), ("val", 2), ("test", 3)):
            for number in range(count):
                draw(root / split / name / f"{number}.png", colour, 10 * number + count)
        if name != "blue_boat":
            light = (colour[0] + 40, colour[1] + 40, colour[2] + 40)
            for number in range(2):
                draw(root / "ood_light" / name / f"{number}.jpg", light, number)
    (root / "templates.txt").write_text("a photo of a {}\na picture of a {}\n")
    return root


def train(perdure: Perdure, recipe: str, root: Path, *changes: str) -> tuple[int, str]:
    sets = [part for change in (*SHORT, *changes) for part in ("--set", change)]
    answer = perdure("train", recipe, "--out", "run", "--set", f"data.root={root}", *sets)
    return answer.code, answer.err


def test_folders_train_and_score_with_their_shift(perdure: Perdure, pictures: Path) -> None:
    zero = json.loads(
        perdure("eval", "perdure-tiny", "--suite", "own", "--data", pictures, "--json").out
    )
    code, error = train(perdure, "own/tracer", pictures)
    assert code == 0, error
    text = perdure("eval", "run", "--suite", "own", "--data", pictures, "--temperature")
    assert text.code == 0, text.err
    assert "light" in text.out
    document = json.loads(
        perdure("eval", "run", "--suite", "own", "--data", pictures, "--json").out
    )
    splits = document["splits"]
    assert {name: (one["role"], one["n"]) for name, one in splits.items()} == {
        "id": ("id", 9),
        "light": ("ood", 4),
    }
    assert splits["id"]["accuracy"] > max(0.9, zero["splits"]["id"]["accuracy"] - 1e-9)
    assert document["definition"] == zero["definition"]
    stored = json.loads(Path("run/scores/own.json").read_text())
    assert stored["splits"] == splits
    validations = [
        json.loads(line)["validation"]
        for line in Path("run/log.jsonl").read_text().splitlines()
        if "validation" in line
    ]
    assert len(validations) == 6
    assert set(validations[0]) == {"val"}


def test_a_run_is_calibrated_on_the_data_of_its_recipe(perdure: Perdure, pictures: Path) -> None:
    draw(pictures / "val" / "green_leaf" / "wrong.png", COLOURS["red_cup"], 0)  # else all is right
    code, error = train(perdure, "own/flyp", pictures, "optim.epochs=1")
    assert code == 0, error
    assert perdure("merge", "wise-ft", "perdure-tiny", "run", "--alpha", "0.5", "--out", "half")
    for run in ("run", "half"):
        fitted = json.loads(perdure("calibrate", run, "--json").out)
        assert (fitted["suite"], fitted["dataset"], fitted["n"]) == ("own", "own", 7)
    moved = pictures.rename(pictures.with_name("moved"))
    lost = perdure("calibrate", "run")
    assert lost.code == 2
    assert "add --data ROOT" in " ".join(lost.err.split())
    assert perdure("calibrate", "run", "--data", moved).code == 0
    assert perdure("calibrate", "run", "--suite", "own", "--data", moved).code == 0
    # Pictures that scores are reported on are never looked at.
    shutil.rmtree(moved / "test")
    refused = perdure("calibrate", "run", "--data", moved)
    assert refused.code == 2
    assert "scores split val itself" in " ".join(refused.err.split())


def test_a_head_trains_on_folders_without_splits(perdure: Perdure, pictures: Path) -> None:
    code, error = train(
        perdure,
        "own/flyp",
        pictures / "train",
        "method={name: ft}",
        "optim.head_lr=0.01",
    )
    assert code == 0, error
    answer = perdure("eval", "run", "--suite", "own", "--data", pictures / "train", "--json")
    scores = json.loads(answer.out)["splits"]["id"]
    assert scores["n"] == 3  # one of four in each class is held out
    assert scores["classifier"] == "head"


def test_captions_train_contrastive_methods_alone(perdure: Perdure, pictures: Path) -> None:
    files = sorted((pictures / "train").rglob("*.png"))
    with (pictures / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["filepath", "caption", "split"])
        for number, path in enumerate(files):
            split = "val" if number % 4 == 0 else "train"
            text = f"a {path.parent.name.replace('_', ' ')}, the {number}"
            rows.writerow([path.relative_to(pictures), text, split])
    table = pictures / "pairs.csv"
    sets = [part for change in (*SHORT, "optim.epochs=1") for part in ("--set", change)]
    made = perdure("train", "own/flyp", "--out", "run", "--set", f"data.root={table}", *sets)
    assert made.code == 0, made.err
    assert f"--suite own --data {table}" in made.out.replace("\n", "")
    assert perdure("alpha", "run").out.startswith("fixed: alpha 0.8\n")
    refused = perdure("alpha", "run", "--method", "id_one_se")
    assert "has no split test" in " ".join(refused.err.split())
    refused = perdure("eval", "run", "--suite", "own", "--data", table)
    assert refused.code == 2
    assert "captions, no labels" in refused.err
    refused = perdure(
        "train", "own/flyp", "--out", "ft", "--set", f"data.root={table}", *sets,
        "--set", "method={name: ft}",
    )  # fmt: skip
    assert refused.code == 2
    assert "no class names" in refused.err
    assert not Path("ft").exists()


def test_a_corrupt_picture_is_named_and_ends_the_run(perdure: Perdure, pictures: Path) -> None:
    victim = pictures / "train" / "red_cup" / "1.png"
    victim.write_bytes(victim.read_bytes()[:60])
    code, error = train(perdure, "own/flyp", pictures)
    assert code == 2
    assert "1.png" in error
    assert "Traceback" not in error


def test_own_needs_a_place(perdure: Perdure, tmp_path: Path) -> None:
    for arguments in (
        ("train", "own/flyp", "--out", "run"),
        ("eval", "perdure-tiny", "--suite", "own"),
        ("eval", "perdure-tiny", "--suite", "own", "--data", tmp_path / "nothing"),
        ("show", "own"),
    ):
        answer = perdure(*arguments)
        assert answer.code == 2, arguments
        assert "root" in answer.err or "--data" in answer.err or "directory" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_own_data_calibrate_a_run_unless_nothing_is_wrong_with_them(
    perdure: Perdure, pictures: Path
) -> None:
    kept = perdure("eval", "perdure-tiny", "--suite", "own", "--data", pictures, "--out", "zero")
    assert kept.code == 0, kept.err
    arguments = ("calibrate", "zero", "--suite", "own", "--data", pictures, "--json")
    refused = perdure(*arguments)
    assert refused.code == 2
    assert "all 6 pictures of `val` are classified correctly" in " ".join(refused.err.split())
    assert not Path("zero/calibration.json").exists()
    draw(pictures / "val" / "green_leaf" / "wrong.png", COLOURS["red_cup"], 0)
    fitted = perdure(*arguments)
    assert fitted.code == 0, fitted.err
    found = json.loads(fitted.out)
    assert (found["suite"], found["split"], found["n"]) == ("own", "val", 7)
    assert found["nll_after"] <= found["nll_before"]


def test_pictures_are_decoded_fast_where_somebody_asks(
    perdure: Perdure, model: str, pictures: Path
) -> None:
    own = ("--suite", "own", "--data", pictures)
    kept = ("--workers", 1, "--cache", "kept")
    answer = perdure("eval", model, *own, "--transform", "fast", *kept, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["transform"]["decoding"] == "fast"
    assert len(list(Path("kept").iterdir())) == 2
    short = (f"model.name={model}", "optim.epochs=null", "optim.steps=1", "data.transform=fast")
    code, error = train(perdure, "own/tracer", pictures, *short)
    assert code == 0, error
    assert "transform: fast" in Path("run/recipe.yaml").read_text()
    assert perdure("eval", "run", *own, "--transform", "fast").code == 0
    again = perdure("path", model, "run", *own, "--points", "2", "--cache", "more")
    assert (again.code, len(list(Path("more").iterdir()))) == (0, 2), again.err
    chosen = perdure("alpha", "run", "--method", "mono", "--cache", "more")
    assert (chosen.code, len(list(Path("more").iterdir()))) == (0, 3), chosen.err
    for option, allowed in (("--transform", "exact, fast"), ("--precision", "fp32, bf16")):
        wrong = perdure("eval", model, *own, option, "quick")
        assert (wrong.code, f"'quick' is none of {allowed}" in wrong.err) == (2, True)
    drawn = perdure("eval", model, "--transform", "fast")
    assert drawn.code == 2
    assert "emojishift has no files" in " ".join(drawn.err.split())
