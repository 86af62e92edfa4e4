"""Suites and data sets by name."""

import dataclasses
from importlib import import_module

import numpy as np
import pytest
import yaml

from perdure.data import suites
from perdure.data.datasets import DATASETS, open_dataset, templates_for
from perdure.errors import DataError
from perdure.evaluation import warn_of_training
from perdure.prediction import How
from perdure.subjects import find
from perdure.tasks import TASKS
from tests import layouts


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


def test_forgetting_scores_concepts_that_no_task_trains_on():
    chosen = suites.suite("forgetting")
    assert {split.role for split in chosen.splits} == {"target"}
    trained = set(open_dataset("emojishift", "train").classes)
    picked = open_dataset("emojishift", "val_shift")
    for split in chosen.splits:
        data = open_dataset(split.dataset, split.split)
        assert len(data) == 60 * 20
        assert not set(data.classes) & trained
        assert data.classes == picked.classes
        assert (data.image(0) != picked.image(0)).any()
    # Known by heart: other pictures must have another version.
    pixels = open_dataset("emojishift", "untrained_sketch").images.float()
    assert float(pixels.mean()) == pytest.approx(177.01, abs=0.1)
    with pytest.raises(DataError, match="selects nothing"):
        open_dataset("emojishift", "untrained", classes="base")


def test_forgetting_on_real_data_leaves_out_what_was_trained_on(tmp_path):
    for name in ("oxford_pets", "dtd"):
        layouts.coop(tmp_path, name)
    found = suites.suite("forgetting", tmp_path)
    assert sorted(split.dataset for split in found.splits) == ["dtd", "oxford_pets"]
    assert [split.templates for split in found.splits] == [one.dataset for one in found.splits]
    rest = suites.suite("forgetting-dtd", tmp_path)
    assert [split.dataset for split in rest.splits] == ["oxford_pets"]
    assert rest.definition != found.definition
    with pytest.raises(DataError, match="did you mean 'dtd'"):
        suites.suite("forgetting-dtdd", tmp_path)
    with pytest.raises(DataError, match="finds no data set of classes"):
        suites.suite("forgetting", tmp_path / "dtd")
    with pytest.raises(DataError, match="add --data"):
        suites.suite("forgetting-dtd")
    document = {
        "model": {"name": "perdure-tiny"},
        "data": {"name": "dtd", "root": str(tmp_path)},
        "method": {"name": "ft"},
        "optim": {"lr": 1e-4, "batch_size": 8, "steps": 1},
    }
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(yaml.safe_dump(document))
    with pytest.warns(UserWarning, match="was trained on dtd.*score suite forgetting-dtd"):
        warn_of_training(find(run), found)
    warn_of_training(find(run), rest)
    warn_of_training(find("perdure-tiny"), found)
