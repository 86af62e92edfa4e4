"""Score several subjects on one suite: images are decoded once, and nothing finished is redone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from .data.suites import Suite
from .evaluation import (
    Scores,
    conditions_of,
    evaluate_points,
    kept_of,
    warn_of_training,
    write_whole,
)
from .kept import Kept, read_whole
from .prediction import How, Moves, put, stay
from .predictor import Predictor
from .run import Run
from .subjects import Subject
from .surgery.operations import to_record

MEMORY = 4 * 2**30
"""Bytes of weights that are held at a time; more subjects are scored in several groups"""


@dataclass
class _Group:
    """Subjects whose predictors differ in weights alone, and one predictor that is each of them."""

    predictor: Predictor
    members: list[int] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)

    def moves(self) -> Moves:
        """Return what makes the predictor each of the subjects, by their numbers."""
        if len(self.members) == 1:
            return {float(self.members[0]): stay}
        return {
            float(number): partial(put, self.predictor, weights)
            for number, weights in zip(self.members, self.weights, strict=True)
        }


def evaluate_all(
    subjects: Sequence[Subject],
    suite: Suite,
    how: How,
    *,
    temperature: bool = False,
    again: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[Scores]:
    """Score subjects as `evaluate` does, those that differ in weights alone in one pass.

    The scores are those of single evaluations. Runs whose scores are there already, of the same
    weights, suite, prompts, place and number of images, are not scored again, nor are their
    finished splits where an evaluation was interrupted.

    Args:
        subjects: Runs and models.
        suite: Which splits.
        how: Data, device, number of images.
        temperature: As in `evaluate`.
        again: Score also what is there already.
        say: Told what is there already.

    Returns:
        Scores in the order of the subjects.

    Raises:
        DataError: If data are missing.
        RunError: If a run is not finished.
        WeightsError: If a model is unknown, or its logits are not finite.
    """
    found: dict[int, Scores] = {}
    places: dict[int, Kept] = {}
    for number, subject in enumerate(subjects):
        warn_of_training(subject, suite)
        if subject.run is not None:
            Run(subject.run).require_finished()
        place = kept_of(subject, suite, how, temperature=temperature)
        if place is None:
            continue
        places[number] = place
        if again:
            place.clear()
        elif (old := _old(subject, suite, place)) is not None:
            found[number] = old
    if how.runtime is not None:
        how.runtime.wait()  # until all have seen what is there
    if found and say is not None:
        names = ", ".join(subjects[number].name for number in found)
        say(f"Scored before, with the same weights and images: {names}. Anew with --again.")
    groups: dict[str, _Group] = {}
    size = 0
    for number, subject in enumerate(subjects):
        if number in found:
            continue
        predictor = subject.predictor()
        weights = {name: value.clone() for name, value in predictor.state_dict().items()}
        needed = sum(value.numel() * value.element_size() for value in weights.values())
        if groups and size + needed > MEMORY:
            found |= _score(groups, subjects, suite, how, places, temperature=temperature)
            groups, size = {}, 0
        group = groups.setdefault(_kind(predictor, weights), _Group(predictor))
        group.members.append(number)
        group.weights.append(weights)
        size += needed
    found |= _score(groups, subjects, suite, how, places, temperature=temperature)
    return [found[number] for number in range(len(subjects))]


def _old(subject: Subject, suite: Suite, place: Kept) -> Scores | None:
    """Return the scores that a run has, if they are of these very conditions."""
    read = read_whole(place.run, suite.name, place.stamp)
    if read is None:
        return None
    document, outcomes = read
    rest = {"format", "suite", "splits", "summary"}
    conditions: dict[str, Any] = {key: value for key, value in document.items() if key not in rest}
    conditions |= conditions_of(subject, place)
    return Scores(suite.name, conditions, document["splits"], outcomes)


def _score(
    groups: dict[str, _Group],
    subjects: Sequence[Subject],
    suite: Suite,
    how: How,
    places: dict[int, Kept],
    *,
    temperature: bool,
) -> dict[int, Scores]:
    """Score groups one after the other, and write the scores of runs."""
    done: dict[int, Scores] = {}
    for group in groups.values():
        kept = {float(number): places[number] for number in group.members if number in places}
        points = evaluate_points(
            group.predictor,
            group.moves(),
            suite,
            how,
            conditions={},
            temperature=temperature,
            kept=kept,
        )
        for number in group.members:
            place = places.get(number)
            own = conditions_of(subjects[number], place)
            scores = points[float(number)]
            scores = replace(scores, conditions={**own, **scores.conditions})
            done[number] = scores
            if place is not None:
                write_whole(scores, place)
    return done


def _kind(predictor: Predictor, weights: dict[str, Tensor]) -> str:
    """Return equal text for predictors that differ in nothing but the values of their weights."""
    return json.dumps(
        {
            "config": predictor.source.config,
            "preprocess": asdict(predictor.preprocess),
            "classes": predictor.classes,
            "templates": predictor.templates,
            "surgeries": [to_record(surgery) for surgery in predictor.surgeries],
            "vocabulary": str(predictor.tokenizer.vocabulary),
            "context": predictor.tokenizer.context_length,
            "weights": {name: [str(one.dtype), *one.shape] for name, one in weights.items()},
        },
        sort_keys=True,
        default=str,
    )
