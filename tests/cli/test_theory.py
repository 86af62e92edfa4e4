"""`perdure theory`: its numbers, its refusals, its pictures."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from perdure import theory, theory_figures

from .conftest import Perdure


def test_json_holds_what_the_functions_return(perdure: Perdure) -> None:
    found = json.loads(perdure("theory", "--steps", 90, "--every", 4, "--compare", "--json").out)
    assert (found["steps"], found["every"]) == (90, 4)
    rows = {row["name"]: row for row in found["teachers"]}
    # Closed forms: an EMA's teacher error is a power, a static teacher leaves s / (1 + s).
    s, left = found["strength"], 23
    assert rows["EMA 0.9"]["bias"] == pytest.approx(s / (1 + s) * (1 - 0.1 / (1 + s)) ** (left - 1))
    assert rows["EMA 0.9"]["start_mass"] == pytest.approx(0.9**left)
    assert rows["static"]["bias"] == pytest.approx(s / (1 + s))
    assert rows["static"]["gap"] == pytest.approx(1 / (1 + s))
    assert rows["static"]["mean_gap"] == pytest.approx(1 / (1 + s))
    one = theory.operate(0.5, s, 90, 4)
    assert (rows["WMA beta 0.5"]["bias"], rows["WMA beta 0.5"]["gap"]) == (one.bias, one.gap)
    advice = theory.advise(90, every=4)
    assert found["advice"]["best"] == advice.best._asdict()
    assert found["advice"]["wanted_bias"] == advice.target
    assert found["advice"]["reached"] is advice.reaches(advice.best)
    assert len(found["advice"]["others"]) == len(advice.others)
    published = theory.compare_published()
    assert [row["rank_correlation"] for row in found["published"]] == [one.rho for one in published]
    assert [row["n"] for row in found["published"]] == [len(one.labels) for one in published]
    assert [len(row["wrong_order"]) for row in found["published"]] == [
        len(one.differences) for one in published
    ]
    assert found["pictures"] == []


def test_the_recommendation_is_what_a_simulated_run_leaves(perdure: Perdure) -> None:
    """Carry out the rounds in one direction, with nothing but the definitions."""
    best = json.loads(perdure("theory", "--steps", 120, "--json").out)["advice"]["best"]
    beta, s, total = best["beta"], best["strength"], best["steps"]
    times = [(step + 0.5) / (total + 1) for step in range(total + 1)]
    masses = [(time * (1 - time)) ** (beta - 1) for time in times]
    student = teacher = 1.0  # the solution is 0
    for step in range(1, total + 1):
        student = s / (1 + s) * teacher
        teacher += masses[step] / math.fsum(masses[: step + 1]) * (student - teacher)
    assert best["bias"] == pytest.approx(student)
    assert best["gap"] == pytest.approx(abs(student - teacher))


def test_a_given_strength_stays_and_a_missed_bias_is_said(perdure: Perdure) -> None:
    free = json.loads(perdure("theory", "--steps", 10, "--json").out)
    assert free["strength"] != 0.9
    assert free["advice"]["reached"] is True
    kept = json.loads(perdure("theory", "--steps", 10, "--strength", 0.9, "--json").out)
    assert kept["strength"] == kept["advice"]["best"]["strength"] == 0.9
    assert kept["advice"]["reached"] is False
    text = " ".join(perdure("theory", "--steps", 10, "--strength", 0.9).out.split())
    assert "None leaves it at strength 0.9; the nearest leaves" in text
    text = " ".join(perdure("theory", "--steps", 10).out.split())
    assert "At strength 0.9 none leaves it, so the strength was changed." in text
    assert "a coarse kernel: beta hardly matters" in text


def test_the_text_recommends_and_says_what_it_rests_on(perdure: Perdure) -> None:
    answer = perdure("theory", "--steps", 200)
    assert answer.code == 0
    assert answer.err == ""
    best = theory.advise(200).best
    assert (
        f"Recommended for 200 steps: beta {best.beta:g}, strength {best.strength:g}" in answer.out
    )
    assert f"Next: --set method.beta={best.beta:g} --set method.strength=0.9\n" in answer.out
    text = " ".join(answer.out.split())
    assert "How it was chosen: the bias wanted is 0.0228" in text
    assert "(an assumption)" in text
    assert max(map(len, answer.out.splitlines())) <= 100
    assert "Rank correlation" not in answer.out


def test_what_floats_cannot_hold_is_zero_and_printed_as_a_bound(perdure: Perdure) -> None:
    # 0.9 ** 9000 is 1e-412.
    (row,) = (
        one
        for one in json.loads(perdure("theory", "--steps", 9000, "--json").out)["teachers"]
        if one["name"] == "EMA 0.9"
    )
    assert row["start_mass"] == 0.0
    lines = perdure("theory", "--steps", 9000).out.splitlines()
    (line,) = (one for one in lines if one.startswith("EMA 0.9 "))
    assert line.split()[2:4] == ["<", "1e-99"]


def test_the_published_setting_is_recommended_for_its_own_length(perdure: Perdure) -> None:
    best = json.loads(perdure("theory", "--json").out)["advice"]["best"]
    assert (best["steps"], best["beta"], best["strength"]) == (25_030, 0.5, 0.9)


def test_the_comparison_prints_rank_correlations_and_differences(perdure: Perdure) -> None:
    out = perdure("theory", "--compare", "--steps", 20).out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for one in theory.compare_published():
        start = f"{one.table} {one.column} {one.prediction} "
        (row,) = (line for line in lines if line.startswith(start))
        assert f" {len(one.labels)} {one.rho:.2f} " in row
        assert f" {len(one.differences)} of {one.pairs} " in row
    assert "OOD accuracy: strength 1.5 -> strength 10: -0.85" in lines


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--steps", 0), "--steps: 0 steps are no run; give 1 or more."),
        (("--steps", 10**12), "at most 300,000 are followed"),
        (("--steps", "many"), "valid integer"),
        (("--every", 0), "--every: 0 is no interval"),
        (("--steps", 10, "--every", 11), "11 is more than the 10 steps"),
        (("--strength", 0), "give a number from 0.01 to 100"),
        (("--strength", "nan"), "nan is out of range"),
        (("--bias", 1), "from 1e-6 to below 1"),
        (("--bias", "nan"), "nan is out of range"),
        (("--out", "file"), "file is a file; name a directory for --out"),
        (("--out", "file/in"), "cannot write file/in"),
        (("--out", "taken"), "cannot write taken/phase.png"),
    ],
)
def test_bad_input_is_one_paragraph(
    perdure: Perdure, tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken" / "phase.png").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    answer = perdure("theory", *arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.count("Error: ") == 1
    assert "Traceback" not in answer.err
    assert said in " ".join(answer.err.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_pictures_are_written_beside_what_is_there(perdure: Perdure, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes.txt").write_text("mine")
    answer = perdure("theory", "--steps", 40, "--out", "new", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)["pictures"]
    assert found == [str(Path("new") / f"{name}.png") for name in theory_figures.PICTURES]
    for path in found:
        assert (tmp_path / path).read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "new").iterdir())) == len(found) + 1


def test_a_failure_while_drawing_leaves_nothing(
    perdure: Perdure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "pictures")

    monkeypatch.setitem(theory_figures.PICTURES, "phase", (full, (3.0, 2.0)))
    answer = perdure("theory", "--steps", 40, "--out", "pictures")
    assert answer.code == 2
    assert "No space left on device" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_it_needs_no_torch_and_no_matplotlib_and_stops_quietly_when_the_reader_does() -> None:
    code = (
        "import sys\n"
        "from perdure.cli import main\n"
        "try:\n"
        "    main(['theory', '--steps', '30', '--compare'])\n"
        "finally:\n"
        "    loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "    assert not {'torch', 'matplotlib'} & loaded, loaded\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    # A reader that goes away, as `head` does, ends the command without a word.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
