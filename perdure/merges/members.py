"""Members of a merge on disk: each a plain model in a file whose tensors are read one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import zoo
from ..errors import PerdureError, RunError, WeightsError
from ..files import read_json
from ..interpolation import Head, other_classes, with_same_modules
from ..predictor import Predictor
from ..subjects import Subject, hash_of_result, sha256_of
from ..weights import hash_of_weights, require_same
from .rules import Merger, Tensors

Root = tuple[str, str | None]
"""Name and weights of a pre-trained model"""


@dataclass(frozen=True)
class Member:
    """An input of a merge as a predictor's directory, and what `merge.yaml` says of it."""

    name: str
    directory: Path
    entry: Mapping[str, Any]

    def classes(self) -> tuple[str, ...]:
        """Return the classes of its head; empty without one."""
        return tuple(read_json(self.directory / "predictor.json")["classes"])

    def modules(self) -> list[Any]:
        """Return the records of added modules that could not be folded."""
        return list(read_json(self.directory / "predictor.json").get("surgeries", ()))


@dataclass(frozen=True, eq=False)
class Stored:
    """The tensors of an open safetensors file."""

    file: Any

    def names(self) -> Sequence[str]:
        """Return all names, sorted."""
        return sorted(self.file.keys())

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        tensor: Tensor = self.file.get_tensor(name)
        return tensor

    def shapes(self) -> dict[str, Tensor]:
        """Return tensors without numbers, of the shapes in the file."""
        return {
            name: torch.empty(self.file.get_slice(name).get_shape(), device="meta")
            for name in self.names()
        }


@contextmanager
def opened(files: Sequence[Path]) -> Iterator[list[Stored]]:
    """Yield the tensors of several files, none of which is read yet.

    Raises:
        WeightsError: If a file is missing or damaged.
    """
    with ExitStack() as stack:
        yield [Stored(stack.enter_context(_open(file))) for file in files]


def prepare(
    subjects: Sequence[Subject],
    merger: Merger,
    work: Path,
    progress: Callable[[float], None] | None = None,
) -> list[Member]:
    """Bring every input into the form of a plain model on disk, one after another.

    Runs that lie there already stay where they are. Modules that were added to a model are folded;
    a model without a head gets that of its own class features where another has one.

    Args:
        subjects: The inputs.
        merger: Of wise-ft the tuned end is folded at full strength: its alpha is the strength.
        work: Where models are written that are not plain on disk.
        progress: Told the share of the work that was done since the last call.

    Raises:
        RunError: If a run is not finished.
        WeightsError: If a model is unknown, or the inputs do not fit together.
    """
    head = next(filter(None, map(_recorded_head, subjects)), None)
    members: list[Member] = []
    for position, subject in enumerate(subjects):
        tuned = merger.kind == "wise-ft" and position == 1
        members.append(_prepared(subject, head, 1.0 if tuned else None, work / str(position)))
        if progress is not None:
            progress(1.0 / len(subjects))
    members = _completed(members, work)
    with opened([member.directory / "predictor.safetensors" for member in members]) as files:
        shapes = files[0].shapes()
        for member, other in zip(members[1:], files[1:], strict=True):
            if member.classes() != members[0].classes():
                raise other_classes(members[0].classes(), member.classes())
            require_same(shapes, other.shapes())
    return members


def fill(
    model: Predictor,
    members: Sequence[Tensors],
    merger: Merger,
    known: Sequence[Tensors] = (),
    progress: Callable[[float], None] | None = None,
) -> None:
    """Write the merge of several members into a model, one tensor after another, in place.

    Args:
        model: Of the members' architecture, with any weights.
        members: In the order of the inputs.
        merger: What to do.
        known: What was measured of each, where the merger needs it.
        progress: As in `prepare`.
    """
    rule = merger.rule(members, known)
    names = members[0].names()
    own = model.state_dict()
    with torch.no_grad():
        for name in names:
            own[name].copy_(rule(name))
            if progress is not None:
                progress(1.0 / len(names))


def require_shared_base(subjects: Sequence[Subject], merger: Merger) -> None:
    """Refuse inputs that were fine-tuned from different models, as far as their records tell.

    Raises:
        RunError: If they were, or the base of a merge of task vectors does not come first.
    """
    if merger.based and merger.kind != "wise-ft":
        _require_base_first(subjects, merger)
    roots: dict[Root, str] = {}
    for position, subject in enumerate(subjects):
        for root in _roots(subject.origin(), named=merger.based and position == 0):
            roots.setdefault(root, subject.name)
    if len(roots) < 2 or len(set(map(_hash_of, roots))) == 1:
        return
    listed = ", ".join(
        f"{name} from {root[0]}{f' ({root[1]})' if root[1] else ''}" for root, name in roots.items()
    )
    raise RunError(
        f"the inputs descend from different models: {listed}. What was learned from one base "
        "means nothing on another, whatever the shapes; merge models of one base."
    )


def _require_base_first(subjects: Sequence[Subject], merger: Merger) -> None:
    first = subjects[0].origin().get("recipe")
    if first is None:
        return
    for other in subjects[1:]:
        init = (other.origin().get("recipe") or {}).get("model", {}).get("init")
        if init is not None and subjects[0].run is not None:
            own = str(init).replace("{seed}", str(other.seed()))
            if Path(own).expanduser().resolve() == subjects[0].run.resolve():
                return
    base = first["model"]["name"]
    raise RunError(
        f"the first input of {merger.kind} is the base that the others were fine-tuned from, but "
        f"{subjects[0].name} is a training run that none of them started from. Put the base "
        f"first: perdure merge {merger.kind} {base} "
        f"{' '.join(subject.name for subject in subjects)} --out RUN"
    )


def _roots(entry: Mapping[str, Any], *, named: bool) -> set[Root]:
    """Return the pre-trained models that an input descends from, as far as it is recorded."""
    if "recipe" in entry:
        model = entry["recipe"]["model"]
        return {(str(model["name"]), model.get("weights"))}
    if "merge" in entry:
        kept = entry["merge"].get("kind") == "zero-shot"
        inputs = entry["merge"].get("inputs", [])
        return set().union(*(_roots(one, named=kept) for one in inputs))
    return {(str(entry["subject"]), entry.get("weights"))} if named else set()


def _hash_of(root: Root) -> str:
    """Return a hash of a pre-trained model's tensors; its name where it cannot be loaded."""
    try:
        return hash_of_weights(zoo.load(*root).state_dict())
    except (PerdureError, OSError):
        return f"{root}"


def _prepared(subject: Subject, head: Head | None, alpha: float | None, place: Path) -> Member:
    record = None if subject.run is None else subject.run / "predictor" / "predictor.json"
    if record is not None and record.is_file() and subject.run is not None:
        found = read_json(record)
        if not found.get("surgeries") and (head is None or found["classes"]):
            entry = {**subject.origin(), "sha256": hash_of_result(subject.run)}
            return Member(subject.name, record.parent, entry)
    predictor = subject.predictor(alpha)
    entry = {**subject.origin(), "sha256": sha256_of(subject, predictor)}
    if head is not None and predictor.head is None:
        predictor.set_head(*head)
    predictor.save(place)
    return Member(subject.name, place, entry)


def _completed(members: Sequence[Member], work: Path) -> list[Member]:
    """Give members the modules of another that cannot be folded, at strength 0."""
    modules = [member.modules() for member in members]
    first = next((member for member, found in zip(members, modules, strict=True) if found), None)
    if first is None or all(found == first.modules() for found in modules):
        return list(members)
    other, result = Predictor.load(first.directory), []
    for position, member in enumerate(members):
        if member.modules() != first.modules():
            grown, _ = with_same_modules(Predictor.load(member.directory), other)
            grown.save(work / f"{position}-with-modules")
            member = replace(member, directory=work / f"{position}-with-modules")
        result.append(member)
    return result


def _recorded_head(subject: Subject) -> Head | None:
    """Read a run's head classes without loading its weights."""
    file = None if subject.run is None else subject.run / "predictor" / "predictor.json"
    if file is None or not file.is_file():
        return None
    record = read_json(file)
    classes = tuple(record["classes"])
    return (classes, tuple(record["templates"])) if classes else None


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"cannot read {file} ({error}). It is damaged; restore it or make the run again."
        ) from error
