"""From images on disk and class names to batches, in an order that depends on nothing but the seed.

Example `i` of epoch `e` gets the same augmentation and the same prompt whoever loads it: the
training process, one of many workers, or another process of a distributed run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..batch import Batch
from ..errors import PerdureError
from ..inputs import Preprocess, Tokenizer
from .augment import AUGMENTS as AUGMENTS
from .augment import Augment as Augment
from .augment import fit as fit
from .cache import open_kept
from .caption_tokens import Captions as Captions
from .datasets import Dataset, texts_of, transform_of
from .sampling import batch_indices, draw_rng, place, shard, steps_per_epoch
from .views import Part


class Raw(NamedTuple):
    """A batch before it is on the device and normalised: a quarter of the bytes."""

    images: Tensor
    tokens: Tensor
    labels: Tensor


class Loader:
    """Training batches of captioned images.

    Args:
        dataset: What to train on.
        preprocess: Of the model.
        tokenizer: Of the model.
        templates: Prompts; each image gets one of them at random in each epoch.
        batch_size: Examples per step, over all processes.
        seed: Of order, prompts and augmentation.
        augment: Random changes of the images.
        workers: Processes that load ahead; 0 loads when a batch is asked for.
        trim: Cuts tokens (N, L) where that changes no embedding, such as `Predictor.trim`.
        device: Where batches end up.
        rank: Of this process among `world_size`, which split every batch between them.
        world_size: Processes of the run.
        cut: Whether texts longer than the model's context lose their end instead of being refused.

    Raises:
        DataError: If a class name is empty or there is nothing to train on.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        templates: Sequence[str],
        *,
        batch_size: int,
        seed: int,
        augment: Augment = "none",
        workers: int = 0,
        trim: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | None = None,
        rank: int = 0,
        world_size: int = 1,
        cut: bool = False,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(len(dataset), batch_size)
        self._preprocess = preprocess
        self._workers = workers
        self._fused = transform_of(dataset) == "fast"
        self._device = device or torch.device("cpu")
        captions = Captions(dataset.classes, templates, tokenizer, trim, cut=cut)
        self._source = _Source(
            dataset, preprocess, captions, batch_size, seed, augment, rank, world_size
        )

    def raw(self, step: int) -> Raw:
        """Return the batch of an optimiser step as workers make it and the device receives it.

        Raises:
            DataError: If an example cannot be read.
        """
        return self._source.load(step)

    def batches(self, start_step: int, total_steps: int) -> Iterator[Batch]:
        """Yield the batches of optimiser steps `start_step` + 1, ..., `total_steps`.

        Raises:
            DataError: If an example cannot be read.
        """
        numbers = range(start_step + 1, total_steps + 1)
        pin = self._device.type == "cuda"
        raw: Raw
        for raw in _loaded(self._source, numbers, self._workers, pin=pin):
            images = raw.images.to(self._device, non_blocking=True)
            yield Batch(
                self._preprocess.normalize(images, fused=self._fused),
                raw.tokens.to(self._device, non_blocking=True),
                raw.labels.to(self._device, non_blocking=True),
            )


class _Source(TorchDataset["Raw | PerdureError"]):
    """Batches by the number of their optimiser step; lives in the workers."""

    def __init__(
        self,
        dataset: Dataset,
        preprocess: Preprocess,
        captions: Captions,
        batch_size: int,
        seed: int,
        augment: Augment,
        rank: int,
        world_size: int,
    ) -> None:
        self.dataset = dataset
        self.texts = texts_of(dataset)
        self.preprocess = preprocess
        self.captions = captions
        self.batch_size = batch_size
        self.seed = seed
        self.augment: Augment = augment
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, step: int) -> Raw | PerdureError:
        try:
            return self.load(step)
        except PerdureError as error:
            return error

    def load(self, step: int) -> Raw:
        """Return the batch of an optimiser step."""
        indices = batch_indices(len(self.dataset), self.batch_size, step, self.seed)
        mine = shard(indices, self.rank, self.world_size)
        epoch = place(len(self.dataset), self.batch_size, step).epoch
        templates = np.zeros(len(mine), dtype=np.int64)
        size, mode = self.preprocess.size, self.preprocess.interpolation
        images = torch.empty(len(mine), 3, size, size, dtype=torch.uint8)
        for position, index in enumerate(mine):
            rng = draw_rng(self.seed, epoch, int(index))
            templates[position] = rng.integers(self.captions.templates)
            image = self.dataset.image(int(index))
            images[position] = AUGMENTS[self.augment](image, size, mode, rng)
        labels = self.dataset.labels[mine]
        tokens = self.captions.pick(self.texts[mine], templates)
        return Raw(images, tokens, torch.from_numpy(labels))


def eval_batches(
    dataset: Dataset,
    preprocess: Preprocess,
    batch_size: int,
    *,
    device: torch.device | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    cache: Path | None = None,
) -> Iterator[Tensor]:
    """Yield the images of this process in order, normalised (B, 3, H, W), without augmentation.

    Processes take contiguous parts, so joining their results by rank restores the order.

    Args:
        dataset: Images.
        preprocess: Of the model.
        batch_size: Images at once.
        device: Where batches end up, uint8 before they are normalised; the CPU by default.
        rank: Of this process among `world_size`.
        world_size: Processes that share the images.
        workers: Processes that load ahead; 0 loads when a batch is asked for.
        cache: Folder in which pixels are kept, and read where they are there; see `data.cache`.
            Each process of several keeps its own part.

    Raises:
        DataError: If an image cannot be read, or a kept one is damaged.
        RunError: If pixels cannot be kept.
    """
    place, fused = device or torch.device("cpu"), transform_of(dataset) == "fast"
    mine = shard(np.arange(len(dataset)), rank, world_size)
    source = _Fitted(dataset, preprocess, mine, batch_size)
    starts = range(0, len(mine), batch_size)
    loaded = _loaded(source, starts, workers, pin=place.type == "cuda")
    if cache is not None and len(mine):
        part = dataset if world_size == 1 else Part(dataset, mine)
        pixels = open_kept(cache, part, preprocess, loaded)
        loaded = (torch.tensor(pixels[start : start + batch_size]) for start in starts)
    for images in loaded:
        yield preprocess.normalize(images.to(place, non_blocking=True), fused=fused)


class _Fitted(TorchDataset["Tensor | PerdureError"]):
    """Images of the model's size from a position on; lives in the workers."""

    def __init__(
        self, dataset: Dataset, preprocess: Preprocess, indices: NDArray[np.int64], batch_size: int
    ) -> None:
        self.dataset = dataset
        self.preprocess = preprocess
        self.indices = indices
        self.batch_size = batch_size

    def __getitem__(self, start: int) -> Tensor | PerdureError:
        part = self.indices[start : start + self.batch_size]
        size, mode = self.preprocess.size, self.preprocess.interpolation
        images = torch.empty(len(part), 3, size, size, dtype=torch.uint8)
        try:
            for position, index in enumerate(part):
                images[position] = fit(self.dataset.image(int(index)), size, mode)
        except PerdureError as error:
            return error
        return images


def _loaded(
    source: TorchDataset[Any], items: Sequence[int], workers: int, *, pin: bool
) -> Iterator[Any]:
    """Yield items of a source in order, loaded ahead where there are workers.

    Raises:
        PerdureError: Which a source returns instead of an item, because torch would bury its text
            in a worker's traceback.
    """
    loaded: DataLoader[Any] = DataLoader(
        source,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator(),  # else it draws from the learner's random numbers
    )
    for item in loaded:
        if isinstance(item, PerdureError):
            raise item
        yield item
