"""Averages over data sets: published numbers, and both harmonic means by their names."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from perdure.averaging import average
from perdure.errors import RunError
from perdure.metrics import harmonic_mean

Golden = Callable[[str], dict[str, np.ndarray]]


def write_run(
    path: Path,
    dataset: str,
    base: float,
    novel: float,
    *,
    method: str = "coop",
    seed: int = 0,
    n: int = 100,
    **more: Any,
) -> Path:
    """Write the part of a run directory that reports read; add scores where it exists."""
    (path / "scores").mkdir(parents=True, exist_ok=True)
    recipe = {
        "model": {"name": "ViT-B-16", "init": more.pop("init", None)},
        "data": {"name": dataset, "classes": "base"},
        "method": {"name": method, **more},
        "seed": seed,
    }
    if method == "zero-shot":
        document = {"kind": "zero-shot", "inputs": [{"subject": "ViT-B-16/openai", "sha256": "0"}]}
        (path / "merge.yaml").write_text(yaml.safe_dump(document))
    else:
        (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    splits = {
        role: {"role": role, "task": "classify", "n": n, "accuracy": value, "ece": 0.1}
        for role, value in (("base", base), ("novel", novel))
    }
    suite = f"base-to-novel-{dataset}"
    document = {"suite": suite, "definition": f"of {dataset}", "splits": splits}
    (path / "scores" / f"{suite}.json").write_text(json.dumps(document))
    return path


def test_published_means_of_harmonic_means(tmp_path: Path, golden: Golden) -> None:
    """Accuracies that are apart in every set, with the published harmonic mean of each."""
    known = golden("mergetune_metrics")
    sets = [str(name).lower() for name in known["perdataset/datasets"]]
    for row, (method, harmonics) in enumerate(
        zip(known["perdataset/methods"], known["perdataset/hm"], strict=True)
    ):
        for place, (name, harmonic) in enumerate(zip(sets, harmonics, strict=True)):
            apart = 0.02 * (place - 4)
            base = harmonic / 100 * (1 + apart)
            novel = harmonic / 100 * (1 + apart) / (1 + 2 * apart)
            write_run(tmp_path / f"{row}/{name}", name, base, novel, method=f"m{row}-{method}")
    found = average([tmp_path / str(row) for row in range(6)])
    assert set(found.sets) == set(sets)
    assert len(found.rows) == 6
    for row, mean in enumerate(known["perdataset/mean_of_hm"]):
        (one,) = (each for each in found.rows if each.label.startswith(f"m{row}-"))
        assert 100 * one.values["mean_harmonic"].mean == pytest.approx(mean, rel=1e-9)
        assert one.values["harmonic"].mean > one.values["mean_harmonic"].mean
        for name, harmonic in zip(sets, known["perdataset/hm"][row], strict=True):
            assert 100 * one.sets[name].harmonic == pytest.approx(harmonic, rel=1e-9)


def test_published_harmonic_means_of_averages(tmp_path: Path, golden: Golden) -> None:
    known = golden("mergetune_metrics")
    spread = np.linspace(-0.15, 0.15, 11)
    for row, (base, novel) in enumerate(zip(known["hm/base"], known["hm/novel"], strict=True)):
        for place, gap in enumerate(spread):
            values = (base / 100 + gap, novel / 100 - gap)
            write_run(tmp_path / f"{row}/{place}", f"set{place:02}", *values, method=f"m{row}")
    rows = {
        row.label: row.values for row in average([tmp_path / str(row) for row in range(6)]).rows
    }
    for row, printed in enumerate(known["hm/published"]):
        values = rows[f"m{row}"]
        assert 100 * values["base"].mean == pytest.approx(known["hm/base"][row])
        assert 100 * values["novel"].mean == pytest.approx(known["hm/novel"][row])
        assert 100 * values["harmonic"].mean == pytest.approx(printed, abs=0.0051)
        assert values["mean_harmonic"].mean < values["harmonic"].mean - 0.001


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two sets, two seeds, two methods, and zero-shot scored twice in one directory."""
    for seed in (0, 1):
        for name, base in (("pets", 0.9), ("cars", 0.7)):
            place = tmp_path / f"coop-{name}-{seed}"
            write_run(place, name, base + 0.02 * seed, 0.5, seed=seed, epochs=len(name))
            again = {"host": {"name": "coop"}, "init": f"runs/coop-{name}/seed-{seed}"}
            write_run(
                tmp_path / f"tuned-{name}-{seed}", name, 0.8, 0.6, method="mergetune", seed=seed,
                **again,
            )  # fmt: skip
    write_run(tmp_path / "zero", "pets", 0.8, 0.9, method="zero-shot")
    write_run(tmp_path / "zero", "cars", 0.6, 0.7, method="zero-shot")
    return tmp_path


def test_seeds_and_sets_are_averaged_and_methods_stay_together(runs: Path) -> None:
    found = average([runs])
    assert found.sets == ("cars", "pets")
    assert [row.label for row in found.rows][:2] == ["zero-shot", "coop"]
    coop = next(row for row in found.rows if row.label == "coop")
    assert coop.sets["pets"].seeds == (0, 1)
    assert coop.values["base"].mean == pytest.approx(0.81)
    assert coop.values["base"].sd == pytest.approx(0.02 / np.sqrt(2))
    assert coop.values["novel"].sd == pytest.approx(0)
    assert coop.values["harmonic"].mean == pytest.approx(harmonic_mean(0.81, 0.5))
    each = [harmonic_mean(0.71, 0.5), harmonic_mean(0.91, 0.5)]
    assert coop.values["mean_harmonic"].mean == pytest.approx(np.mean(each))
    assert coop.values["harmonic"].n == 2
    zero = found.rows[0]
    assert (zero.values["base"].mean, zero.values["base"].sd) == (pytest.approx(0.7), None)
    text = found.to_markdown()
    assert "| coop | 2 | 81.0 ± 1.4 | 50.0 ± 0.0 | 61.8 ± 0.4 | 61.6 ± 0.4 |" in text
    assert "| run | cars (n = 100 + 100) | pets (n = 100 + 100) |" in text
    assert "60.0 / 70.0 / 64.6 | 80.0 / 90.0 / 84.7" in text
    table = list(csv.DictReader(io.StringIO(found.to_csv())))
    line = next(one for one in table if one["run"] == "coop" and one["set"] == "average")
    assert float(line["harmonic"]) == pytest.approx(harmonic_mean(0.81, 0.5))
    document = json.loads(found.to_json())
    assert document["rows"][1]["sets"]["pets"]["base"]["n"] == 2
    assert document["rows"][1]["values"]["mean_harmonic"]["mean"] == pytest.approx(np.mean(each))


def test_a_second_stage_is_one_row_though_its_starts_differ(runs: Path) -> None:
    found = average([runs])
    (tuned,) = (row for row in found.rows if row.label.startswith("mergetune"))
    assert set(tuned.sets) == {"cars", "pets"}
    assert tuned.values["harmonic"].mean == pytest.approx(harmonic_mean(0.8, 0.6))


def test_no_average_over_fewer_sets_than_another_row_has(runs: Path) -> None:
    write_run(runs / "kgcoop-pets", "pets", 0.9, 0.8, method="kgcoop")
    found = average([runs])
    (row,) = (row for row in found.rows if row.label == "kgcoop")
    assert row.missing == ("cars",)
    assert row.values == {}
    text = found.to_markdown()
    assert "kgcoop: no average, because cars is missing." in text
    assert "| kgcoop | 1 | n/a | n/a | n/a | n/a |" in text
    assert "kgcoop,average" not in found.to_csv()


def test_what_cannot_be_averaged_is_explained(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="none of 0 runs has scores of base and novel classes"):
        average([])
    write_run(runs / "other", "pets", 0.9, 0.8, method="kgcoop", n=50)
    with pytest.raises(RunError, match="different numbers of images"):
        average([runs])
