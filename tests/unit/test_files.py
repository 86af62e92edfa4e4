"""Files: whole or absent, whatever goes wrong in between."""

import json

import pytest

from perdure import files
from perdure.errors import RunError


def fail_after_writing(path):
    path.write_text("half")
    raise OverflowError


def test_a_failed_file_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "scores.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(OverflowError), files.whole_file(path) as fresh:
        fail_after_writing(fresh)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_directory_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "predictor"
    with files.whole_directory(path) as fresh:
        (fresh / "weights").write_text("old")
    with pytest.raises(OverflowError), files.whole_directory(path) as fresh:
        fail_after_writing(fresh / "weights")
    assert (path / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_directory_replaces_the_old_one_with_all_its_files(tmp_path):
    path = tmp_path / "deep" / "predictor"
    for name in ("first", "second"):
        with files.whole_directory(path) as fresh:
            (fresh / name).write_text(name)
            assert name == "first" or (path / "first").is_file()
    assert [file.name for file in path.iterdir()] == ["second"]
    assert list(path.parent.iterdir()) == [path]


def test_what_a_kill_left_behind_goes_and_all_else_stays(tmp_path):
    (tmp_path / f"{files.UNFINISHED}7-status.json").write_text("half")
    (tmp_path / f"{files.UNFINISHED}7-model" / "deep").mkdir(parents=True)
    files.write_json(tmp_path / "status.json", {})
    files.remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_what_cannot_be_written_is_a_run_error_with_path_and_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/below\.json \(Not a directory\)"):
        files.write_json(tmp_path / "file" / "below.json", {})


@pytest.mark.parametrize("content", [None, "{", "[1]", b"\xff\xfe"])
def test_unreadable_json_is_a_run_error(tmp_path, content):
    path = tmp_path / "status.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=r"status\.json"):
        files.read_json(path)


def test_json_refuses_what_json_has_no_number_for(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "scores.json", {"ece": float("nan")})
    assert list(tmp_path.iterdir()) == []
