"""Pictures decoded once for all epochs, and for the runs after this one: `run.cache`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from torch.utils.data import Dataset as TorchDataset

from .data import decoded
from .data.decoded import Decoded, Packed
from .data.loading import Loader
from .data.views import Dataset
from .errors import PerdureError
from .runtime import Runtime

AHEAD = 16
"""Pictures that a worker decodes at a time"""


def use_kept(
    loader: Loader, folder: Path | None, runtime: Runtime, say: Callable[[str], None]
) -> None:
    """Let the batches of a run be cut from kept pictures, which are written first where needed.

    No bit of a batch depends on it.

    Args:
        loader: Of the run.
        folder: Of all kept pictures; None for none.
        runtime: Processes, of which one writes.
        say: Told what is done, and how much space it takes.

    Raises:
        DataError: If a picture cannot be read, kept ones are damaged, or space is short.
        RunError: If they cannot be written.
    """
    if folder is None:
        return
    dataset = loader.source.dataset
    if runtime.is_main and decoded.find(folder, dataset) is None:
        _write(loader, folder, say)
    runtime.wait()
    loader.take_pictures(_found(loader, folder, say))


def _found(loader: Loader, folder: Path, say: Callable[[str], None]) -> Decoded:
    found = decoded.find(folder, loader.source.dataset)
    while found is None:  # the main process writes to the disk of another machine
        _write(loader, folder, say)
        found = decoded.find(folder, loader.source.dataset)
    return found


def _write(loader: Loader, folder: Path, say: Callable[[str], None]) -> None:
    dataset = loader.source.dataset
    needed, began = decoded.need(dataset), perf_counter()
    decoded.require_room(folder, needed)
    say(
        f"Decoding {len(dataset):,} pictures to {folder}, about {needed / 1e6:,.1f} MB; runs after "
        "this one find them there."
    )
    starts = range(0, len(dataset), AHEAD)
    parts = loader.loaded(_Decoding(dataset), starts)
    decoded.keep(folder, dataset, (picture for part in parts for picture in part))
    say(f"Decoded in {perf_counter() - began:.1f} s, which training time does not include.")


class _Decoding(TorchDataset["list[Packed] | PerdureError"]):
    """Some pictures from a position on; lives in the workers."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, start: int) -> list[Packed] | PerdureError:
        rows = range(start, min(start + AHEAD, len(self.dataset)))
        try:
            return [decoded.pack(self.dataset.image(row)) for row in rows]
        except PerdureError as error:
            return error
