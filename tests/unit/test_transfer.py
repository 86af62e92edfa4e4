"""Suites of transfer protocols over data sets that a test registers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from perdure import zoo
from perdure.data.datasets import DATASETS, Reader
from perdure.data.suites import suite
from perdure.data.transfer import base_to_novel, cross_dataset, domain_shift
from perdure.errors import DataError
from perdure.evaluation import evaluate
from perdure.records import summary

NAMES = {"source": 6, "pets": 4, "flowers": 5, "sketches": 3}


@dataclass(frozen=True, eq=False)
class Noise:
    """Random pictures."""

    name: str
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    captioned: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=generator)


def opener(name: str):
    def open_noise(split: str, *, seed: int, shots: int | None, classes: str) -> Noise:
        assert (split, classes) == ("test", "all")
        count = NAMES[name]
        names = tuple(f"{name} {index}" for index in range(count))
        return Noise(name, np.arange(4 * count) % count, names)

    return open_noise


@pytest.fixture
def registered(monkeypatch):
    import sys
    from types import ModuleType

    module = ModuleType("perdure_test_noise")
    for name in NAMES:
        setattr(module, f"open_{name}", opener(name))
        setattr(module, f"prompts_{name}", (f"a {name} picture of {{}}.",))
        reader = Reader(f"{module.__name__}:open_{name}", f"{module.__name__}:prompts_{name}", True)
        monkeypatch.setitem(DATASETS, name, reader)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_targets_are_scored_with_their_own_classes_and_prompts(registered):
    made = cross_dataset("transfer", "source", ("pets", "flowers"))
    found = evaluate(zoo.random_clip(), made)
    assert {name: entry["role"] for name, entry in found.splits.items()} == {
        "source": "id",
        "pets": "target",
        "flowers": "target",
    }
    values = summary(found.splits)
    both = [found["pets"]["accuracy"], found["flowers"]["accuracy"]]
    assert values["target"] == pytest.approx(np.mean(both))
    assert values["id"] == found["source"]["accuracy"]
    # As if the target were a task of its own.
    alone = evaluate(zoo.random_clip(), domain_shift("alone", "pets", ("sketches",)))
    assert found["pets"] == alone["pets"] | {"role": "target"}
    hashes = {entry["templates_sha256"] for entry in found.splits.values()}
    assert len(hashes) == 3
    assert found["source"]["templates_sha256"] == found.conditions["templates_sha256"]


def test_shifted_sets_keep_the_prompts_of_the_source(registered):
    made = domain_shift("shift", "source", ("sketches", "flowers"))
    found = evaluate(zoo.random_clip(), made)
    values = summary(found.splits)
    assert values["ood"] == pytest.approx(
        np.mean([found[name]["accuracy"] for name in ("sketches", "flowers")])
    )
    assert all(split.templates is None for split in made.splits)


def test_halves_are_two_tasks(registered):
    made = suite("base-to-novel-source")
    assert made == base_to_novel("source")
    found = evaluate(zoo.random_clip(), made)
    assert [entry["n"] for entry in found.splits.values()] == [12, 12]
    assert found["base"]["classes_sha256"] != found["novel"]["classes_sha256"]
    assert made.definition != base_to_novel("pets").definition
    base, novel = (found[name]["accuracy"] for name in ("base", "novel"))
    harmonic = found.to_dict()["summary"]["harmonic"]
    assert harmonic["value"] == pytest.approx(2 * base * novel / (base + novel) if base else 0)
    assert harmonic["interval"][0] <= harmonic["value"] <= harmonic["interval"][1]


def test_a_protocol_needs_distinct_data_sets(registered):
    with pytest.raises(DataError, match="nothing else"):
        cross_dataset("x", "source", ())
    with pytest.raises(DataError, match="each once"):
        domain_shift("x", "source", ("pets", "source"))
