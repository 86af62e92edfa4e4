"""From images on disk and class names to batches, in an order that depends on nothing but the seed.

Example `i` of epoch `e` gets the same augmentation and the same prompt whoever loads it: the
training process, one of many workers, or another process of a distributed run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..batch import Batch
from ..errors import PerdureError
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
        self._device = device or torch.device("cpu")
        captions = Captions(dataset.classes, templates, tokenizer, trim, cut=cut)
        self._source = _Source(
            dataset, preprocess, captions, batch_size, seed, augment, rank, world_size
        )

    def batches(self, start_step: int, total_steps: int) -> Iterator[Batch]:
        """Yield the batches of optimiser steps `start_step` + 1, ..., `total_steps`.

        Raises:
            DataError: If an example cannot be read.
        """
        numbers = range(start_step + 1, total_steps + 1)
        loaded: DataLoader[Any] = DataLoader(
            self._source,
            batch_size=None,
            sampler=numbers,
            num_workers=self._workers,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the learner's random numbers
        )
        raw: _Raw | PerdureError
        for raw in loaded:
            if isinstance(raw, PerdureError):
                raise raw
            yield Batch(
                self._preprocess.normalize(raw.images.to(self._device, non_blocking=True)),
                raw.tokens.to(self._device, non_blocking=True),
                raw.labels.to(self._device, non_blocking=True),
            )


class _Source(TorchDataset["_Raw | PerdureError"]):
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

    def __getitem__(self, step: int) -> _Raw | PerdureError:
        try:
            return self._load(step)
        except PerdureError as error:  # torch would bury its text in a worker's traceback
            return error

    def _load(self, step: int) -> _Raw:
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
        return _Raw(images, tokens, torch.from_numpy(labels))


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
