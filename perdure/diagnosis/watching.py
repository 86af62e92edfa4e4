"""The cheap part of a diagnosis, looked at again and again while a run trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.datasets import Dataset, validation_of
from ..data.loading import eval_batches
from ..errors import DataError
from ..files import finite
from ..learner import Learner
from ..opening import open_validated
from ..prediction import spread
from ..predictor import Predictor
from ..recipe import DataSpec, DiagnoseSpec, Recipe
from . import drift
from .layers import weights_of
from .pairs import bring_together, find_spans, prompts_of
from .similarity import compare, image_features, text_features
from .update import by_group

BATCH = 64
"""Images at a time"""


class Watch:
    """Compares what a learner would deliver now with the pre-trained model.

    Changes nothing: it looks at an exported copy, and puts torch's random numbers back. What it
    compares with is made once, and again when a run is resumed, so that the rows stay the same.

    Args:
        spec: How many images, and which share of energy.
        learner: As it begins.
        start: The pre-trained model; kept.
        training: Images and class names that spans are found on.
        templates: Prompts, of which only the first is used.
        held_out: Name and images that features and calibration are compared on; None for the
            training images, whose calibration would say little.
    """

    def __init__(
        self,
        spec: DiagnoseSpec,
        learner: Learner,
        start: Predictor,
        training: Dataset,
        templates: Sequence[str],
        held_out: tuple[str, Dataset] | None,
    ) -> None:
        self.spec = spec
        self.split, dataset = held_out or ("training images", training)
        dataset = spread(dataset, spec.images)
        self._labels = dataset.labels
        self._calibrates = held_out is not None and not dataset.captioned
        self._names, self._templates = dataset.classes, tuple(templates[:1])
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            # Decoded once: looking again shall cost one forward pass.
            self._pictures = list(eval_batches(dataset, start.preprocess, BATCH))
            self._prompts = prompts_of(start, training.classes, self._templates, spec.images)
            pair = bring_together(start.to(next(learner.parameters()).device), learner.export())
            self._start = pair.start
            some = spread(training, spec.images)
            self._spans = find_spans(
                pair.start,
                pair.layers,
                lambda: eval_batches(some, start.preprocess, BATCH),
                self._prompts,
                spec.energy,
            )
            self._images, self._before = self._see(pair.start)
            self._texts = text_features(pair.start, self._prompts)

    def look(self, learner: Learner) -> dict[str, Any]:
        """Return what has changed so far, as JSON."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            found: dict[str, Any] = finite(self._compare(learner.export()))
        return found

    def _compare(self, tuned: Predictor) -> dict[str, Any]:
        pair = bring_together(self._start, tuned)
        images, after = self._see(pair.tuned)
        alike = compare(self._images, images)
        if pair.text_applies:
            alike += compare(self._texts, text_features(pair.tuned, self._prompts))
        before, now = weights_of(pair.start), weights_of(pair.tuned)
        groups = by_group(pair.layers, pair.groups, before, now, self._spans)
        row: dict[str, Any] = {
            "split": self.split,
            "n": len(self._labels),
            "energy": self.spec.energy,
            "update": {
                one.group: {
                    "norm": one.norm,
                    "relative": one.relative,
                    "inside": one.inside,
                    "random": one.random,
                }
                for one in groups
            },
            "similarity": {
                one.place: {"cka": one.cka, "cosine": one.cosine, "n": one.n} for one in alike
            },
        }
        if self._before is not None and after is not None:
            row["calibration"] = {"start": asdict(self._before), "now": asdict(after)}
        return row

    def _see(self, predictor: Predictor) -> tuple[dict[str, Tensor], drift.Calibration | None]:
        """Return features of the pictures and, from the same pass, calibration on them."""
        if not self._calibrates:
            return image_features(predictor, self._pictures), None
        score = predictor.logits_fn(self._names, self._templates)
        parts: list[Tensor] = []
        features = image_features(
            predictor, self._pictures, lambda batch: parts.append(score(batch).float().cpu())
        )
        return features, drift.calibration(torch.cat(parts).numpy(), np.asarray(self._labels))


def watch(
    recipe: Recipe,
    learner: Learner,
    start: Predictor,
    training: Dataset,
    templates: Sequence[str],
    validation: Mapping[str, Dataset],
) -> Watch:
    """Return what a recipe's `diagnose` asks for.

    Looks at the first split that the run is validated on or, where it is not validated, at the
    split that the data set has for choices; at training images where there is none.

    Args:
        recipe: Has such a table.
        learner: As it begins.
        start: The pre-trained model; kept.
        training: What the run is trained on.
        templates: Prompts of its texts.
        validation: Splits that the run is validated on.

    Raises:
        DataError: If an image cannot be read.
    """
    assert recipe.diagnose is not None
    held_out = next(iter(validation.items()), None) or _held_out(recipe.data, recipe.seed)
    return Watch(recipe.diagnose, learner, start, training, templates, held_out)


def _held_out(data: DataSpec, seed: int) -> tuple[str, Dataset] | None:
    split = validation_of(data.name)
    if split is None or split == data.split:
        return None
    try:
        return split, open_validated(data, split, seed)
    except DataError:  # own data need not have one
        return None
