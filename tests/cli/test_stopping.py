"""However and whenever a command is stopped, it ends as other tools do, and says so in a line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
STOP = "__import__('os').kill(__import__('os').getpid(), {})"


def run(
    folder: Path, *arguments: str, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run `python -m perdure` in `folder`, whose modules come before all others."""
    return subprocess.run(
        [sys.executable, "-m", "perdure", *arguments],
        cwd=folder,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it puts into the background with Ctrl-C ignored, and we inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        timeout=60,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("module", "text"),
    [
        # Python remembers that Ctrl-C left text that it was told to execute, as dataclasses do.
        ("own", f"exec({STOP!r})"),
        ("own", f"try:\n    {STOP}\nexcept BaseException:\n    raise ImportError('no numpy')"),
        # The command line itself is still being imported.
        ("typer", STOP),
    ],
    ids=["executed", "converted", "importing"],
)
def test_a_stop_ends_with_its_number_and_one_line(
    tmp_path: Path, module: str, text: str, number: signal.Signals
) -> None:
    (tmp_path / f"{module}.py").write_text(text.format(int(number)))
    done = run(tmp_path, "--import", "own", "list", "recipes")
    assert done.returncode == 128 + number
    assert done.stderr == f"Stopped by {number.name}.\n"
    assert done.stdout == ""


def test_ctrl_c_before_anybody_listens_ends_the_same(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(STOP.format(int(signal.SIGINT)))
    done = run(tmp_path, "list", "recipes")
    assert (done.returncode, done.stderr) == (130, "Stopped by SIGINT.\n")


@pytest.mark.parametrize(
    "late",
    [
        f"import atexit\natexit.register(lambda: {STOP})",
        # What a module holds is dropped at the very end.
        "import builtins, os\nclass Late:\n"
        "    def __del__(self, kill=os.kill, own=os.getpid()):\n        kill(own, {})\n"
        "builtins.late = Late()",
    ],
    ids=["atexit", "finalisation"],
)
def test_a_stop_after_the_work_changes_nothing(tmp_path: Path, late: str) -> None:
    (tmp_path / "own.py").write_text(late.format(int(signal.SIGINT)))
    done = run(tmp_path, "--import", "own", "list", "methods")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "tracer" in done.stdout


@pytest.mark.parametrize("arguments", [("list", "recipes"), ("train", "--help")], ids=" ".join)
def test_a_reader_that_goes_away_ends_the_command_quietly(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(tmp_path, *arguments, stdout=writing)
    os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [("list", "recipes"), ("train", "--help")], ids=" ".join)
def test_an_output_that_takes_no_more_is_an_error_for_people(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with open("/dev/full", "w") as full:
        done = run(tmp_path, *arguments, stdout=full.fileno())
    assert done.returncode == 2
    assert done.stderr.startswith("Error: cannot print (No space left on device)")
    assert done.stderr.count("Error") == 1
    assert "Traceback" not in done.stderr
