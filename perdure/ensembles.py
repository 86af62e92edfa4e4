"""Ensembles in the space of outputs: several models score every image and their votes are mixed.

A mixture of weights costs one pass per image, a mixture of outputs one per model. `mean` gives
every image the same mixture; `vrf` trusts the fine-tuned model where training images were near on
which the zero-shot model fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .data.loading import eval_batches
from .data.suites import Suite
from .errors import DataError, RunError
from .evaluation import Scores, common_conditions
from .merges.evidence import Task
from .metrics import Floats, fit_temperature, softmax
from .prediction import How, Outputs, Unit, gather, open_suite, open_validation, spread, stay
from .predictor import Predictor
from .subjects import Subject
from .tasks import Outcomes
from .tasks.classify import judged

Kind = Literal["mean", "vrf"]

CENTRE, WIDTH = 1.5, 0.6
"""Of the sigmoid that turns a distance into the share of the fine-tuned model"""


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """How outputs are mixed."""

    kind: Kind
    shares: tuple[float, ...] | None = None
    """Of `mean`: one number >= 0 per model, of which only the ratios matter; equal by default"""
    neighbours: int = 1
    """Of `vrf`: the distance is that to the k-th nearest failure"""
    centre: float = CENTRE
    """Of `vrf`: distance at which both models have the same share"""
    width: float = WIDTH
    """Of `vrf`: how slowly the share falls with the distance"""
    limit: int | None = None
    """Of `vrf`: at most so many training images, spread evenly; all by default"""

    def check(self, models: int) -> None:
        """Refuse what cannot be mixed.

        Raises:
            RunError: If a number is out of range, or there are too few or too many models.
        """
        if models < 2 or (self.kind == "vrf" and models != 2):
            wanted = "two models, zero-shot and tuned" if self.kind == "vrf" else "two or more"
            raise RunError(f"an ensemble {self.kind} takes {wanted}; found {models}.")
        shares = self.shares
        if shares is not None and (
            self.kind == "vrf" or len(shares) != models or min(shares) < 0 or not sum(shares) > 0
        ):
            raise RunError(
                f"shares {list(shares)} do not fit an ensemble {self.kind} of {models} models; "
                "mean takes one number >= 0 for each, not all of them zero, and vrf none."
            )
        if self.neighbours < 1 or not self.width > 0:
            raise RunError(
                f"neighbours is {self.neighbours} and width {self.width}; they must be at least 1 "
                "and greater than 0."
            )


def mix(logits: Sequence[Floats], shares: Floats) -> NDArray[np.float32]:
    """Return log probabilities of a mixture: log of the sum of a_k softmax(z_k), (N, C).

    Args:
        logits: (N, C) per model.
        shares: Per model (K,), or per model and image (K, N); each column sums to 1.
    """
    parts = np.stack([softmax(each.astype(np.float64)) for each in logits])
    weights = shares[:, None, None] if shares.ndim == 1 else shares[:, :, None]
    mixed = (weights * parts).sum(axis=0)
    # Below float32's range a class is out; its logarithm must stay finite.
    logs: NDArray[np.float32] = np.log(np.maximum(mixed, 1e-38)).astype(np.float32)
    return logs


def nearest_distance(rows: Floats, failures: Floats, k: int = 1, chunk: int = 512) -> Floats:
    """Return the Euclidean distance of every row to its k-th nearest failure, (N,).

    Args:
        rows: Unit rows, (N, D).
        failures: Unit rows, (M, D), M >= 1; with fewer than k the farthest counts.
        k: Which neighbour, >= 1.
        chunk: Rows compared at once.
    """
    nth = min(k, len(failures)) - 1
    found = np.empty(len(rows))
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk].astype(np.float64)
        cosine = part @ failures.T.astype(np.float64)
        squares = np.maximum(2.0 - 2.0 * cosine, 0.0)
        found[start : start + chunk] = np.sqrt(np.partition(squares, nth, axis=1)[:, nth])
    return found


def tuned_share(distance: Floats, centre: float = CENTRE, width: float = WIDTH) -> Floats:
    """Return the share of the fine-tuned model, sigmoid((centre - distance) / width), in (0, 1).

    Source: Zhu et al. 2024, "Robust fine-tuning of zero-shot models via variance reduction",
        arXiv 2411.06966: 1.5 and 0.6 on ImageNet.
    """
    # The same as 1 / (1 + exp(-x)), without overflow.
    share: Floats = 0.5 * (1.0 + np.tanh((centre - distance) / (2.0 * width)))
    return share


def evaluate_ensemble(
    models: Sequence[Predictor],
    suite: Suite,
    ensemble: Ensemble,
    *,
    subjects: Sequence[Subject] = (),
    how: How | None = None,
) -> Scores:
    """Score an ensemble on every split of a suite.

    For `vrf` both models are calibrated on the task's `val` split first, and failures are the
    training images that the zero-shot model gets wrong, as the fine-tuned image tower embeds them.

    Args:
        models: For `vrf` zero-shot and fine-tuned.
        suite: Which splits.
        ensemble: How outputs are mixed.
        subjects: What the models are called; of `vrf` also where the training images are.
        how: Data, device, number of images per split.

    Raises:
        RunError: If models and ensemble do not fit.
        DataError: If data are missing, or the zero-shot model never fails.
        WeightsError: If a logit is not finite.
    """
    ensemble.check(len(models))
    how = how or How()
    temperatures = [1.0] * len(models)
    share: Callable[[Unit], Floats]
    told: dict[str, Any] = {"kind": ensemble.kind, "members": [one.name for one in subjects]}
    if ensemble.kind == "mean":
        given = np.array(ensemble.shares or (1.0,) * len(models), dtype=np.float64)
        parts: Floats = given / given.sum()
        told["shares"] = parts.tolist()

        def share(unit: Unit) -> Floats:
            return parts

    else:
        temperatures = [
            fit_temperature(*_outputs(model, open_validation(suite, how), how)) for model in models
        ]
        failures, seen = _failures(models, Task.of(subjects, how.root), ensemble, how)
        told |= {
            "temperatures": temperatures,
            "neighbours": ensemble.neighbours,
            "centre": ensemble.centre,
            "width": ensemble.width,
            "failures": len(failures),
            "training_images": seen,
        }

        def share(unit: Unit) -> Floats:
            rows = _features(models[1], unit, how)
            distance = nearest_distance(rows, failures, ensemble.neighbours)
            tuned = tuned_share(distance, ensemble.centre, ensemble.width)
            return np.stack([1.0 - tuned, tuned])

    splits: dict[str, Mapping[str, Any]] = {}
    outcomes: dict[str, Outcomes] = {}
    shares: dict[str, float] = {}
    for split, unit in open_suite(suite, how):
        outputs = [_outputs(model, unit, how) for model in models]
        scaled = [
            one.logits / np.float32(temperature)
            for one, temperature in zip(outputs, temperatures, strict=True)
        ]
        weights = share(unit)
        shares[split.name] = float(weights[-1].mean())
        mixed = Outputs(mix(scaled, weights), outputs[0].labels)
        splits[split.name], outcomes[split.name] = judged(split, unit, "ensemble", mixed)
    told["last_share"] = shares
    conditions = {
        "subject": f"{ensemble.kind} of {' and '.join(one.name for one in subjects)}",
        "seed": next((one.seed() for one in reversed(subjects) if one.seed() is not None), None),
        "ensemble": told,
        **common_conditions(models[-1], suite, how),
        "temperature": None,
    }
    return Scores(suite.name, conditions, splits, outcomes)


def _outputs(model: Predictor, unit: Unit, how: How) -> Outputs:
    return gather(model, {0.0: stay}, unit, how)[0.0]


def _failures(
    models: Sequence[Predictor], task: Task, ensemble: Ensemble, how: How
) -> tuple[Floats, int]:
    """Return the features of training images that the first model gets wrong, and how many it saw.

    Raises:
        DataError: If there is none.
    """
    dataset = spread(task.open(task.data.split), ensemble.limit)
    unit = Unit(dataset, task.templates, dataset.classes)
    logits, labels = _outputs(models[0], unit, how)
    wrong = logits.argmax(axis=1) != labels
    if not wrong.any():
        raise DataError(
            f"the zero-shot model is right about all {len(dataset)} training images, so there is "
            "no failure to measure distances to; an ensemble mean needs none."
        )
    return _features(models[1], unit, how)[wrong], len(dataset)


@torch.no_grad()
def _features(model: Predictor, unit: Unit, how: How) -> Floats:
    """Return unit rows of all images, (N, D)."""

    def rows() -> Iterator[NDArray[Any]]:
        batches = eval_batches(unit.dataset, model.preprocess, how.batch_size, device=model.device)
        for images in batches:
            yield model.encode_image(images).float().cpu().numpy()

    return np.concatenate(list(rows()))
