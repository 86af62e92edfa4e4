"""The one interface of a fine-tuning method, and the table of methods. Imports no torch.

A method is a frozen dataclass of hyper-parameters that builds a `Learner`.
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Protocol
from typing import get_args as args_of
from typing import get_type_hints as hints_of

from pydantic import Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from .errors import RecipeError, nearest

if TYPE_CHECKING:
    from .learner import Learner as Learner
    from .predictor import Predictor

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A weight of a term; 0 switches it off."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A number without which nothing works."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction in [0, 1]."""

Count = Annotated[int, Field(ge=1)]
"""A number of steps, at least one."""


class AsIs:
    """Keeps pydantic from looking into a value that was parsed elsewhere."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.any_schema()


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method may know about the run it is built for."""

    total_steps: int
    """Optimiser steps of the whole run, also when it is resumed"""
    classes: tuple[str, ...]
    """Training class names; empty in retrieval"""
    templates: tuple[str, ...]
    """Prompts of the class names, with `{}` for the name"""
    zeroshot: Callable[[], Predictor]
    """Builds the pristine pre-trained predictor, only if asked"""
    seed: int = 0
    """Of the run; equal on every process"""
    whole: Callable[[], tuple[str, ...]] | None = None
    """Gives the class names of the whole data set, of which `classes` may be a part; None where
    they are all"""
    masks: bool = False
    """Whether images come with masks, as a fourth channel, if the student takes them"""

    def all_classes(self) -> tuple[str, ...]:
        """Return the class names of the whole data set, also of classes that are not trained on."""
        return self.classes if self.whole is None else self.whole()


class Method(Protocol):
    """Hyper-parameters of one method, frozen; its fields are the keys of `method` in a recipe."""

    name: ClassVar[str]
    paper: ClassVar[str]

    def build(self, student: Predictor, context: Context) -> Learner:
        """Choose what trains, make heads, teachers and anchors; may keep and change `student`.

        Raises:
            TaskError: If the task lacks what the method needs, such as class names.
        """


Inner = Annotated[Method, AsIs()]
"""The type of a method's field that holds another method, a table of its own in a recipe."""


class Entry(NamedTuple):
    """A line of the table of methods."""

    path: str
    """"module:Class", imported on first use"""
    summary: str
    """One line for listings"""


METHODS: dict[str, Entry] = {
    "ft": Entry("perdure.methods.ft:Ft", "cross-entropy on image tower and head, or head alone"),
    "l2sp": Entry("perdure.methods.l2sp:L2sp", "ft + squared distance to the starting weights"),
    "flyp": Entry("perdure.methods.flyp:Flyp", "contrastive loss on class captions, both towers"),
    "carot": Entry(
        "perdure.methods.carot:Carot", "flyp + EMA teacher + orthogonal visual projection"
    ),
    "tracer": Entry(
        "perdure.methods.tracer:Tracer", "flyp + distillation from a weighted average of the run"
    ),
    "radapter": Entry(
        "perdure.methods.radapter:RAdapter", "foldable adapters: dropped, averaged, re-scaled"
    ),
    "coop": Entry("perdure.methods.coop:Coop", "learned contexts of class names, towers frozen"),
    "kgcoop": Entry(
        "perdure.methods.kgcoop:KgCoop", "coop + pull to the features of hand-written prompts"
    ),
    "lora": Entry("perdure.methods.lora:Lora", "low-rank updates of both towers, contrastive loss"),
    "mma": Entry(
        "perdure.methods.mma:Mma", "adapters beside the upper blocks, joined across towers"
    ),
    "promptkd": Entry(
        "perdure.methods.promptkd:PromptKd",
        "visual prompts and a projector, distilled from a stronger model without labels",
    ),
    "maskprompts": Entry(
        "perdure.methods.maskprompts:MaskPromptTuning",
        "tokens for what lies outside a region, everything else frozen",
    ),
    "mergetune": Entry(
        "perdure.methods.mergetune:MergeTune", "repairs a tuned model of any method: `host`"
    ),
}
"""Methods by their names in recipes; nothing in it is imported before it is used."""

GROUP = "perdure.methods"
"""Entry points by which installed packages offer methods"""


def register(name: str, target: str, summary: str) -> None:
    """Make a method known under a name, so that recipes can use it.

    Args:
        name: Value of `name` under `method` in a recipe.
        target: "module:Class" of a frozen dataclass that follows `Method`.
        summary: One line for listings.

    Raises:
        RecipeError: If another method has this name.
    """
    entry = Entry(target, summary)
    if METHODS.get(name, entry).path != target:
        raise RecipeError(
            f"the name {name!r} already belongs to {METHODS[name].path}; choose another name."
        )
    METHODS[name] = entry


def known_methods() -> dict[str, Entry]:
    """Return `METHODS` and what installed packages offer; imports none of them.

    A package offers a method by an entry point of the group `perdure.methods`, "name =
    module:Class". A name that is in `METHODS` keeps its meaning.
    """
    from importlib.metadata import entry_points

    offered = {
        point.name: Entry(point.value, f"from {point.dist.name if point.dist else 'elsewhere'}")
        for point in entry_points(group=GROUP)
    }
    return METHODS | {name: entry for name, entry in offered.items() if name not in METHODS}


def import_methods(module: str) -> None:
    """Import a module that registers methods, from the working directory or installed.

    Args:
        module: Dotted name.

    Raises:
        RecipeError: If it cannot be imported, with the reason and the place.
    """
    here = str(Path.cwd())
    if here not in sys.path:  # which scripts, unlike `python -m`, do not look into
        sys.path.append(here)
    try:
        import_module(module)
    except Exception as error:  # whatever the module does
        last = traceback.extract_tb(error.__traceback__)[-1]
        known = not last.filename.startswith("<")  # else Python's own machinery of imports
        place = f", {last.filename} line {last.lineno}" if known else ""
        raise RecipeError(
            f"--import: cannot import {module!r} ({type(error).__name__}: {error}{place}). "
            "Name a module as in Python's import statement: of an installed package, or of a file "
            f"in {here}, without '.py'."
        ) from error


def method_class(name: str, where: str = "method") -> type[Method]:
    """Import and return the configuration class of a method.

    Raises:
        RecipeError: If there is no such method, or its class cannot be imported.
    """
    known = METHODS if name in METHODS else known_methods()
    if name not in known:
        raise RecipeError(
            f"{where}.name: no method {name!r}; {nearest(name, known)} "
            f"allowed: {', '.join(sorted(known))}. A method of your own is found by "
            "`perdure --import MODULE ...`, or when its package is installed.".replace("  ", " ")
        )
    path = known[name].path
    module, _, attribute = path.partition(":")
    try:
        found: type[Method] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"{where}.name: {name!r} is registered as {path!r}, which cannot be imported: {error}. "
            "Expected 'module:Class' of an installed package."
        ) from error
    return found


def parse_method(table: Mapping[str, Any], where: str = "method") -> Method:
    """Turn the `method` part of a recipe into its frozen configuration.

    Args:
        table: `name` and any of the method's fields; the rest takes the defaults. A field that
            holds another method is a table like this one.
        where: Key of the table, for messages.

    Raises:
        RecipeError: Lists every fault at once with its key, the value found and what is allowed.
    """
    values = dict(table)
    name = values.pop("name", None)
    if not isinstance(name, str):
        names = ", ".join(sorted(known_methods()))
        raise RecipeError(f"{where}.name: found {name!r}; allowed: {names}.")
    cls = method_class(name, where)
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = [str(key) for key in values if key not in fields]
    faults = [
        f"{where}.{key}: {name} has no such key; "
        + (nearest(key, fields) or f"allowed: {', '.join(fields) or 'none'}.")
        for key in unknown
    ]
    known = {key: value for key, value in values.items() if key in fields}
    for key in _inner(cls) & known.keys():
        known[key] = _parse_inner(known[key], f"{where}.{key}", faults)
    try:
        method: Method = TypeAdapter(cls).validate_python(known)
    except ValidationError as error:
        for fault in error.errors():
            key = ".".join(str(part) for part in (where, *fault["loc"]))
            if fault["type"] == "unexpected_keyword_argument":
                faults.append(f"{key}: there is no such key.")
            elif fault["type"] in {"missing", "missing_keyword_only_argument"}:
                faults.append(f"{key}: missing; {name} cannot do without.")
            else:
                message = fault["msg"].removeprefix("Value error, ")
                found = f"found {fault['input']!r}; " if fault["loc"] else ""
                faults.append(f"{key}: {found}{message[:1].lower()}{message[1:]}.")
    if faults:
        raise RecipeError("\n".join(faults))
    return method


def _inner(cls: type[Method]) -> set[str]:
    """Return the fields of a method that hold other methods."""
    hints = hints_of(cls, include_extras=True)
    return {key for key, kind in hints.items() if any(isinstance(m, AsIs) for m in args_of(kind))}


def _parse_inner(value: Any, where: str, faults: list[str]) -> Any:
    """Return the method that a table describes; adds what is wrong with it to `faults`."""
    if hasattr(value, "build"):
        return value
    if not isinstance(value, Mapping):
        faults.append(f"{where}: found {value!r}; write a table, such as {{name: flyp}}.")
        return value
    try:
        return parse_method(value, where)
    except RecipeError as error:
        faults.extend(str(error).splitlines())
        return value


def __getattr__(attribute: str) -> Any:
    # `Learner` is a torch module; asking for it, and nothing else here, imports torch.
    if attribute == "Learner":
        return import_module("perdure.learner").Learner
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
