"""A guard at work: measures during training what a recipe wants kept, and goes back or stops.

It consumes the steps of training as any caller does. What it did is in the run's status and log, so
that a run that was killed, before, in or after a rollback, goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .comparison import paired_difference
from .data.datasets import DATASETS
from .data.suites import Suite, for_choosing
from .data.suites import suite as find_suite
from .errors import TaskError
from .evaluation import evaluate_points
from .guard_spec import WITHOUT, WORDS, GuardSpec, is_share, less_is_better, require_in, splits_of
from .learner import Learner
from .optim import Schedule
from .prediction import How, stay
from .predictor import Predictor
from .recipe import Recipe
from .run import Run
from .runtime import Runtime
from .states import Cursor
from .tasks import open_exams

_ROUNDING = 1e-12
"""Less than one image of any split makes"""


class Look(NamedTuple):
    """What the guard saw."""

    value: float
    interval: tuple[float, float] | None
    """Of 95 % over images; None for calibration"""
    images: int


@dataclass
class Guard:
    """A guard of one run. All processes hold one, and come to the same answers."""

    spec: GuardSpec
    suite: Suite
    how: How
    record: dict[str, Any] = field(default_factory=dict)
    """What `status.json` says of it; empty before `begin` or `read`"""

    @classmethod
    def of(cls, recipe: Recipe, runtime: Runtime) -> Guard | None:
        """Return the guard that a recipe asks for, with its data found; None without one.

        Raises:
            DataError: If the suite is unknown or its data are missing.
            TaskError: If the suite does not have the metric.
        """
        spec = recipe.guard
        if spec is None:
            return None
        root = spec.root or recipe.data.root
        suite = find_suite(spec.suite, root)
        if spec.root is None and all(DATASETS[one.dataset].embedded for one in suite.splits):
            root = None
        try:
            require_in(spec.metric, suite)
        except ValueError as error:
            raise TaskError(f"guard: {error}.") from None
        needed = splits_of(spec.metric, suite)
        kept = [one for one in suite.splits if one.name in needed] or list(suite.splits)
        if any(one.columns is not None for one in kept):  # these are of the classes of "id"
            kept = [one for one in suite.splits if one in kept or one.role == "id"]
        how = How(root=root, limit=spec.limit, runtime=runtime)
        guard = cls(spec, replace(suite, splits=tuple(kept)), how)
        open_exams(guard.suite, how)
        return guard

    @property
    def _splits(self) -> list[str]:
        """Return the names of the splits that are looked at."""
        return splits_of(self.spec.metric, self.suite)

    @property
    def _word(self) -> str:
        """Return the metric's name in what the kept splits come to."""
        return "ood" if self.spec.metric in WITHOUT else self.spec.metric

    def look(self, predictor: Predictor) -> Look:
        """Measure the metric.

        Raises:
            TaskError: If the split does not have it, such as accuracies of groups.
            WeightsError: If a logit is not finite.
        """
        scores = evaluate_points(predictor.eval(), {0.0: stay}, self.suite, self.how, conditions={})
        found = scores[0.0]
        split, dot, name = self.spec.metric.rpartition(".")
        name = name if dot else self._word
        words = {} if dot else found.summary()
        if name not in (found.splits.get(split, {}) if dot else words):
            has = [
                *words,
                *(
                    f"{one}.{key}"
                    for one, entry in found.splits.items()
                    for key, value in entry.items()
                    if isinstance(value, float)
                ),
            ]
            raise TaskError(
                f"guard.metric is {self.spec.metric!r}, but there is no such number of suite "
                f"{self.suite.name}, which has: {', '.join(has)}."
            )
        names = [one for one in self._splits if one in found.splits]
        images = sum(int(found[one]["n"]) for one in names)
        if dot:
            own = name == found[split].get("metric")
            return Look(
                found[split][name], _pair(found[split]["interval"]) if own else None, images
            )
        value = words[name]
        if "interval" in value or name not in WORDS or name.startswith("ece"):
            return Look(value["value"], _pair(value.get("interval")), images)
        right = {one: found.outcomes[one].correct.astype(np.float64) for one in names}
        none = {one: np.zeros_like(values) for one, values in right.items()}
        gap = paired_difference(right, none)
        return Look(value["value"], (gap.low, gap.high), images)

    def begin(self, learner: Learner, pretrained: Callable[[], Predictor]) -> str:
        """Measure before training, set the bound, and return what people should know of it.

        Args:
            learner: Before its first step.
            pretrained: Loads the model that `drop` counts from.

        Raises:
            TaskError: If training would start below the floor.
        """
        spec = self.spec
        before = None if spec.drop is None else self.look(pretrained())
        start = self.look(learner.export())
        bound = spec.floor
        if before is not None and spec.drop is not None:
            bound = before.value + spec.drop * (1 if less_is_better(spec.metric) else -1)
        assert bound is not None
        self.record = {
            "suite": self.suite.name,
            "metric": spec.metric,
            "splits": self._splits,
            "action": spec.action,
            "bound": bound,
            "pretrained": None if before is None else before.value,
            "start": start.value,
            "images": start.images,
            "limit": spec.limit,
            "for_choosing": for_choosing(self.suite),
            "rollbacks": [],
            "stopped": None,
        }
        if not self.holds(start):
            raise TaskError(self._too_low(start))
        text = f"Guard: {self._saw(start)} before training; {self._limit()}."
        if not self.record["for_choosing"]:
            text += (
                f" It looks at {', '.join(self._splits)} of {self.suite.name}: what is scored "
                "there later is no untouched test any more."
            )
        return text

    def read(self, run: Run) -> None:
        """Take up what the run says that its guard found and did."""
        self.record = run.status()["guard"]

    @property
    def stopped(self) -> bool:
        """Whether the run is to end with the last good weights."""
        return self.record["stopped"] is not None

    def holds(self, look: Look) -> bool:
        """Return whether what was seen is good."""
        bound: float = self.record["bound"]
        if math.isclose(look.value, bound, rel_tol=0, abs_tol=_ROUNDING):
            return True  # 0.8 - 0.1 is not 0.7 in floats
        if less_is_better(self.spec.metric):
            return look.value <= bound
        return look.value >= bound

    def lowered(self, schedule: Schedule) -> Schedule:
        """Return the schedule of a run that has gone back so many times."""
        rate = self.spec.factor ** len(self.record["rollbacks"])
        return lambda step: schedule(step) * rate

    def act(self, run: Run, cursor: Cursor, look: Look, *, write: bool) -> str:
        """Go back or stop; return what people should know of it.

        First later states are deleted and only then is it recorded: a run that is killed in between
        goes on from an earlier state, sees the same again, and acts again.

        Args:
            run: Whose states and status are changed.
            cursor: Where it stands.
            look: What was seen there.
            write: Whether this process is the one that does.
        """
        back, done = cursor.good_step, self.record["rollbacks"]
        place = {"step": cursor.step, "to": back, "value": look.value, "interval": look.interval}
        again = self.spec.action == "rollback" and len(done) < self.spec.times
        if again:
            rate = self.spec.factor ** (len(done) + 1)
            self.record = {**self.record, "rollbacks": [*done, {**place, "rate": rate}]}
            what = (
                f"back to {_place(back)}, learning rates times {rate:g} from there on "
                f"(rollback {len(done) + 1} of {self.spec.times})"
            )
        else:
            self.record = {**self.record, "stopped": place}
            what = f"training ends, and the weights of {_place(back)} are delivered"
        if write:
            run.drop_states(back)
            run.update_status(guard=self.record)
        return f"Guard: {self._saw(look)} after step {cursor.step}, {self._limit()}: {what}."

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines of the log about what was decided; `catch_up` writes what is missing.

        A rollback stands at the step that it went to, because later lines are written anew.
        """
        keys = ("suite", "metric", "bound", "pretrained", "images")
        known = {key: self.record[key] for key in keys}
        found = [{"step": 0, "guard": {"did": "start", "value": self.record["start"], **known}}]
        found += [
            {"step": one["to"], "guard": {"did": "rollback", **one}}
            for one in self.record["rollbacks"]
        ]
        if self.stopped:
            one = self.record["stopped"]
            found.append({"step": one["step"], "guard": {"did": "stop", **one}})
        return found

    def catch_up(self, run: Run) -> None:
        """Write what the log does not have yet of what was decided."""
        logged = [row for row in run.log_rows() if "did" in (row.get("guard") or ())]
        for row in self.rows()[len(logged) :]:
            run.log(row)

    def _saw(self, look: Look) -> str:
        of = (
            ""
            if look.interval is None
            else ", 95 % interval " + "-".join(self._text(end) for end in look.interval)
        )
        splits = ", ".join(self._splits)
        return (
            f"{self.spec.metric} of {self.suite.name} is {self._text(look.value)} "
            f"({splits}: {look.images:,} images{of})"
        )

    def _limit(self) -> str:
        word = "ceiling" if less_is_better(self.spec.metric) else "floor"
        text = f"{word} {self._text(self.record['bound'])}"
        if self.spec.drop is None:
            return text
        return f"{text} ({self._text(self.spec.drop)} from {self._text(self.record['pretrained'])})"

    def _text(self, value: float) -> str:
        return f"{100 * value:.1f} %" if is_share(self.spec.metric) else f"{value:.3f}"

    def _too_low(self, start: Look) -> str:
        advice = (
            "Choose another guard.floor, or guard.drop, which counts from the pre-trained model."
        )
        if self.spec.drop is not None:
            advice = (
                "Allow a larger guard.drop, or start elsewhere: model.init, or first weights that "
                "the method draws, have cost this much already."
            )
        return (
            f"the guard would act at once: {self._saw(start)} before training, {self._limit()}. "
            f"{advice}"
        )


def _place(step: int) -> str:
    return f"step {step}" if step else "the start"


def _pair(interval: Sequence[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])
