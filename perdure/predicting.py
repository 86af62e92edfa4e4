"""Classify pictures that somebody has, with the classes they name."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import metrics
from .calibration import Calibration, Classifier, classifier_of, stored
from .data.datasets import open_dataset
from .data.folders import PICTURES
from .data.own import open_picture, unlabelled
from .errors import DataError, TaskError
from .inputs import fill
from .opening import find_templates
from .prediction import How, Unit, gather, stay
from .recipe import DataSpec
from .subjects import Subject, find, trained_on

PLAIN = ("a photo of a {}.",)
"""Prompts where neither the user nor the run names any"""

_NAMED = 5
"""Files that an error names"""


@dataclass(frozen=True)
class Predictions:
    """Probabilities of every picture."""

    subject: str
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    classifier: Classifier
    """Linear head or text tower"""
    templates: tuple[str, ...]
    """Prompts of the text tower; without effect on a head"""
    temperature: float | None
    """That divided the logits; None where the run has none for this classifier"""
    probabilities: NDArray[np.float32] = field(repr=False)
    """(N, C), rows sum to 1"""

    @property
    def best(self) -> NDArray[np.int64]:
        """Index of the most probable class, (N,)."""
        found: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for programs."""
        return {
            "subject": self.subject,
            "classifier": self.classifier,
            "temperature": self.temperature,
            "templates": list(self.templates),
            "classes": list(self.classes),
            "images": [
                {
                    "image": str(file),
                    "prediction": self.classes[best],
                    "probability": float(row[best]),
                    "probabilities": [float(value) for value in row],
                }
                for file, best, row in zip(self.files, self.best, self.probabilities, strict=True)
            ],
        }

    def to_json(self) -> str:
        """Return one JSON document."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """Return a line per picture: file, prediction, its probability, then all probabilities."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "prediction", "probability", *(f"p:{n}" for n in self.classes)])
        for file, best, row in zip(self.files, self.best, self.probabilities, strict=True):
            shares = (f"{value:.6f}" for value in row)
            writer.writerow([file, self.classes[best], f"{row[best]:.6f}", *shares])
        return text.getvalue()


def predict_files(
    subject: Subject | Path | str,
    pictures: Sequence[Path | str],
    classes: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    how: How | None = None,
) -> Predictions:
    """Classify pictures with the head if it was trained on all classes, else with the text tower.

    Args:
        subject: A finished run, a merge result or a model by name. The temperature stored with a
            run is used if it was fitted to the same classifier, head or text tower.
        pictures: Files, or folders, which are searched to any depth.
        classes: Names; by default those of the run's head, else those of its training data.
        templates: Prompts with {} for the name; by default those of the run's head, else those of
            its recipe, else `PLAIN`.
        how: Device, batch size and progress.

    Raises:
        DataError: If there is no picture, or some cannot be read; names them.
        TaskError: If there are no class names, or a template has no place for them.
        RunError: If the run is not finished, or its stored temperature belongs to other weights.
        WeightsError: If the model is unknown, or its logits are not finite.
    """
    found = find(subject)
    for template in templates or ():
        fill(template, "")  # refuses one without {}
    files = find_pictures(pictures)
    _require_readable(files)
    calibration = stored(found)
    predictor = found.predictor()
    data = trained_on(found)
    names = tuple(classes or predictor.classes or (_classes_of(data) if data else ()))
    if not names:
        raise TaskError(
            f"{found.name} was not trained on classes, so they must be named: give a file with one "
            "name per line by --classes."
        )
    own = predictor.templates or (find_templates(data) if data else PLAIN)
    prompts = tuple(templates or own)
    unit = Unit(unlabelled(files), prompts, names)
    logits = gather(predictor, {0.0: stay}, unit, how or How())[0.0].logits
    scorer = classifier_of(predictor.classes, names)
    temperature = _fitting(calibration, scorer)
    scaled = logits if temperature is None else logits / np.float32(temperature)
    return Predictions(
        found.name, files, names, scorer, prompts, temperature,
        metrics.softmax(scaled).astype(np.float32, copy=False),
    )  # fmt: skip


def find_pictures(places: Sequence[Path | str]) -> tuple[Path, ...]:
    """Return the pictures at some places: files as given, folders in the order of their paths.

    Raises:
        DataError: If a place does not exist or there is no picture.
    """
    files: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            inside = (path for path in sorted(place.rglob("*")) if path.is_file())
            here = [
                path
                for path in inside
                if path.suffix.lower() in PICTURES and not _is_hidden(path.relative_to(place))
            ]
            if not here:
                raise DataError(
                    f"the folder {place} holds no pictures; files are taken whose names end in "
                    f"{', '.join(PICTURES)}."
                )
            files += here
        elif place.is_file():
            files.append(place)
        else:
            raise DataError(f"{place} does not exist; name pictures, or folders of pictures.")
    if not files:
        raise DataError("0 pictures were given; name at least one, or a folder of pictures.")
    return tuple(files)


def _is_hidden(path: Path) -> bool:
    """Return whether a part starts with a dot, as in what macOS keeps beside pictures."""
    return any(part.startswith(".") for part in path.parts)


def _classes_of(data: DataSpec) -> tuple[str, ...]:
    return open_dataset(data.name, data.split, data.root, classes=data.classes).classes


def _fitting(calibration: Calibration | None, scorer: Classifier) -> float | None:
    """Return the stored temperature if it was fitted to logits of this kind."""
    fits = calibration is not None and calibration.classifier == scorer
    return calibration.temperature if calibration is not None and fits else None


def _require_readable(files: Sequence[Path]) -> None:
    """Read headers, so that most damaged files are known, and all named, before work begins."""
    faults = {path: fault for path in files if (fault := _fault(path)) is not None}
    if faults:
        raise _unreadable(list(faults), next(iter(faults.values())))


def _fault(path: Path) -> str | None:
    try:
        with open_picture(path) as picture:
            picture.verify()
    except Exception as error:  # Pillow's readers each raise their own
        return str(error)
    return None


def _unreadable(files: Sequence[Path], reason: str) -> DataError:
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    listed = ", ".join(map(str, files[:_NAMED]))
    return DataError(
        f"{len(files)} picture{'s' if len(files) > 1 else ''} cannot be read: {listed}{more} "
        f"({reason}). Repair or remove them; nothing was predicted."
    )
