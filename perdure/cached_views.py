"""Image features embedded once, before training: a declared number of views of every image.

With `data.views: V` the augmentations of V epochs come again and again, and the frozen image tower
embeds each of them once. This changes what is trained on, not only how fast: V views in the place
of new ones in every epoch. So recipe, status, log, scores and reports say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from .batch import Batch
from .collective import gather
from .data.loading import Loader, Source
from .data.sampling import shard
from .errors import PerdureError, TaskError
from .learner import Learner
from .run import Run
from .runtime import Runtime

_QUIET = 10.0
"""Seconds between two remarks on how far the work is"""


@dataclass(frozen=True)
class Embedded:
    """What was embedded before training."""

    views: int
    """Of every image, as the recipe declares"""
    used: int
    """Of these, those that the run is long enough for"""
    images: int
    size: int
    """Bytes of all features, on every process"""
    seconds: float
    """That embedding took; not part of the training time"""
    features: Tensor = field(repr=False)
    """(used x images, D), unit rows, as `Loader.take_features` wants them"""

    def tell(self, run: Run) -> None:
        """Say in the status and the log of a run what was done."""
        about = {"views": self.views, "view_bytes": self.size, "view_seconds": self.seconds}
        run.update_status(**about)
        run.log({"step": 0, **about})


def reuse(made: Embedded | None, loader: Loader) -> None:
    """Let the batches of another loader of the same run have features too, if there are any."""
    if made is not None:
        loader.take_features(made.features)


def require_fixed(learner: Learner, views: int | None) -> None:
    """Refuse cached views for a learner that needs the images themselves.

    Raises:
        TaskError: If views are declared and image features change while it trains.
    """
    if views is not None and not learner.fixed_features:
        raise TaskError(
            f"data.views is {views}: every view of an image would be embedded once, before "
            "training. But this method changes the image tower while it trains, or looks at the "
            "images itself. Set data.views to null, or take a method whose image tower is frozen: "
            "coop, kgcoop, ft with train: head, or mergetune over one of them."
        )


def embed_views(
    learner: Learner,
    loader: Loader,
    views: int | None,
    total_steps: int,
    runtime: Runtime,
    say: Callable[[str], None],
) -> Embedded | None:
    """Embed all views that a run will use, and let its batches have features; None without views.

    Processes share the work, and each keeps all features.

    Args:
        learner: As `require_fixed` wants it, on the device of `runtime`.
        loader: Of the run.
        views: As the recipe declares.
        total_steps: Of the run.
        runtime: Device, precision of the tower and processes.
        say: Told what is done, and how far it is.

    Raises:
        DataError: If an image cannot be read.
    """
    if views is None:
        return None
    used = views_used(views, loader, total_steps)
    began = told = perf_counter()
    size = learner.student.preprocess.size
    none = embed(learner, torch.empty(0, 3, size, size, device=runtime.device), runtime)
    total, width = used * loader.images, none.shape[1]
    mine = shard(np.arange(total), runtime.rank, runtime.world_size)
    rows, done = none.new_empty(len(mine), width), 0
    held = total * width * none.element_size()
    most = f" (a run of this length uses no more of the {views} declared)" if used < views else ""
    say(
        f"Embedding {counted(used)} of each of {loader.images:,} images{most} before training: "
        f"{held / 1e6:,.1f} MB of features."
    )
    for images in view_batches(loader, used):
        rows[done : done + len(images)] = embed(learner, images, runtime)
        done += len(images)
        if done < len(rows) and perf_counter() - told >= _QUIET:
            told = perf_counter()
            left = (told - began) * (len(rows) / done - 1)
            say(f"Embedded {done / len(rows):.0%} of the views, {left:.0f} s left.")
    features = gather(rows)
    loader.take_features(features)
    made = Embedded(views, used, loader.images, held, perf_counter() - began, features)
    say(f"Embedded in {made.seconds:.1f} s, which training time does not include.")
    return made


def views_used(views: int, loader: Loader, total_steps: int) -> int:
    """Return how many of the views declared a run is long enough for."""
    return min(views, -(-total_steps // loader.steps_per_epoch))


def counted(views: int) -> str:
    """Return a number of views for people."""
    return f"{views} cached view{'s'[: views > 1]}"


@torch.no_grad()
def embed(learner: Learner, images: Tensor, runtime: Runtime) -> Tensor:
    """Return the features of images (B, 3, H, W) as a training step would, unit rows (B, D)."""
    with runtime.autocast():
        return learner.student.encode_image(images)


def first_batches(
    learner: Learner, loader: Loader, views: int | None, count: int, runtime: Runtime
) -> Iterable[Batch]:
    """Return the batches of the first steps; with views embedded here, for a look at these steps.

    Raises:
        DataError: If an example cannot be read.
    """
    found = loader.batches(0, count)
    if views is None:
        return found
    # All of them before the first step, as in a run, where the tower is not part of any step.
    return [
        batch._replace(
            images=batch.images[:, :, :0, :0], features=embed(learner, batch.images, runtime)
        )
        for batch in found
    ]


def view_batches(loader: Loader, views: int) -> Iterator[Tensor]:
    """Yield this process's part of the images of all views, normalised (B, 3, H, W).

    First all images in the first view, then all in the second, ...; parts of processes are
    contiguous.

    Raises:
        DataError: If an image cannot be read.
    """
    source = loader.source
    mine = shard(np.arange(views * loader.images), source.rank, source.world_size)
    size = source.batch_size
    parts = [mine[start : start + size] for start in range(0, len(mine), size)]
    for images in loader.loaded(_Views(source, parts), range(len(parts))):
        yield loader.normalized(images)


class _Views(TorchDataset["Tensor | PerdureError"]):
    """Images of several views; lives in the workers.

    Args:
        source: Draws them.
        parts: Places of every batch: view times number of images, plus index.
    """

    def __init__(self, source: Source, parts: Sequence[NDArray[np.int64]]) -> None:
        self.source = source
        self.parts = parts

    def __getitem__(self, number: int) -> Tensor | PerdureError:
        views, indices = np.divmod(self.parts[number], len(self.source.dataset))
        try:
            return self.source.draw(indices, views)[0]
        except PerdureError as error:  # as in batches
            return error
