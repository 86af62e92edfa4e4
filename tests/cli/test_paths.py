"""Paths and ensembles from the command line."""

import json
from pathlib import Path

from .conftest import Perdure


def test_a_path_is_a_table_a_document_and_a_picture(
    perdure: Perdure, tmp_path: Path, model: str, short: list[str]
) -> None:
    assert perdure("train", "emojishift/ft", "--out", "ft", *short).code == 0
    where = ("--suite", "emojishift-val", "--limit", "20", "--points", "3")
    answer = perdure("path", model, "ft", *where, "--out", "path.png")
    assert answer.code == 0, answer.err
    assert answer.out.startswith(f"{model} -> ft in parameters, emojishift-val\n")
    assert "acc barrier [95 %]" in answer.out
    assert (tmp_path / "path.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(perdure("path", model, "ft", model, *where, "--json").out)
    assert [one["control"] for one in found["segments"]] == [False, False, True]
    assert found["positions"] == [0.0, 0.5, 1.0]
    assert found["seeds"] == {model: None, "ft": 0}
    curve = found["segments"][0]["splits"]["val"]
    assert curve["n"] == 20
    assert curve["loss_barrier"]["low"] <= curve["loss_barrier"]["high"]
    assert found["precision"] == "fp32"
    again = perdure("path", model, "ft", model, *where, "--workers", "1", "--json")
    assert json.loads(again.out) == found
    half = json.loads(perdure("path", model, "ft", *where, "--precision", "bf16", "--json").out)
    assert half["precision"] == "bf16"
    assert half["segments"][0]["splits"] != found["segments"][0]["splits"]


def test_wrong_paths_are_explained(perdure: Perdure, tmp_path: Path, model: str) -> None:
    for arguments, words in (
        ((model,), "two or three models; found 1"),
        ((model, model, "--space", "loss"), "none of parameters, classifier"),
        ((model, model, "--out", "x.pdf"), "does not end in .png"),
        ((model, model, "--points", "1"), "points is 1"),
        ((model, model, "--precision", "fp64"), "'fp64' is none of fp32, bf16"),
        ((model, model, "--cache", "kept"), "no picture files of which pixels could be kept"),
        ((model, "nowhere/run"), "no model"),
        ((model, model, "--suite", "emojishit"), "no suite"),
    ):
        answer = perdure("path", *arguments)
        assert answer.code == 2
        assert words in " ".join(answer.err.split())
    assert list(tmp_path.iterdir()) == []


def test_ensembles_are_scored(
    perdure: Perdure, tmp_path: Path, model: str, short: list[str]
) -> None:
    assert perdure("train", "emojishift/ft", "--out", "ft", *short).code == 0
    answer = perdure("eval", model, "ft", "--ensemble", "mean", "--shares", "1,3", "--limit", "20")
    assert answer.code == 0, answer.err
    assert answer.out.startswith(f"mean of {model} and ft on emojishift\n")
    assert "mean share of ft, %: id 75.0" in answer.out
    answer = perdure("eval", model, "ft", "--ensemble", "vrf", "--limit", "20", "--json")
    found = json.loads(answer.out)
    assert found["ensemble"]["kind"] == "vrf"
    assert found["splits"]["id"]["classifier"] == "ensemble"
    assert not (tmp_path / "ft" / "scores").exists()
    answer = perdure("eval", model, "ft", "--ensemble", "vrf", "--limit", "20", "--neighbours", "2")
    assert "failures among 80 training images" in answer.out


def test_wrong_ensembles_are_explained(perdure: Perdure, model: str) -> None:
    for arguments, words in (
        ((model, "--ensemble", "mean"), "takes two or more; found 1"),
        ((model, model, "--ensemble", "median"), "none of mean, vrf"),
        ((model, model, "--ensemble", "vrf"), "none of the inputs is a training run"),
        ((model, model, "--ensemble", "mean", "--sweep"), "neither --sweep"),
        ((model, model, "--shares", "1,1"), "needs --ensemble"),
        ((model, model, "--ensemble", "mean", "--neighbours", "2"), "option of --ensemble vrf"),
    ):
        answer = perdure("eval", *arguments, "--limit", "8")
        assert answer.code == 2
        assert words in " ".join(answer.err.split())
