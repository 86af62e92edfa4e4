"""From a LoRA run to its updates alone: exported, made smaller, evaluated, merged, trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Perdure


def test_a_run_is_exported_and_goes_on(perdure: Perdure, tmp_path: Path, short: list[str]) -> None:
    answer = perdure("train", "emojishift/lora", "--out", "run", *short, "--set", "method.rank=3")
    assert answer.code == 0, answer.err
    answer = perdure("export", "run", "--to", "adapters", "--out", "kept")
    assert answer.code == 0, answer.err
    assert "it needs its base model" in answer.out
    record = json.loads((tmp_path / "kept" / "adapters.json").read_text())
    assert record["method"]["name"] == "lora"
    small = json.loads(
        perdure("export", "run", "--to", "adapters", "--rank", 1, "--out", "small", "--json").out
    )
    assert small["bound"] > 0
    assert {layer["rank"] for layer in small["layers"]} == {1}
    text = perdure("export", "kept", "--to", "adapters", "--energy", 0.9, "--out", "e").out
    assert "Frobenius" in text
    assert "3 -> " in text
    found = json.loads(perdure("export", "run", "--to", "peft", "--out", "peft", "--json").out)
    assert max(found["image"], found["text"]) < 1e-5
    accuracies = [
        json.loads(perdure("eval", name, "--limit", "40", "--json", *extra).out)
        for name, extra in (("run", ()), ("kept", ("--out", "a")), ("peft", ("--out", "b")))
    ]
    assert len({json.dumps(each["splits"]["id"]["accuracy"]) for each in accuracies}) == 1
    assert perdure("train", "emojishift/flyp", "--out", "next", *short,
                   "--set", "model.init=kept").code == 0  # fmt: skip


WRONG = [
    (("--to", "adapters"), "no added modules"),
    (("--to", "peft"), "was added: nothing"),
    (("--to", "peft", "--rank", "2"), "only adapters can be made smaller"),
    (("--to", "adapters", "--rank", "2", "--energy", "0.5"), "one of the two"),
    (("--to", "adapter"), "did you mean 'adapters'"),
]


@pytest.mark.parametrize(("options", "hint"), WRONG, ids=lambda value: "-".join(value))
def test_mistakes_end_with_2_and_a_hint(
    perdure: Perdure, tmp_path: Path, options: tuple[str, ...], hint: str
) -> None:
    answer = perdure("export", "perdure-tiny", "--out", "out", *options)
    assert answer.code == 2
    assert hint in " ".join(answer.err.split())
    assert list(tmp_path.iterdir()) == []
