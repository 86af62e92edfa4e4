"""The command line in this process, and a tiny model that every command can start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from perdure.cli import main
from perdure.zoo import random_clip


class Answer(NamedTuple):
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


Perdure = Callable[..., Answer]


@pytest.fixture
def perdure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Perdure:
    """Return a function that runs `perdure ARGUMENTS` in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        code = stopped.value.code
        return Answer(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of a random model that builds in milliseconds."""
    path = tmp_path_factory.mktemp("models") / "random"
    random_clip(0).export_open_clip(path)
    return f"local-dir:{path}"


@pytest.fixture
def short(model: str) -> list[str]:
    """Return overrides that make any EmojiShift recipe a run of three steps."""
    changes = (
        f"model.name={model}",
        "data.shots=1",
        "optim.epochs=null",
        "optim.steps=3",
        "optim.batch_size=16",
    )
    return [part for change in changes for part in ("--set", change)]
