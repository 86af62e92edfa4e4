"""Suites and data sets by name."""

import dataclasses

import numpy as np
import pytest

from perdure.data import suites
from perdure.data.datasets import DATASETS, open_dataset, templates_for
from perdure.errors import DataError


def test_every_split_of_every_suite_opens_and_fits_its_role():
    for suite in suites.SUITES.values():
        assert templates_for(suite.templates)
        for split in suite.splits:
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


def test_base_and_novel_classes_are_two_halves():
    base, novel = suites.suite("emojishift-b2n").splits
    halves = [
        set(open_dataset("emojishift", "id", classes=s.classes).classes) for s in (base, novel)
    ]
    assert [len(half) for half in halves] == [40, 40]
    assert not halves[0] & halves[1]


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
