"""What is kept of scores: whole ones with what they depend on, and finished splits of others.

A stamp stands for everything that scores depend on. Scores and splits that carry it need not be
computed again; those with another are never read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np

from . import __version__
from .data.datasets import DATASETS, open_dataset, templates_for
from .data.suites import Suite
from .errors import DataError, RunError
from .files import read_json, whole_file
from .prediction import How
from .subjects import hash_of_file
from .tasks import Judged, Outcomes

PARTIAL = ".partial"
"""Directory in `scores/` of splits that are finished while others are not"""

_DAMAGED = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, BadZipFile)
"""What reading raises where a file holds something else than perdure writes"""


def stamp_of(run: Path, suite: Suite, how: How, **more: Any) -> str:
    """Return what stands for everything that the scores of a run depend on, 16 digits.

    That is the files of its predictor, the definition of the suite, prompts, where the data are and
    when their files were changed, the number of images, how they are decoded, and the
    version of perdure. Where the files
    of the data are not known, every stamp is another.

    Args:
        run: Finished.
        suite: What is scored.
        how: Data and number of images.
        more: What else the scores depend on, such as whether a temperature is fitted.
    """
    folder = run / "predictor"
    parts = {
        "perdure": __version__,
        "predictor": [
            hash_of_file(folder / name) for name in ("predictor.json", "predictor.safetensors")
        ],
        "definition": suite.definition,
        "files": _files(suite, how),
        "templates": list(templates_for(suite.templates, how.root)),
        "root": None if how.root is None else str(how.root.expanduser().resolve()),
        "limit": how.limit,
        "pixels": [how.transform, how.precision],
        **more,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _files(suite: Suite, how: How) -> str:
    """Return what changes with the size, time or label of every file that a suite is made of."""
    digest = hashlib.sha256()
    for split in suite.splits:
        reader = DATASETS.get(split.dataset)
        if reader is not None and reader.embedded:
            continue
        try:
            dataset = open_dataset(split.dataset, split.split, how.root)
            files = files_of(dataset)
        except DataError:
            files = None
        if files is None:
            return uuid4().hex
        # What tables beside the pictures say of them may change while these stay.
        digest.update("\n".join(dataset.classes).encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(dataset.labels).tobytes())
        for file in files:
            try:
                status = file.stat()
            except OSError:  # opening it says what is wrong
                digest.update(b"gone\n")
                continue
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def files_of(dataset: Any) -> list[Path] | None:
    """Return the files that a data set is read from; None where they are not known."""
    while hasattr(dataset, "whole"):
        dataset = dataset.whole
    catalog = getattr(dataset, "catalog", None)
    if catalog is not None:
        return [catalog.root / os.fsdecode(path) for path in catalog.paths]
    files = getattr(dataset, "files", getattr(dataset, "sources", None))
    return None if files is None else [Path(os.fsdecode(file)) for file in files]


Whole = tuple[dict[str, Any], dict[str, Outcomes]]
"""A score file and its outcomes"""


def read_whole(run: Path, suite: str, stamp: str) -> Whole | None:
    """Return the scores of a run; None where there are none with this stamp."""
    file = run / "scores" / f"{suite}.json"
    try:
        document = read_json(file)
        if document["stamp"] != stamp:
            return None
        beside = file.with_name(f"{suite}.outcomes.npz")
        with beside.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return document, {name: _outcomes(arrays, name) for name in document["splits"]}
    except (RunError, *_DAMAGED):
        return None


@dataclass(frozen=True)
class Kept:
    """Finished splits of the scores of one run on one suite, a file for each."""

    run: Path
    suite: str
    stamp: str
    write: bool = True
    """Whether this process is the one that writes"""

    def read(self, split: str) -> dict[str, Judged] | None:
        """Return what was found on a split, by the names in score files; None without it."""
        try:
            file = self._file(split)
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                record = json.loads(arrays["record"].tobytes())
                if record["stamp"] != self.stamp:
                    return None
                return {
                    name: Judged(entry, _outcomes(arrays, name))
                    for name, entry in record["entries"].items()
                }
        except _DAMAGED:
            return None

    def keep(self, split: str, found: Mapping[str, Judged]) -> None:
        """Write what was found on a split, whole or not at all.

        Raises:
            RunError: If it cannot be written.
        """
        if not self.write:
            return
        record = {"stamp": self.stamp, "entries": {name: one.entry for name, one in found.items()}}
        arrays = {
            f"{name}/{part}": values
            for name, one in found.items()
            for part, values in one.outcomes.arrays().items()
        }
        text = np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)
        with whole_file(self._file(split)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, record=text, **arrays)

    def clear(self) -> None:
        """Forget all splits, because the whole scores are written."""
        if not self.write:
            return
        folder = self.run / "scores" / PARTIAL
        for file in folder.glob(f"{self.suite}~*.npz"):
            file.unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def _file(self, split: str) -> Path:
        # Names of splits may hold what names of files must not.
        short = hashlib.sha256(split.encode()).hexdigest()[:12]
        return self.run / "scores" / PARTIAL / f"{self.suite}~{short}.npz"


def _outcomes(arrays: Mapping[str, Any], name: str) -> Outcomes:
    more = Outcomes._field_defaults  # not of every task
    there = (part for part in Outcomes._fields if part not in more or f"{name}/{part}" in arrays)
    return Outcomes(**{part: arrays[f"{name}/{part}"] for part in there})
