"""What a command line can evaluate or merge: a run directory, added modules, a model by name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RunError, WeightsError
from .files import read_json
from .identities import cached_views, identity
from .recipe import DataSpec, parse_recipe
from .records import document, hint
from .rundir import is_run, require_readable, runs_in

if TYPE_CHECKING:
    from .predictor import Predictor
    from .run import Run


@dataclass(frozen=True)
class Subject:
    """A predictor that exists outside memory; nothing is loaded before `predictor`."""

    name: str
    """As given"""
    weights: str | None = None
    """Tag or file of weights, for an architecture"""
    run: Path | None = None
    """Run directory, if it is one"""

    def predictor(self, alpha: float | None = None) -> Predictor:
        """Load the predictor, on the CPU, as plain CLIP; modules that cannot be folded stay.

        Args:
            alpha: Strength at which a run's added modules, if it has any, are folded; None for
                their own.

        Raises:
            RunError: If a run is not finished.
            WeightsError: If the model is unknown or its files are damaged.
        """
        found = self.unfolded()
        return found.fold(alpha) if found.surgeries else found

    def unfolded(self) -> Predictor:
        """Load the predictor, on the CPU, with the modules that were added to it.

        Raises:
            RunError: If a run is not finished.
            WeightsError: If the model is unknown or its files are damaged.
        """
        if self.run is None:
            return _named(self.name, self.weights)
        from .run import Run

        return Run(self.run).predictor()

    def origin(self) -> dict[str, Any]:
        """Return what `merge.yaml` records of this input, without hash: where it came from."""
        entry: dict[str, Any] = {"subject": self.name}
        if self.run is not None:
            found = document(self.run)
            entry["merge" if "kind" in found else "recipe"] = dict(found)
        elif self.weights is not None:
            entry["weights"] = self.weights
        return entry

    def conditions(self) -> dict[str, Any]:
        """Return what scores say about their subject: name, seed, cached views if there were."""
        about: dict[str, Any] = {"subject": self.name, "seed": self.seed()}
        views = () if self.run is None else cached_views(document(self.run))
        return about | ({"cached_views": list(views)} if views else {})

    def seed(self) -> int | None:
        """Return the seed of the run, where it has one."""
        return None if self.run is None else identity(document(self.run))[2]


def find(name: Subject | Run | Path | str, weights: str | None = None) -> Subject:
    """Return what a name stands for.

    Args:
        name: A run, its directory, a directory of added modules (adapter-only checkpoint or folder
            of peft), a bundled model, anything `perdure.zoo.load` knows, or MODEL@PATH, where PATH
            is a checkpoint that another program made of MODEL (`perdure.foreign.read_tuned`).
        weights: Tag or file of weights, where `name` is an architecture.

    Raises:
        RunError: If it is a path at which there is nothing, a directory of several runs, or a run
            of a newer version.
    """
    if isinstance(name, Subject):
        return name
    path = Path(name) if isinstance(name, (str, Path)) else name.path
    tuned = tuned_part(str(name)) if isinstance(name, (str, Path)) else None
    if tuned is not None and not tuned[1].exists():
        raise RunError(
            f"{name} stands for the checkpoint {tuned[1]} on the model {tuned[0]}, but there is no "
            "such file or directory."
        )
    if is_run(path):
        require_readable(path)
        return Subject(str(path), run=path)
    below = runs_in(path)
    if below:
        names = ", ".join(str(found.relative_to(path)) for found in below[:4])
        raise RunError(f"{path} holds several runs ({names}); name one of them.")
    beside = path.parent
    if not path.exists() and beside.is_dir() and beside not in (Path(), Path("/")):
        near = hint(path.name, [found.name for found in beside.glob("*/")])
        raise RunError(
            f"{path} does not exist; {near}name a run directory, a bundled model "
            "(perdure list models) or an open_clip name such as ViT-B-16/openai."
        )
    return Subject(str(path) if isinstance(name, Path) else str(name), weights)


def tuned_part(name: str) -> tuple[str, Path] | None:
    """Return base model and checkpoint of a name such as "ViT-B-16/openai@model.pth.tar-50".

    None where a name has no such part, or is itself the path of something.
    """
    base, at, path = name.partition("@")
    if not (base and at and path) or name.startswith("hf-hub:") or Path(name).exists():
        return None
    return base, Path(path).expanduser()


def is_kept_apart(path: Path) -> bool:
    """Return whether a path is a directory of added modules without their base model."""
    from . import adapters, peft_format

    return adapters.is_adapters(path) or peft_format.is_peft(path)


def _named(name: str, weights: str | None) -> Predictor:
    """Load a model by name, or added modules from a directory together with their base model."""
    from . import adapters, peft_format, zoo
    from .foreign import read_tuned

    path = Path(name)
    tuned = tuned_part(name)
    if tuned is not None:
        return read_tuned(tuned[1], zoo.load(tuned[0], weights))
    if not is_kept_apart(path):
        return zoo.load(name, weights)
    if weights is not None:
        raise WeightsError(f"{name} names its own base model; leave {weights!r} out.")
    own = adapters.is_adapters(path)
    return adapters.read_adapters(path) if own else peft_format.read_peft(path)


def find_all(name: str | Path, weights: str | None = None) -> list[Subject]:
    """Return the runs below a directory of runs, or the one subject that a name stands for.

    Raises:
        RunError: If it is a path at which there is nothing.
    """
    below = [] if is_run(Path(name)) else runs_in(Path(name))
    return [find(run) for run in below] or [find(name, weights)]


def trained_on(subject: Subject) -> DataSpec | None:
    """Return the data of a run, or of the first trained input of a merge; None without any.

    Raises:
        RecipeError: If the recipe in the run directory is damaged.
    """
    entry: Any = subject.origin()
    while "merge" in entry:
        inputs = entry["merge"].get("inputs", [])
        entry = next((one for one in inputs if "recipe" in one or "merge" in one), {})
    if "recipe" not in entry:
        return None
    return parse_recipe(entry["recipe"], f"the recipe of {subject.name}").data


def sha256_of(subject: Subject, predictor: Predictor) -> str:
    """Return the hash of a run's result, or of a named model's tensors."""
    if subject.run is None:
        from .weights import hash_of_weights

        return hash_of_weights(predictor.state_dict())
    return hash_of_result(subject.run)


def hash_of_result(run: Path) -> str:
    """Return the SHA-256 of a run's `predictor.safetensors`.

    Where modules were added it covers their description too: their strength is no tensor.
    """
    weights = hash_of_file(run / "predictor" / "predictor.safetensors")
    surgeries = read_json(run / "predictor" / "predictor.json").get("surgeries")
    if not surgeries:
        return weights
    return hashlib.sha256(f"{weights} {json.dumps(surgeries, sort_keys=True)}".encode()).hexdigest()


def hash_of_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
