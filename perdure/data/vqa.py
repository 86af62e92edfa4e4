"""Questions about pictures in the JSON files that people have: own, VQA and ScienceQA.

Whatever a file holds, the answer is a set of questions or a `DataError` that names file and entry.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import DataError
from .questions import OWN, Question, QuestionSet, read_rules, tidy
from .tables import read_lines

CHOICES = 18
"""Candidates of a question of VQA, in its multiple-choice files and where perdure makes them"""

_VQA = ("vqa", "VQA", "vqav2", "")
_SCIENCE = ("scienceqa", "ScienceQA", "data/scienceqa", "")
_SHOWN = 100


class Files(NamedTuple):
    """What a set of questions is read from."""

    base: Path
    questions: Path
    notes: Path | None = None
    """Annotations of VQA, splits of ScienceQA"""


class Asked(NamedTuple):
    """A question before its picture has a number."""

    picture: Path
    text: str
    candidates: tuple[str, ...]
    answer: int
    kind: str
    humans: tuple[str, ...]


Reader = tuple[str, Callable[[], Asked | None]]
"""Which entry it is, and what reads it; None if it is skipped"""

T = TypeVar("T")


def find_files(name: str, root: Path) -> Files | None:
    """Return where the questions of a set are; None if they are not below `root`.

    Args:
        name: One of `SETS`.
        root: A directory, or a JSON file of own questions.
    """
    if name == "vqa":
        own = root if root.suffix.lower() == ".json" else root / "vqa.json"
        return Files(own.parent, own) if own.is_file() else None
    for place in _SCIENCE if name == "scienceqa" else _VQA:
        base = root / place
        if name == "scienceqa" and (base / "problems.json").is_file():
            splits = base / "pid_splits.json"
            return Files(base, base / "problems.json", splits if splits.is_file() else None)
        if name == "vqa-v2":
            for version in ("v2_", ""):
                notes = base / f"{version}mscoco_val2014_annotations.json"
                for kind in ("MultipleChoice", "OpenEnded"):
                    asked = base / f"{version}{kind}_mscoco_val2014_questions.json"
                    if asked.is_file() and notes.is_file():
                        return Files(base, asked, notes)
    return None


def fingerprint(files: Files) -> int:
    """Return a number that changes with the bytes of the files."""
    digest = hashlib.sha256()
    for file in files[1:]:
        if file is not None:
            digest.update(read_lines(file).encode())
    return int.from_bytes(digest.digest()[:6], "big")


def read_questions(name: str, root: Path) -> QuestionSet:
    """Read the questions of a set that have a picture.

    Args:
        name: One of `SETS`.
        root: As in `find_files`.

    Raises:
        DataError: If files or pictures are missing, or an entry is malformed.
    """
    from .own import unlabelled

    files = find_files(name, root)
    if files is None:
        raise DataError(
            f"there are no questions of {name} below {root}; docs/data.md lists the files that are "
            "looked for."
        )
    skipped: Counter[str] = Counter()
    asked = list(entries(name, files, skipped))
    if not asked:
        raise DataError(
            f"{files.questions} holds no question that can be asked about a picture; left out: "
            f"{', '.join(f'{why} {count}' for why, count in skipped.items()) or 'none'}."
        )
    places: dict[Path, int] = {}
    questions = tuple(
        Question(places.setdefault(one.picture, len(places)), *one[1:]) for one in asked
    )
    missing = [file for file in places if not file.is_file()]
    if missing:
        raise DataError(
            f"{files.questions} asks about {missing[0]}, which is no file ({len(missing)} of "
            f"{len(places)} pictures are missing). Put the pictures there."
        )
    own = files.base / OWN
    rules = read_rules(own if own.is_file() else None)
    return QuestionSet(unlabelled(tuple(places)), questions, rules, dict(skipped))


def entries(
    name: str,
    files: Files,
    skipped: Counter[str],
    refuse: Callable[[DataError], None] | None = None,
) -> Iterator[Asked]:
    """Yield the questions of a set that have a picture, whether it is there or not.

    Args:
        name: One of `SETS`.
        files: Where they are.
        skipped: Told why questions are left out, and how many.
        refuse: Told what is wrong with an entry, which is then left out; None raises it.

    Raises:
        DataError: If a file is not what it should be.
    """

    def one(reader: Reader) -> Asked | None:
        try:
            return _strict(name, files, *reader)
        except DataError as error:
            if refuse is None:
                raise
            refuse(error)
            return None

    readers = _strict(name, files, "the whole", lambda: list(SETS[name](files, skipped)))
    yield from (asked for asked in map(one, readers) if asked is not None)


def _strict(name: str, files: Files, where: str, read: Callable[[], T]) -> T:
    """Read something whose form nobody has promised."""
    try:
        return read()
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{files.questions} does not hold what {name} has ({where}: {type(error).__name__}: "
            f"{error}); download it again."
        ) from None


def _own(files: Files, skipped: Counter[str]) -> Iterator[Reader]:
    """Read a list of objects with image, question, candidates and answer."""
    document = _json(files.questions)
    found = document.get("questions") if isinstance(document, dict) else document
    if not isinstance(found, list):
        raise DataError(
            f"{files.questions} is no list of questions; it holds a list of objects such as "
            '{"image": "1.jpg", "question": "what is this?", "candidates": ["cat", "dog"], '
            '"answer": "cat"}.'
        )
    for number, entry in enumerate(found, start=1):
        where = f"{files.questions}, question {number}"
        yield where, partial(_own_entry, files.base, where, entry)


def _own_entry(base: Path, where: str, entry: Any) -> Asked:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {str(entry)[:_SHOWN]!r}; it must be an object.")
    for key in ("image", "question"):
        value = entry.get(key)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise DataError(f"{where}: {key} is {value!r}; it must be text.")
    candidates = _texts(where, "candidates", entry.get("candidates"))
    plain = [tidy(one) for one in candidates]
    if len(candidates) < 2 or len(set(plain)) < len(plain):
        raise DataError(
            f"{where}: candidates are {list(candidates)}; give two or more different answers."
        )
    answer = entry.get("answer")
    if isinstance(answer, str) and tidy(answer) in plain:
        answer = plain.index(tidy(answer))
    if not isinstance(answer, int) or isinstance(answer, bool):
        raise DataError(
            f"{where}: answer is {answer!r}; it must be one of the candidates "
            f"{list(candidates)}, or its place, counted from 0."
        )
    if not 0 <= answer < len(candidates):
        raise DataError(
            f"{where}: answer is place {answer}, but the places of {len(candidates)} "
            f"candidates are 0 to {len(candidates) - 1}."
        )
    return Asked(
        base / entry["image"],
        entry["question"],
        candidates,
        answer,
        str(entry.get("kind", "")),
        _texts(where, "answers", entry.get("answers", [])),
    )


def _vqa(files: Files, skipped: Counter[str]) -> Iterator[Reader]:
    """Read VQA's validation questions, with the choices they bring or the popular answers."""
    assert files.notes is not None
    notes = {note["question_id"]: note for note in _json(files.notes)["annotations"]}
    often: dict[str, Counter[str]] = defaultdict(Counter)
    for note in notes.values():
        often[str(note.get("question_type"))][tidy(note["multiple_choice_answer"])] += 1
    popular = {
        kind: [one for one, _ in sorted(found.items(), key=lambda own: (-own[1], own[0]))]
        for kind, found in often.items()
    }
    pictures = _picture_folder(files.base)
    for number, entry in enumerate(_json(files.questions)["questions"], start=1):
        read = partial(_vqa_entry, pictures, notes, popular, skipped, entry)
        yield f"question {number}", read


def _vqa_entry(
    pictures: Path,
    notes: Mapping[Any, Any],
    popular: Mapping[str, list[str]],
    skipped: Counter[str],
    entry: Any,
) -> Asked | None:
    note = notes[entry["question_id"]]
    kind, right = str(note.get("question_type")), tidy(note["multiple_choice_answer"])
    if "multiple_choices" in entry:
        given = list(dict.fromkeys(tidy(one) for one in entry["multiple_choices"]))
    else:
        given = popular[kind][:CHOICES]
        # Sorted, so that the place tells nothing.
        given = sorted(given if right in given else [*given[: CHOICES - 1], right])
    if right not in given or len(given) < 2:
        skipped["without the right answer among two or more choices"] += 1
        return None
    return Asked(
        pictures / f"COCO_val2014_{int(entry['image_id']):012d}.jpg",
        entry["question"],
        tuple(given),
        given.index(right),
        str(note.get("answer_type", "")),
        tuple(str(one["answer"]) for one in note.get("answers", [])),
    )


def _picture_folder(base: Path) -> Path:
    """Return where COCO's validation pictures are, at or beside the questions."""
    places = ("val2014", "images/val2014", "Images/val2014", "coco/val2014", "coco/images/val2014")
    for root in (base, base.parent):
        for place in places:
            if (root / place).is_dir():
                return root / place
    raise DataError(
        f"cannot find the pictures of {base}; looked for the folders {', '.join(places)} in it and "
        "beside it."
    )


def _scienceqa(files: Files, skipped: Counter[str]) -> Iterator[Reader]:
    """Read the test questions of ScienceQA that have a picture."""
    problems: Mapping[str, Any] = _json(files.questions)
    tested = [number for number, one in problems.items() if one.get("split") == "test"]
    if files.notes is not None:
        tested = [str(number) for number in _json(files.notes)["test"]]
    for number in tested:
        read = partial(_science_entry, files.base, number, problems, skipped)
        yield f"problem {number}", read


def _science_entry(
    base: Path, number: str, problems: Mapping[str, Any], skipped: Counter[str]
) -> Asked | None:
    entry = problems[number]
    if not entry.get("image"):
        skipped["without a picture"] += 1
        return None
    choices = tuple(str(one) for one in entry["choices"])
    if len({tidy(one) for one in choices}) < max(2, len(choices)):
        skipped["with fewer than two different choices"] += 1
        return None
    answer = int(entry["answer"])
    if not 0 <= answer < len(choices):
        raise DataError(
            f"problem {number}: answer is place {answer}, but the places of {len(choices)} choices "
            f"are 0 to {len(choices) - 1}."
        )
    place = f"test/{number}/{entry['image']}"
    picture = base / "images" / place
    return Asked(
        picture if picture.is_file() else base / place,
        str(entry["question"]),
        choices,
        answer,
        str(entry.get("subject", "")),
        (),
    )


def _json(file: Path) -> Any:
    try:
        return json.loads(read_lines(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON ({error}); download or write it again.") from None


def _texts(where: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, (str, int, float)) for one in value):
        raise DataError(f"{where}: {key} is {value!r}; it must be a list of texts.")
    return tuple(str(one) for one in value)


SETS: dict[str, Callable[[Files, Counter[str]], Iterator[Reader]]] = {
    "vqa": _own,
    "vqa-v2": _vqa,
    "scienceqa": _scienceqa,
}
"""Sets of questions by name"""
