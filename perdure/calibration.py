"""The temperature of a run, fitted on validation images and kept with the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import __version__, metrics
from .data.datasets import validation_of
from .data.suites import Suite
from .data.suites import suite as find_suite
from .errors import DataError, RunError, typed
from .files import read_json, write_json
from .opening import OWN, task_of
from .prediction import How, gather, open_validation, stay
from .subjects import Subject, find, hash_of_result

FORMAT = 1
"""Version of the file; raised when an older reader would misunderstand it."""

FILE = "calibration.json"

Classifier = Literal["head", "text"]
"""What scores: the linear head, or the text tower; each has a temperature of its own"""


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature, what it was fitted on, and what it changed."""

    temperature: float
    """Divides the logits"""
    classifier: Classifier
    suite: str
    definition: str
    """Hash of the suite's definition"""
    dataset: str
    split: str
    """As the data set calls its validation split"""
    n: int
    """Images it was fitted on"""
    accuracy: float
    """On these images, in [0, 1]; a temperature does not change it"""
    nll_before: float
    nll_after: float
    ece_before: float
    """In [0, 1], 15 bins"""
    ece_after: float
    predictor_sha256: str
    """Of the result in predictor/, so that other weights are noticed"""


def calibrate(
    run: Subject | Path | str, suite: Suite | str | None = None, how: How | None = None
) -> Calibration:
    """Fit a run's temperature on its task's `val` split and store it as RUN/calibration.json.

    Args:
        run: A finished run or a merge result.
        suite: Names the task; none of its own splits is looked at. None for the task that the run
            was trained on.
        how: Data, device, number of images. Without a root, own data are where the run's recipe
            says.

    Raises:
        RunError: If it is not a finished run, or the file cannot be written.
        DataError: If the suite is unknown, has no split of the task itself, data are missing, or
            every image is classified correctly, so that no temperature is the best.
        WeightsError: If a logit is not finite.
    """
    how = how or How()
    if isinstance(suite, str) and not suite.endswith(OWN):
        suite = find_suite(suite, how.root)
    subject = find(run)
    if subject.run is None:
        raise RunError(
            f"{subject.name} is not a run, so there is no place to keep a temperature. Make it one "
            f"with: perdure eval {subject.name} --out RUN"
        )
    chosen, root = task_of(subject, suite, how.root)
    how = replace(how, root=root)
    unit = open_validation(chosen, how)
    predictor = subject.predictor()
    logits, labels = gather(predictor, {0.0: stay}, unit, how)[0.0]
    inside = next(split for split in chosen.splits if split.role in ("id", "base"))
    validation = validation_of(inside.dataset) or inside.split
    if metrics.top1(logits, labels) == 1.0:
        # The likelihood then only grows with sharpness, and has no best temperature.
        raise DataError(
            f"all {len(labels)} pictures of `{validation}` are classified correctly, so no "
            "temperature can be fitted: every sharper one looks better. Add pictures to it, harder "
            "ones too; without calibration the probabilities stay as the model gives them."
        )
    temperature = metrics.fit_temperature(logits, labels)
    scaled = logits / np.float32(temperature)
    found = Calibration(
        temperature=temperature,
        classifier=classifier_of(predictor.classes, unit.names),
        suite=chosen.name,
        definition=chosen.definition,
        dataset=inside.dataset,
        split=validation,
        n=len(labels),
        accuracy=metrics.top1(logits, labels),
        nll_before=metrics.nll(logits, labels),
        nll_after=metrics.nll(scaled, labels),
        ece_before=metrics.ece(logits, labels),
        ece_after=metrics.ece(scaled, labels),
        predictor_sha256=hash_of_result(subject.run),
    )
    if how.runtime is None or how.runtime.is_main:
        record = {"format": FORMAT, "perdure": __version__, **asdict(found)}
        write_json(subject.run / FILE, record)
    return found


def classifier_of(trained: tuple[str, ...], names: tuple[str, ...]) -> Classifier:
    """Return what scores `names` where a head was trained on `trained`, as `logits_fn` decides."""
    return "head" if trained and set(names) <= set(trained) else "text"


def stored(subject: Subject) -> Calibration | None:
    """Return the calibration kept with a run; None if there is none.

    Raises:
        RunError: If it is damaged, of another format, or belongs to other weights.
    """
    if subject.run is None or not (subject.run / FILE).exists():
        return None
    path = subject.run / FILE
    record: dict[str, Any] = read_json(path)
    again = f"make it again with: perdure calibrate {typed(subject.run)}"
    if record.pop("format", None) != FORMAT:
        raise RunError(f"{path} has another format than {FORMAT}, the one read here; {again}")
    record.pop("perdure", None)
    try:
        found = Calibration(**record)
        whole = 0.01 <= float(found.temperature) <= 100.0
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise RunError(f"{path} is damaged: it holds no temperature in [0.01, 100]; {again}")
    if found.predictor_sha256 != hash_of_result(subject.run):
        raise RunError(f"{path} was fitted to other weights than those in predictor/; {again}")
    return found
