"""Recipe: one frozen value that fully determines a training run, and its YAML form."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeGuard

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from .documents import Table, find_recipe, override, read_document
from .errors import RecipeError
from .faults import explain
from .guard_spec import GuardSpec
from .method import AsIs, Count, Method, parse_method
from .optim_spec import OptimSpec


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A part of a recipe; unknown keys are faults."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    later: ClassVar[frozenset[str]] = frozenset()
    """Keys that older versions do not know, which are not written where they are null: so runs of
    before and after have equal recipes"""


@dataclass(frozen=True, kw_only=True)
class ModelSpec(_Table):
    """Which pre-trained model, and where training starts."""

    name: str
    """"perdure-tiny", an open_clip architecture such as "ViT-B-16", "local-dir:PATH", ..."""
    weights: str | None = None
    """open_clip tag, such as "openai", or a file of weights"""
    init: Path | None = None
    """Tuned model to start from instead, as in LP-FT: a run, or a checkpoint that another program
    made of the model above; "{seed}" in it becomes the seed"""


@dataclass(frozen=True, kw_only=True)
class DataSpec(_Table):
    """What to train on."""

    later: ClassVar[frozenset[str]] = frozenset({"views"})

    name: str
    root: Path | None = None
    """Where the files are; embedded data need none"""
    split: str = "train"
    shots: Count | None = None
    """Images per class; None for all"""
    classes: str = "all"
    """"all", or the name of a part that the data set defines, such as "base"; "all/seen-0" is one
    of two random halves of the classes, "all/hidden-0" the other"""
    sampling: Literal["own", "coop"] = "own"
    """How `shots` are chosen: as the data set does, or the published subsets of each seed, which
    for validation take at most 4 images per class"""
    templates: tuple[str, ...] | str | None = None
    """Prompts with {} for the class name, the name of a known set of them, a file of them (one per
    line, or .json), or the data's own"""
    damaged: Literal["error", "skip"] = "error"
    """What happens to damaged samples of shards (`name: wds`): training does not start, or they are
    left out and counted"""
    transform: Literal["exact", "fast"] = "exact"
    """How pictures become pixels: as pillow decodes them, or JPEG files within one level of that in
    less than half the time"""
    augment: Literal["none", "flip-shift", "crop", "crop-flip", "wide-crop-flip"] = "none"
    """Mirror and shift by up to 2 pixels; crop to .9 to 1 of the area; that and mirror; crop to .08
    to 1 and mirror"""
    views: Count | None = None
    """Null for a new augmentation in every epoch. A number V: those of V epochs come again and
    again, and the frozen image tower embeds them once, before training; another run, not only a
    faster one"""

    def __post_init__(self) -> None:
        """Refuse views that are all the same."""
        if self.augment == "none" and (self.views or 1) > 1:
            raise ValueError(
                f"views is {self.views}, but augment is 'none', so that all views of an image are "
                "equal; views: 1 does the same"
            )


@dataclass(frozen=True, kw_only=True)
class ValidateSpec(_Table):
    """Accuracy during training, on data that no result is reported on."""

    splits: tuple[str, ...] = ()
    """Of the training data set; none switches validation off"""
    every: Annotated[int, Field(ge=0)] = 0
    """Optimiser steps between two; 0 for the end of each epoch"""
    select: Literal["last", "best"] = "last"
    """Which weights the run delivers: the last, or those of the best mean accuracy over splits"""

    def __post_init__(self) -> None:
        """Refuse to choose the best of nothing."""
        if self.select == "best" and not self.splits:
            raise ValueError("select is 'best', which needs splits to be validated on")


@dataclass(frozen=True, kw_only=True)
class DiagnoseSpec(_Table):
    """What a run says of itself against the pre-trained model, in its log; changes no weight."""

    every: Count
    """Optimiser steps between two looks; the last step has one too"""
    images: Annotated[int, Field(ge=2)] = 128
    """Images looked at: of the first validation split, and as many of training for the spans"""
    energy: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Share of the mean squared length of a layer's inputs that their span keeps"""


@dataclass(frozen=True, kw_only=True)
class RunSpec(_Table):
    """How the run is carried out; apart from `precision` it does not change what is computed."""

    later: ClassVar[frozenset[str]] = frozenset({"cache"})

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """"auto" takes a GPU if there is one"""
    threads: Count | None = None
    """Per process; None for 1 under torchrun and else the physical cores"""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load data; 0 loads in the training process"""
    cache: Path | None = None
    """Directory in which decoded pictures are kept for all epochs and later runs, three bytes per
    pixel of the training set; None decodes in every epoch. No bit of a run depends on it"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the towers; weights, logits and losses are fp32 always"""
    checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of kept; the same
    gradients for less memory and about a third more time"""
    save_every: Count = 500
    """Optimiser steps between resumable states"""
    keep: bool = False
    """Whether the resumable states stay when the run is finished"""
    log_every: Count = 10
    """Optimiser steps between lines of the log; only these wait for the device"""


HOW = frozenset(
    {"device", "threads", "workers", "cache", "checkpointing", "save_every", "keep", "log_every"}
)
"""Keys of `run` that may change when a run is resumed"""

ASIDE = ("diagnose",)
"""Tables that change nothing that is trained: runs with and without compare, and resume"""


@dataclass(frozen=True, kw_only=True)
class Recipe(_Table):
    """A training run as a value."""

    later: ClassVar[frozenset[str]] = frozenset({"guard", "diagnose"})

    model: ModelSpec
    data: DataSpec
    method: Annotated[Method, AsIs()]
    optim: OptimSpec
    validate: ValidateSpec = field(default_factory=ValidateSpec)
    guard: GuardSpec | None = None
    run: RunSpec = field(default_factory=RunSpec)
    diagnose: DiagnoseSpec | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def __post_init__(self) -> None:
        """Refuse a guard that would look at other steps than validation does."""
        if self.guard is not None and self.guard.every and self.validate.splits:
            raise ValueError(
                f"guard.every is {self.guard.every}, but validate.splits are given and the guard "
                "looks whenever these are validated on; set validate.every instead"
            )


def load_recipe(source: Path | str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply overrides such as "optim.lr=3e-5".

    Args:
        source: A YAML file, or the name of a shipped recipe such as "emojishift/tracer".
        overrides: Applied in order, values in YAML.

    Raises:
        RecipeError: Lists every problem at once with its key, the value found and what is allowed.
    """
    path = find_recipe(str(source))
    table = override(read_document(path), overrides)
    return parse_recipe(table, str(source))


def parse_recipe(table: Table, source: str = "the recipe") -> Recipe:
    """Turn a table of plain values into a recipe.

    Raises:
        RecipeError: Lists every problem at once.
    """
    faults: list[str] = []
    parts = dict(table)
    method = table.get("method")
    if isinstance(method, dict):
        try:
            parts["method"] = parse_method(method)
        except RecipeError as error:
            faults += str(error).splitlines()
    elif "method" in table:
        faults.append(f"method: {method!r} is not a table; write 'method: {{name: tracer}}'")
    try:
        recipe = TypeAdapter(Recipe).validate_python(parts)
    except ValidationError as error:
        faults += explain(error.errors(), Recipe)
    if faults:
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise RecipeError(f"{source} has {len(faults)} fault{'s'[: len(faults) > 1]}:{lines}")
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Return the full YAML, defaults included; parsing it gives an equal recipe."""
    return yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Return "key: old -> new" for every key that changes what is computed."""
    before, after = _flat(plain(old)), _flat(plain(new))
    keys = [key for key in before | after if key not in {f"run.{name}" for name in HOW}]
    keys = [key for key in keys if key.partition(".")[0] not in ASIDE]
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def plain(value: Any) -> Any:
    """Return a recipe, or a part of one, as dicts, lists, text and numbers.

    A method becomes its options and its `name`, also inside another method.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [item.name for item in dataclasses.fields(value)]
        options = {name: plain(getattr(value, name)) for name in names}
        for name in getattr(value, "later", ()):
            if options[name] is None:
                del options[name]
        return {"name": value.name} | options if _is_method(value) else options
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _is_method(value: Any) -> TypeGuard[Method]:
    return hasattr(value, "build")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    rows: dict[str, Any] = {}
    for key, item in value.items():
        rows |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return rows
