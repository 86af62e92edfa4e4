"""From images on disk and class names to batches, in an order that depends on nothing but the seed.

Example `i` of epoch `e` gets the same augmentation and the same prompt whoever loads it: the
training process, one of many workers, or another process of a distributed run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..batch import Batch
from ..errors import DataError, PerdureError
from ..inputs import Preprocess, Tokenizer
from .augment import AUGMENTS as AUGMENTS
from .augment import Augment as Augment
from .augment import fit as fit
from .cache import open_kept
from .caption_tokens import Captions as Captions
from .datasets import Dataset, texts_of, transform_of
from .sampling import batch_indices, draw_rng, place, shard, steps_per_epoch
from .views import Part, channels_of, with_masks


class Pictures(Protocol):
    """What crops are cut from: a data set, or its pictures decoded before."""

    def image(self, index: int) -> Tensor:
        """Return one picture, (3, H, W), uint8; callers do not change it."""


class Raw(NamedTuple):
    """A batch before it is on the device and normalised: a quarter of the bytes."""

    images: Tensor
    tokens: Tensor
    labels: Tensor
    rows: Tensor
    """(B,), in the features of all views"""


@contextmanager
def alive_workers() -> Iterator[None]:
    """Explain the end of a process that loads pictures, instead of torch's traceback.

    Torch raises it in whatever the main process is doing at that moment.

    Raises:
        DataError: If such a process was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that loads pictures was ended from outside ({error}). Usually memory ran "
            "out, or /dev/shm did: use fewer run.workers, none (run.workers=0), or a smaller "
            "optim.batch_size. What was saved is kept; go on with --resume."
        ) from None


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
        views: Number of epochs after which augmentation and prompt of every image come again; None
            for new ones in every epoch.

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
        views: int | None = None,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(len(dataset), batch_size)
        self.images = len(dataset)
        self._preprocess = preprocess
        self._workers = workers
        self._fused = transform_of(dataset) == "fast"
        self._device = device or torch.device("cpu")
        self._features: Tensor | None = None
        captions = Captions(dataset.classes, templates, tokenizer, trim, cut=cut)
        self.source = Source(
            dataset, preprocess, captions, batch_size, seed, augment, rank, world_size, views
        )

    def raw(self, step: int) -> Raw:
        """Return the batch of an optimiser step as workers make it and the device receives it.

        Raises:
            DataError: If an example cannot be read.
        """
        return self.source.load(step)

    def batches(self, start_step: int, total_steps: int) -> Generator[Batch, None, None]:
        """Yield the batches of optimiser steps `start_step` + 1, ..., `total_steps`.

        Closing the generator ends the workers.

        Raises:
            DataError: If an example cannot be read.
        RuntimeError: If a worker was killed; `alive_workers` explains it.
        """
        raw: Raw
        with closing(self.loaded(self.source, range(start_step + 1, total_steps + 1))) as loaded:
            for raw in loaded:
                known = self._features
                yield Batch(
                    self.normalized(raw.images),
                    raw.tokens.to(self._device, non_blocking=True),
                    raw.labels.to(self._device, non_blocking=True),
                    None if known is None else known[raw.rows.to(self._device, non_blocking=True)],
                )

    def take_features(self, features: Tensor) -> None:
        """Let batches have features in the place of images from now on.

        Args:
            features: (views x N, D), unit rows on the loader's device: of all images in the first
                view, then of all in the second, as far as batches will ask for them.
        """
        self._features = features
        self.source.embedded = True

    def add_masks(self) -> None:
        """Let images come with their masks as a fourth channel from now on, where they have any."""
        self.source.dataset = self.source.pictures = with_masks(self.source.dataset)

    def take_pictures(self, pictures: Pictures) -> None:
        """Let batches be cut from these pictures, the same in the same order, from now on."""
        self.source.pictures = pictures

    def normalized(self, images: Tensor) -> Tensor:
        """Bring pixels (B, 3, H, W) to the device and to the model's range."""
        moved = images.to(self._device, non_blocking=True)
        return self._preprocess.normalize(moved, fused=self._fused)

    def loaded(self, source: TorchDataset[Any], numbers: range) -> Generator[Any, None, None]:
        """Yield items of a source in order, from the workers if there are any.

        Raises:
            PerdureError: If it is such an item.
        """
        return _loaded(source, numbers, self._workers, pin=self._device.type == "cuda")


class Source(TorchDataset["Raw | PerdureError"]):
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
        views: int | None,
    ) -> None:
        self.dataset = dataset
        self.pictures: Pictures = dataset
        self.texts = texts_of(dataset)
        self.preprocess = preprocess
        self.captions = captions
        self.batch_size = batch_size
        self.seed = seed
        self.augment: Augment = augment
        self.rank = rank
        self.world_size = world_size
        self.views = views
        self.embedded = False
        """Whether images are not looked at any more"""

    def __getitem__(self, step: int) -> Raw | PerdureError:
        try:
            return self.load(step)
        except PerdureError as error:
            return error

    def load(self, step: int) -> Raw:
        """Return the batch of an optimiser step."""
        n = len(self.dataset)
        indices = batch_indices(n, self.batch_size, step, self.seed)
        mine = shard(indices, self.rank, self.world_size)
        epoch = place(n, self.batch_size, step).epoch
        view = epoch if self.views is None else epoch % self.views
        images, templates = self.draw(mine, np.full(len(mine), view))
        labels = self.dataset.labels[mine]
        tokens = self.captions.pick(self.texts[mine], templates)
        rows = torch.from_numpy(view * n + mine)
        return Raw(images, tokens, torch.from_numpy(labels), rows)

    def draw(
        self, indices: NDArray[np.int64], views: NDArray[np.int64]
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """Return images (B, 3, H, W) in given views, and which templates they come with, (B,)."""
        templates = np.zeros(len(indices), dtype=np.int64)
        size, mode = self.preprocess.size, self.preprocess.interpolation
        side = 0 if self.embedded else size
        channels = channels_of(self.dataset)
        images = torch.empty(len(indices), channels, side, side, dtype=torch.uint8)
        for position, (index, view) in enumerate(zip(indices, views, strict=True)):
            rng = draw_rng(self.seed, int(view), int(index))
            templates[position] = rng.integers(self.captions.templates)
            if not self.embedded:
                image = self.pictures.image(int(index))
                images[position] = AUGMENTS[self.augment](image, size, mode, rng)
        return images, templates


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
    loaded: Iterator[Tensor] = _loaded(source, starts, workers, pin=place.type == "cuda")
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
        images = torch.empty(len(part), channels_of(self.dataset), size, size, dtype=torch.uint8)
        try:
            for position, index in enumerate(part):
                images[position] = fit(self.dataset.image(int(index)), size, mode)
        except PerdureError as error:
            return error
        return images


def _loaded(
    source: TorchDataset[Any], items: Sequence[int], workers: int, *, pin: bool
) -> Generator[Any, None, None]:
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
    iterator = iter(loaded)
    try:
        for found in iterator:
            if isinstance(found, PerdureError):
                raise found
            yield found
    finally:
        # A traceback may keep the iterator alive, and torch then complains again about a killed
        # worker whenever any other process of the session ends.
        getattr(iterator, "_shutdown_workers", _nothing)()


def _nothing() -> None:
    """End no worker."""
