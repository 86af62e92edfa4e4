"""Merging from the command line gives runs like any other."""

import json
from pathlib import Path

from perdure.predictor import Predictor

from .conftest import Perdure


def test_merged_runs_are_evaluated_and_reported(
    perdure: Perdure, tmp_path: Path, model: str, short: list[str]
) -> None:
    for seed in ("0", "1"):
        settings = (*short, "--set", f"seed={seed}")
        assert perdure("train", "emojishift/ft", "--out", f"ft-{seed}", *settings).code == 0
    answer = perdure("merge", "wise-ft", model, "ft-0", "--alpha", "0.5", "--out", "half", "--json")
    document = json.loads(answer.out)
    assert (document["path"], document["alpha"]) == ("half", 0.5)
    assert document["inputs"][1]["recipe"]["method"]["name"] == "ft"
    assert perdure("merge", "soup", "ft-0", "ft-1", "--shares", "1,3", "--out", "soup").code == 0
    head = Predictor.load(tmp_path / "soup" / "predictor").head
    assert head is not None
    for run in ("half", "soup", "ft-0"):
        assert perdure("eval", run, "--limit", "80").code == 0
    rows = json.loads(perdure("report", "half", "soup", "ft-0", "--json").out)["rows"]
    assert [row["label"] for row in rows] == ["ft", "ft + WiSE 0.5", "soup"]


def test_wise_ft_needs_alpha(perdure: Perdure, tmp_path: Path, model: str) -> None:
    answer = perdure("merge", "wise-ft", model, model, "--out", "x")
    assert answer.code == 2
    assert "alpha" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_every_kind_has_its_options_and_says_what_it_did(
    perdure: Perdure, tmp_path: Path, model: str, short: list[str]
) -> None:
    for seed in ("0", "1"):
        settings = (*short, "--set", f"seed={seed}")
        assert perdure("train", "emojishift/ft", "--out", f"ft-{seed}", *settings).code == 0
    both = ("ft-0", "ft-1")
    kinds: dict[str, tuple[tuple[str, ...], str]] = {
        "task-arithmetic": (
            (model, *both, "--weights", "1,0.5", "--scale", "0.5"),
            "weights 1,0.5",
        ),
        "ties": ((model, *both, "--density", "0.3", "--scope", "whole_model"), "scope whole_model"),
        "dare": ((model, *both, "--majority", "total", "--seed", "3"), "seed 3"),
        "slerp": ((*both, "--alpha", "0.25"), "alpha 0.25"),
        "model-stock": ((model, *both), "no options"),
        "fisher": ((*both, "--examples", "2", "--floor", "1e-6"), "examples 2"),
        "regmean": ((*both, "--examples", "4", "--ratio", "0.5"), "ratio 0.5"),
    }
    for kind, (arguments, words) in kinds.items():
        answer = perdure("merge", kind, *arguments, "--out", kind)
        assert answer.code == 0, answer.err
        assert answer.out.startswith(f"Wrote {kind}\n{kind} of ")
        assert words in answer.out
    assert perdure("eval", "ties", "--limit", "80").code == 0
    row = json.loads(perdure("report", "ties", "--json").out)["rows"][0]
    assert row["label"] == "ft + ties"


def test_options_of_other_kinds_are_explained(perdure: Perdure, tmp_path: Path, model: str) -> None:
    for arguments, words in (
        (("tise", model, model), "did you mean 'ties'"),
        (("soup", model, model, "--density", "0.5"), "density is an option of ties, dare; soup"),
        (("ties", model, model, "--density", "3"), "density is 3.0"),
        (("regmean", model, model), "none of the inputs is a training run"),
        (("ties", model, model, "--weights", "1,x"), "separate them by commas"),
    ):
        answer = perdure("merge", *arguments, "--out", "x")
        assert answer.code == 2
        assert words in " ".join(answer.err.split())
    assert list(tmp_path.iterdir()) == []


def test_the_kinds_of_the_help_are_those_that_exist() -> None:
    from perdure.cli_merge import KINDS
    from perdure.merges.kinds import MERGERS

    assert tuple(MERGERS) == KINDS
