"""What an alpha is chosen by: the validation images of a suite's task, or captioned pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..data.datasets import validation_of
from ..data.shifts import TASK_SUITES
from ..data.suites import Suite
from ..errors import TaskError
from ..opening import open_split, place_of, task_of
from ..prediction import How
from ..subjects import Subject, trained_on
from .pairs import Captions, of_data, of_suite
from .report import FIXED


def asked_of(
    subject: Subject, suite: Suite | str | None, how: How
) -> tuple[Suite | Captions, Path | None]:
    """Return what an alpha is chosen by, and where its data are.

    Args:
        subject: A training run.
        suite: As asked for; None for the task that the run was trained on.
        how: Where the data are; without a root, where the run's recipe says, if no suite is named.

    Raises:
        TaskError: If no rule looks at such a task.
        DataError: If there is no such suite, or data are missing.
    """
    data = trained_on(subject)
    assert data is not None  # it is a training run
    root = how.root
    if suite is None:
        root = root or place_of(data, subject)
        where = replace(data, root=root, classes="all")
        if open_split(where, data.split, 0).captioned:
            return of_data(data.name, root), root
    chosen, root = task_of(subject, suite, root)
    tasks = {split.task for split in chosen.splits}
    if tasks == {"retrieve"}:
        return of_suite(chosen, data.name, root), root
    if tasks - {"classify"}:
        raise TaskError(
            f"suite {chosen.name} asks to {', '.join(sorted(tasks))}, by which no rule chooses "
            "alpha; take fixed, which looks at nothing, or name the suite of classification or "
            "retrieval that is nearest to the task."
        )
    return chosen, root


def kind_of(subject: Subject, suite: Suite | str | None, how: How) -> str:
    """Return the kind of a suite's task, or of the one that a run was trained on: of `FIXED`.

    Raises:
        DataError: If there is no such suite, or data that must be asked are missing.
    """
    data = trained_on(subject)
    assert data is not None  # it is a training run
    if suite is not None:
        chosen, _ = task_of(subject, suite, how.root or data.root)
        kinds = {"retrieve": "retrieval", "segment": "segmentation"}
        return kinds.get(chosen.splits[0].task, "classification")
    known = TASK_SUITES.get(data.name, "")
    if kind := next((kind for kind in FIXED if known.endswith(kind)), None):
        return kind
    where = replace(data, root=how.root or place_of(data, subject), classes="all")
    return "retrieval" if open_split(where, data.split, 0).captioned else "classification"


def split_of(suite: Suite) -> str:
    """Return what the data of a suite's task call their validation split."""
    inside = next(split for split in suite.splits if split.role in ("id", "base"))
    return validation_of(inside.dataset) or inside.split
