"""Halves of captioned pictures: no caption that trains speaks of what is hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.data.concepts import by_names, by_words
from perdure.data.datasets import captions_of, open_dataset, picture_numbers
from perdure.data.paired import open_paired
from perdure.errors import DataError
from tests import layouts

HALVES = ("seen", "hidden")
THINGS = ("cat", "dog", "cup", "tree", "boat", "ring", "lamp", "fish")


def write_pairs(root: Path, splits: dict[str, int]) -> Path:
    """Write pictures with two captions each: what it shows, and that beside another thing."""
    rows = ["filepath,caption,split"]
    for split, count in splits.items():
        for number in range(count):
            file = f"{split}-{number}.png"
            layouts.picture(root / file, number)
            thing = THINGS[number % len(THINGS)]
            rows += [
                f"{file},a photo of a {thing},{split}",
                f"{file},some {thing}s {number},{split}",
            ]
    table = root / "pairs.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


captions = st.lists(
    st.lists(st.sampled_from(THINGS), min_size=1, max_size=2).map(" and ".join),
    min_size=16,
    max_size=40,
)


@given(captions, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_halves_share_no_hidden_concept_and_no_picture(texts: list[str], number: int) -> None:
    numbers = np.arange(len(texts)) // 2
    try:
        division = by_words(texts, numbers, number)
    except DataError:
        return
    hidden = division.hides(texts, numbers)
    assert not set(numbers[hidden]) & set(numbers[~hidden])
    assert len(set(numbers)) / 4 <= len(set(numbers[hidden])) <= len(set(numbers)) / 2
    for text, away in zip(texts, hidden, strict=True):
        assert away or not division.hidden & set(text.split())
    assert 0 <= division.shared(texts) <= 1


def test_captions_that_are_class_names_are_divided_as_classes_are() -> None:
    texts = [f"a photo of a {thing}" for thing in THINGS for _ in range(3)]
    division = by_words(texts, np.arange(len(texts)), 0)
    assert len(division.hidden) == 4
    assert division.hidden < set(THINGS)
    away = division.hides(texts, np.arange(len(texts)))
    assert away.tolist() == [text.split()[-1] in division.hidden for text in texts]
    assert division.shared([text for text, gone in zip(texts, away, strict=True) if gone]) == 0
    assert division.hidden != by_words(texts, np.arange(len(texts)), 1).hidden
    assert division.hidden == by_words(texts, np.arange(len(texts)), 0).hidden


def test_plurals_numbers_and_small_words_are_no_concepts_of_their_own() -> None:
    texts = [
        "A Dog on 2 mats",
        "dogs and a mat",
        "the bus",
        "one glass",
        "a boxes 7",
        "box",
        "7 cups",
    ]
    concepts = by_words([*texts, *("a hat", "a pen", "a key")], np.arange(10), 0).concepts
    assert concepts("Dogs, dogs: a DOG!") == {"dog"}
    assert concepts("the mats of 2 boxes") == {"mat", "box"}
    assert concepts("bus glass cups") == {"bus", "glass", "cups"}
    assert concepts("a photo on the 7") == frozenset()
    usual = by_words([f"red {thing}" for thing in THINGS], np.arange(8), 0)
    assert usual.concepts("a red cat") == {"cat"}
    assert np.isnan(usual.shared(["a red one"]))


def test_of_names_within_names_the_longest_counts() -> None:
    division = by_names(("cat", "cat face", "rat"), ("cat",))
    texts = ["a Cat and a rat", "a cat face", "concatenated", "rat"]
    assert division.hides(texts, np.arange(4)).tolist() == [True, False, False, False]
    assert division.concepts("a cat face on a rat") == {"cat face", "rat"}


def test_what_is_too_alike_cannot_be_divided() -> None:
    for texts in (["a cat"] * 8, ["cat", "dog", "cup"] * 4, ["2", "3", "4", "5"]):
        with pytest.raises(DataError, match="4 or more words are needed"):
            by_words(texts, np.arange(len(texts)), 0, "shop")


def test_halves_of_own_captions(tmp_path: Path) -> None:
    table = write_pairs(tmp_path, {"train": 32, "val": 16})
    whole = open_dataset("own", "train", table)
    seen, hidden = (open_dataset("own", "train", table, classes=f"all/{half}-0") for half in HALVES)
    assert len(seen) + len(hidden) == len(whole) == 64
    assert len(hidden) == 32
    named = [
        {text.split()[-1] for text in captions_of(half)[0]} & set(THINGS) for half in (seen, hidden)
    ]
    assert not named[0] & named[1]
    assert set(picture_numbers(seen)).isdisjoint(picture_numbers(hidden))
    assert seen.captioned
    # `val` is divided by the words of `train`, not by its own.
    for half, things in zip(HALVES, named, strict=True):
        texts = captions_of(open_dataset("own", "val", table, classes=f"all/{half}-0"))[0]
        assert {text.split()[-1] for text in texts if "photo" in text} == things
        assert len(texts) == 16
    with pytest.raises(DataError, match="there is no half"):
        open_dataset("own", "train", table, classes="all/left-0")
    with pytest.raises(DataError, match="no classes that could be divided in base"):
        open_dataset("own", "train", table, classes="base")


def test_the_embedded_pairs_for_choices_are_other_pictures() -> None:
    val, scored = (open_paired("emojishift", split) for split in ("val", "id"))
    assert len(val.labels) > 200
    assert len(set(val.captions)) == len(val.captions)
    first = {val.pictures.image(index).numpy().tobytes() for index in range(len(val.labels))}
    assert not first & {
        scored.pictures.image(index).numpy().tobytes() for index in range(len(scored.labels))
    }
