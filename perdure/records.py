"""Read what run directories say about themselves: what was run, and how it scored. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from .documents import parse_yaml
from .errors import RecipeError, RunError, nearest, typed
from .files import read_json
from .identities import cached_views, identity, key_of, origin_of
from .rundir import is_run, require_readable, runs_in
from .words import HARMONIC as HARMONIC
from .words import Splits as Splits
from .words import main_value as main_value
from .words import point as point
from .words import summary as summary

_MALFORMED = (ValueError, LookupError, TypeError, AttributeError)
"""What reading raises where a file holds something else than perdure writes"""


@dataclass(frozen=True)
class Record:
    """One run directory with its scores on one suite."""

    path: Path
    method: str
    """Registry name; `zero-shot` for an untouched model, `checkpoint` for what another program
    made of one, `soup` for a mean of runs, `ft + ties` for
    other merges"""
    alpha: float | None
    """Share of the tuned weights where weights were interpolated"""
    seed: int | None
    settings: Mapping[str, Any]
    """Dotted key to value: everything that determines the result, except the seed"""
    tuned: Mapping[str, Any] | None
    """Settings of the tuned end, where weights were interpolated"""
    suite: str
    definition: str
    """Hash of the suite's definition"""
    splits: Splits
    pixels: str = "exact, fp32"
    """How pictures were decoded, and the precision of the image tower"""
    sweep: Mapping[float, Splits] = field(default_factory=dict)
    """Interpolation share to the scores there"""
    strength: float | None = 1.0
    """Where on that line the run itself stands: the alpha of its added modules, 1 without any"""
    trainable: int | None = None
    seconds: float | None = None
    views: tuple[int, ...] = ()
    """As `cached_views`"""
    view_seconds: float | None = None
    """That embedding these views took, which `seconds` does not include"""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Its recipe or merge document"""
    guard: Mapping[str, Any] | None = None
    """What the run's own guard saw and did"""

    @property
    def key(self) -> str:
        """Equal for runs that differ only in seed."""
        return key_of(self.settings)

    def correct(self) -> dict[str, NDArray[np.float64]]:
        """Return 1 where an image was classified correctly, per split, (N,).

        Raises:
            RunError: If the run has no stored outcomes.
        """
        stored = self.outcomes()
        return {
            name: (stored[f"{name}/prediction"] == stored[f"{name}/label"]).astype(float)
            for name in self.splits
        }

    def outcomes(self) -> dict[str, NDArray[Any]]:
        """Return what is kept per example, by split and part, as in "id/label".

        Raises:
            RunError: If the run has no stored outcomes, or not those of every split.
        """
        path = self.path / "scores" / f"{self.suite}.outcomes.npz"
        if not path.is_file():
            raise RunError(
                f"{self.path}: no {path.name} beside its scores, so images cannot be paired. "
                f"Evaluate it again: perdure eval {typed(self.path)} --suite {self.suite}"
            )
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                for name in self.splits:
                    stored[f"{name}/label"], stored[f"{name}/prediction"]
                return dict(stored)
        except (*_MALFORMED, OSError, EOFError, BadZipFile) as error:
            raise _damaged(path, error) from None


def read(path: Path, suite: str | None = None) -> Record:
    """Read one run directory.

    Args:
        path: A run directory with scores.
        suite: Which scores; may be None where the run has scores of one suite only.

    Raises:
        RunError: If the directory is no run, was not evaluated, or was evaluated on several suites.
    """
    origin = document(path)
    found = suites_of(path)
    if not found:
        raise RunError(
            f"{path} has no scores. Evaluate it first: perdure eval {typed(path)} --suite ..."
        )
    if suite is None:
        if len(found) > 1:
            raise RunError(
                f"{path} has scores of several suites: {', '.join(found)}. Choose one: --suite ..."
            )
        suite = found[0]
    if suite not in found:
        raise RunError(
            f"{path} has no scores of suite {suite!r}; {hint(suite, found)}it has: "
            f"{', '.join(found)}. Evaluate it: perdure eval {typed(path)} --suite {suite}"
        )
    try:
        return _record(path, suite, origin)
    except _MALFORMED as error:
        raise _damaged(path, error) from None


def suites_of(path: Path) -> list[str]:
    """Return the suites that a run directory has scores on, sorted."""
    files = (path / "scores").glob("*.json")
    return sorted(file.stem for file in files if not file.stem.endswith(".sweep"))


def _strength(file: Path) -> float | None:
    """Return the one alpha of a predictor's added modules; None if they differ."""
    surgeries = read_json(file).get("surgeries") if file.is_file() else None
    found = {float(entry["alpha"]) for entry in surgeries or ()} or {1.0}
    return found.pop() if len(found) == 1 else None


def _record(path: Path, suite: str, origin: Mapping[str, Any]) -> Record:
    """Read the scores of a run on one suite."""
    scores = read_json(path / "scores" / f"{suite}.json")
    method, alpha, seed, settings = identity(origin)
    tuned = None
    if origin.get("kind") == "wise-ft":
        ends = [identity(origin_of(entry)) for entry in origin["inputs"]]
        tuned = next((inner for name, _, _, inner in reversed(ends) if name != "zero-shot"), None)
    sweep_file = path / "scores" / f"{suite}.sweep.json"
    sweep: dict[float, Splits] = {}
    if sweep_file.is_file():
        curve = read_json(sweep_file)
        if (curve["definition"], _pixels(curve)) != (scores["definition"], _pixels(scores)):
            raise RunError(
                f"{sweep_file} was made with another definition of {suite}, other pixels or "
                f"another precision than {suite}.json. "
                f"Make both again: perdure eval {typed(path)} --suite {suite} --sweep"
            )
        sweep = {float(entry["alpha"]): entry["splits"] for entry in curve["points"]}
    # Whatever is missing shall be missed here, where the file can be named.
    for entries in (scores["splits"], *sweep.values()):
        summary(entries)
        [(entry["n"], entry["role"], main_value(entry)) for entry in entries.values()]
    status_file = path / "status.json"
    status = read_json(status_file) if status_file.is_file() else {}
    return Record(
        path=path,
        method=method,
        alpha=alpha,
        seed=seed,
        settings=settings,
        tuned=tuned,
        suite=suite,
        definition=str(scores["definition"]),
        splits=scores["splits"],
        pixels=_pixels(scores),
        sweep=sweep,
        strength=_strength(path / "predictor" / "predictor.json"),
        trainable=status.get("trainable"),
        seconds=status.get("seconds"),
        views=cached_views(origin),
        view_seconds=status.get("view_seconds"),
        origin=origin,
        guard=status.get("guard"),
    )


def _pixels(scores: Mapping[str, Any]) -> str:
    """Return how pictures were decoded and scored; files of older versions do not say."""
    decoding = scores.get("transform", {}).get("decoding", "exact")
    return f"{decoding}, {scores.get('precision', 'fp32')}"


def expand(paths: Sequence[Path]) -> list[Path]:
    """Replace a directory of runs by the runs in it.

    Raises:
        RunError: If a path is neither.
    """
    runs: list[Path] = []
    for path in paths:
        found = [path] if is_run(path) else runs_in(path)
        if not found:
            reason = "does not exist" if not path.exists() else "has no recipe.yaml or merge.yaml"
            near = hint(
                path.name, [one.name for one in path.parent.glob("*/") if one.name != path.name]
            )
            raise RunError(
                f"{path} is not a run directory: it {reason}; {near}"
                "name a directory written by perdure train or perdure merge."
            )
        runs.extend(found)
    return runs


def hint(name: str, choices: Iterable[str]) -> str:
    """Return the nearest valid name as a clause for the middle of a message, or ""."""
    found = nearest(name, choices)
    return f"{found} " if found else ""


def document(path: Path) -> Mapping[str, Any]:
    """Read the recipe or merge document of a run.

    Raises:
        RunError: If it has none, it is damaged, or the run is of a newer version.
    """
    require_readable(path)
    for name in ("recipe.yaml", "merge.yaml"):
        file = path / name
        if file.is_file():
            try:
                return parse_yaml(file.read_text(encoding="utf-8"), str(file))
            except (RecipeError, OSError, UnicodeError) as error:
                raise _damaged(file, error) from None
    raise RunError(f"{path} is not a run directory: it has no recipe.yaml or merge.yaml.")


def _damaged(path: Path, error: Exception) -> RunError:
    """Return the error of a file, or a run, that does not hold what perdure writes."""
    reason = f"no entry {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return RunError(
        f"{path} cannot be read: it does not hold what perdure writes ({reason[:300]}). "
        "It is damaged, was changed by hand, or comes from another version; restore it or make it "
        "again."
    )
