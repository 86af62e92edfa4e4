"""Score predictors on suites: gather whole arrays first, then compute every metric once.

No metric is averaged over batches.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__, metrics
from .data.datasets import templates_for
from .data.decoding import Transform
from .data.suites import Suite
from .data.suites import suite as find_suite
from .files import whole_file, write_json
from .kept import Kept, stamp_of
from .prediction import How, Moves, Precision, Progress, gather, open_validation, stay
from .prediction import predict as predict
from .predictor import Predictor
from .records import HARMONIC, summary
from .runtime import Runtime
from .subjects import Subject, find, trained_on
from .tasks import Judged, Outcomes, open_exams, short_hash
from .tasks.classify import measure as measure

if TYPE_CHECKING:
    from .run import Run

FORMAT = 1
"""Version of score files; raised when an older reader would misunderstand them."""


@dataclass(frozen=True)
class Scores:
    """The result of evaluating one predictor on one suite; shares in [0, 1]."""

    suite: str
    conditions: Mapping[str, Any]
    """Subject, seed, and hashes of what the numbers depend on"""
    splits: Mapping[str, Mapping[str, Any]]
    """Split name to metric name to value; also role, task and n"""
    outcomes: Mapping[str, Outcomes] = field(repr=False)

    def __getitem__(self, split: str) -> Mapping[str, Any]:
        """Return the metrics of one split."""
        return self.splits[split]

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return the words of `perdure.reporting` that one model has, as `value`.

        Harmonic means also have an `interval` of 95 % over images.
        """
        names: dict[str, list[str]] = {}
        for name, entry in self.splits.items():
            names.setdefault(entry["role"], []).append(name)
        found: dict[str, dict[str, Any]] = {}
        for word, value in summary(self.splits).items():
            found[word] = {"value": value}
            if word in HARMONIC and self.outcomes:
                base, novel = (
                    [self.outcomes[name].correct for name in names[role]] for role in HARMONIC[word]
                )
                found[word]["interval"] = list(metrics.harmonic_interval(base, novel))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return what a score file holds."""
        return {
            "format": FORMAT,
            "suite": self.suite,
            **self.conditions,
            "splits": self.splits,
            "summary": self.summary(),
        }

    def write(self, directory: Path) -> Path:
        """Write `<suite>.outcomes.npz` and then `<suite>.json`, each whole or not at all."""
        arrays = {
            f"{name}/{part}": values
            for name, outcomes in self.outcomes.items()
            for part, values in outcomes.arrays().items()
        }
        with (
            whole_file(directory / f"{self.suite}.outcomes.npz") as temporary,
            temporary.open("wb") as file,
        ):
            np.savez_compressed(file, **arrays)
        path = directory / f"{self.suite}.json"
        write_json(path, self.to_dict())
        return path


def evaluate(
    subject: Predictor | Run | Subject | Path | str,
    suite: Suite | str = "emojishift",
    *,
    temperature: bool = False,
    root: Path | None = None,
    limit: int | None = None,
    batch_size: int = 256,
    transform: Transform = "exact",
    precision: Precision = "fp32",
    workers: int = 0,
    cache: Path | None = None,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score every split of a suite, and write the scores into the run if the subject is one.

    Args:
        subject: A predictor, a run, a run directory, or a model by name.
        suite: Which splits.
        temperature: Also fit a temperature on the task's `val` split, and report calibration after
            it as `ece_scaled` and `nll_scaled`.
        root: Directory of the data; None for embedded data.
        limit: At most so many images per split, spread evenly; all by default. Scores of different
            numbers of images are never compared.
        batch_size: Images per forward pass; no result depends on it.
        transform: How pictures are decoded; "fast" is within one level of "exact". Scores of
            different ways are never compared.
        precision: Of the image tower; nor are scores of different precisions.
        workers: Processes that decode ahead; no result depends on them.
        cache: Folder in which decoded pixels are kept; no result depends on it.
        runtime: Device and processes, between which images are divided; the predictor's own device
            and this process by default.
        progress: Told about finished images.

    Raises:
        DataError: If the suite is unknown, or its data are not under `root`.
        RunError: If the run is not finished.
        WeightsError: If the model is unknown, or its logits are not finite.
    """
    # Before minutes of loading.
    suite = find_suite(suite, root) if isinstance(suite, str) else suite
    if isinstance(subject, Predictor):
        found, predictor = Subject("predictor"), subject
    else:
        found = find(subject)
        warn_of_training(found, suite)
        predictor = found.predictor()
    how = How(
        root=root,
        limit=limit,
        batch_size=batch_size,
        transform=transform,
        precision=precision,
        workers=workers,
        cache=cache,
        runtime=runtime,
        progress=progress,
    )
    kept = kept_of(found, suite, how, temperature=temperature)
    scores = evaluate_points(
        predictor,
        {0.0: stay},
        suite,
        how,
        conditions=conditions_of(found, kept),
        temperature=temperature,
        kept={} if kept is None else {0.0: kept},
    )[0.0]
    if kept is not None:
        write_whole(scores, kept)
    return scores


def warn_of_training(subject: Subject, suite: Suite) -> None:
    """Warn where a suite counts as never trained on what a run was trained on."""
    targets = {
        split.dataset
        for split in suite.splits
        if split.role == "target" and split.task == "classify" and split.dataset != "emojishift"
    }
    data = trained_on(subject) if targets else None
    if data is not None and data.name in targets:
        warnings.warn(
            f"{subject.name} was trained on {data.name}, which suite {suite.name} counts among the "
            f"tasks never trained on, also in its mean; score suite forgetting-{data.name}, which "
            "leaves it out.",
            stacklevel=2,
        )


def kept_of(subject: Subject, suite: Suite, how: How, *, temperature: bool) -> Kept | None:
    """Return where the finished splits of a run are kept; None for what is no run."""
    if subject.run is None:
        return None
    stamp = stamp_of(subject.run, suite, how, temperature=temperature)
    return Kept(subject.run, suite.name, stamp, how.runtime is None or how.runtime.is_main)


def conditions_of(subject: Subject, kept: Kept | None) -> dict[str, Any]:
    """Return what scores say of their subject."""
    stamp = {} if kept is None else {"stamp": kept.stamp}
    return {**subject.conditions(), **stamp}


def write_whole(scores: Scores, kept: Kept) -> None:
    """Write the scores of a run, in whose place its finished splits are no longer needed."""
    if kept.write:
        scores.write(kept.run / "scores")
        kept.clear()


def evaluate_points(
    predictor: Predictor,
    moves: Moves,
    suite: Suite,
    how: How,
    *,
    conditions: Mapping[str, Any],
    temperature: bool = False,
    kept: Mapping[float, Kept] | None = None,
) -> dict[float, Scores]:
    """Score a suite with several settings of a predictor's weights, decoding every image once.

    Args:
        predictor: Its weights are moved in place.
        moves: Positions and how to get there.
        suite: Which splits.
        how: Data, device, number of images.
        conditions: What the scores say about their subject.
        temperature: As in `evaluate`.
        kept: Where finished splits of a position are found, and kept, if anywhere.

    Raises:
        DataError: If data are missing.
        WeightsError: If a logit is not finite.
    """
    exams, kept = open_exams(suite, how), kept or {}
    fitted: dict[float, float] = {}
    if temperature:
        for position, outputs in gather(predictor, moves, open_validation(suite, how), how).items():
            fitted[position] = metrics.fit_temperature(*outputs)
    splits: dict[float, dict[str, dict[str, Any]]] = {position: {} for position in moves}
    outcomes: dict[float, dict[str, Outcomes]] = {position: {} for position in moves}
    for split, exam in exams:
        judged: dict[float, Mapping[str, Judged]] = {}
        for position, place in kept.items():
            if (old := place.read(split.name)) is not None:
                judged[position] = old
        missing = {position: move for position, move in moves.items() if position not in judged}
        if how.runtime is not None:
            how.runtime.wait()  # until all have seen what is there
        if how.progress is not None and judged:
            how.progress(exam.images * len(judged))
        if missing:
            judged |= exam.judge(predictor, missing, how, fitted)
        for position, found in judged.items():
            if position in kept and position in missing:
                kept[position].keep(split.name, found)
            for name, (entry, rows) in found.items():
                splits[position][name], outcomes[position][name] = entry, rows
    common = common_conditions(predictor, suite, how)
    return {
        position: Scores(
            suite.name,
            {**conditions, **common, "temperature": fitted.get(position)},
            splits[position],
            outcomes[position],
        )
        for position in moves
    }


def common_conditions(predictor: Predictor, suite: Suite, how: How) -> dict[str, Any]:
    """Return what scores depend on besides their subject: version, suite, prompts, pixels."""
    decoding = {} if how.transform == "exact" else {"decoding": how.transform}
    return {
        "perdure": __version__,
        "definition": suite.definition,
        "templates_sha256": short_hash(templates_for(suite.templates, how.root)),
        "transform": asdict(predictor.preprocess) | decoding,
        **({} if how.precision == "fp32" else {"precision": how.precision}),
    }


def images_in(suite: Suite, how: How, *, temperature: bool = False) -> int:
    """Return how many images an evaluation looks at, for progress bars."""
    extra = len(open_validation(suite, how).dataset) if temperature else 0
    return extra + sum(exam.images for _, exam in open_exams(suite, how))
