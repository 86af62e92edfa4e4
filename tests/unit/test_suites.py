"""Suites and data sets by name."""

import dataclasses
from importlib import import_module

import numpy as np
import pytest

from perdure.data import suites
from perdure.data.datasets import DATASETS, open_dataset, templates_for
from perdure.errors import DataError
from perdure.prediction import How
from perdure.tasks import TASKS


def test_every_split_of_every_suite_opens_and_fits_its_role():
    for suite in suites.SUITES.values():
        assert templates_for(suite.templates)
        for split in suite.splits:
            if split.task != "classify":
                assert import_module(TASKS[split.task].module).open_exam(split, suite, How()).images
                continue
            data = open_dataset(split.dataset, split.split, classes=split.classes)
            assert len(data) == len(data.labels)
            assert set(np.unique(data.labels)) == set(range(len(data.classes)))


def test_emojishift_reports_one_task_and_five_shifts_of_the_same_classes():
    suite = suites.suite("emojishift")
    assert [(split.name, split.role) for split in suite.splits] == [
        ("id", "id"),
        ("v2", "ood"),
        ("rendition", "ood"),
        ("sketch", "ood"),
        ("hard", "ood"),
        ("corrupt", "ood"),
    ]
    names = {open_dataset(split.dataset, split.split).classes for split in suite.splits}
    assert len(names) == 1


@pytest.mark.parametrize("name", ["emojishift-b2n", "emojishift-b2n-2"])
def test_base_and_novel_classes_are_two_halves_on_both_domains(name):
    splits = suites.suite(name).splits
    assert [split.role for split in splits] == ["base", "novel", "base_ood", "novel_ood"]
    assert [split.split for split in splits] == ["id", "id", "rendition", "rendition"]
    halves = [open_dataset("emojishift", s.split, classes=s.classes).classes for s in splits]
    assert halves[:2] == halves[2:]
    assert [len(half) for half in halves[:2]] == [40, 40]
    assert not set(halves[0]) & set(halves[1])


def test_the_two_divisions_differ():
    first, second = (
        set(open_dataset("emojishift", "id", classes=name).classes) for name in ("base", "base-2")
    )
    assert 10 < len(first & second) < 30


@pytest.mark.parametrize("which", ["", "-2"])
def test_choosing_looks_at_no_held_out_class_and_no_test_image(which):
    tested = suites.suite(f"emojishift-b2n{which}").splits
    novel = set(open_dataset("emojishift", "id", classes=f"novel{which}").classes)
    for split in suites.suite(f"emojishift-b2n-val{which}").splits:
        assert split.split not in {one.split for one in tested}
        assert not novel & set(
            open_dataset("emojishift", split.split, classes=split.classes).classes
        )


def test_validation_shares_no_split_with_the_reported_suite():
    tested = {split.split for split in suites.suite("emojishift").splits}
    assert not tested & {split.split for split in suites.suite("emojishift-val").splits}


def test_definition_changes_with_the_meaning_and_not_with_the_summary():
    suite = suites.suite("emojishift")
    assert dataclasses.replace(suite, summary="other words").definition == suite.definition
    assert dataclasses.replace(suite, splits=suite.splits[:-1]).definition != suite.definition
    assert len({entry.definition for entry in suites.SUITES.values()}) == len(suites.SUITES)


def test_unknown_names_get_the_nearest():
    with pytest.raises(DataError, match="did you mean 'emojishift'"):
        suites.suite("emojishft")
    with pytest.raises(DataError, match="did you mean 'emojishift'"):
        open_dataset("emoji-shift", "id")
    with pytest.raises(DataError, match="did you mean 'sketch'"):
        open_dataset("emojishift", "sketsh")


def test_embedded_data_have_no_root_and_others_need_one(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"leave data\.root away"):
        open_dataset("emojishift", "id", tmp_path)
    outside = dataclasses.replace(DATASETS["emojishift"], embedded=False)
    monkeypatch.setitem(DATASETS, "outside", outside)
    with pytest.raises(DataError, match=r"set data\.root"):
        open_dataset("outside", "id")


def test_scores_of_two_versions_of_the_world_do_not_compare():
    from perdure.data.emojishift import VERSION

    suite = suites.suite("emojishift")
    assert suite.version == VERSION
    newer = dataclasses.replace(suite, version=suite.version + 1)
    assert newer.definition != suite.definition


def test_a_suite_that_did_not_change_keeps_the_definition_that_scores_carry():
    assert suites.suite("emojishift").definition == "4e562625dd1b"
    assert suites.suite("emojishift-val").definition == "8c6c4066d9c1"


def test_halves_of_any_data_set_are_a_suite():
    with pytest.raises(DataError, match="name of the data set"):
        suites.suite("base-to-novel")
    with pytest.raises(DataError, match="did you mean 'own'"):
        suites.suite("base-to-novel-owm")
    with pytest.raises(DataError, match="emojishift-b2n"):
        suites.suite("base-to-novel-emojishift")


def test_a_task_has_a_suite_that_nothing_is_chosen_on():
    assert suites.of_task("emojishift") == "emojishift"
    assert suites.of_task("emojishift", "base") == "emojishift-b2n"
    assert suites.of_task("emojishift", "base-2") == "emojishift-b2n-2"
    assert suites.of_task("own") == "own"
    assert suites.of_task("own", "base") == "base-to-novel-own"
    assert suites.of_task("own", "novel") is None
