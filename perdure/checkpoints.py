"""Files of weights that others wrote, read without executing what is in them.

Checkpoints of torch are pickles, and a pickle may name any function to be called. Here torch's own
restricted reader takes them, which knows tensors and plain containers. Beside these, training
scripts leave optimisers, schedules and their arguments in checkpoints; nothing of that is built:
what such names would make is replaced by an object that takes everything and does nothing.
"""

from __future__ import annotations

import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .errors import WeightsError

WRAPPERS = ("module.", "_orig_mod.", "model.", "clip_model.", "clip.")
"""Prefixes that training scripts put before every name: data-parallel, compiled, held by another"""

_STATE = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep a state dict; the first that there is"""


class Inert:
    """Stands for an object of a file that nobody needs; takes everything and does nothing."""

    def __new__(cls, *_arguments: object) -> Inert:
        """Forget the arguments."""
        return super().__new__(cls)

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Forget the state."""


def _plain_dict(*_arguments: object) -> dict[Any, Any]:
    """Stand for a `defaultdict`, whose factory is forgotten."""
    return {}


def read(path: Path) -> Any:
    """Return what a file of weights holds, on the CPU.

    Args:
        path: `.safetensors`, or a checkpoint of `torch.save`, whatever its suffix.

    Raises:
        WeightsError: If the file is missing or damaged, or names anything that would have to be
            executed, such as a whole pickled model.
    """
    if not path.is_file():
        raise WeightsError(
            f"no file {path}; expected .safetensors, or a checkpoint of torch.save(state_dict)."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_inert()):
            warnings.simplefilter("ignore")  # of doubts about the format; it may yet be fine
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises whatever a damaged file makes it stumble on
        raise WeightsError(
            f"cannot read weights from {path} ({_reason(error)}). Allowed are safetensors files "
            "and checkpoints that hold tensors only; TorchScript archives and pickled models are "
            "refused because loading them would run their code. "
            "Save model.state_dict() with safetensors and use that file."
        ) from error


def state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in what `read` found, without prefixes that all names share.

    Args:
        content: A mapping of names to tensors, or a mapping that has one as "state_dict",
            "model_state_dict" or "model".
        path: Of the file, for messages.

    Raises:
        WeightsError: If there is none.
    """
    for key in _STATE:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    plain = isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )
    if not plain or len(content) == 0:
        raise WeightsError(
            f"{path} holds no plain state dict; expected a mapping of names to tensors. "
            "Save model.state_dict() alone."
        )
    return unwrapped(content)


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without the `WRAPPERS` that stand before every name."""
    found = dict(state)
    while prefix := next(
        (one for one in WRAPPERS if all(key.startswith(one) for key in found)), ""
    ):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def remark(text: str) -> None:
    """Warn that something in a file is not used."""
    warnings.warn(text, stacklevel=2)


def _reason(error: Exception) -> str:
    """Return what is wrong with a file in a few words."""
    text = str(error).strip()
    if named := re.search(r"GLOBAL (\S+)", text):  # behind advice to trust the file
        return f"it names {named[1]}, which is neither a tensor nor a plain container"
    return (text.splitlines() or [type(error).__name__])[0][:200]


@cache
def _inert() -> list[Any]:
    """Return the names that may stand in a file besides tensors, each with what replaces it."""
    schedules, optimizers = vars(torch.optim.lr_scheduler), vars(torch.optim)
    classes = [one for one in (*schedules.values(), *optimizers.values()) if isinstance(one, type)]
    paths = (f"{one.__module__}.{one.__name__}" for one in classes)
    names = {path for path in paths if path.startswith("torch.optim.")}
    names |= {
        f"dassl.optim.lr_scheduler.{name}"
        for name in ("ConstantWarmupScheduler", "LinearWarmupScheduler")
    }
    names |= {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"}
    names |= {
        "argparse.Namespace",
        *(f"builtins.{name}" for name in ("dict", "list", "int", "float")),
    }
    return [(_plain_dict, "collections.defaultdict"), *((Inert, name) for name in sorted(names))]
