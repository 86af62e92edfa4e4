"""Few-shot subsets and halves of classes, against subsets drawn by the published code."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.data import protocols
from perdure.data.datasets import DATASETS, open_dataset
from perdure.errors import DataError

HALVES = ("base", "novel")


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_subsets_and_halves_are_the_published_ones(golden, seed: int, shots: int) -> None:
    known = golden("mergetune_splits")
    case = f"seed{seed}_shots{shots}"
    train, val, test = (known[f"{name}_labels"] for name in ("train", "val", "test"))
    drawn = protocols.few_shot(train, val, shots, seed)
    np.testing.assert_array_equal(drawn.train, known[f"{case}/train_idx"])
    np.testing.assert_array_equal(drawn.val, known[f"{case}/val_idx"])
    divided = protocols.halves(train)
    for name, kept in (("base", divided.base), ("new", divided.novel)):
        rows, labels = protocols.restrict(train[drawn.train], kept)
        np.testing.assert_array_equal(drawn.train[rows], known[f"{case}/{name}_train_idx"])
        np.testing.assert_array_equal(labels, known[f"{case}/{name}_train_labels"])
        rows, _ = protocols.restrict(val[drawn.val], kept)
        np.testing.assert_array_equal(drawn.val[rows], known[f"{case}/{name}_val_idx"])
        rows, labels = protocols.restrict(test, kept)
        np.testing.assert_array_equal(rows, known[f"{case}/{name}_test_idx"])
        np.testing.assert_array_equal(labels, known[f"{case}/{name}_test_labels"])


def test_sizes_of_the_halves_are_the_published_ones(golden) -> None:
    known = golden("mergetune_splits")
    sizes = {key: value for key, value in known.items() if key.startswith("halves/n")}
    assert sizes
    for key, (base, novel) in sizes.items():
        found = protocols.halves(range(int(key.removeprefix("halves/n"))))
        assert (len(found.base), len(found.novel)) == (base, novel)


def test_a_training_set_without_validation_is_divided_as_published(golden) -> None:
    known = golden("mergetune_splits")
    train, val = protocols.split_trainval(known["train_labels"], seed=1)
    np.testing.assert_array_equal(train, known["split_trainval_seed1/train_idx"])
    np.testing.assert_array_equal(val, known["split_trainval_seed1/val_idx"])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 6), st.integers(0, 99))
def test_every_class_gives_what_is_asked_or_all_it_has(labels, shots, seed) -> None:
    chosen = protocols.sample(labels, shots, Random(seed))
    assert len(set(chosen.tolist())) == len(chosen)
    given_by = np.bincount(np.array(labels)[chosen], minlength=10)
    np.testing.assert_array_equal(given_by, np.minimum(np.bincount(labels, minlength=10), shots))


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60).filter(lambda x: len(set(x)) > 1))
def test_halves_divide_the_labels_that_occur(labels) -> None:
    base, novel = protocols.halves(labels)
    assert [*base, *novel] == sorted(set(labels))
    assert len(base) - len(novel) in (0, 1)


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(DataError, match="1 classes cannot be divided"):
        protocols.halves([3, 3])
    with pytest.raises(DataError, match="class 1 has 2 images"):
        protocols.split_trainval([0] * 5 + [1] * 2, seed=0)
    with pytest.raises(DataError, match="shots is 0"):
        protocols.few_shot([0, 1], [], 0, seed=0)


def labels_of(split: str, part: str, **more: object) -> list[str]:
    data = open_dataset("emojishift", split, classes=part, **more)
    return [data.classes[label] for label in data.labels]


def test_a_data_set_offers_the_published_subsets_as_an_option() -> None:
    whole = open_dataset("emojishift", "train")
    drawn = protocols.few_shot(whole.labels, open_dataset("emojishift", "val").labels, 4, seed=2)
    few = open_dataset("emojishift", "train", shots=4, seed=2, sampling="coop")
    np.testing.assert_array_equal(few.labels, whole.labels[drawn.train])
    # Divided after sampling, so both halves together are the whole subset.
    parts = [labels_of("train", part, shots=4, seed=2, sampling="coop") for part in HALVES]
    assert sorted(parts[0] + parts[1]) == sorted(whole.classes[label] for label in few.labels)
    assert set(parts[0]) == set(open_dataset("emojishift", "train", classes="base").classes)


def test_validation_takes_at_most_four_images_and_tests_stay_whole() -> None:
    assert len(labels_of("val", "base", shots=16, sampling="coop")) == 40 * 4
    assert len(labels_of("val", "base", shots=2, sampling="coop")) == 40 * 2
    assert len(labels_of("id", "base", shots=2, sampling="coop")) == 40 * 20
    assert len(labels_of("val", "base", sampling="coop")) == 40 * 20


def test_data_sets_without_halves_of_their_own_get_the_published_ones(monkeypatch) -> None:
    bare = replace(DATASETS["emojishift"], opener="tests.unit.test_protocols:open_plain")
    monkeypatch.setitem(DATASETS, "plain", replace(bare, halves=False))
    whole = open_dataset("plain", "id").classes
    base = open_dataset("plain", "id", classes="base")
    assert base.classes == whole[:40]
    assert open_dataset("plain", "id", classes="novel").classes == whole[40:]
    assert set(base.labels) == set(range(40))


def open_plain(split: str, *, classes: str, **options: object) -> object:
    """Open data that know no halves."""
    assert classes == "all"
    return open_dataset("emojishift", split, **options)
