"""What `perdure eval --ensemble` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from .console import meter, numbers, percent

if TYPE_CHECKING:
    from .data.suites import Suite
    from .ensembles import Ensemble
    from .evaluation import Scores
    from .prediction import How
    from .subjects import Subject

KINDS = ("mean", "vrf")


def plan_ensemble(kind: str, shares: str | None, neighbours: int | None) -> Ensemble:
    """Read the options of an ensemble.

    Raises:
        typer.BadParameter: If one is wrong.
    """
    if kind not in KINDS:
        raise typer.BadParameter(
            f"{kind!r} is none of {', '.join(KINDS)}.", param_hint="--ensemble"
        )
    if kind == "mean" and neighbours is not None:
        raise typer.BadParameter("it is an option of --ensemble vrf.", param_hint="--neighbours")
    from .ensembles import Ensemble

    parts = None if shares is None else tuple(numbers(shares, float, "--shares"))
    return Ensemble(
        kind="vrf" if kind == "vrf" else "mean", shares=parts, neighbours=neighbours or 1
    )


def score_ensemble(
    subjects: Sequence[Subject], suite: Suite, ensemble: Ensemble, how: How
) -> Scores:
    """Load all models and score them together, with progress."""
    from .ensembles import evaluate_ensemble
    from .evaluation import images_in

    ensemble.check(len(subjects))
    models = [subject.predictor() for subject in subjects]
    if how.runtime is not None:
        models = [model.to(how.runtime.device) for model in models]
    with meter(images_in(suite, how) * len(models)) as shown:

        def count(scored: int) -> None:
            shown.describe("scoring an ensemble")
            shown.advance(scored)

        how = replace(how, progress=count)
        return evaluate_ensemble(models, suite, ensemble, subjects=subjects, how=how)


def about_ensemble(scores: Scores) -> str:
    """Say what was mixed, and how much of the last model is in it."""
    told = scores.conditions["ensemble"]
    share = ", ".join(f"{name} {percent(value)}" for name, value in told["last_share"].items())
    lines = [f"mean share of {told['members'][-1]}, %: {share}"]
    if told["kind"] == "vrf":
        first, second = told["temperatures"]
        lines.append(
            f"temperatures on val {first:.2f} and {second:.2f}; {told['failures']} failures among "
            f"{told['training_images']} training images; distance to the nearest of number "
            f"{told['neighbours']}, sigmoid(({told['centre']} - d) / {told['width']})"
        )
    return "\n".join(lines)
