"""From images on disk and class names to batches, in an order that depends on nothing but the seed.

Example `i` of epoch `e` gets the same augmentation and the same prompt whoever loads it: the
training process, one of many workers, or another process of a distributed run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..batch import Batch
from ..errors import DataError, PerdureError
from ..inputs import Preprocess, Tokenizer
from .caption_tokens import Captions as Captions
from .datasets import Dataset, texts_of
from .sampling import batch_indices, draw_rng, place, shard, steps_per_epoch

Augment = Literal["none", "flip-shift", "crop", "crop-flip", "wide-crop-flip"]
"""Nothing; mirror and shift by up to 2 pixels; crop of .9 to 1 of the area, resized (FLYP, CaRot);
that and mirror (TRACER); crop of .08 to 1 and mirror (CoOp and its descendants)."""

_SHIFT = 2
_CROP_AREA = (0.9, 1.0)
_WIDE_CROP_AREA = (0.08, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)


class _Raw(NamedTuple):
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
        self._device = device or torch.device("cpu")
        self._features: Tensor | None = None
        captions = Captions(dataset.classes, templates, tokenizer, trim, cut=cut)
        self.source = Source(
            dataset, preprocess, captions, batch_size, seed, augment, rank, world_size, views
        )

    def batches(self, start_step: int, total_steps: int) -> Generator[Batch, None, None]:
        """Yield the batches of optimiser steps `start_step` + 1, ..., `total_steps`.

        Closing the generator ends the workers.

        Raises:
            DataError: If an example cannot be read.
        RuntimeError: If a worker was killed; `alive_workers` explains it.
        """
        raw: _Raw
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

    def normalized(self, images: Tensor) -> Tensor:
        """Bring pixels (B, 3, H, W) to the device and to the model's range."""
        return self._preprocess.normalize(images.to(self._device, non_blocking=True))

    def loaded(self, source: TorchDataset[Any], numbers: range) -> Generator[Any, None, None]:
        """Yield items of a source in order, from the workers if there are any.

        Raises:
            PerdureError: If it is such an item.
        """
        loaded: DataLoader[Any] = DataLoader(
            source,
            batch_size=None,
            sampler=numbers,
            num_workers=self._workers,
            pin_memory=self._device.type == "cuda",
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


class Source(TorchDataset["_Raw | PerdureError"]):
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

    def __getitem__(self, step: int) -> _Raw | PerdureError:
        try:
            return self._load(step)
        except PerdureError as error:  # torch would bury its text in a worker's traceback
            return error

    def _load(self, step: int) -> _Raw:
        n = len(self.dataset)
        indices = batch_indices(n, self.batch_size, step, self.seed)
        mine = shard(indices, self.rank, self.world_size)
        epoch = place(n, self.batch_size, step).epoch
        view = epoch if self.views is None else epoch % self.views
        images, templates = self.draw(mine, np.full(len(mine), view))
        labels = self.dataset.labels[mine]
        tokens = self.captions.pick(self.texts[mine], templates)
        rows = torch.from_numpy(view * n + mine)
        return _Raw(images, tokens, torch.from_numpy(labels), rows)

    def draw(
        self, indices: NDArray[np.int64], views: NDArray[np.int64]
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """Return images (B, 3, H, W) in given views, and which templates they come with, (B,)."""
        templates = np.zeros(len(indices), dtype=np.int64)
        size, mode = self.preprocess.size, self.preprocess.interpolation
        side = 0 if self.embedded else size
        images = torch.empty(len(indices), 3, side, side, dtype=torch.uint8)
        for position, (index, view) in enumerate(zip(indices, views, strict=True)):
            rng = draw_rng(self.seed, int(view), int(index))
            templates[position] = rng.integers(self.captions.templates)
            if not self.embedded:
                image = self.dataset.image(int(index))
                images[position] = AUGMENTS[self.augment](image, size, mode, rng)
        return images, templates


def _nothing() -> None:
    """End no worker."""


def eval_batches(
    dataset: Dataset,
    preprocess: Preprocess,
    batch_size: int,
    *,
    device: torch.device | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Tensor]:
    """Yield the images of this process in order, normalised (B, 3, H, W), without augmentation.

    Processes take contiguous parts, so joining their results by rank restores the order.
    """
    mine = shard(np.arange(len(dataset)), rank, world_size)
    for start in range(0, len(mine), batch_size):
        part = mine[start : start + batch_size]
        images = [
            fit(dataset.image(int(index)), preprocess.size, preprocess.interpolation)
            for index in part
        ]
        yield preprocess.normalize(torch.stack(images).to(device or torch.device("cpu")))


def fit(image: Tensor, size: int, mode: str) -> Tensor:
    """Resize the shorter side of a uint8 image (3, H, W) to `size` and cut out the centre."""
    height, width = image.shape[1:]
    if height == width == size:
        return image
    short = min(height, width)
    resized = _resize(image, (size * height // short, size * width // short), mode)
    top = round((resized.shape[1] - size) / 2)
    left = round((resized.shape[2] - size) / 2)
    return resized[:, top : top + size, left : left + size]


def _keep(image: Tensor, size: int, mode: str, rng: np.random.Generator) -> Tensor:
    return fit(image, size, mode)


def _flip_shift(image: Tensor, size: int, mode: str, rng: np.random.Generator) -> Tensor:
    down, right = rng.integers(-_SHIFT, _SHIFT + 1, size=2)
    return _mirror(fit(image, size, mode), rng).roll((int(down), int(right)), dims=(1, 2))


def _crop(
    image: Tensor,
    size: int,
    mode: str,
    rng: np.random.Generator,
    share: tuple[float, float] = _CROP_AREA,
) -> Tensor:
    """As torchvision's RandomResizedCrop: ten tries for a box of random area and aspect."""
    height, width = image.shape[1:]
    for _ in range(10):
        area = height * width * rng.uniform(*share)
        aspect = math.exp(rng.uniform(*np.log(_CROP_ASPECT)))
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top = int(rng.integers(height - rows + 1))
            left = int(rng.integers(width - columns + 1))
            box = image[:, top : top + rows, left : left + columns]
            return _resize(box, (size, size), mode)
    return fit(image, size, mode)


def _crop_flip(image: Tensor, size: int, mode: str, rng: np.random.Generator) -> Tensor:
    return _mirror(_crop(image, size, mode, rng), rng)


def _wide_crop_flip(image: Tensor, size: int, mode: str, rng: np.random.Generator) -> Tensor:
    return _mirror(_crop(image, size, mode, rng, _WIDE_CROP_AREA), rng)


def _mirror(image: Tensor, rng: np.random.Generator) -> Tensor:
    return image.flip(2) if rng.random() < 0.5 else image


def _resize(image: Tensor, shape: tuple[int, int], mode: str) -> Tensor:
    """Resize uint8 (3, H, W) as PIL does, to within one level."""
    return interpolate(image[None], shape, mode=mode, antialias=True)[0]


AUGMENTS: dict[str, Callable[[Tensor, int, str, np.random.Generator], Tensor]] = {
    "none": _keep,
    "flip-shift": _flip_shift,
    "crop": _crop,
    "crop-flip": _crop_flip,
    "wide-crop-flip": _wide_crop_flip,
}
"""From an image, the model's size and interpolation, and random numbers, to the image to use."""
