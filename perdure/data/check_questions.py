"""Look at questions about pictures. No torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from ..errors import DataError
from .findings import Findings, How, Part, decodes
from .questions import OWN, read_rules
from .vqa import SETS, Asked, entries, find_files

EXPECTED = {"vqa-v2": 40_504, "scienceqa": 2_017}
"""Pictures of a whole copy: COCO's validation, and one for each of ScienceQA's test questions that
have one; as published, not counted by us"""


def present(root: Path) -> list[str]:
    """Return the names of the sets of questions that lie below a root."""
    return [name for name in SETS if find_files(name, root) is not None]


def look_at_questions(name: str, root: Path, how: How) -> Findings:
    """Look at one set of questions.

    Args:
        name: One of `SETS`.
        root: Directory below which it lies, or a file of own questions.
        how: How closely.
    """
    found = Findings(root)
    files = find_files(name, root)
    if files is None:
        return found
    where = f"{name}, test"
    skipped: Counter[str] = Counter()
    wrong: list[str] = []
    try:
        asked = list(entries(name, files, skipped, lambda error: wrong.append(str(error))))
    except DataError as error:
        found.faults.append(f"{where}: {error}")
        return found
    if wrong:
        found.faults.append(f"{where}: {len(wrong):,} questions are wrong. {' '.join(wrong[:5])}")
    pictures = list(dict.fromkeys(one.picture for one in asked))
    part = Part(name, "test", len(asked), len(pictures), None, EXPECTED.get(name))
    part.files = pictures
    found.parts.append(part)
    found.counted(part)
    for picture in pictures:
        how.seen()
        shown = str(picture.relative_to(files.base.parent))
        if not picture.is_file():
            part.missing.append(shown)
        elif how.decode and not decodes(picture):
            part.damaged.append(shown)
    found.fault(where, part.missing, "files are not there")
    found.fault(where, part.damaged, "files are damaged")
    for why, count in skipped.items():
        found.remarks.append(f"{where}: {count:,} questions are left out: {why}.")
    twice = [text for (_, text), count in _repeats(asked).items() if count > 1]
    found.remark(where, twice, "questions are asked twice about the same picture")
    try:
        own = files.base / OWN
        read_rules(own if own.is_file() else None)
    except DataError as error:
        found.faults.append(f"{where}: {error}")
    part.numbers = _numbers(asked, pictures)
    return found


def _repeats(asked: list[Asked]) -> Counter[tuple[Path, str]]:
    return Counter((one.picture, one.text) for one in asked)


def _numbers(asked: list[Asked], pictures: list[Path]) -> dict[str, float | int]:
    candidates = np.array([len(one.candidates) for one in asked] or [0])
    chance = float(np.mean([1 / len(one.candidates) for one in asked] or [0.0]))
    return {
        "questions": len(asked),
        "pictures": len(pictures),
        "kinds": len({one.kind for one in asked}),
        "candidates_min": int(candidates.min()),
        "candidates_max": int(candidates.max()),
        "chance": chance,
        "answered_by_people": sum(bool(one.humans) for one in asked),
    }
