"""Questions about pictures with candidate answers, and how both become captions. No torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..documents import parse_yaml
from ..errors import DataError, RecipeError
from .tables import read_lines

if TYPE_CHECKING:  # readers must not import torch
    from .views import Dataset

BUILT_IN = Path(__file__).parent / "names" / "questions.yaml"
"""The rules that every question falls under"""

OWN = "question_templates.yaml"
"""File beside own questions whose rules go before the built-in ones"""


@dataclass(frozen=True)
class Question:
    """One question about one picture."""

    picture: int
    """Index of the picture in its set"""
    text: str
    candidates: tuple[str, ...]
    """Two or more, no two equal"""
    answer: int
    """Index of the right candidate"""
    kind: str = ""
    """What is asked for, such as "count"; empty where the set does not say"""
    humans: tuple[str, ...] = ()
    """What people answered, where the set has it"""


@dataclass(frozen=True, eq=False)
class QuestionSet:
    """Pictures and what is asked about them."""

    pictures: Dataset
    questions: tuple[Question, ...]
    rules: Rules
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Why questions of the file are not asked, and how many"""

    def limited(self, limit: int | None) -> QuestionSet:
        """Return at most so many questions, evenly spread, and the pictures that they are about.

        Raises:
            DataError: If the limit is not positive.
        """
        from .views import Part

        if limit is None or limit >= len(self.questions):
            return self
        if limit < 1:
            raise DataError(f"the limit is {limit} questions per split; it must be at least 1.")
        kept = np.linspace(0, len(self.questions) - 1, limit).round().astype(int)
        chosen = [self.questions[index] for index in kept]
        places = {number: place for place, number in enumerate(sorted({q.picture for q in chosen}))}
        return QuestionSet(
            Part(self.pictures, np.array(list(places), dtype=np.int64)),
            tuple(
                Question(places[q.picture], q.text, q.candidates, q.answer, q.kind, q.humans)
                for q in chosen
            ),
            self.rules,
            self.skipped,
        )


@dataclass(frozen=True)
class Rule:
    """What questions of one form become."""

    name: str
    question: re.Pattern[str]
    captions: tuple[str, ...]
    """Of every answer that has none of its own; empty for none"""
    answers: Mapping[str, tuple[str, ...]]
    """Answer to captions of its own"""
    answer: re.Pattern[str] | None = None
    """What every candidate must look like; None for anything"""


@dataclass(frozen=True)
class Rules:
    """Rules in the order in which they are tried."""

    rules: tuple[Rule, ...]
    sources: tuple[str, ...]
    """Texts that they were read from"""

    @cached_property
    def sha256(self) -> str:
        """Hash of the texts, as it stands in score files."""
        return hashlib.sha256("\n".join(self.sources).encode()).hexdigest()[:12]

    def captions(self, question: str, candidates: Sequence[str]) -> tuple[str, list[list[str]]]:
        """Return the name of the rule that fits all candidates, and captions of each of them."""
        plain = " ".join(question.lower().split()).rstrip("? ").strip()
        for rule in self.rules:
            match = rule.question.fullmatch(plain)
            form = rule.answer
            if match is None or (form and not all(form.fullmatch(tidy(one)) for one in candidates)):
                continue
            parts = {name: value or "" for name, value in match.groupdict().items()}
            forms = [rule.answers.get(tidy(one), rule.captions) for one in candidates]
            if all(forms):
                return rule.name, [
                    [form.format(**parts, question=plain, answer=one) for form in own]
                    for one, own in zip(candidates, forms, strict=True)
                ]
        raise AssertionError("the last of the built-in rules fits every question")


def read_rules(own: Path | None = None) -> Rules:
    """Read the built-in rules, and those of a file before them.

    Raises:
        DataError: If the file is malformed.
    """
    files = [*([own] if own is not None else []), BUILT_IN]
    texts = [read_lines(file) for file in files]
    rules = [rule for file, text in zip(files, texts, strict=True) for rule in _parse(file, text)]
    return Rules(tuple(rules), tuple(texts))


def tidy(text: str) -> str:
    """Return an answer in the form in which answers are compared: lower case, single spaces."""
    return " ".join(text.lower().split())


def _parse(file: Path, text: str) -> list[Rule]:
    try:
        document: Any = parse_yaml(text, str(file))
    except RecipeError as error:
        raise DataError(str(error)) from None
    entries = document.get("rules")
    if set(document) - {"version", "rules"} or not isinstance(entries, list) or not entries:
        raise DataError(
            f"{file} has {', '.join(map(str, document)) or 'nothing'}; it needs a list `rules` of "
            "one rule or more, and may have a `version`. docs/retrieval.md has an example."
        )
    return [_rule(f"{file}, rule {number}", entry) for number, entry in enumerate(entries, 1)]


def _rule(where: str, entry: Any) -> Rule:
    known = {"name", "question", "answer", "captions", "answers"}
    texts = isinstance(entry, dict) and isinstance(entry.get("question"), str)
    if not texts or set(entry) - known or not set(entry) & {"captions", "answers"}:
        raise DataError(
            f"{where} is {str(entry)[:120]!r}; it needs `question` (a pattern) and `captions` (a "
            "list) or `answers` (answer to list), and may have a `name` and a pattern `answer`."
        )
    pattern = _pattern(where, entry["question"])
    allowed = {"answer", "question", *pattern.groupindex}
    answers = entry.get("answers", {})
    if not isinstance(answers, dict):
        raise DataError(f"{where}: answers is {answers!r}; it maps answers to lists of captions.")
    return Rule(
        str(entry.get("name", where.rpartition(", ")[2])),
        pattern,
        _forms(where, entry.get("captions", []), allowed),
        {tidy(str(one)): _forms(where, forms, allowed) for one, forms in answers.items()},
        _pattern(where, entry["answer"]) if "answer" in entry else None,
    )


def _pattern(where: str, text: Any) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except (re.error, TypeError) as error:
        raise DataError(
            f"{where}: the pattern {text!r} is malformed ({error}); it is a regular expression of "
            "Python."
        ) from None


def _forms(where: str, forms: Any, allowed: set[str]) -> tuple[str, ...]:
    if not isinstance(forms, list) or not all(isinstance(one, str) and one for one in forms):
        raise DataError(f"{where}: captions are {forms!r}; they are a list of texts.")
    for form in forms:
        try:
            names = {name for _, name, _, _ in Formatter().parse(form) if name is not None}
        except ValueError as error:
            raise DataError(f"{where}: the caption {form!r} is malformed ({error}).") from None
        if names - allowed:
            raise DataError(
                f"{where}: the caption {form!r} uses {{{sorted(names - allowed)[0]}}}; allowed are "
                f"{', '.join(f'{{{name}}}' for name in sorted(allowed))}, of which others than "
                "answer and question are the named groups of the pattern."
            )
    return tuple(forms)
