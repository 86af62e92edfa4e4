"""What this machine offers, and what is wrong with the installation."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from . import __version__, zoo
from .data.datasets import DATASETS, templates_for
from .errors import PerdureError
from .extras import EXTRAS
from .rundir import leftovers
from .runtime import default_threads, physical_cores

NEEDED = (
    "torch", "torchvision", "open_clip_torch", "timm", "safetensors", "huggingface_hub", "numpy",
    "pillow", "pyyaml", "pydantic", "typer", "rich", "matplotlib",
)  # fmt: skip
"""Distributions that perdure cannot work without"""

OPTIONAL: dict[str, str] = {
    name: f"{extra.use} ({extra.command})" for name, extra in EXTRAS.items()
}
"""Distributions that some things need, and what for"""

VARIABLES: dict[str, str] = {
    "OMP_NUM_THREADS": "threads of torch where a recipe does not say",
    "CUDA_VISIBLE_DEVICES": "GPUs that torch may see",
    "HF_HUB_OFFLINE": "1: models of the hub come from the cache only",
    "HF_HOME": "cache of the hub",
    "WORLD_SIZE": "processes, set by torchrun",
}
"""Environment variables that change what perdure does"""

ROOM = 1_000_000_000
"""Free bytes below which the disk gets a warning; a run of ViT-B/16 with its states takes more"""


@dataclass(frozen=True)
class Report:
    """The answers; with a fault perdure does not work, with a warning it works worse."""

    versions: Mapping[str, str | None]
    """Needed distributions; None where one is missing"""
    platform: str
    cores: Mapping[str, int]
    """`physical` that this process may use, and `logical` of the machine"""
    threads: Mapping[str, int]
    """`torch` now, and `run`, which a recipe without run.threads gets"""
    devices: tuple[str, ...]
    """Names for run.device, the one of "auto" first"""
    extras: Mapping[str, str | None]
    """Optional distributions; None where one is missing"""
    disk: Mapping[str, int]
    """Free bytes, `here` and for `temporary` files"""
    models: Mapping[str, float | None]
    """Bundled models, and the seconds that loading and running them takes; None if they do not"""
    data: Mapping[str, str]
    """Data sets: "embedded", or that recipes must name their root"""
    variables: Mapping[str, str | None]
    """Environment variables that matter; None where unset"""
    warnings: tuple[str, ...]
    faults: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for programs."""
        return asdict(self)


def examine(folder: Path | None = None) -> Report:
    """Look at versions, threads, devices, disk, bundled models and the environment.

    Args:
        folder: Where runs would be written; the current directory by default.
    """
    folder = folder or Path()
    models, faults = _models()
    needed = _versions(NEEDED)
    faults += [
        f"the package {name} is missing; install it with: pip install {name}"
        for name, found in needed.items()
        if found is None
    ]
    data, broken = _data()
    cores = {"physical": physical_cores(), "logical": os.cpu_count() or 1}
    threads = {"torch": torch.get_num_threads(), "run": default_threads()}
    disk = {
        "here": shutil.disk_usage(folder).free,
        "temporary": shutil.disk_usage(tempfile.gettempdir()).free,
    }
    writable = os.access(folder, os.W_OK)
    return Report(
        {"perdure": __version__, "python": platform.python_version(), **needed},
        platform.platform(),
        cores,
        threads,
        tuple(_devices()),
        _versions(OPTIONAL),
        disk,
        models,
        data,
        {name: os.environ.get(name) for name in VARIABLES},
        (*_warnings(cores["physical"], threads["run"], disk, writable), *_left(folder)),
        (*faults, *broken),
    )


def _versions(names: Iterable[str]) -> dict[str, str | None]:
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    """Return what run.device may be, best first as "auto" chooses."""
    gpus = [
        f"cuda:{index} ({torch.cuda.get_device_name(index)})"
        for index in range(torch.cuda.device_count())
    ]
    apple = ["mps"] if torch.backends.mps.is_available() else []
    return [*gpus, "cpu", *apple]  # "auto" takes a CUDA device or the CPU


def _models() -> tuple[dict[str, float | None], list[str]]:
    """Load every bundled model and embed a picture and a text with it."""
    seconds: dict[str, float | None] = {}
    faults = []
    for name in zoo.MODELS:
        began = perf_counter()
        fault = _model_fault(name)
        seconds[name] = None if fault else perf_counter() - began
        faults += [f"the bundled model {name} does not work: {fault}"] if fault else []
    return seconds, faults


def _model_fault(name: str) -> str | None:
    try:
        model = zoo.load(name)
        size = model.preprocess.size
        with torch.no_grad():
            pair = model(torch.zeros(1, 3, size, size), model.tokenizer(["a photo"]))
    except (PerdureError, OSError, RuntimeError) as error:
        return f"{error} Install perdure again."
    finite = bool(pair.image.isfinite().all() and pair.text.isfinite().all())
    return None if finite else "its embeddings are not finite. Install perdure again."


def _data() -> tuple[dict[str, str], list[str]]:
    """Return where data sets are, and which of the embedded ones are damaged."""
    places = {}
    faults = []
    for name, reader in DATASETS.items():
        places[name] = "embedded" if reader.embedded else "at data.root of a recipe"
        fault = _data_fault(name) if reader.embedded else None
        faults += [f"the embedded data set {name} does not work: {fault}"] if fault else []
    return places, faults


def _data_fault(name: str) -> str | None:
    from .data.datasets import open_dataset

    try:
        templates_for(name)
        open_dataset(name, "val").image(0)
    except (PerdureError, OSError, ValueError) as error:
        return f"{error} Install perdure again."
    return None


def _left(folder: Path) -> list[str]:
    """Say what killed processes left in directories of runs."""
    try:
        found = leftovers(folder)
    except OSError:  # a directory that may not be read; whoever writes there will be told
        return []
    if not found:
        return []
    shown = ", ".join(map(str, found[:3]))
    return [
        f"killed processes left half-written files behind, {len(found)} in all: {shown}. Nothing "
        "reads them; delete them."
    ]


def _warnings(physical: int, threads: int, disk: Mapping[str, int], writable: bool) -> list[str]:
    found = []
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked and not (asked.isdigit() and int(asked) > 0):
        found.append(
            f"OMP_NUM_THREADS is {asked!r}, which is no number of threads; set it to 1 or more, "
            "or unset it."
        )
    if threads > physical:
        found.append(
            f"runs take {threads} threads, but only {physical} physical cores may be used; more "
            f"threads are slower: set OMP_NUM_THREADS={physical}."
        )
    found += [
        f"only {free / 1e6:.0f} MB are free ({place}); states of large models need more."
        for place, free in disk.items()
        if free < ROOM
    ]
    if not writable:
        found.append("nothing can be written here; give --out a directory elsewhere.")
    return found
