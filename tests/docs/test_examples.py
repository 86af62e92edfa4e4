"""Every Python block and every command line of the documentation runs as it stands."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[Path, list[str]]]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        bodies = re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
        if bodies:
            found.append((page, bodies))
    return found


def names(cases: list[tuple[Path, list[str]]]) -> list[str]:
    return [page.name for page, _ in cases]


PYTHON, CONSOLE = blocks("python"), blocks("console")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_the_readme_has_both_kinds_of_example():
    assert "README.md" in names(PYTHON)
    assert "README.md" in names(CONSOLE)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "bodies"), PYTHON, ids=names(PYTHON))
def test_python_blocks(page, bodies, tmp_path):
    script = tmp_path / "example.py"
    script.write_text("\n".join(bodies), encoding="utf-8")
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=ENVIRONMENT, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "bodies"), CONSOLE, ids=names(CONSOLE))
def test_commands(page, bodies, tmp_path):
    lines = [line[2:] for body in bodies for line in body.splitlines() if line.startswith("$ ")]
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "perdure"
        command = [sys.executable, "-m", "perdure", *arguments]
        subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, check=True)
