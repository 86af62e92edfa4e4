"""The images behind a merge: where they come from, what is measured on them, what they choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from ..data.datasets import Dataset, open_dataset
from ..data.loading import eval_batches
from ..errors import DataError, TaskError
from ..metrics import top1
from ..opening import find_templates
from ..prediction import predict, spread
from ..predictor import Predictor
from ..recipe import DataSpec
from ..subjects import Subject, trained_on
from .importance import Count, fisher, grams
from .means import Fisher, RegMean, Soup
from .members import Member, Stored, fill, opened
from .rules import Merger, Tensors

Share = Callable[[float], None]
"""Told the share of the work that was done since the last call"""

_ROWS = 32
"""Images per forward pass"""


@dataclass(frozen=True)
class Task:
    """What the inputs of a merge were trained on."""

    data: DataSpec
    templates: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, subjects: Sequence[Subject], root: Path | None) -> Task:
        """Return the task of the first input that was trained.

        Raises:
            DataError: If none was.
        """
        for subject in subjects:
            found = trained_on(subject)
            if found is not None:
                data = found if root is None else replace(found, root=root)
                return cls(data, find_templates(data), subject.seed() or 0)
        raise DataError(
            "this merge needs images of the task, and none of the inputs is a training run whose "
            "recipe says which; merge runs that perdure has trained."
        )

    def open(self, split: str, limit: int | None = None) -> Dataset:
        """Open a split of the task, at most `limit` images of it, spread evenly.

        Raises:
            DataError: If it is missing.
        """
        shots = self.data.shots if split == self.data.split else None
        whole = open_dataset(
            self.data.name, split, self.data.root,
            seed=self.seed, shots=shots, classes=self.data.classes,
        )  # fmt: skip
        return spread(whole, limit)

    def batches(
        self, predictor: Predictor, limit: int, progress: Share | None = None
    ) -> tuple[Iterator[Tensor], Count]:
        """Return training images as a predictor takes them, and what counts them.

        Raises:
            DataError: If they are missing.
        """
        dataset = self.open(self.data.split, limit)

        def count(images: int) -> None:
            if progress is not None:
                progress(images / len(dataset))

        return eval_batches(dataset, predictor.preprocess, _ROWS), count


@dataclass(frozen=True)
class Choice:
    """The members of a greedy soup."""

    shares: tuple[float, ...]
    """1 for each member of the soup and 0 for the others"""
    accuracies: tuple[float, ...]
    """Of each input alone, in [0, 1]"""
    accuracy: float
    """Of the soup"""
    n: int
    """Validation images"""

    def to_dict(self) -> dict[str, Any]:
        """Return what `merge.yaml` says of it."""
        return {
            "greedy": {
                "split": "val",
                "n": self.n,
                "accuracies": list(self.accuracies),
                "accuracy": self.accuracy,
            }
        }


def needs_images(merger: Merger) -> bool:
    """Return whether a merge looks at images."""
    return isinstance(merger, (Fisher, RegMean)) or (isinstance(merger, Soup) and merger.greedy)


def choose(
    model: Predictor, members: Sequence[Stored], task: Task, progress: Share | None = None
) -> Choice:
    """Choose the members of a greedy soup on the task's `val` split.

    Members are sorted by their own accuracy, the first of equals first. The best one starts; each
    further one stays if the accuracy of the equal mean does not fall.

    Args:
        model: Of the members' architecture; its weights are overwritten.
        members: Their tensors.
        task: Where the images come from.
        progress: Told about finished work.

    Raises:
        DataError: If the task has no `val` split.

    Source: Wortsman et al. 2022, "Model soups", arXiv 2203.05482, recipe 1.
    """
    dataset = task.open("val")
    steps = 2 * len(members) - 1

    def accuracy(shares: Sequence[float]) -> float:
        used = [member for member, share in zip(members, shares, strict=True) if share]
        fill(model, used, Soup())
        outputs = predict(model, dataset, task.templates)
        if progress is not None:
            progress(1.0 / steps)
        return top1(outputs.logits, outputs.labels)

    def only(numbers: Sequence[int]) -> tuple[float, ...]:
        return tuple(float(number in numbers) for number in range(len(members)))

    alone = [accuracy(only([number])) for number in range(len(members))]
    order = [int(number) for number in np.argsort([-value for value in alone], kind="stable")]
    chosen, best = order[:1], alone[order[0]]
    for number in order[1:]:
        tried = accuracy(only([*chosen, number]))
        if tried >= best:
            chosen, best = [*chosen, number], tried
    return Choice(only(chosen), tuple(alone), best, len(dataset))


@contextmanager
def measured(
    members: Sequence[Member],
    merger: Merger,
    task: Task | None,
    work: Path,
    progress: Share | None = None,
) -> Iterator[Sequence[Tensors]]:
    """Yield what a merger must know of each member; nothing for most.

    Measured one member after another and kept in files, so that it never meets in memory.

    Raises:
        DataError: If images are missing.
        TaskError: If they have captions and no classes.
    """
    if not isinstance(merger, (Fisher, RegMean)):
        yield ()
        return
    assert task is not None
    files = []
    for number, member in enumerate(members):
        predictor = Predictor.load(member.directory)
        share = None if progress is None else _part(progress, len(members))
        batches, count = task.batches(predictor, merger.examples, share)
        names = _classes(task)
        if isinstance(merger, Fisher):
            found = fisher(
                predictor, batches, names, task.templates,
                exact=merger.exact, seed=merger.seed, count=count,
            )  # fmt: skip
        else:
            tokens = predictor.prompts(names, task.templates).flatten(0, 1)
            found = grams(predictor, batches, tokens, count=count)
        work.mkdir(parents=True, exist_ok=True)
        files.append(work / f"known-{number}.safetensors")
        save_file({name: value.contiguous() for name, value in found.items()}, files[-1])
        del predictor, found
    with opened(files) as known:
        yield known


def _classes(task: Task) -> tuple[str, ...]:
    dataset = task.open(task.data.split)
    if dataset.captioned:
        raise TaskError(
            f"the inputs were trained on captions ({task.data.name}), so there are no classes "
            "whose probabilities could be looked at; fisher and regmean need a task with classes."
        )
    return dataset.classes


def _part(progress: Share, parts: int) -> Share:
    return lambda share: progress(share / parts)
