"""Open-vocabulary segmentation: proposed regions are classified, then put together to label maps.

Only counts of pixels per image and class, and a line per mask, are kept of what was seen, so memory
does not grow with the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import metrics
from ..data.datasets import templates_for
from ..data.sampling import shard
from ..data.segmented import UNKNOWN, Segmented, label_of, open_segmented
from ..data.splits import Split, Suite
from ..errors import DataError, WeightsError
from ..overlap import Overlap, confusion, iou, miou_interval, overlap, overlap_scores, sparse
from ..prediction import How, Moves, Tour, spread_rows
from ..predictor import Predictor
from ..regions import fuse, label_map, region_inputs
from . import Judged, Outcomes, short_hash


class _Prepared(NamedTuple):
    """One image, with everything that no model changes."""

    row: int
    regions: Tensor
    valid: Tensor
    masks: Tensor
    proposed: Tensor | None
    scores: Tensor | None
    truth: NDArray[np.int64]
    labels: NDArray[np.int64]
    """(Q,), the true class of each mask; -1 for none"""


@dataclass
class _Tally:
    """What is kept of the images that one setting of the weights has labelled."""

    counts: list[Tensor] = field(default_factory=list)
    """Per image, (3, C), int32: a sparse picture of its confusion"""
    images: list[Tensor] = field(default_factory=list)
    """Whose masks these are: a number per mask"""
    labels: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)
    confidences: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Images whose pixels have labels."""

    split: Split
    scenes: Segmented
    rows: NDArray[np.int64]
    """Which of them are looked at"""
    templates: tuple[str, ...]

    @property
    def images(self) -> int:
        """Return how many images there are."""
        return len(self.rows)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return self.scenes.classes

    def judge(
        self,
        predictor: Predictor,
        moves: Moves,
        how: How,
        temperatures: Mapping[float, float],
    ) -> dict[float, dict[str, Judged]]:
        """Label with several settings of a predictor's weights; see `perdure.tasks.Exam`.

        Raises:
            WeightsError: If a logit is not finite.
            DataError: If files are damaged, or no mask covers anything that has a label.
        """
        runtime = how.runtime
        rows = self.rows
        if runtime is not None:
            predictor.to(runtime.device)
            rows = shard(rows, runtime.rank, runtime.world_size)
        classifier = "head" if set(self.classes) <= set(predictor.classes) else "text"
        scorers: dict[float, Callable[[Tensor], Tensor]] = {}
        tallies, tour = {position: _Tally() for position in moves}, Tour(moves)
        for group in self._groups(rows, predictor, how.batch_size):
            regions = torch.cat([one.regions for one in group])
            for position in tour:
                if position not in scorers:
                    scorers[position] = predictor.logits_fn(self.classes, self.templates)
                chances = [
                    _finite(scorers[position](part.to(predictor.device))).softmax(1).cpu()
                    for part in torch.split(regions, how.batch_size)
                ]
                found = torch.cat(chances) if chances else torch.empty(0, len(self.classes))
                each = torch.split(found, [len(one.regions) for one in group])
                for one, clip in zip(group, each, strict=True):
                    self._count(one, clip, tallies[position])
                if how.progress is not None:
                    how.progress(len(group))
        return {
            position: {self.split.name: self._judged(tally, classifier, how)}
            for position, tally in tallies.items()
        }

    def _groups(
        self, rows: NDArray[np.int64], predictor: Predictor, batch_size: int
    ) -> Iterator[list[_Prepared]]:
        """Yield images together until they have a batch of regions."""
        group: list[_Prepared] = []
        for row in rows:
            group.append(self._prepare(int(row), predictor))
            if sum(len(one.regions) for one in group) >= batch_size or len(group) >= batch_size:
                yield group
                group = []
        if group:
            yield group

    def _prepare(self, row: int, predictor: Predictor) -> _Prepared:
        fusion, truth = self.scenes.fusion, self.scenes.truth(row)
        proposals = self.scenes.proposals(row)
        masks = torch.from_numpy(proposals.masks)
        image = self.scenes.image(row)
        whole = full_size(masks, (image.shape[1], image.shape[2]))
        solid = whole if whole.dtype == torch.bool else whole > fusion.threshold
        regions, valid = region_inputs(
            image, solid, predictor.preprocess, expand=fusion.expand, masked=predictor.takes_masks
        )
        proposed = None
        if proposals.class_logits is not None:
            proposed = torch.from_numpy(proposals.class_logits).softmax(1)[:, :-1]
        scores = None if proposals.scores is None else torch.from_numpy(proposals.scores)
        labels = np.array([label_of(mask, truth) for mask in solid.numpy()], dtype=np.int64)
        return _Prepared(
            row, regions, torch.from_numpy(valid), whole, proposed, scores, truth, labels
        )

    def _count(self, one: _Prepared, clip: Tensor, tally: _Tally) -> None:
        """Label one image and add what came of it."""
        classes = fuse(clip, one.valid, one.proposed, self.scenes.fusion.weight)
        ranked = classes if one.scores is None else classes * one.scores[:, None]
        pixels = label_map(ranked, one.masks, (one.truth.shape[0], one.truth.shape[1]))
        found = overlap(confusion(pixels, one.truth, len(self.classes)))
        tally.counts.append(torch.from_numpy(np.stack(found)).int())
        known = torch.from_numpy(one.labels != UNKNOWN)
        best = classes[known].max(dim=1)
        tally.images.append(torch.full((int(known.sum()),), one.row))
        tally.labels.append(torch.from_numpy(one.labels)[known])
        tally.predictions.append(best.indices)
        tally.confidences.append(best.values / classes[known].sum(dim=1))

    def _judged(self, tally: _Tally, classifier: str, how: How) -> Judged:
        number = len(self.classes)
        counts = Overlap(
            *_host(tally.counts, torch.empty(0, 3, number).int(), how, stack=True)
            .astype(np.int64)
            .swapaxes(0, 1)
        )
        outcomes = Outcomes(
            _host(tally.labels, torch.empty(0).long(), how),
            _host(tally.predictions, torch.empty(0).long(), how),
            _host(tally.confidences, torch.empty(0), how).astype(np.float32),
            pixels=sparse(counts),
        )
        images = _host(tally.images, torch.empty(0).long(), how)
        if not len(outcomes.label):
            raise DataError(
                f"of {self.scenes.name}, none of the masks ({self.scenes.source}) covers mostly "
                f"labelled pixels in any of {self.images} images; the proposals are those of other "
                "images, or the labels are empty."
            )
        total = Overlap(*(part.sum(axis=0) for part in counts))
        each = iou(total)
        entry: dict[str, Any] = {
            "role": self.split.role,
            "task": self.split.task,
            "metric": "miou",
            "classes_sha256": short_hash(self.classes),
            "classifier": classifier,
            "n": len(counts.truth),
            **overlap_scores(total),
            "interval": list(miou_interval(counts)),
            "classes_scored": int((total.truth + total.predicted > 0).sum()),
            "masks": len(outcomes.label),
            "mask_accuracy": float(outcomes.correct.mean()),
            "mask_interval": list(metrics.bootstrap_interval(outcomes.correct, of=images)),
            "proposals": self.scenes.source,
            "fusion": asdict(self.scenes.fusion),
            "iou": {
                name: float(value)
                for name, value in zip(self.classes, each, strict=True)
                if not np.isnan(value)
            },
        }
        return Judged(entry, outcomes)


def open_exam(split: Split, suite: Suite, how: How, inside: tuple[str, ...] = ()) -> Segmentation:
    """Open a split.

    Args:
        split: What to label.
        suite: Names the prompts.
        how: Data and number of images.
        inside: Not used.

    Raises:
        DataError: If data are missing.
    """
    scenes = open_segmented(split.dataset, split.split, how.root)
    templates = templates_for(split.templates or suite.templates, how.root)
    return Segmentation(split, scenes, spread_rows(len(scenes), how.limit), templates)


def full_size(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return masks at the size of their image, (Q, H, W); smaller probabilities are enlarged."""
    if not len(masks):
        return torch.empty(0, *size, dtype=torch.bool)
    if tuple(masks.shape[1:]) == size:
        return masks
    grown = torch.nn.functional.interpolate(
        masks[None].float(), size, mode="bilinear", align_corners=False
    )
    return grown[0]


def _finite(logits: Tensor) -> Tensor:
    if not torch.isfinite(logits).all():
        raise WeightsError(
            "some logits are not finite, so the model cannot be scored. Its weights are damaged or "
            "its training diverged; look at the loss in log.jsonl."
        )
    return logits


def _host(parts: list[Tensor], empty: Tensor, how: How, *, stack: bool = False) -> NDArray[Any]:
    """Join what images have, and what processes have, in the order of the images."""
    if stack:
        parts = [part[None] for part in parts]
    rows = torch.cat([empty, *parts])
    if how.runtime is None:
        found: NDArray[Any] = rows.numpy()
        return found
    return how.runtime.to_host(rows.to(how.runtime.device))
