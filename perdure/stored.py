"""How a predictor lies on disk: perdure's own form, and open_clip's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_model, save_file, save_model
from torch import nn

from .errors import SurgeryError, WeightsError
from .files import read_json, whole_directory, write_json
from .inputs import OpenClipTokenizer, Preprocess, Tokenizer, locate_vocabulary, merges_file

FORMAT = 1
"""Of a predictor without added modules; raised when an older reader would misunderstand it"""

FORMAT_WITH_SURGERIES = 2
"""Of one with added modules, which a reader of format 1 would leave out"""

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class ModelSource:
    """Where a predictor's architecture and first weights came from."""

    name: str
    """As given to `zoo.load`"""
    weights: str
    """Tag or file; empty where the name says it all"""
    config: dict[str, Any]
    """open_clip's description: {"model_cfg": ..., "preprocess_cfg": ...}"""


def write(model: nn.Module, tokenizer: Tokenizer, record: Mapping[str, Any], path: Path) -> None:
    """Write `predictor.safetensors` and `predictor.json` to a directory, whole or not at all.

    Args:
        model: Its state dict.
        tokenizer: A vocabulary that is only a file is copied into the directory.
        record: What else describes it; "surgeries" are named if there are any.
        path: The directory.

    Raises:
        WeightsError: If the tokeniser cannot be rebuilt from a name or file.
    """
    if tokenizer.vocabulary is None:
        raise WeightsError(
            "this predictor's tokeniser has no named vocabulary, so it could not be loaded "
            "again; use perdure.tokens.OpenClipTokenizer."
        )
    form = FORMAT_WITH_SURGERIES if record.get("surgeries") else FORMAT
    with whole_directory(path) as fresh:
        save_model(model, str(fresh / "predictor.safetensors"))
        vocabulary = _keep_vocabulary(tokenizer, fresh)
        whole = {"format": form, **record, "vocabulary": vocabulary}
        write_json(fresh / "predictor.json", {**whole, "context_length": tokenizer.context_length})


def read(path: Path, build: Callable[[dict[str, Any], Path], Model]) -> Model:
    """Read what `write` wrote.

    Args:
        path: The directory.
        build: Makes a model, of any weights, from a record and the directory.

    Raises:
        WeightsError: If a file is missing, damaged or of a newer format.
    """
    model = describe(path, build)
    try:
        load_model(model, path / "predictor.safetensors")
    except (SafetensorError, RuntimeError, OSError) as error:
        raise WeightsError(
            f"cannot load {path / 'predictor.safetensors'}: {error}. The directory is damaged "
            "or was changed by hand; make it again."
        ) from error
    return model


def describe(path: Path, build: Callable[[dict[str, Any], Path], Model]) -> Model:
    """Build what `write` described, with the weights that `build` gives it.

    Raises:
        WeightsError: If `predictor.json` is missing, damaged or of a newer format.
    """
    file = path / "predictor.json"
    record = read_json(file)
    if record.get("format") not in (FORMAT, FORMAT_WITH_SURGERIES):
        raise WeightsError(
            f"{file} has format {record.get('format')!r}; this version of perdure reads formats "
            f"{FORMAT} and {FORMAT_WITH_SURGERIES}. Use the version that wrote it."
        )
    try:
        return build(record, path)
    except (LookupError, TypeError, ValueError, AttributeError, OSError, SurgeryError) as error:
        raise WeightsError(
            f"{file} does not describe a predictor ({type(error).__name__}: {error}). The "
            "directory is damaged or was changed by hand; make it again."
        ) from error


def parts(record: Mapping[str, Any], path: Path) -> tuple[ModelSource, Tokenizer, Preprocess]:
    """Return what a `predictor.json` says about origin, tokeniser and pixels."""
    pixels = record["preprocess"]
    (red, green, blue), (dark, medium, light) = pixels["mean"], pixels["std"]
    mean = (float(red), float(green), float(blue))
    std = (float(dark), float(medium), float(light))
    vocabulary = locate_vocabulary(record["vocabulary"], path)
    return (
        ModelSource(**record["source"]),
        OpenClipTokenizer(vocabulary, int(record["context_length"])),
        Preprocess(int(pixels["size"]), mean, std, str(pixels["interpolation"])),
    )


def write_open_clip(
    clip: nn.Module,
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    path: Path,
    head: nn.Module | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write a directory that plain open_clip loads as `local-dir:PATH`, whole or not at all.

    Args:
        clip: Without added modules.
        tokenizer: Named in the configuration under "perdure", which open_clip ignores.
        config: open_clip's description.
        path: The directory.
        head: Written as `head.safetensors`.
        names: Classes and templates of the head, for `classes.json`.
    """
    with whole_directory(path) as fresh:
        weights = {name: value.contiguous() for name, value in clip.state_dict().items()}
        save_file(weights, fresh / "open_clip_model.safetensors", {"format": "pt"})
        extra = {
            "vocabulary": _keep_vocabulary(tokenizer, fresh),
            "context_length": tokenizer.context_length,
        }
        write_json(fresh / "open_clip_config.json", {**config, "perdure": extra})
        if head is not None:
            rows = {name: value.contiguous() for name, value in head.state_dict().items()}
            save_file(rows, fresh / "head.safetensors")
            write_json(fresh / "classes.json", names or {})


def empty_head(width: int, classes: int) -> nn.Linear:
    """Return a head whose numbers are still to be filled in, on the CPU."""
    # Skips the random start, which would take numbers from the run's random state.
    return nn.Linear(width, classes, device="meta").to_empty(device="cpu")


def _keep_vocabulary(tokenizer: Tokenizer, directory: Path) -> str | None:
    """Return what to record of a tokeniser, copying a vocabulary that is only a file."""
    path = merges_file(tokenizer.vocabulary)
    if path is None:
        return tokenizer.vocabulary
    shutil.copyfile(path, directory / "vocabulary.txt.gz")
    return "vocabulary.txt.gz"
