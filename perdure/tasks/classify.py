"""Classification: every image is one of the classes, by head or by the prompts of their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import metrics
from ..data.datasets import group_names_of, rows_of
from ..data.published import BY_F1
from ..data.splits import Split, Suite
from ..prediction import How, Moves, Outputs, Unit, gather, open_unit
from ..predictor import Predictor
from . import Judged, Outcomes, short_hash


@dataclass(frozen=True, eq=False)
class Classification:
    """Images of known classes."""

    split: Split
    unit: Unit

    @property
    def images(self) -> int:
        """Return how many images there are."""
        return len(self.unit.dataset)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return self.unit.dataset.classes

    def judge(
        self,
        predictor: Predictor,
        moves: Moves,
        how: How,
        temperatures: Mapping[float, float],
    ) -> dict[float, dict[str, Judged]]:
        """Score with several settings of a predictor's weights; see `perdure.tasks.Exam`."""
        classifier = "head" if set(self.unit.names) <= set(predictor.classes) else "text"
        return {
            position: {
                self.split.name: judged(
                    self.split, self.unit, classifier, outputs, temperatures.get(position)
                )
            }
            for position, outputs in gather(predictor, moves, self.unit, how).items()
        }


def open_exam(split: Split, suite: Suite, how: How, inside: tuple[str, ...] = ()) -> Classification:
    """Open a split.

    Args:
        split: What to classify.
        suite: Names the prompts.
        how: Data and number of images.
        inside: Classes of the task itself, of which `split.columns` are numbers.

    Raises:
        DataError: If data are missing.
    """
    return Classification(split, open_unit(split, suite, how, inside))


def judged(
    split: Split,
    unit: Unit,
    classifier: str,
    outputs: Outputs,
    temperature: float | None = None,
) -> Judged:
    """Return what a score file says of one split, and what is kept of every image.

    Args:
        split: What was scored.
        unit: Its images and classes.
        classifier: What scored: "head", "text" or "ensemble".
        outputs: Whole arrays.
        temperature: As in `measure`.
    """
    entry = {
        "role": split.role,
        "task": split.task,
        "metric": "accuracy",
        "classes_sha256": short_hash(unit.dataset.classes),
        # As the suite's prompts, except where a split has its own.
        "templates_sha256": short_hash(unit.templates),
        "mask": mask_of(split),
        "classifier": classifier,
        **measure(outputs, temperature),
        **_more(outputs, unit.dataset),
    }
    confidence = metrics.softmax(outputs.logits).max(axis=1).astype(np.float32)
    return Judged(entry, Outcomes(outputs.labels, outputs.logits.argmax(axis=1), confidence))


def mask_of(split: Split) -> str | None:
    """Return what names the classes that are kept before the softmax; None where all are."""
    if split.columns is None:
        return None
    return f"{split.dataset}-{len(split.columns)}"


def measure(outputs: Outputs, temperature: float | None = None) -> dict[str, Any]:
    """Return every classification metric of one split, shares in [0, 1].

    Args:
        outputs: Whole arrays.
        temperature: Divides the logits for `ece_scaled` and `nll_scaled`; left out where None.
    """
    logits, labels = outputs
    values: dict[str, Any] = {
        "n": len(labels),
        "accuracy": metrics.top1(logits, labels),
        "interval": list(metrics.bootstrap_interval(logits.argmax(axis=1) == labels)),
        "macro_f1": metrics.macro_f1(logits, labels),
        "ece": metrics.ece(logits, labels),
        "ece10": metrics.ece(logits, labels, bins=10),
        "nll": metrics.nll(logits, labels),
        "brier": metrics.brier(logits, labels),
    }
    if temperature is not None:
        scaled = logits / np.float32(temperature)
        values["ece_scaled"] = metrics.ece(scaled, labels)
        values["nll_scaled"] = metrics.nll(scaled, labels)
    return values


def _more(outputs: Outputs, dataset: Any) -> dict[str, Any]:
    """Return what can be said of data sets that know more of their images than one label."""
    predictions = outputs.logits.argmax(axis=1)
    values: dict[str, Any] = {}
    groups = rows_of(dataset, "groups")
    if groups is not None and (groups >= 0).any():
        found = metrics.group_accuracies(
            predictions == outputs.labels, groups, group_names_of(dataset)
        )
        worst = min(found, key=lambda name: found[name])
        own = groups == group_names_of(dataset).index(worst)
        values |= {
            "groups": found,
            "worst_group": worst,
            "worst_group_accuracy": found[worst],
            "worst_group_interval": list(
                metrics.bootstrap_interval((predictions == outputs.labels)[own])
            ),
        }
    if dataset.name in BY_F1:
        interval = metrics.macro_f1_interval(predictions, outputs.labels)
        values |= {"published": "macro_f1", "macro_f1_interval": list(interval)}
    accepted = rows_of(dataset, "accepted")
    if accepted is not None and (real := metrics.real_accuracy(predictions, accepted)):
        values |= {"real_accuracy": real[0], "real_n": real[1]}
    return values
