"""Questions with candidate answers, as CLIP answers them: every answer becomes captions.

The candidate whose captions are nearest to the picture is the answer; of equal ones the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from ..data.emoji_questions import open_emoji_questions
from ..data.questions import Question, QuestionSet, tidy
from ..data.splits import Split, Suite
from ..data.vqa import read_questions
from ..embedding import embed_images, embed_texts, require_texts
from ..errors import DataError
from ..prediction import How, Moves
from ..predictor import Predictor
from . import Judged, Outcomes, short_hash

_CAPTIONS = 20_000
"""Captions held at once"""


@dataclass(frozen=True)
class Answering:
    """Questions to be answered."""

    split: Split
    asked: QuestionSet

    @property
    def images(self) -> int:
        """Return how many pictures are looked at and questions answered."""
        return len(self.asked.pictures) + len(self.asked.questions)

    def judge(
        self,
        predictor: Predictor,
        moves: Moves,
        how: How,
        temperatures: Mapping[float, float],
    ) -> dict[float, dict[str, Judged]]:
        """Answer with several settings of a predictor's weights; see `perdure.tasks.Exam`.

        Raises:
            TaskError: If the model's pictures have left the space of its own texts.
        """
        require_texts(predictor)  # before minutes of decoding
        pictures = embed_images(predictor, moves, self.asked.pictures, how)
        scales: dict[float, float] = {}
        for position, move in moves.items():
            move()
            scales[position] = float(predictor.scale.detach())
        chosen: dict[float, list[tuple[int, float]]] = {position: [] for position in moves}
        rules: Counter[str] = Counter()
        quiet = replace(how, progress=None)
        for block, captions in self._blocks(rules):
            texts = [text for own in captions for answer in own for text in answer]
            rows = embed_texts(predictor, moves, texts, quiet)
            for position in moves:
                scored = _scores(block, captions, pictures[position], rows[position])
                chosen[position] += [
                    (int(scores.argmax()), _confidence(scales[position] * scores))
                    for scores in scored
                ]
                if how.progress is not None:
                    how.progress(len(block))
        return {
            position: {self.split.name: self._judged(chosen[position], rules)} for position in moves
        }

    def _blocks(
        self, rules: Counter[str]
    ) -> Iterator[tuple[list[Question], list[list[list[str]]]]]:
        """Yield some questions at a time and the captions of their answers; count the rules."""
        block: list[Question] = []
        captions: list[list[list[str]]] = []
        held = 0
        for question in self.asked.questions:
            name, own = self.asked.rules.captions(question.text, question.candidates)
            rules[name] += 1
            block.append(question)
            captions.append(own)
            held += sum(map(len, own))
            if held >= _CAPTIONS:
                yield block, captions
                block, captions, held = [], [], 0
        if block:
            yield block, captions

    def _judged(self, chosen: Sequence[tuple[int, float]], rules: Mapping[str, int]) -> Judged:
        """Score the answers."""
        questions = self.asked.questions
        right = np.array([question.answer for question in questions], dtype=np.int64)
        given = np.array([answer for answer, _ in chosen], dtype=np.int64)
        correct = given == right
        pictures = np.array([question.picture for question in questions], dtype=np.int64)
        entry: dict[str, Any] = {
            "role": self.split.role,
            "task": self.split.task,
            "metric": "accuracy",
            "n": len(questions),
            "accuracy": float(correct.mean()),
            "interval": list(metrics.bootstrap_interval(correct, of=pictures)),
            "chance": float(np.mean([1 / len(question.candidates) for question in questions])),
            **_by_people(questions, given),
            "kinds": _by_kind(questions, correct),
            "pictures": len(self.asked.pictures),
            "skipped": dict(self.asked.skipped),
            "rules": dict(sorted(rules.items())),
            "rules_sha256": self.asked.rules.sha256,
            "questions_sha256": short_hash(
                ["\t".join((one.text, *one.candidates, str(one.answer))) for one in questions]
            ),
        }
        confidence = np.array([share for _, share in chosen], dtype=np.float32)
        return Judged(entry, Outcomes(right, given, confidence))


def open_exam(split: Split, suite: Suite, how: How, inside: tuple[str, ...] = ()) -> Answering:
    """Open a split.

    Args:
        split: What is asked.
        suite: Unused; the captions come from the rules of the questions.
        how: Data and number of questions.
        inside: Unused.

    Raises:
        DataError: If data are missing or malformed.
    """
    if split.dataset != "emojishift":
        if how.root is None:
            raise DataError(f"{split.dataset} needs the directory of its files; add --data ROOT.")
        asked = read_questions(split.dataset, how.root.expanduser())
    elif how.root is not None:
        raise DataError(
            f"emojishift comes with perdure, but the data are said to be at {how.root}; leave "
            "--data away."
        )
    else:
        asked = open_emoji_questions(split.split)
    return Answering(split, asked.limited(how.limit))


def _scores(
    block: Sequence[Question],
    captions: Sequence[Sequence[Sequence[str]]],
    pictures: NDArray[np.float32],
    rows: NDArray[np.float32],
) -> Iterator[NDArray[np.float32]]:
    """Yield the cosine of every candidate of every question, (number of candidates,) each."""
    start = 0
    for question, own in zip(block, captions, strict=True):
        candidates = []
        for answer in own:
            mean = rows[start : start + len(answer)].mean(axis=0)
            candidates.append(mean / max(float(np.linalg.norm(mean)), 1e-12))
            start += len(answer)
        yield np.stack(candidates) @ pictures[question.picture]


def _confidence(logits: NDArray[np.float32]) -> float:
    """Return the probability of the likeliest candidate."""
    return float(metrics.softmax(logits[None]).max())


def _by_people(questions: Sequence[Question], given: NDArray[np.int64]) -> dict[str, Any]:
    """Return how well people agree with the answers, over the questions that people answered."""
    answered = [pair for pair in zip(questions, given, strict=True) if pair[0].humans]
    if not answered:
        return {}
    agreeing = np.array(
        [
            sum(tidy(one) == tidy(question.candidates[answer]) for one in question.humans)
            for question, answer in answered
        ]
    )
    shares = metrics.vqa_agreement(agreeing)
    pictures = np.array([question.picture for question, _ in answered], dtype=np.int64)
    return {
        "vqa_accuracy": float(shares.mean()),
        "vqa_interval": list(metrics.bootstrap_interval(shares, of=pictures)),
        "vqa_n": len(agreeing),
    }


def _by_kind(questions: Sequence[Question], correct: NDArray[np.bool_]) -> dict[str, Any]:
    """Return accuracy, number and chance of every kind of question that has a name."""
    places: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        if question.kind:
            places.setdefault(question.kind, []).append(place)
    return {
        kind: {
            "accuracy": float(correct[own].mean()),
            "n": len(own),
            "chance": float(np.mean([1 / len(questions[place].candidates) for place in own])),
        }
        for kind, own in sorted(places.items())
    }
