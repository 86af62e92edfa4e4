"""The doctor sees what is there, and says so when something is not."""

from __future__ import annotations

import json
from collections import namedtuple

import pytest

from perdure import doctor, zoo
from perdure.doctor import NEEDED, examine

Usage = namedtuple("Usage", "total used free")


def test_a_sound_installation_has_no_fault():
    found = examine()
    assert found.faults == ()
    assert found.versions["perdure"]
    assert all(found.versions[name] for name in NEEDED)
    assert found.models["perdure-tiny"] > 0
    assert found.data["emojishift"] == "embedded"
    assert found.threads["run"] == 1  # OMP_NUM_THREADS of the tests
    assert found.cores["physical"] <= found.cores["logical"]
    assert "cpu" in found.devices
    assert found.variables["HF_HUB_OFFLINE"] == "1"
    assert found.disk["here"] > 0
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_damaged_model_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "_ASSETS", tmp_path)
    found = examine()
    assert found.models == {"perdure-tiny": None}
    assert "perdure-tiny does not work" in found.faults[0]
    assert "Install perdure again" in found.faults[0]


def test_a_missing_package_is_a_fault_and_an_optional_one_is_not(monkeypatch):
    monkeypatch.setattr(doctor, "NEEDED", ("numpy", "no-such-package"))
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-extra": "nothing"})
    found = examine()
    assert found.versions["no-such-package"] is None
    assert found.extras == {"no-such-extra": None}
    assert found.faults == (
        "the package no-such-package is missing; install it with: pip install no-such-package",
    )


def test_damaged_data_are_a_fault(monkeypatch):
    monkeypatch.setattr(
        "perdure.data.datasets.open_dataset",
        lambda name, split: (_ for _ in ()).throw(ValueError("sheet is torn.")),
    )
    assert "emojishift does not work: sheet is torn" in examine().faults[0]


@pytest.mark.parametrize(
    ("threads", "word"), [("many", "'many', which is no number"), ("999", "OMP_NUM_THREADS=")]
)
def test_a_wrong_number_of_threads_is_a_warning(monkeypatch, threads, word):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert any(word in text for text in examine().warnings)


def test_a_full_or_read_only_disk_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: Usage(10**9, 10**9, 5_000_000))
    monkeypatch.setattr(doctor.os, "access", lambda place, mode: False)
    warnings = examine(tmp_path).warnings
    assert sum("only 5 MB are free" in text for text in warnings) == 2
    assert any("nothing can be written here" in text for text in warnings)
