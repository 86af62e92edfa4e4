"""Help and lists: fast because nothing heavy is imported, and complete."""

import json
import subprocess
import sys

import pytest

import perdure as package

from .conftest import Perdure

VERBS = (
    "demo",
    "train",
    "eval",
    "merge",
    "path",
    "drift",
    "report",
    "list",
    "show",
    "predict",
    "calibrate",
    "export",
    "propose",
    "doctor",
    "data",
    "alpha",
    "ablate",
    "profile",
    "theory",
    "diagnose",
)

LIGHT = (
    ("--help",),
    ("--version",),
    ("train", "--help"),
    ("predict", "--help"),
    ("doctor", "--help"),
    ("alpha", "--help"),
    ("merge", "--help"),
    ("path", "--help"),
    ("drift", "--help"),
    ("ablate", "--help"),
    ("profile", "--help"),
    ("theory", "--help"),
    ("diagnose", "--help"),
    ("list", "methods"),
    ("list", "recipes"),
    ("list", "suites"),
    ("list", "models"),
)


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_torch_is_not_imported(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "perdure", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "perdure.cli" in imported
    heavy = {"torch", "torchvision", "open_clip", "timm", "matplotlib", "transformers"}
    assert not heavy & {name.partition(".")[0] for name in imported}


def test_help_lists_every_verb(perdure: Perdure) -> None:
    answer = perdure("--help")
    assert answer.code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in answer.out
    verbs = answer.out.partition("Commands:")[2]
    assert "..." not in verbs, "a verb's first sentence is too long for the list"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_examples(perdure: Perdure, verb: str) -> None:
    answer = perdure(verb, "--help")
    assert answer.code == 0
    examples = answer.out.partition("Examples:")[2]
    assert f"\n  perdure {verb} " in examples


def test_no_arguments_show_the_help(perdure: Perdure) -> None:
    answer = perdure()
    assert "Commands:" in answer.out + answer.err


def test_version(perdure: Perdure) -> None:
    assert perdure("--version") == (0, f"{package.__version__}\n", "")


@pytest.mark.parametrize(
    ("what", "known"),
    [
        ("methods", "tracer"),
        ("recipes", "emojishift/tracer"),
        ("suites", "emojishift"),
        ("models", "perdure-tiny"),
    ],
)
def test_lists_name_and_explain(perdure: Perdure, what: str, known: str) -> None:
    rows = json.loads(perdure("list", what, "--json").out)
    assert known in [row["name"] for row in rows]
    assert all(row["summary"] for row in rows)
    lines = perdure("list", what).out.splitlines()
    assert len(lines) == len(rows) + 2
    assert "\x1b" not in "".join(lines)
