"""Reports over hand-made run directories, without torch."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from perdure.errors import RunError
from perdure.reporting import report

SPLITS = {"id": "id", "v2": "ood", "corrupt": "ood"}
IMAGES = 40


def recipe(method: str, seed: int, lr: float = 3e-4) -> dict[str, Any]:
    return {
        "model": {"name": "perdure-tiny", "weights": None, "init": None},
        "method": {"name": method},
        "optim": {"lr": lr, "head_lr": None, "batch_size": 64},
        "run": {"threads": None, "precision": "fp32"},
        "seed": seed,
    }


def entries(accuracies: dict[str, float], images: int = IMAGES) -> dict[str, Any]:
    return {
        name: {
            "role": SPLITS[name],
            "task": "classify",
            "metric": "accuracy",
            "n": images,
            "accuracy": accuracy,
            "ece": accuracy / 10,
        }
        for name, accuracy in accuracies.items()
    }


def write_run(
    path: Path,
    document: dict[str, Any],
    accuracies: tuple[float, ...],
    *,
    definition: str = "d1",
    images: int = IMAGES,
    outcomes: bool = True,
) -> Path:
    named = dict(zip(SPLITS, accuracies, strict=True))
    (path / "scores").mkdir(parents=True)
    name = "merge.yaml" if "kind" in document else "recipe.yaml"
    (path / name).write_text(yaml.safe_dump(document))
    (path / "status.json").write_text(json.dumps({"trainable": 1234, "seconds": 50.0}))
    scores = {
        "suite": "emojishift",
        "definition": definition,
        "splits": entries(named, images),
    }
    (path / "scores" / "emojishift.json").write_text(json.dumps(scores))
    if outcomes:
        arrays = {}
        for split, accuracy in named.items():
            arrays[f"{split}/label"] = np.zeros(images, dtype=np.int64)
            arrays[f"{split}/prediction"] = (np.arange(images) >= accuracy * images).astype(int)
        np.savez(path / "scores" / "emojishift.outcomes.npz", **arrays)
    return path


def write_zero_shot(path: Path) -> Path:
    document = {"kind": "zero-shot", "inputs": [{"subject": "perdure-tiny", "sha256": "0"}]}
    return write_run(path, document, (0.5, 0.4, 0.3))


def write_wise(path: Path, tuned: dict[str, Any], alpha: float, accuracies: Any) -> Path:
    document = {
        "kind": "wise-ft",
        "alpha": alpha,
        "inputs": [
            {"subject": "perdure-tiny", "sha256": "0"},
            {"subject": f"runs/seed-{tuned['seed']}", "sha256": "1", "recipe": tuned},
        ],
    }
    return write_run(path, document, accuracies)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / "flyp/seed-0", recipe("flyp", 0), (0.8, 0.3, 0.4)),
        write_run(tmp_path / "flyp/seed-1", recipe("flyp", 1), (0.9, 0.2, 0.5)),
        write_run(tmp_path / "tracer/seed-0", recipe("tracer", 0), (0.75, 0.4, 0.45)),
        write_zero_shot(tmp_path / "zero-shot"),
    ]


def test_seeds_are_averaged_and_derived_values_follow(runs: list[Path]) -> None:
    found = {row.label: row for row in report(runs).rows}
    flyp = found["flyp"]
    assert flyp.seeds == (0, 1)
    assert flyp.values["id"].mean == pytest.approx(0.85)
    assert flyp.values["id"].sd == pytest.approx(0.1 / np.sqrt(2))
    assert flyp.values["ood"].mean == pytest.approx((0.35 + 0.35) / 2)
    assert flyp.values["art"].mean == pytest.approx(0.25)
    assert flyp.values["ece_ood"].mean == pytest.approx(0.035)
    assert flyp.values["forgetting"].mean == pytest.approx(0.0)
    assert found["tracer"].values["forgetting"].mean == pytest.approx(0.35 - 0.425)
    assert "forgetting" not in found["zero-shot"].values
    assert flyp.trainable == 1234
    assert flyp.seconds.mean == 50


def test_order_of_the_runs_does_not_matter(runs: list[Path]) -> None:
    assert report(runs).to_json() == report(runs[::-1]).to_json()


def test_a_directory_of_seeds_stands_for_its_runs(runs: list[Path]) -> None:
    assert report([runs[0].parent]).rows[0].seeds == (0, 1)


def test_differences_are_paired_by_image(runs: list[Path]) -> None:
    pairs = report(runs, against="zero-shot").pairs
    assert {(pair.first, pair.second) for pair in pairs} == {
        ("flyp", "zero-shot"),
        ("tracer", "zero-shot"),
    }
    flyp = next(pair for pair in pairs if pair.first == "flyp")
    assert flyp.values["id"].value == pytest.approx(0.35)
    assert flyp.values["id"].low < flyp.values["id"].value < flyp.values["id"].high


def test_rows_of_one_method_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    slow = write_run(tmp_path / "a", recipe("flyp", 0, lr=1.5e-4), (0.7, 0.35, 0.4))
    fast = write_run(tmp_path / "b", recipe("flyp", 0), (0.8, 0.3, 0.4))
    labels = [row.label for row in report([slow, fast]).rows]
    assert labels == ["flyp (optim.lr=0.00015)", "flyp (optim.lr=0.0003)"]


def test_equal_id_reads_merged_runs_and_learning_rates(tmp_path: Path, runs: list[Path]) -> None:
    for seed, middle in ((0, (0.7, 0.4, 0.45)), (1, (0.7, 0.38, 0.43))):
        path = tmp_path / f"wise/seed-{seed}"
        runs.append(write_wise(path, recipe("flyp", seed), 0.5, middle))
    runs.append(write_run(tmp_path / "slow", recipe("flyp", 0, lr=1e-4), (0.7, 0.39, 0.4)))
    found = report(runs, at_id=(0.6, 0.75, 0.99), against="flyp (optim.lr=0.0003)")
    by_alpha = {one.id: one.ood for one in found.equal if one.knob == "alpha"}
    assert by_alpha[0.6].mean == pytest.approx((0.35 + (0.425 + 0.405) / 2) / 2)
    assert by_alpha[0.6].n == 2
    assert by_alpha[0.99].mean is None
    by_rate = {one.id: one.ood for one in found.equal if one.knob == "learning rate"}
    assert by_rate[0.75].mean == pytest.approx((0.395 + 0.35) / 2)
    above = {one.knob: one.ood.mean for one in found.above if one.label == "tracer"}
    assert above["learning rate"] == pytest.approx(0.425 - (0.395 + 0.35) / 2)
    text = found.to_markdown()
    assert "n/a" in text
    assert "flyp + WiSE 0.5" in text


def test_sweep_file_gives_the_curve(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", recipe("flyp", 0), (0.8, 0.3, 0.4))
    points = [
        {"alpha": 0.0, "splits": entries({"id": 0.5, "v2": 0.4, "corrupt": 0.3})},
        {"alpha": 0.5, "splits": entries({"id": 0.7, "v2": 0.4, "corrupt": 0.5})},
        {"alpha": 1.0, "splits": entries({"id": 0.8, "v2": 0.3, "corrupt": 0.4})},
    ]
    document = {"suite": "emojishift", "definition": "d1", "points": points}
    (run / "scores" / "emojishift.sweep.json").write_text(json.dumps(document))
    (equal,) = report([run], at_id=(0.6,)).equal
    assert equal.grid == (0.0, 0.5, 1.0)
    assert equal.ood.mean == pytest.approx(0.4)


def test_soups_group_whatever_the_order_of_their_members(tmp_path: Path) -> None:
    def soup(seeds: tuple[int, int]) -> dict[str, Any]:
        inputs = [{"subject": "x", "sha256": "0", "recipe": recipe("ft", seed)} for seed in seeds]
        return {"kind": "soup", "inputs": inputs}

    run = write_run(tmp_path / "a", soup((0, 1)), (0.8, 0.3, 0.4))
    (row,) = report([run]).rows
    assert (row.label, row.seeds) == ("soup", (None,))


def test_base_and_novel_classes_have_a_harmonic_mean_and_no_trade_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SPLITS, "id", "base")
    monkeypatch.setitem(SPLITS, "v2", "novel")
    monkeypatch.delitem(SPLITS, "corrupt")
    runs = []
    for seed, accuracies in ((0, (0.8, 0.4)), (1, (0.6, 0.6))):
        path = tmp_path / f"seed-{seed}"
        runs.append(write_run(path, recipe("flyp", seed), (*accuracies, 0.0)[: len(SPLITS)]))
    found = report(runs, at_id=(0.5,))
    (row,) = found.rows
    assert row.values["harmonic"].mean == pytest.approx(2 * 0.7 * 0.5 / 1.2)
    assert "ood" not in row.values
    assert found.equal == ()
    # The seeds' own harmonic means are 16/30 and .6.
    assert row.values["mean_harmonic"].mean == pytest.approx((16 / 30 + 0.6) / 2)
    assert row.values["harmonic"].sd == row.values["mean_harmonic"].sd
    assert "| run | seeds | base | novel | harmonic | mean_harmonic |" in found.to_markdown()
    other = write_run(tmp_path / "other", recipe("ft", 0), (0.9, 0.9))
    (pair,) = report([*runs, other], against="ft").pairs
    assert list(pair.values) == ["base", "novel", "harmonic"]
    gap = pair.values["harmonic"]
    assert gap.value == pytest.approx(2 * 0.7 * 0.5 / 1.2 - 0.9)
    assert gap.low < gap.value < gap.high < 0


def test_formats_agree(runs: list[Path]) -> None:
    found = report(runs)
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    document = json.loads(found.to_json())
    assert [row["run"] for row in rows] == [row["label"] for row in document["rows"]]
    for line, row in zip(rows, document["rows"], strict=True):
        assert float(line["id_mean"]) == row["values"]["id"]["mean"]
    assert "| flyp | 2 | 85.0 ± 7.1 |" in found.to_markdown()


def test_different_tests_are_not_mixed(tmp_path: Path, runs: list[Path]) -> None:
    other = write_run(tmp_path / "other", recipe("ft", 0), (0.8, 0.3, 0.4), definition="d2")
    with pytest.raises(RunError, match=r"different definitions of suite emojishift.*d2"):
        report([*runs, other])
    few = write_run(tmp_path / "few", recipe("ft", 0), (0.8, 0.3, 0.4), images=10)
    with pytest.raises(RunError, match="numbers of images"):
        report([*runs, few])


def test_the_same_run_twice_is_refused(tmp_path: Path, runs: list[Path]) -> None:
    again = write_run(tmp_path / "again", recipe("flyp", 0), (0.8, 0.3, 0.4))
    with pytest.raises(RunError, match="the same run"):
        report([*runs, again])


def test_faults_name_the_way_out(tmp_path: Path, runs: list[Path]) -> None:
    with pytest.raises(RunError, match="does not exist; did you mean 'tracer'"):
        report([tmp_path / "traecr"])
    with pytest.raises(RunError, match="did you mean 'tracer'"):
        report(runs, against="tracers")
    with pytest.raises(RunError, match="did you mean 'emojishift'"):
        report(runs, suite="emojishifts")
    bare = write_run(tmp_path / "bare", recipe("ft", 0), (0.8, 0.3, 0.4), outcomes=False)
    with pytest.raises(RunError, match="perdure eval"):
        report([*runs, bare])
    (bare / "scores" / "emojishift.json").unlink()
    with pytest.raises(RunError, match="has no scores"):
        report([bare])
    with pytest.raises(RunError, match="No runs given"):
        report([])


def test_reporting_does_not_import_torch() -> None:
    code = "import sys, perdure.reporting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
