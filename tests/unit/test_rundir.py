"""What a kill leaves beside a run is never taken for one, and goes or is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perdure import doctor, files
from perdure.errors import RunError
from perdure.records import expand
from perdure.rundir import FORMAT, leftovers, require_readable, runs_in

KILLED = """
import os, signal, sys
from pathlib import Path
from perdure.files import whole_directory, write_text
with whole_directory(Path(sys.argv[1])) as fresh:
    write_text(fresh / "recipe.yaml", "seed: 0")
    (fresh / ".unfinished-1-env.json").write_text("{")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def make(path):
    with files.whole_directory(path) as fresh:
        files.write_text(fresh / "recipe.yaml", "seed: 0")


@pytest.fixture
def killed(tmp_path):
    """Return where a run should be, whose making was killed after its recipe was written."""
    place = tmp_path / "runs" / "mine"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, str(place)], cwd=root)
    assert done.returncode == -signal.SIGKILL
    return place


def test_a_kill_leaves_something_that_is_no_run(killed):
    runs = killed.parent
    (left,) = runs.iterdir()
    assert left.name.startswith(files.UNFINISHED)
    assert (left / "recipe.yaml").is_file()
    assert runs_in(runs) == runs_in(runs.parent) == []
    with pytest.raises(RunError, match="not a run directory"):
        expand([runs])
    assert leftovers(runs) == leftovers(runs.parent) == [left]


def test_making_the_run_again_removes_it_and_nothing_of_others(killed):
    runs = killed.parent
    (left,) = runs.iterdir()
    other = left.with_name(left.name.replace("mine", "other"))
    other.mkdir()
    ours = runs / f"{files.UNFINISHED}{os.getpid()}-mine-old"
    ours.mkdir()
    living = runs / f"{files.UNFINISHED}{os.getppid()}-mine"
    living.mkdir()
    make(killed)
    assert {path.name for path in runs.iterdir()} == {"mine", other.name, living.name}
    assert leftovers(runs) == [other]


def test_the_doctor_names_it(killed, monkeypatch):
    monkeypatch.setattr(doctor, "_models", lambda: ({}, []))
    (warning,) = [text for text in doctor.examine(killed.parent).warnings if "killed" in text]
    assert "1 in all" in warning
    assert "-mine" in warning
    for path in leftovers(killed.parent):
        (path / "recipe.yaml").rename(killed.with_suffix(".yaml"))
        for inside in path.iterdir():
            inside.unlink()
        path.rmdir()
    assert not [text for text in doctor.examine(killed.parent).warnings if "killed" in text]


def test_leftovers_in_runs_and_their_states_are_found(tmp_path):
    run = tmp_path / "runs" / "seed-0"
    make(run)
    inside = [run / ".unfinished-999999999-model", run / "state" / ".unfinished-999999999-step_1"]
    for path in inside:
        path.mkdir(parents=True)
    (run / ".unfinished-plan").mkdir()  # a name that perdure does not give
    assert leftovers(tmp_path) == inside


@pytest.mark.parametrize("found", [FORMAT + 1, 0, "1", None, 1.5])
def test_a_format_that_this_version_does_not_know_is_refused(tmp_path, found):
    (tmp_path / "env.json").write_text(json.dumps({"format": found, "versions": []}))
    with pytest.raises(RunError, match=r"another version of perdure; this version reads formats"):
        require_readable(tmp_path)


@pytest.mark.parametrize("record", [{}, {"format": FORMAT}])
def test_known_formats_are_read(tmp_path, record):
    require_readable(tmp_path)
    (tmp_path / "env.json").write_text(json.dumps(record))
    require_readable(tmp_path)
