"""Open what a recipe names: the model that training starts from, prompts, examples, its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import zoo
from .data.class_names import LISTS, read_prompts
from .data.datasets import Dataset, open_dataset, templates_for
from .data.suites import SUITES, Suite, of_task
from .data.suites import suite as find_suite
from .errors import DataError
from .foreign import is_foreign, read_tuned
from .predictor import Predictor
from .recipe import DataSpec, ModelSpec
from .run import Run
from .rundir import is_run
from .subjects import Subject, find, is_kept_apart, trained_on

DEFAULT = "emojishift"
"""Suite of the task where a merge result has no training of its own"""

OWN = ("own", "hf")
"""Names of a person's own data, as data and as suites"""


def load_student(model: ModelSpec, seed: int, classes: Sequence[str] = ()) -> Predictor:
    """Return the predictor that training starts from, with the modules that were added to it.

    Methods that train a plain CLIP fold these; those that continue what was added do not.

    Args:
        model: What it is.
        seed: Takes the place of "{seed}".
        classes: Of the task, for checkpoints in which something belongs to each class.

    Raises:
        RunError: If `model.init` is neither a finished run nor anything else that can be read.
        WeightsError: If the model is unknown or its weights do not fit.
    """
    if model.init is None:
        return zoo.load(model.name, model.weights)
    path = Path(str(model.init.expanduser()).replace("{seed}", str(seed)))
    if is_kept_apart(path):
        return find(path).unfolded()
    if not is_run(path) and is_foreign(path):
        return read_tuned(path, zoo.load(model.name, model.weights), classes)
    return Run(path).predictor()


def find_templates(data: DataSpec) -> tuple[str, ...]:
    """Return the prompts of the classes: given, in a file, of a named set, or of the data set.

    Raises:
        DataError: If there is no such set or file, or a line of it has no place for the name.
    """
    if isinstance(data.templates, tuple):
        return data.templates
    if data.templates is not None and Path(data.templates).suffix.lower() in LISTS:
        return read_prompts(Path(data.templates).expanduser())
    return templates_for(data.templates or data.name, data.root)


def open_split(data: DataSpec, split: str, seed: int) -> Dataset:
    """Open a split of the data to train on, with the examples and classes a recipe asks for."""
    return open_dataset(
        data.name,
        split,
        data.root,
        seed=seed,
        shots=data.shots,
        classes=data.classes,
        sampling=data.sampling,
        damaged=data.damaged,
        transform=data.transform,
    )


def open_validated(data: DataSpec, split: str, seed: int) -> Dataset:
    """Open images to validate on: all of them, unless few-shot subsets are the published ones."""
    if data.sampling == "coop":
        return open_split(data, split, seed)
    return open_split(replace(data, shots=None), split, 0)


def all_classes(data: DataSpec, seed: int) -> tuple[str, ...]:
    """Return the class names of the whole data set, of which a recipe may take a part."""
    whole = open_split(replace(data, classes="all"), data.split, seed)
    return () if whole.captioned else whole.classes


def task_of(
    subject: Subject, suite: Suite | str | None, root: Path | None
) -> tuple[Suite, Path | None]:
    """Return the suite of a subject's task, and where its data are.

    Args:
        subject: A run or merge result.
        suite: As asked for; None for the suite of the task that it was trained on.
        root: As asked for; where nobody asks, own data are where the recipe says.

    Raises:
        DataError: If there is no such suite, none for the task, or the data have gone.
    """
    if isinstance(suite, Suite):
        return suite, root
    data = trained_on(subject)
    name = suite or (DEFAULT if data is None else _suite_of(data))
    if data is not None and data.name in OWN and name.endswith(data.name):
        root = root or place_of(data, subject)
    return find_suite(name, root), root


def place_of(data: DataSpec, subject: Subject) -> Path | None:
    """Return where the recipe says that the data are.

    Raises:
        DataError: If there is nothing any more.
    """
    if data.root is not None and not data.root.expanduser().exists():
        raise DataError(
            f"{data.root}, the data that {subject.name} was trained on, is not there (any more, or "
            "seen from this directory); add --data ROOT with the place where it is now."
        )
    return data.root


def _suite_of(data: DataSpec) -> str:
    """Return the suite that scores the classes a run was trained on, and not their `val` split."""
    if (found := of_task(data.name, data.classes)) is not None:
        return found
    raise DataError(
        f"no suite scores data {data.name!r} with classes {data.classes!r}, so the task has to be "
        f"named: add --suite NAME, one of {', '.join(SUITES)}."
    )
