"""Score the whole line of weights between a zero-shot model and a fine-tuned one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .data.suites import Suite
from .data.suites import suite as find_suite
from .errors import RunError, WeightsError
from .evaluation import Scores, evaluate_points, warn_of_training
from .files import read_json, write_json
from .interpolation import ends_of_line
from .kept import Kept, stamp_of
from .prediction import How, put
from .predictor import Predictor
from .records import document
from .run import Run
from .subjects import Subject, find, sha256_of
from .weights import Weights, lerp_tensor, require_same

ALPHAS = tuple(step / 8 for step in range(9))
"""0, 0.125, ..., 1: where curves are drawn and compared"""


class Line:
    """The straight line of weights between two models, and one predictor that walks on it.

    Args:
        zero_shot: The start of the fine-tuning; its copy gets the zero-shot head if `tuned` has
            a head.
        tuned: Its end, whose weights are read as long as the line is in use.

    Raises:
        WeightsError: If the ends do not fit together.
    """

    def __init__(self, zero_shot: Predictor, tuned: Predictor) -> None:
        self.moving, end = ends_of_line(zero_shot, tuned)
        self.start = {name: value.clone() for name, value in self.moving.state_dict().items()}
        self.end = end.state_dict()
        require_same(self.start, self.end)

    def at(self, alpha: float) -> Callable[[], None]:
        """Return what moves `moving` to (1 - alpha) start + alpha end."""
        return lambda: self._go(alpha)

    def put(self, weights: Weights) -> None:
        """Give `moving` any weights of the same names and shapes."""
        put(self.moving, weights)

    @torch.no_grad()
    def _go(self, alpha: float) -> None:
        for name, live in self.moving.state_dict().items():
            a, b = self.start[name], self.end[name]
            alike = a.dtype == b.dtype == live.dtype and a.device == b.device == live.device
            if alike and live.is_floating_point():
                torch.lerp(a, b, alpha, out=live)  # the same numbers without a copy between
            else:
                live.copy_(lerp_tensor(a, b, alpha))


def sweep(
    zero_shot: Predictor,
    tuned: Predictor,
    suite: Suite | str = "emojishift",
    *,
    alphas: Sequence[float] = ALPHAS,
    how: How | None = None,
    subject: str | None = None,
    seed: int | None = None,
    kept: Mapping[float, Kept] | None = None,
) -> dict[float, Scores]:
    """Score (1 - alpha) zero-shot + alpha tuned for every alpha, decoding every image once.

    Args:
        zero_shot: The start of the fine-tuning; gets the zero-shot head if `tuned` has a head.
        tuned: Its end; added modules enter at full strength, so that alpha is their strength.
        suite: Which splits.
        alphas: Shares of the tuned weights, in [0, 1].
        how: Data, device, number of images; all embedded images by default.
        subject: What the record calls the tuned end.
        seed: Of the fine-tuning, for the record.
        kept: Where finished splits of an alpha are found, and kept, if anywhere.

    Raises:
        WeightsError: If an alpha is out of range, or the ends do not fit together.
    """
    suite = find_suite(suite, how.root if how else None) if isinstance(suite, str) else suite
    wrong = [alpha for alpha in alphas if not 0.0 <= alpha <= 1.0]
    if wrong or not alphas:
        raise WeightsError(
            f"alphas are {list(alphas)}; give at least one, each in [0, 1]: "
            "0 is zero-shot, 1 the fine-tuned model."
        )
    if how is not None and how.runtime is not None:
        zero_shot, tuned = (end.to(how.runtime.device) for end in (zero_shot, tuned))
    line = Line(zero_shot, tuned)
    moves = {alpha: line.at(alpha) for alpha in alphas}
    conditions = {"subject": subject or "predictor", "seed": seed}
    found = evaluate_points(
        line.moving, moves, suite, how or How(), conditions=conditions, kept=kept
    )
    return {
        alpha: replace(scores, conditions={**scores.conditions, "alpha": alpha})
        for alpha, scores in found.items()
    }


def zero_shot_of(subject: Subject) -> Subject:
    """Return the pre-trained model that a training run started from.

    Raises:
        RunError: If it is no training run.
    """
    recipe = None if subject.run is None else document(subject.run)
    if recipe is None or "method" not in recipe:
        raise RunError(
            f"{subject.name} is not a training run, so it has no line to its pre-trained model. "
            "Sweep the run that was trained, or merge two models: perdure merge wise-ft A B."
        )
    return Subject(recipe["model"]["name"], recipe["model"].get("weights"))


def ends(subject: Subject) -> tuple[Predictor, Predictor]:
    """Load both ends of a training run's line: its pre-trained model and the run itself.

    Raises:
        RunError: If it is no finished training run.
        WeightsError: If the model is unknown or files are damaged.
    """
    start = zero_shot_of(subject)
    tuned = tuned_end(subject)
    return start.predictor(), tuned


def tuned_end(subject: Subject) -> Predictor:
    """Load a training run, with the modules it has added, if any, folded at full strength.

    The place on the line is their strength: folded at alpha they are (1 - alpha) zero-shot +
    alpha times this.

    Raises:
        RunError: If it is not finished.
        WeightsError: If files are damaged.
    """
    return subject.predictor(1.0)


def sweep_run(
    run: Subject | Run | Path | str,
    suite: Suite | str = "emojishift",
    *,
    alphas: Sequence[float] = ALPHAS,
    how: How | None = None,
    again: bool = True,
) -> dict[float, Scores]:
    """Score the line from a run's pre-trained model to the run, and write `<suite>.sweep.json`.

    Where the line includes the run itself, its own scores are written too. It stands at alpha = 1
    or, where modules were added, at their strength, which is then a point of the line.

    Args:
        run: Of training.
        suite: Which splits.
        alphas: As in `sweep`.
        how: As in `sweep`.
        again: Also where the line is there already, of the same weights, alphas, suite and images;
            finished splits of an interrupted line are never scored again. Scores that are read
            have no `outcomes`.

    Raises:
        RunError: If it is no finished training run.
        WeightsError: As `sweep`.
    """
    suite = find_suite(suite, how.root if how else None) if isinstance(suite, str) else suite
    how = how or How()
    subject = find(run)
    warn_of_training(subject, suite)
    start = zero_shot_of(subject)
    assert subject.run is not None
    tuned = Run(subject.run).predictor()
    strengths = {surgery.alpha for surgery in tuned.surgeries} or {1.0}
    own = strengths.pop() if len(strengths) == 1 else None
    if tuned.surgeries and own is not None and own <= 1.0:
        alphas = sorted({*alphas, own})
    zero_shot = start.predictor()
    stamp = stamp_of(
        subject.run, suite, how, alphas=list(alphas), start=sha256_of(start, zero_shot)
    )
    write = how.runtime is None or how.runtime.is_main
    if not again and (old := _old(subject.run, suite, stamp)):
        return old
    kept = {
        alpha: Kept(subject.run, f"{suite.name}.sweep-{alpha:g}", stamp, write) for alpha in alphas
    }
    found = sweep(
        zero_shot,
        tuned,
        suite,
        alphas=alphas,
        how=how,
        subject=subject.name,
        seed=subject.seed(),
        kept=kept,
    )
    if write:
        first = next(iter(found.values())).to_dict()
        del first["splits"], first["alpha"]
        points = [{"alpha": alpha, "splits": scores.splits} for alpha, scores in found.items()]
        whole = {**first, "stamp": stamp, "points": points}
        write_json(subject.run / "scores" / f"{suite.name}.sweep.json", whole)
        if own in found:
            found[own].write(subject.run / "scores")
        for place in kept.values():
            place.clear()
    return found


def _old(run: Path, suite: Suite, stamp: str) -> dict[float, Scores] | None:
    """Return the line that is there already, if it is of these very conditions."""
    try:
        line = read_json(run / "scores" / f"{suite.name}.sweep.json")
        if line["stamp"] != stamp:
            return None
        rest = {"format", "suite", "summary", "points", "stamp"}
        conditions = {key: value for key, value in line.items() if key not in rest}
        return {
            float(one["alpha"]): Scores(
                suite.name, {**conditions, "alpha": one["alpha"]}, one["splits"], {}
            )
            for one in line["points"]
        }
    except (RunError, LookupError, TypeError, AttributeError):
        return None
