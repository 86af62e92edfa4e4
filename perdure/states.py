"""Resumable states: everything a run needs to go on as if it had never stopped.

A state is a directory of safetensors and JSON; nothing in it is unpickled. It is written under
another name and renamed when whole, and its file COMPLETE lists the sizes of the others, so a state
that was cut short, by a kill or by a copy, is never mistaken for a good one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import RunError
from .files import read_json, remove_unfinished, whole_directory, write_json

FORMAT = 1
"""Version of the saved form"""

_COMPLETE = "COMPLETE"
_LEARNER = "learner.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_CURSOR = "cursor.json"


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where a run stands, besides its weights and averages."""

    step: int
    """Finished optimiser steps"""
    seconds: float = 0.0
    """Time trained so far"""
    best_step: int | None = None
    """Step with the best validation so far"""
    best_value: float | None = None
    """Mean accuracy over the validation splits there, in [0, 1]"""
    good_step: int = 0
    """Last step at which the guard found nothing; 0 before the first look"""
    scaler: dict[str, Any] = field(default_factory=dict)
    """Loss scale of fp16"""


def save_state(folder: Path, cursor: Cursor, learner: nn.Module, optimizer: Optimizer) -> Path:
    """Write a state into `folder` and return its directory.

    Raises:
        RunError: If it cannot be written; states that were there are untouched.
    """
    path = folder / f"step_{cursor.step:08d}"
    groups = optimizer.state_dict()
    tensors = {
        f"{index}/{name}": value
        for index, values in groups["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    with whole_directory(path) as fresh:
        save_model(learner, str(fresh / _LEARNER))  # knows parameters that have two names
        save_file(tensors, fresh / _OPTIMIZER)
        record = {"format": FORMAT, **asdict(cursor), "groups": groups["param_groups"]}
        write_json(fresh / _CURSOR, record)
        write_json(fresh / _COMPLETE, {file.name: file.stat().st_size for file in fresh.iterdir()})
    return path


def load_state(path: Path, learner: nn.Module, optimizer: Optimizer) -> Cursor:
    """Put a learner and an optimiser, built as before, into a saved state.

    Raises:
        RunError: If the state does not fit them, is damaged, or is of a newer version.
    """
    record = read_json(path / _CURSOR)
    if record.pop("format", None) != FORMAT:
        raise RunError(
            f"{path} was saved in another format than {FORMAT}, the one this version reads; "
            "resume with the version of perdure that env.json names."
        )
    groups = record.pop("groups", None)
    try:
        cursor = TypeAdapter(Cursor).validate_python(record)
        if cursor.step < 1:
            raise ValueError(f"its step is {cursor.step}")
        load_model(learner, path / _LEARNER)
        values: dict[int, dict[str, Tensor]] = {}
        for key, tensor in load_file(path / _OPTIMIZER).items():
            index, _, name = key.partition("/")
            values.setdefault(int(index), {})[name] = tensor
        own = _groups_of(groups, optimizer)
        optimizer.load_state_dict({"state": values, "param_groups": own})
        _require_shapes(optimizer)
        return cursor
    except (
        SafetensorError, OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError
    ) as error:  # fmt: skip
        raise RunError(
            f"the state {path} does not fit this run ({error}). "
            "Delete it to resume from the one before, or start again in another directory."
        ) from error


def load_part(path: Path, learner: nn.Module) -> None:
    """Fill a learner from the saved state of one that has everything it has, and more.

    Raises:
        RunError: If something is missing or of another shape, or the state is damaged.
    """
    try:
        missing, _ = load_model(learner, path / _LEARNER, strict=False)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise RunError(f"the state {path} does not fit ({error}); train again.") from error
    if missing:
        raise RunError(
            f"the state {path} does not hold {', '.join(sorted(missing)[:3])}; train again."
        )


def _groups_of(saved: Any, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the optimiser's own parameter groups if the saved ones hold the same parameters.

    Their numbers follow from the recipe and the step, so those in the file are not needed.
    """
    own: list[dict[str, Any]] = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved] != [group["params"] for group in own]:
        raise ValueError("its parameter groups are not those of the recipe")
    return own


def _require_shapes(optimizer: Optimizer) -> None:
    """Refuse averages that have another shape than the parameter they belong to."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape not in (parameter.shape, ()):
                raise ValueError(
                    f"{name} of the optimiser is {tuple(value.shape)}, its parameter "
                    f"{tuple(parameter.shape)}"
                )


def complete_states(folder: Path) -> list[Path]:
    """Return the whole states in `folder`, oldest first."""
    return [path for path in sorted(folder.glob("step_*")) if _is_complete(path)]


def prune_states(folder: Path, keep: int, also: Iterable[int | None] = ()) -> None:
    """Delete all but the newest `keep` whole states and those of the steps `also`."""
    states = complete_states(folder)
    kept = {path.name for path in states[-keep:]} | {f"step_{step:08d}" for step in also if step}
    for path in folder.glob("step_*"):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
    remove_unfinished(folder)


def drop_states(folder: Path, after: int) -> None:
    """Delete the states of later steps than `after`, the newest first.

    Whenever it is cut short, what is left are states of one run, from which it can go on.
    """
    for path in sorted(folder.glob("step_*"), reverse=True):
        if path.name > f"step_{after:08d}":
            (path / _COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def state_of(folder: Path, step: int) -> Path:
    """Return the whole state of a step.

    Raises:
        RunError: If there is none.
    """
    path = folder / f"step_{step:08d}"
    if not _is_complete(path):
        raise RunError(f"the state {path} is missing or incomplete, but is needed; train again.")
    return path


def _is_complete(path: Path) -> bool:
    try:
        sizes = json.loads((path / _COMPLETE).read_text(encoding="utf-8"))
        whole = {_LEARNER, _OPTIMIZER, _CURSOR} <= set(sizes)
        return whole and all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False
