"""What a report says of guards: which scores are no tests any more, and what was done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perdure.groups import group
from perdure.notes import guards_of, looked_at, notes_on, told
from perdure.records import Record

GUARD = {"suite": "emojishift", "metric": "art", "floor": 0.5}
DONE = {
    "metric": "art",
    "rollbacks": [{"step": 6, "to": 4, "rate": 0.5}],
    "stopped": {"step": 8, "to": 4},
}


def record(suite: str, splits: tuple[str, ...], origin: dict[str, Any], **more: Any) -> Record:
    entries = {name: {"role": "ood", "task": "classify", "accuracy": 0.5} for name in splits}
    return Record(
        path=Path("run"),
        method="ft",
        alpha=None,
        seed=3,
        settings={"method.name": "ft"},
        tuned=None,
        suite=suite,
        definition="d",
        splits=entries,
        origin=origin,
        **more,
    )


def test_a_merge_has_the_guards_of_its_inputs():
    trained = {"method": {"name": "ft"}, "guard": GUARD}
    merged = {"kind": "soup", "inputs": [{"recipe": trained}, {"subject": "perdure-tiny"}]}
    twice = {"kind": "wise-ft", "inputs": [{"merge": merged}, {"recipe": {"method": {}}}]}
    assert guards_of(trained) == guards_of(merged) == guards_of(twice) == [GUARD]
    assert guards_of({"method": {}}) == []


@pytest.mark.parametrize(
    ("suite", "splits", "expected"),
    [
        ("emojishift", ("id", "v2", "corrupt"), ["v2"]),
        ("emojishift-val", ("val", "val_shift"), []),
        ("emojishift-b2n", ("base", "base_rendition"), ["base_rendition"]),  # the same pictures
    ],
)
def test_splits_are_looked_at_where_their_images_were(
    suite: str, splits: tuple[str, ...], expected: list[str]
):
    assert looked_at(record(suite, splits, {"guard": GUARD})) == expected
    assert looked_at(record(suite, splits, {})) == []


def test_of_suites_that_depend_on_a_directory_all_splits_count():
    own = {"suite": "own", "metric": "ood", "floor": 0.5}
    assert looked_at(record("own", ("id", "sketch"), {"guard": own})) == ["id", "sketch"]
    assert looked_at(record("emojishift", ("id",), {"guard": own})) == []


def test_notes_name_the_row_what_was_looked_at_and_what_was_done():
    rows = group([record("emojishift", ("id", "v2"), {"guard": GUARD}, guard=DONE)])
    assert notes_on(rows) == (
        "ft: a guard looked at v2 during training, so its scores there are no untouched test "
        "scores.",
        "ft, seed 3: the guard of art went back from step 6 to 4, on at 0.5 of the rates; stopped "
        "it at step 8 with the weights of 4.",
    )
    assert notes_on(group([record("emojishift", ("id",), {})])) == ()


def test_a_guard_that_only_looked_has_done_nothing():
    assert told({"metric": "ood", "rollbacks": [], "stopped": None}) == ""
    assert told({}) == ""


def test_runs_with_and_without_a_table_are_told_apart_by_it():
    def of(**settings: Any) -> Record:
        one = record("emojishift", ("id",), {})
        return Record(**{**vars(one), "settings": {"method.name": "ft", **settings}})

    none = of()
    stop = of(**{"guard.action": "stop", "guard.drop": 0.1})
    back = of(**{"guard.action": "rollback", "guard.drop": 0.1})
    assert [one.label for one in group([none, stop])] == ["ft (guard)", "ft (guard=None)"]
    assert [one.label for one in group([none, stop, back])] == [
        "ft (guard.action=rollback)",
        "ft (guard.action=stop)",
        "ft (guard=None)",
    ]
    assert [one.label for one in group([stop, back])] == [
        "ft (guard.action=rollback)",
        "ft (guard.action=stop)",
    ]
