"""Run: the directory of one training run, and the only place that knows its layout.

```
recipe.yaml  env.json  status.json  log.jsonl
state/step_00000500/     while training: resumable states
predictor/               the result, as perdure reads it; the run is finished when it exists
model/                   the result, as open_clip reads it ("local-dir:")
scores/                  SUITE.json and SUITE.outcomes.npz
```
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from . import rundir, states
from .documents import parse_yaml
from .errors import PerdureError, RunError, SurgeryError, typed
from .files import (
    read_json,
    remove_unfinished,
    reported,
    whole_directory,
    write_json,
    write_text,
)
from .predictor import Predictor
from .recipe import Recipe, differences, dump_recipe, parse_recipe
from .runtime import Runtime
from .states import Cursor

_PACKAGES = ("torch", "open_clip_torch", "timm", "safetensors", "numpy")


class Run:
    """A run directory.

    Args:
        path: Where it is, or will be.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.states = self.path / "state"

    @classmethod
    def create(cls, path: Path | str, recipe: Recipe, runtime: Runtime) -> Run:
        """Make a new run directory with its recipe and environment.

        Raises:
            RunError: If there is something at `path`, or it cannot be written.
        """
        run = cls(path)
        run.require_new()
        with whole_directory(run.path) as fresh:
            write_text(fresh / "recipe.yaml", dump_recipe(recipe))
            write_json(fresh / rundir.ENVIRONMENT, environment(runtime))
            write_json(fresh / "status.json", {"state": "running", "step": 0})
        return run

    def require_new(self) -> None:
        """Refuse to write over anything.

        Raises:
            RunError: If there is something at the path.
        """
        if self.path.exists() or self.path.is_symlink():
            raise RunError(
                f"{self.path} exists already. Choose another directory, remove this one, "
                "or go on with an unfinished run by --resume."
            )

    def require_same(self, recipe: Recipe) -> None:
        """Refuse to resume with another recipe; how it is carried out (`run.*`) may change.

        Raises:
            RunError: Names every key that differs, with both values.
        """
        changed = differences(self.recipe(), recipe)
        if changed:
            lines = "".join(f"\n  {line}" for line in changed)
            raise RunError(
                f"{self.path} was started with another recipe; these keys differ "
                f"(there -> now):{lines}\nResume with the old values or train in a new directory."
            )

    @property
    def finished(self) -> bool:
        """Whether the result is there."""
        return (self.path / "predictor" / "predictor.json").is_file()

    def recipe(self) -> Recipe:
        """Return what was, or is being, carried out.

        Raises:
            RunError: If this is no run directory, or one of a newer version.
            RecipeError: If the recipe was changed by hand and is wrong now.
        """
        rundir.require_readable(self.path)
        path = self.path / "recipe.yaml"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeError):
            raise RunError(
                f"{self.path} is not a run directory: it has no readable recipe.yaml. "
                "Name a directory that `perdure train` has written."
            ) from None
        return parse_recipe(parse_yaml(text, str(path)), str(path))

    def require_finished(self) -> None:
        """Refuse a run without a result.

        Raises:
            RunError: If the run is not finished, or of a newer version.
        """
        if not self.path.exists():
            raise RunError(f"{self.path} does not exist; name the directory of a finished run.")
        rundir.require_readable(self.path)
        if not self.finished:
            raise RunError(
                f"{self.path} holds no finished run: it has no predictor/. "
                "If it was interrupted, go on with: perdure train "
                f"{typed(self.path / 'recipe.yaml')} --out {typed(self.path)} --resume"
            )

    def predictor(self) -> Predictor:
        """Load the result.

        Raises:
            RunError: If the run is not finished, or of a newer version.
            WeightsError: If its files are damaged.
        """
        self.require_finished()
        return Predictor.load(self.path / "predictor")

    def status(self) -> dict[str, Any]:
        """Return the state of the run: step, time, number of trained parameters, ...

        Raises:
            RunError: If there is none.
        """
        return read_json(self.path / "status.json")

    def update_status(self, **values: Any) -> None:
        """Change some values of the status and keep the others."""
        write_json(self.path / "status.json", self.status() | values)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line to the log.

        Raises:
            RunError: If it cannot be written.
        """
        with reported(path := self.path / "log.jsonl"), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def log_rows(self) -> list[dict[str, Any]]:
        """Return the whole lines of the log."""
        path = self.path / "log.jsonl"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        lines = text.splitlines()
        return [row for line in lines if (row := _row(line)) is not None]

    def cut_log(self, step: int) -> None:
        """Forget what was logged after `step`, because it will be done again."""
        rows = [json.dumps(row) + "\n" for row in self.log_rows() if row["step"] <= step]
        write_text(self.path / "log.jsonl", "".join(rows))

    def save_state(self, cursor: Cursor, learner: nn.Module, optimizer: Optimizer) -> Path:
        """Write a resumable state; kept are the last two, the best and the last good one.

        Raises:
            RunError: If it cannot be written; the states before are untouched.
        """
        path = states.save_state(self.states, cursor, learner, optimizer)
        states.prune_states(self.states, keep=2, also=(cursor.best_step, cursor.good_step))
        return path

    def drop_states(self, after: int) -> None:
        """Delete the states of later steps, from which the run is not to go on."""
        states.drop_states(self.states, after)

    def load_state(self, learner: nn.Module, optimizer: Optimizer) -> Cursor:
        """Put learner and optimiser into the newest whole state; step 0 if there is none.

        Raises:
            RunError: If the state does not fit.
        """
        found = states.complete_states(self.states)
        return states.load_state(found[-1], learner, optimizer) if found else Cursor(step=0)

    def load_step(self, step: int, learner: nn.Module, optimizer: Optimizer) -> None:
        """Put learner and optimiser into the kept state of one step.

        Raises:
            RunError: If it is not there or does not fit.
        """
        states.load_state(states.state_of(self.states, step), learner, optimizer)

    def load_part(self, step: int, learner: nn.Module) -> None:
        """Give a learner its weights and averages from the kept state of one that has more.

        Raises:
            RunError: If the state is missing or lacks something that the learner has.
        """
        states.load_part(states.state_of(self.states, step), learner)

    def finish(self, predictor: Predictor, *, keep_states: bool, **status: Any) -> None:
        """Write the result; `predictor/` comes last, because it says that the run is finished."""
        note = write_model(predictor, self.path / "model")
        before = self.status()
        self.update_status(state="finished", note=note, **status)
        try:
            predictor.save(self.path / "predictor")
        except PerdureError:
            write_json(self.path / "status.json", before)
            raise
        self.tidy(keep_states=keep_states)

    def tidy(self, *, keep_states: bool) -> None:
        """Delete what a finished run no longer needs, also where a kill came in between."""
        if not keep_states:
            shutil.rmtree(self.states, ignore_errors=True)
        remove_unfinished(self.path)

    def scores(self, suite: str) -> dict[str, Any]:
        """Return the scores on a suite.

        Raises:
            RunError: If the run has not been evaluated on it.
        """
        path = self.path / "scores" / f"{suite}.json"
        if not path.is_file():
            raise RunError(
                f"{self.path} has no scores on {suite}; make them with "
                f"`perdure eval {typed(self.path)} --suite {suite}`."
            )
        return read_json(path)


def write_model(predictor: Predictor, path: Path) -> str | None:
    """Write what plain open_clip loads; where it cannot hold all modules, return why, as a note."""
    try:
        predictor.fold().export_open_clip(path)
    except SurgeryError as error:
        return f"no model/: {error}"
    return None


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # the process was killed while writing it
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def environment(runtime: Runtime) -> dict[str, Any]:
    """Return what a result may depend on besides its recipe; no names of people or machines.

    It starts with the format of the run directory, which `rundir.require_readable` looks at.
    """
    from . import __version__

    versions = {"perdure": __version__, "python": platform.python_version()}
    return {
        "format": rundir.FORMAT,
        "versions": versions | {package: version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "device": str(runtime.device),
        "threads": runtime.threads,
        "processes": runtime.world_size,
        "command": sys.argv,
    }
