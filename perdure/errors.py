"""Errors a user can act on: what is wrong, the value found, what is allowed, what to do.

The command line prints these without a traceback and exits with 2. Anything else that reaches the
user is a bug.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from shlex import quote


class PerdureError(Exception):
    """Base of all errors that perdure raises on purpose."""


class RecipeError(PerdureError):
    """A recipe is wrong; the message lists every fault at once, each with its key."""


class DataError(PerdureError):
    """A dataset is missing, incomplete or malformed; the message says what was expected."""


class TaskError(PerdureError):
    """Two things do not fit together, such as a method and a task without class names."""


class WeightsError(PerdureError):
    """Weights do not match: keys, shapes or an unreadable file."""


class SurgeryError(PerdureError):
    """A model has no place for the modules a method wants to add."""


class RunError(PerdureError):
    """A run directory is not in the state the command needs."""


class DependencyError(PerdureError):
    """An optional package is missing; the message holds the command that installs it."""


class DivergedError(PerdureError):
    """The loss of a training step is not finite.

    Args:
        step: Optimiser step, counting from 1.
        terms: Name of each loss term to its value at that step.
    """

    def __init__(self, step: int, terms: Mapping[str, float]) -> None:
        super().__init__(step, terms)
        self.step = step
        self.terms = dict(terms)

    def __str__(self) -> str:
        """Name the step and every term, so that the guilty one can be seen."""
        values = ", ".join(f"{name} = {value:.6g}" for name, value in self.terms.items())
        return (
            f"the loss is not finite at step {self.step} ({values}); every term must be finite. "
            "Lower optim.lr, set optim.clip_norm, or lower the weight of the term that grew."
        )


def typed(path: object) -> str:
    """Return a path as one types it in a shell, for commands that can be copied."""
    return quote(str(path))


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return "did you mean 'x'?" for the choice most similar to `name`, or "" if none is close."""
    from difflib import get_close_matches  # which every start of the program would wait for

    known = {choice.lower(): choice for choice in choices}
    found = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f"did you mean {known[found[0]]!r}?" if found else ""
