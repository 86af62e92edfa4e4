"""Every block of the documentation works as it stands, and prints what the page shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .blocks import PAGES, ROOT, Command, blocks, commands, numbers, words

EXAMPLES = [page for page in PAGES if blocks(page)]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
NEAR = 10.0
"""Points, or other units, by which a printed number may differ from the page's: other processors
round otherwise, and training makes more of it; a wrong or outdated table differs by more"""


def test_the_pages_that_teach_have_examples() -> None:
    assert {"README.md", "tutorial.md", "adding-a-method.md"} <= {page.name for page in EXAMPLES}


@pytest.mark.slow
@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_a_page_can_be_followed_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page)):
        if block.title:
            (tmp_path / block.title).write_text(block.body, encoding="utf-8")
        elif block.language == "python":
            script = tmp_path / f"block-{number}.py"
            script.write_text(block.body, encoding="utf-8")
            run([sys.executable, str(script)], tmp_path)
        else:
            for command in commands(block):
                compare(command, run(command.arguments, tmp_path))


def run(arguments: list[str], place: Path) -> str:
    done = subprocess.run(arguments, cwd=place, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def compare(command: Command, printed: str) -> None:
    """Find the page's lines in the output, in their order; `...` stands for any others."""
    lines = iter(printed.splitlines())
    for shown in command.printed:
        if shown == "...":
            continue
        found = next((line for line in lines if words(line) == words(shown)), None)
        assert found is not None, f"{shown!r} is not, or not there, in:\n{printed}"
        if "of training" not in shown:
            for old, new in zip(numbers(shown), numbers(found), strict=True):
                assert abs(old - new) <= NEAR, f"the page shows {shown!r}, but it is {found!r}"
