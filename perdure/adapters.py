"""Adapter-only checkpoints: what was added to a model and trained, without the model.

```
adapters.json          format, base model (name, weights, sha256), surgeries, method
adapters.safetensors   the added parameters by their names in the predictor
```

The base model is loaded by its name and must be the same, number for number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import zoo
from .errors import SurgeryError, WeightsError
from .files import read_json, whole_directory, write_json
from .predictor import Predictor
from .surgery.operations import from_record, to_record
from .weights import hash_of_weights

FORMAT = 1
"""Raised when an older reader would misunderstand the files"""

RECORD = "adapters.json"
"""Its presence makes a directory an adapter-only checkpoint"""

_TENSORS = "adapters.safetensors"


def is_adapters(path: Path) -> bool:
    """Return whether a path is a directory that `write_adapters` has written."""
    return (path / RECORD).is_file()


def base_record(predictor: Predictor) -> dict[str, str]:
    """Return name, weights and sha256 of the model that something was added to.

    Raises:
        WeightsError: If the model that has this name is another one, so that what was added could
            never be put back.
    """
    source = predictor.source
    found = hash_of_base(predictor)
    known = hash_of_base(zoo.load(source.name, source.weights or None))
    if found != known:
        raise WeightsError(
            f"below its added modules this model is not {title(source.name, source.weights)}: it "
            "was trained or merged before (model.init), and such weights have no name. Export the "
            "whole model with --to open_clip, or, where that refuses it too, keep the run's "
            "predictor/."
        )
    return {"name": source.name, "weights": source.weights, "sha256": found}


def open_base(record: Mapping[str, str], where: Path) -> Predictor:
    """Load the base model that a checkpoint names.

    Args:
        record: As from `base_record`; without `sha256` any model of that name will do.
        where: The checkpoint, for messages.

    Raises:
        WeightsError: If there is no such model, or it is another one than the checkpoint's.
    """
    try:
        base = zoo.load(record["name"], record["weights"] or None)
    except WeightsError as error:
        raise WeightsError(f"{where} needs its base model, but {error}") from None
    require_base(base, record, where)
    return base


def require_base(base: Predictor, record: Mapping[str, str], where: Path) -> None:
    """Refuse a model that is not the one a checkpoint was made for.

    Raises:
        WeightsError: If the hashes differ.
    """
    wanted = record.get("sha256")
    found = hash_of_base(base)
    if wanted is not None and wanted != found:
        raise WeightsError(
            f"{where} was made for another base model: {title(record['name'], record['weights'])} "
            f"with sha256 {wanted[:16]}..., but the one here has {found[:16]}.... Use the base it "
            "was trained on; added modules mean nothing on other weights."
        )


def hash_of_base(predictor: Predictor) -> str:
    """Return the hash of a model's tensors without what was added, and without a head."""
    added = predictor.added_state()
    return hash_of_weights(
        {
            name: value
            for name, value in predictor.state_dict().items()
            if name not in added and not name.startswith("head.")
        }
    )


def write_adapters(
    predictor: Predictor, path: Path, method: Mapping[str, Any] | None = None
) -> None:
    """Write an adapter-only checkpoint, whole or not at all.

    Args:
        predictor: With added modules and without a head.
        path: New directory.
        method: What trained it, for the record.

    Raises:
        WeightsError: If it has a head, or its base model has no name.
        SurgeryError: If nothing was added.
    """
    if not predictor.surgeries:
        raise SurgeryError(
            f"{predictor.source.name} has no added modules that could be kept on their own; only "
            "runs of methods that add some have them, such as lora and radapter."
        )
    if predictor.head is not None:
        raise WeightsError(
            "this model has a linear head besides its added modules, which such a checkpoint does "
            "not hold; export the whole model with --to open_clip, or, where that refuses it too, "
            "keep the run's predictor/."
        )
    record = {
        "format": FORMAT,
        "base": base_record(predictor),
        "surgeries": [to_record(surgery) for surgery in predictor.surgeries],
        "method": dict(method) if method else None,
    }
    tensors = predictor.added_state()
    tensors = {name: value.contiguous() for name, value in _without_zeros(tensors).items()}
    with whole_directory(path) as fresh:
        save_file(tensors, fresh / _TENSORS)
        write_json(fresh / RECORD, record)


def read_adapters(path: Path, base: Predictor | None = None) -> Predictor:
    """Put an adapter-only checkpoint back on its base model, in evaluation mode.

    Args:
        path: The directory.
        base: The base model, kept and changed; None loads it by its name.

    Raises:
        WeightsError: If a file is damaged, of a newer format, or made for another base model.
    """
    record = read_json(path / RECORD)
    if record.get("format") != FORMAT:
        raise WeightsError(
            f"{path / RECORD} has format {record.get('format')!r}; this version of perdure reads "
            f"format {FORMAT}. Use the version that wrote it."
        )
    origin, surgeries = _parts(record, path)
    if base is None:
        base = open_base(origin, path)
    else:
        require_base(base, origin, path)
    try:
        with torch.random.fork_rng(devices=[]):  # the random start is overwritten
            for surgery in surgeries:
                base.attach(surgery)
        tensors = load_file(path / _TENSORS)
    except (SurgeryError, SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} cannot be read ({error}); the directory is damaged or was changed by hand."
        ) from error
    fill(base.added_state(), tensors, path)
    return base.eval()


@torch.no_grad()
def fill(added: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: Path | str) -> None:
    """Copy stored values into live tensors that were added; missing ranks of a pair are zero.

    Raises:
        WeightsError: If names or shapes do not fit.
    """
    wrong = [f"missing {name}" for name in added if name not in tensors]
    wrong += [f"unexpected {name}" for name in tensors if name not in added]
    for name, parameter in added.items():
        if name not in tensors or tensors[name].shape == parameter.shape:
            continue
        shape, full = tensors[name].shape, parameter.shape
        axis = _RANK_AXIS.get(name.rpartition(".")[2])
        same = axis is not None and len(shape) == len(full) and shape[1 - axis] == full[1 - axis]
        if axis is None or not same or shape[axis] > full[axis]:
            wrong.append(f"{name} is {tuple(shape)}, expected {tuple(full)}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(
            f"the tensors of {where} do not fit its surgeries: {'; '.join(wrong[:3])}{more}. The "
            "directory is damaged or was changed by hand."
        )
    for name, parameter in added.items():
        value = tensors[name]
        if value.shape != parameter.shape:
            parameter.zero_()
            axis = _RANK_AXIS[name.rpartition(".")[2]]
            parameter.narrow(axis, 0, value.shape[axis]).copy_(value)
        else:
            parameter.copy_(value)


_RANK_AXIS = {"down": 0, "up": 1}
"""Which axis of the two low-rank factors counts the rank"""


def _without_zeros(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut the last ranks of every pair of factors where both are zero; at least one stays."""
    kept = dict(tensors)
    for name, down in tensors.items():
        stem, _, leaf = name.rpartition(".")
        up = tensors.get(f"{stem}.up")
        if leaf != "down" or up is None:
            continue
        used = ((down != 0).any(dim=1) | (up != 0).any(dim=0)).nonzero()
        rank = int(used.max()) + 1 if len(used) else 1
        kept[name], kept[f"{stem}.up"] = down[:rank], up[:, :rank]
    return kept


def _parts(record: Mapping[str, Any], path: Path) -> tuple[dict[str, str], list[Any]]:
    """Return the base and the surgeries that a record names.

    Raises:
        WeightsError: If it names none.
    """
    base, surgeries = record.get("base"), record.get("surgeries")
    keys = ("name", "weights", "sha256")
    whole = isinstance(base, dict) and all(isinstance(base.get(key), str) for key in keys)
    if not whole or not isinstance(surgeries, list) or not surgeries:
        raise WeightsError(
            f"{path / RECORD} does not name a base model and surgeries; the directory is damaged "
            "or was changed by hand."
        )
    assert isinstance(base, dict)
    return {key: base[key] for key in keys}, [from_record(each) for each in surgeries]


def title(name: str, weights: str) -> str:
    """Return a model's name with that of its weights, where it has one."""
    return f"{name} with {weights}" if weights else name
