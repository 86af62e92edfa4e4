"""Whatever a table holds, reading it gives rows or a DataError; well-formed tables come back."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perdure.data.layout import find_own
from perdure.data.tables import LABELS, PATHS, read_table
from perdure.errors import DataError

WORDS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
HEADERS = st.sampled_from(
    ["filepath,label", "filepath\tcaption", "path;class;split", '"image"|text', "label", "{}", ""]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
KEYS = st.sampled_from(["filepath", "label", "caption", "split", "Path", "more"])


def read(name: str, content: bytes) -> None:
    """Read a table, and list what is in it, as a person's file would be."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, name)
        file.write_bytes(content)
        try:
            table = read_table(file)
        except DataError as error:
            assert file.name in str(error)  # noqa: PT017
            return
        assert table.rows
        assert all(row.path and row.text for row in table.rows)
        own = find_own(file)
        with pytest.raises(DataError):  # at the latest because there are no pictures
            own.listing(own.splits[0])


@given(HEADERS, st.text(max_size=60) | st.text("a,;|\t\n\r\"'\\ 0\0", max_size=60))
@example("filepath,label", '\n"a\nb",c\n')
@example("filepath,label", '\n"a,b\n')
@example("filepath,label", "\n~nobody/x,a")
@example("filepath,label", "\na\u2028b,c\x1d,d")
def test_any_text_is_a_table_or_a_data_error(header: str, body: str) -> None:
    for name in ("table.csv", "table.jsonl"):
        read(name, (header + body).encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=80))
@example(b"\xff\xfef\x00i\x00")
@example(b"filepath,label\n" + b"x" * 200_000 + b",a\n")
def test_any_bytes_are_a_table_or_a_data_error(content: bytes) -> None:
    read("table.csv", content)
    read("table.jsonl", content)


@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=4) | VALUES, max_size=4))
@example([{"filepath": "\ud800", "label": "a"}])
@example([{"filepath": "a\0", "label": 10**5000}])
def test_any_json_is_a_table_or_a_data_error(values: list[object]) -> None:
    try:
        lines = [json.dumps(value) for value in values]
    except ValueError:  # newer versions of Python do not write numbers of so many digits
        lines = ['{"filepath": "a", "label": 1' + "0" * 5000 + "}"]
    read("table.jsonl", "\n".join(lines).encode())


@given(
    st.sampled_from(",\t;|"),
    st.sampled_from(PATHS),
    st.sampled_from(LABELS),
    st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5),
)
@example(",", "path", "label", [("a\u2028b,;", 'c "d"\n1'), ("x\x85x", "y\u00a0y")])
def test_well_formed_tables_come_back(
    separator: str, path: str, label: str, rows: list[tuple[str, str]]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator)
    writer.writerows([(path.upper(), "number", label), *((a, "7", b) for a, b in rows)])
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "table.csv")
        file.write_text("\ufeff" + text.getvalue(), encoding="utf-8", newline="")
        table = read_table(file)
        lines = [json.dumps({path: a, label: b}) for a, b in rows]
        (Path(directory) / "table.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
        again = read_table(Path(directory) / "table.jsonl")
    assert [(row.path, row.text) for row in table.rows] == rows
    assert [(row.path, row.text) for row in again.rows] == rows
    assert not table.captioned
