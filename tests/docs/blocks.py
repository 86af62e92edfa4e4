"""The fenced blocks of the documentation, as a reader would use them.

A block with a title is a file of that name. Python blocks without one are scripts; in console
blocks, lines that start with `$` are commands and the lines below one are what it prints.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', flags=re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    language: str
    title: str
    """Empty where the block is not a file"""
    body: str


class Command(NamedTuple):
    arguments: list[str]
    printed: list[str]
    """What the page shows of its output"""


def blocks(page: Path) -> list[Block]:
    found = (Block(*match) for match in _BLOCK.findall(page.read_text(encoding="utf-8")))
    return [block for block in found if block.title or block.language in {"python", "console"}]


def commands(block: Block) -> list[Command]:
    found: list[Command] = []
    for line in block.body.splitlines():
        if line.startswith("$ "):
            program, *arguments = shlex.split(line[2:])
            prefix = {"perdure": [sys.executable, "-m", "perdure"], "python": [sys.executable]}
            found.append(Command(prefix[program] + arguments, []))
        elif line.strip():
            found[-1].printed.append(line)
    return found


NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def words(line: str) -> str:
    """Return a line of output without its numbers, rules and spacing."""
    return " ".join(re.sub(r"-{3,}", "-", NUMBER.sub("#", line)).split())


def numbers(line: str) -> list[float]:
    return [float(text.replace(",", "")) for text in NUMBER.findall(line)]
