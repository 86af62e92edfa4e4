"""Say what fine-tuning did to a finished run: to its weights, its features and its answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..data.datasets import Dataset
from ..data.loading import eval_batches
from ..data.splits import Split, Suite
from ..errors import DataError, RunError
from ..files import finite
from ..opening import find_templates, open_split, task_of
from ..prediction import How, Unit, open_suite, spread
from ..predictor import Predictor
from ..recipe import DataSpec
from ..run import Run
from ..subjects import Subject, find, trained_on
from ..sweeping import zero_shot_of
from .answers import Answers, answer, by_class
from .drift import Forgotten
from .layers import weights_of
from .pairs import Pair, bring_together, in_passes, moments_of, prompts_of
from .similarity import Similarity, compare, image_features, linear_cka, mean_cosine, text_features
from .span import ENERGY, Span, check_energy, find_span
from .update import GroupUpdate, LayerUpdate, by_group, measure

FORMAT = 1
"""Version of the report; raised when an older reader would misunderstand it."""

IMAGES = 256
"""Images of each kind that features and spans are found on, unless told otherwise"""

_BATCH = 64


@dataclass(frozen=True)
class Diagnosis:
    """What was found. Norms are Frobenius norms, shares lie in [0, 1]."""

    subject: str
    start: str
    """The model it is compared with"""
    seed: int | None
    suite: str
    conditions: Mapping[str, Any]
    """Version, definition of the suite, numbers of images, where they are from, energy"""
    limits: tuple[str, ...]
    """Sentences about what could not be said, and why"""
    groups: list[GroupUpdate]
    layers: list[LayerUpdate]
    similarity: Mapping[str, list[Similarity]]
    """Of `id` and `shifted` images, and of `prompts`"""
    answers: Mapping[str, Answers] = field(repr=False)
    """By split"""
    classes: Mapping[str, list[Forgotten]] = field(repr=False)
    """By split, and `shifted` for all splits of that role together; most forgotten first"""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it but single images, as JSON."""
        found: dict[str, Any] = finite(
            {
                "format": FORMAT,
                "subject": self.subject,
                "start": self.start,
                "seed": self.seed,
                "suite": self.suite,
                **self.conditions,
                "limits": list(self.limits),
                "update": {
                    "groups": [asdict(one) for one in self.groups],
                    "layers": [asdict(one) for one in self.layers],
                },
                "similarity": {
                    name: [asdict(one) for one in rows] for name, rows in self.similarity.items()
                },
                "answers": {name: one.entry() for name, one in self.answers.items()},
                "classes": {
                    name: [{**asdict(one), "change": one.change._asdict()} for one in rows]
                    for name, rows in self.classes.items()
                },
            }
        )
        return found

    def flips(self) -> dict[str, Any]:
        """Return every image whose answer changed sides, by split, as JSON."""
        return {
            "format": FORMAT,
            "subject": self.subject,
            "start": self.start,
            "suite": self.suite,
            "splits": {
                name: {
                    "n": one.flips.n,
                    "right_to_wrong": one.flipped(one.flips.lost),
                    "wrong_to_right": one.flipped(one.flips.gained),
                }
                for name, one in self.answers.items()
            },
        }


def diagnose(
    run: Subject | Run | Path | str,
    suite: Suite | str | None = None,
    *,
    against: Subject | Path | str | None = None,
    images: int = IMAGES,
    energy: float = ENERGY,
    how: How | None = None,
) -> Diagnosis:
    """Compare a finished run with the model that it started from. Writes nothing.

    Args:
        run: A training run or, with `against`, any model.
        suite: Whose splits are answered; None for the suite of the task that it was trained on.
        against: What it is compared with; None for the pre-trained model that the run names.
        images: Of training, of the task and of shifted sets, on which features and spans are
            found, and as many class prompts; at least 2.
        energy: Share of the energy of a layer's inputs that their span keeps, in (0, 1].
        how: Data, device, at most how many images of each split are answered.

    Raises:
        RunError: If it is not a finished training run, and nothing to compare it with is named.
        DataError: If the suite is unknown, data are missing, or a number is out of range.
        TaskError: If the suite asks for something else than classes.
        WeightsError: If a model is unknown, damaged, or its logits are not finite.
    """
    check_energy(energy)
    if images < 2:
        raise DataError(f"features are compared on {images} images; at least 2 are needed.")
    how = how or How()
    subject = find(run)
    origin = _origin(subject) if against is None else find(against)
    chosen, root = task_of(subject, suite, how.root)
    how = replace(how, root=root)
    units = list(open_suite(chosen, how))
    training, source, templates = _training(subject, units, how)
    start, tuned = origin.predictor(), subject.predictor()
    if how.runtime is not None:
        start, tuned = (model.to(how.runtime.device) for model in (start, tuned))
    answers = {split.name: answer(split, unit, start, tuned, how) for split, unit in units}
    pair = bring_together(start, tuned)
    inside = [unit.dataset for split, unit in units if split.role in ("id", "base")][:1]
    outside = {s.name: u.dataset for s, u in units if s.role not in ("id", "base")}
    pools = {
        "training": _pictures(pair.start, [training], images, how),
        "id": _pictures(pair.start, inside, images, how),
        "shifted": _pictures(pair.start, list(outside.values()), images, how),
    }
    names = units[0][1].names
    prompts = prompts_of(pair.start, training.classes, templates, images)
    groups, layers = _updates(pair, pools, prompts, energy)
    conditions = {
        "perdure": __version__,
        "definition": chosen.definition,
        "limit": how.limit,
        "energy": energy,
        "images": {name: pool.count for name, pool in pools.items()} | {"prompts": len(prompts)},
        "training": source,
        "shifted": list(outside),
    }
    similarity = {
        name: compare(image_features(pair.start, pool), image_features(pair.tuned, pool))
        for name, pool in pools.items()
        if name != "training" and pool.count > 1
    }
    similarity["prompts"] = _texts(pair, prompts, names, units[0][1].templates)
    return Diagnosis(
        subject.name,
        origin.name if origin.weights is None else f"{origin.name}/{origin.weights}",
        subject.seed(),
        chosen.name,
        conditions,
        pair.limits,
        groups,
        layers,
        {name: rows for name, rows in similarity.items() if rows},
        answers,
        by_class(answers),
    )


def images_of(suite: Suite, how: How, images: int) -> int:
    """Return about how many images a diagnosis sends through a model, for progress bars."""
    return 2 * sum(len(unit.dataset) for _, unit in open_suite(suite, how)) + 6 * images


class _Pool:
    """Some images of some sets, evenly spread; can be gone through more than once."""

    def __init__(self, parts: Sequence[Dataset], predictor: Predictor, how: How) -> None:
        self.parts = parts
        self.count = sum(len(part) for part in parts)
        self._predictor = predictor
        self._how = how

    def __iter__(self) -> Iterator[Tensor]:
        for part in self.parts:
            for batch in eval_batches(part, self._predictor.preprocess, _BATCH):
                yield batch
                if self._how.progress is not None:
                    self._how.progress(len(batch))


def _pictures(predictor: Predictor, sets: Sequence[Dataset], images: int, how: How) -> _Pool:
    share, rest = divmod(images, max(len(sets), 1))
    counts = [share + (number < rest) for number in range(len(sets))]
    parts = [spread(one, count) for one, count in zip(sets, counts, strict=True) if count]
    return _Pool(parts, predictor, how)


def _origin(subject: Subject) -> Subject:
    try:
        return zero_shot_of(subject)
    except RunError:
        raise RunError(
            f"{subject.name} is not a training run, so it does not say what it started from; name "
            "what it shall be compared with: --against MODEL, such as perdure-tiny or another run."
        ) from None


def _training(
    subject: Subject, units: Sequence[tuple[Split, Unit]], how: How
) -> tuple[Dataset, dict[str, Any], tuple[str, ...]]:
    """Return the images a run was trained on, where they are from, and their prompts.

    Without a training that one knows of, the images of the task itself: nothing is chosen on them.
    """
    data: DataSpec | None = trained_on(subject)
    if data is None:
        split, unit = next((one for one in units if one[0].role in ("id", "base")), units[0])
        return unit.dataset, {"name": split.dataset, "split": split.split}, unit.templates
    here = data.root is not None and data.root.expanduser().exists()
    place = data if here else replace(data, root=how.root)
    found = open_split(place, data.split, subject.seed() or 0)
    templates = ("{}",) if found.captioned else find_templates(place)
    return found, {"name": data.name, "split": data.split}, templates


@torch.no_grad()
def _updates(
    pair: Pair, pools: Mapping[str, _Pool], prompts: Tensor, energy: float
) -> tuple[list[GroupUpdate], list[LayerUpdate]]:
    """Measure matrices, as many at a time as the sums over their inputs have room for."""
    before, after = weights_of(pair.start), weights_of(pair.tuned)
    spans: dict[str, Span] = {}
    layers: list[LayerUpdate] = []
    for part in in_passes(pair.start, pair.layers):
        inputs = moments_of(pair.start, part, lambda: pools["training"], prompts)
        moved = moments_of(pair.start, part, lambda: pools["shifted"])
        for layer in part:
            name = layer.name
            if name in inputs:
                spans[name] = find_span(inputs[name], energy)
            layers.append(
                measure(
                    layer,
                    before[name],
                    after[name],
                    spans.get(name),
                    inputs.get(name),
                    moved.get(name),
                )
            )
    return by_group(pair.layers, pair.groups, before, after, spans), layers


@torch.no_grad()
def _texts(
    pair: Pair, prompts: Tensor, names: Sequence[str], templates: Sequence[str]
) -> list[Similarity]:
    """Compare text towers on prompts, and class rows, which every kind of model has."""
    found: list[Similarity] = []
    if pair.text_applies:
        found = compare(text_features(pair.start, prompts), text_features(pair.tuned, prompts))
    rows = [one.classifier(names, templates) for one in (pair.start, pair.tuned)]
    if len(names) > 1:
        found.append(Similarity("class rows", linear_cka(*rows), mean_cosine(*rows), len(names)))
    return found
