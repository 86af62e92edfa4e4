"""Run predictors over data sets: whole arrays of float32 logits, in the order of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data.datasets import (
    Dataset,
    Part,
    open_dataset,
    templates_for,
    validation_of,
    with_masks,
)
from .data.decoding import Transform
from .data.loading import eval_batches
from .data.suites import Split, Suite
from .errors import DataError, TaskError, WeightsError
from .moves import Moves as Moves
from .moves import Tour as Tour
from .moves import put as put
from .moves import stay as stay
from .predictor import Predictor
from .runtime import Runtime

Progress = Callable[[int], None]
"""Called with the number of images scored since the last call; once per model and image."""


Precision = Literal["fp32", "bf16"]
"""Of the image tower while it scores"""


class Outputs(NamedTuple):
    """Everything classification metrics need, on the host."""

    logits: NDArray[np.float32]
    """(N, C)"""
    labels: NDArray[np.int64]
    """(N,)"""


@dataclass(frozen=True, kw_only=True)
class How:
    """How an evaluation is carried out.

    Apart from `limit`, `transform` and `precision` it changes no result.
    """

    root: Path | None = None
    """Directory of the data; None for embedded data"""
    limit: int | None = None
    """At most so many images per split, spread evenly over it; None for all"""
    batch_size: int = 256
    """Images per forward pass"""
    transform: Transform = "exact"
    """How pictures are decoded; "fast" is within one level of "exact"""
    precision: Precision = "fp32"
    """Of the image tower; weights, texts, logits and metrics are fp32"""
    workers: int = 0
    """Processes that decode ahead; 0 decodes when a batch is asked for"""
    cache: Path | None = None
    """Folder in which decoded pixels are kept for the next evaluation; None keeps none"""
    runtime: Runtime | None = None
    """Device and processes, between which images are divided; None for the predictor's device"""
    progress: Progress | None = None
    """Told about finished images"""

    def halved(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context in which the image tower scores, as `precision` says.

        One for every setting of the weights: within one, torch would keep the halves of the last.
        """
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True, eq=False)
class Unit:
    """An opened data set and how to classify it."""

    dataset: Dataset
    templates: tuple[str, ...]
    """Prompts of the class names"""
    names: tuple[str, ...]
    """Classes of the classifier"""
    columns: Sequence[Sequence[int]] | None = None
    """Per class of the data set, the names whose maximum is its logit; one each where None"""


def spread(dataset: Dataset, limit: int | None) -> Dataset:
    """Return at most `limit` images of a data set, evenly spread over its order."""
    if limit is None or limit >= len(dataset):
        return dataset
    return Part(dataset, spread_rows(len(dataset), limit))


def spread_rows(number: int, limit: int | None) -> NDArray[np.int64]:
    """Return at most `limit` of so many rows, evenly spread over their order."""
    if limit is None or limit >= number:
        return np.arange(number)
    if limit < 1:
        raise DataError(f"the limit is {limit} images per split; it must be at least 1.")
    return np.asarray(np.linspace(0, number - 1, limit).round(), dtype=np.int64)


def open_suite(suite: Suite, how: How) -> Iterator[tuple[Split, Unit]]:
    """Open every split of a suite of classification, for callers that need its logits.

    Raises:
        DataError: If data are missing.
        TaskError: If a split asks for something else.
    """
    inside: tuple[str, ...] = ()
    for split in suite.splits:
        if split.task != "classify":
            raise TaskError(
                f"split {split.name} of suite {suite.name} asks to {split.task}, which has no "
                "class scores to work with here; use a suite of classification. "
                f"perdure eval MODEL --suite {suite.name} scores it."
            )
        unit = open_unit(split, suite, how, inside)
        if split.role == "id":
            inside = unit.dataset.classes
        yield split, unit


def open_unit(split: Split, suite: Suite, how: How, inside: tuple[str, ...] = ()) -> Unit:
    """Open one split and say how it is classified.

    Args:
        split: What to classify.
        suite: Names the prompts.
        how: Data and number of images.
        inside: Classes of the task itself, of which `split.columns` are numbers.

    Raises:
        DataError: If data are missing.
    """
    dataset = open_dataset(
        split.dataset, split.split, how.root, classes=split.classes, transform=how.transform
    )
    names = dataset.classes if split.columns is None else inside
    templates = templates_for(split.templates or suite.templates, how.root)
    return Unit(spread(dataset, how.limit), templates, names, split.columns)


def open_validation(
    suite: Suite, how: How, *, purpose: str = "no temperature can be fitted", half: str = ""
) -> Unit:
    """Open the validation images of a suite's task, on which no score is reported.

    Args:
        suite: Names the task.
        how: Data and number of images.
        purpose: What cannot be done where there are none, for the message.
        half: Of the classes, such as "seen-0"; all of the task's by default.

    Raises:
        DataError: If the suite has no split of the task itself, or scores these very images.
    """
    inside = next((split for split in suite.splits if split.role in ("id", "base")), None)
    remedy = ", or leave temperature away" if "temperature" in purpose else ""
    if inside is None:
        raise DataError(
            f"suite {suite.name} has no split of the task itself, so {purpose}; choose a suite "
            f"that has one{remedy}."
        )
    validation = validation_of(inside.dataset)
    if validation is None:
        raise DataError(
            f"{inside.dataset} has no labelled pictures on which nothing is reported, so "
            f"{purpose}; its validation pictures are what suite {suite.name} scores{remedy}."
        )
    if inside.split == validation:
        raise DataError(
            f"suite {suite.name} scores split {validation} itself, so {purpose} on it; "
            f"score a suite with a split test{remedy}."
        )
    classes = f"{inside.classes}/{half}" if half else inside.classes
    dataset = open_dataset(
        inside.dataset, validation, how.root, classes=classes, transform=how.transform
    )
    templates = templates_for(suite.templates, how.root)
    return Unit(spread(dataset, how.limit), templates, dataset.classes)


def predict(
    predictor: Predictor,
    dataset: Dataset,
    templates: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    columns: Sequence[Sequence[int]] | None = None,
    batch_size: int = 256,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> Outputs:
    """Score a data set in its own order.

    Args:
        predictor: Scores with its head if that was trained on all names, else with its text tower.
        dataset: Images and labels.
        templates: Prompts of the class names.
        names: Classes of the classifier; those of the data set by default.
        columns: Per class of the data set, the names whose maximum is its logit; one each where
            None.
        batch_size: Images per forward pass; no result depends on it.
        runtime: Device and processes; the predictor's own device and this process by default.
        progress: Told about finished images.

    Raises:
        WeightsError: If a logit is not finite.
    """
    unit = Unit(dataset, tuple(templates), tuple(names or dataset.classes), columns)
    how = How(batch_size=batch_size, runtime=runtime, progress=progress)
    return gather(predictor, {0.0: stay}, unit, how)[0.0]


def gather(predictor: Predictor, moves: Moves, unit: Unit, how: How) -> dict[float, Outputs]:
    """Score one data set with several settings of a predictor's weights.

    Every image is decoded once, whatever the number of settings.

    Raises:
        WeightsError: If a logit is not finite.
    """
    runtime = how.runtime
    place: dict[str, Any] = {
        "device": predictor.device, "workers": how.workers, "cache": how.cache,
    }  # fmt: skip
    if runtime is not None:
        place |= {"device": runtime.device, "rank": runtime.rank, "world_size": runtime.world_size}
        predictor.to(runtime.device)
    scorers: dict[float, Callable[[Tensor], Tensor]] = {}
    parts: dict[float, list[Tensor]] = {position: [] for position in moves}
    tour = Tour(moves)
    if runtime is not None and runtime.world_size > 1:
        # Before the first picture: a process that cannot read it would end far ahead of the others.
        scorers = {position: predictor.logits_fn(unit.names, unit.templates) for position in tour}
    dataset = with_masks(unit.dataset) if predictor.takes_masks else unit.dataset
    for images in eval_batches(dataset, predictor.preprocess, how.batch_size, **place):
        for position in tour:
            if position not in scorers:
                scorers[position] = predictor.logits_fn(unit.names, unit.templates)
            with how.halved(images.device):
                logits = scorers[position](images)
            parts[position].append(select_columns(logits.float(), unit.columns))
            if how.progress is not None:
                how.progress(len(images))
    return {
        position: Outputs(
            _host(rows, len(unit.columns or unit.names), runtime), unit.dataset.labels
        )
        for position, rows in parts.items()
    }


def select_columns(logits: Tensor, columns: Sequence[Sequence[int]] | None) -> Tensor:
    """Give every class the largest logit of its columns, (B, C) to (B, number of classes)."""
    if columns is None:
        return logits
    return torch.stack([logits[:, list(own)].amax(dim=1) for own in columns], dim=1)


def _host(rows: Sequence[Tensor], width: int, runtime: Runtime | None) -> NDArray[np.float32]:
    """Join batches, and the parts of all processes, into one finite array."""
    if rows:
        joined = torch.cat(list(rows))
    else:  # there are fewer images than processes
        joined = torch.empty(0, width, device=None if runtime is None else runtime.device)
    logits = joined.cpu().numpy() if runtime is None else runtime.to_host(joined)
    if not np.isfinite(logits).all():
        raise WeightsError(
            "some logits are not finite, so the model cannot be scored. Its weights are damaged or "
            "its training diverged; look at the loss in log.jsonl."
        )
    return logits.astype(np.float32, copy=False)
