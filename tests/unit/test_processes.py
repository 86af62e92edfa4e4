"""One voice for several processes, and SIGTERM that ends tidily."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from perdure import processes
from perdure.cli import main
from perdure.console import meter
from perdure.files import whole_directory, whole_file


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the second of two processes."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")


def terminate() -> None:
    """Send SIGTERM to this process, which hears it in here."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def test_one_process_and_the_main_one_speak_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.is_main()
    assert processes.may_speak(at_once=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert processes.may_speak(at_once=True)


@pytest.mark.usefixtures("second")
def test_another_process_speaks_only_if_nobody_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(processes, "PATIENCE", 0.05)
    began = time.monotonic()
    try:
        assert processes.may_speak(at_once=True)
        assert time.monotonic() - began >= 0.05
        with pytest.raises(SystemExit) as stopped:
            terminate()
        assert stopped.value.code == 2
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize("arguments", [["train", "nowhere.yaml", "--out", "x"], ["trian"]])
def test_an_error_is_told_to_the_launcher(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "may_speak", lambda at_once: True)
    monkeypatch.setenv(processes.ERROR_FILE, str(tmp_path / "error.json"))
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    told = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    error = capsys.readouterr().err
    assert error.count("Error: ") == 1
    assert "".join(told.split()) in "".join(error.split())


def test_only_several_processes_lose_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer")
    assert not processes.has_lost_contact(error)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes.has_lost_contact(error)
    assert processes.has_lost_contact(torch.distributed.DistNetworkError("timed out"))
    assert not processes.has_lost_contact(RuntimeError("this cannot be restored"))


@pytest.mark.usefixtures("second")
def test_progress_is_shown_by_the_main_process_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with meter(2) as shown:
        shown.describe("scoring")
        shown.advance(1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("writing", [whole_file, whole_directory])
def test_nothing_is_left_where_writing_is_stopped(tmp_path: Path, writing: object) -> None:
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "old").write_text("whole")

    def write() -> None:
        with processes.Termination(), writing(tmp_path / "new") as temporary:
            (temporary / "part" if temporary.is_dir() else temporary).write_text("half")
            terminate()

    with pytest.raises(SystemExit) as stopped:
        write()
    assert stopped.value.code == 143
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert signal.getsignal(signal.SIGTERM) is before
