"""What two models answer on the splits of a suite, and which pictures show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.loading import fit
from ..data.sheet import TILE, write_sheet
from ..data.splits import Split
from ..data.views import Part
from ..metrics import softmax
from ..prediction import How, Unit, gather, stay
from ..predictor import Predictor
from . import drift

SHIFTED = "shifted"
"""Name of all splits with the role `ood` together, where they have the same classes"""

PICTURES = 12
"""Of each split and direction on a sheet"""


@dataclass(frozen=True, eq=False)
class Answers:
    """One split, scored before and after."""

    split: Split
    unit: Unit
    before: NDArray[np.float32]
    """Logits of the pre-trained model, (N, C)"""
    after: NDArray[np.float32]
    """Logits of the fine-tuned model, (N, C)"""
    labels: NDArray[np.int64]
    """(N,)"""
    change: drift.Change
    flips: drift.Flips
    classes: list[drift.Forgotten]
    """Those that lost most first"""

    def entry(self) -> dict[str, Any]:
        """Return what the report says of this split, as JSON."""
        found = self.flips
        return {
            "role": self.split.role,
            "metric": "accuracy",
            **asdict(self.change),
            "accuracy": self.change.accuracy._asdict(),
            "confidence": self.change.confidence._asdict(),
            "right_to_wrong": _counted(found, found.lost),
            "wrong_to_right": _counted(found, found.gained),
        }

    def flipped(self, places: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return what happened on some images, as JSON; `image` counts in the whole split."""
        names = self.unit.dataset.classes
        sure = [softmax(logits).max(axis=1) for logits in (self.before, self.after)]
        told = [logits.argmax(axis=1) for logits in (self.before, self.after)]
        dataset = self.unit.dataset
        indices = dataset.indices if isinstance(dataset, Part) else np.arange(len(self.labels))
        return [
            {
                "image": int(indices[place]),
                "class": names[self.labels[place]],
                "before": names[told[0][place]],
                "confidence_before": round(float(sure[0][place]), 4),
                "after": names[told[1][place]],
                "confidence_after": round(float(sure[1][place]), 4),
            }
            for place in places.tolist()
        ]


def answer(split: Split, unit: Unit, start: Predictor, tuned: Predictor, how: How) -> Answers:
    """Score a split with both models.

    Raises:
        WeightsError: If a logit is not finite.
    """
    before, labels = gather(start, {0.0: stay}, unit, how)[0.0]
    after = gather(tuned, {0.0: stay}, unit, how)[0.0].logits
    return Answers(
        split,
        unit,
        before,
        after,
        labels,
        drift.change(before, after, labels),
        drift.flips(before, after, labels),
        drift.forgotten(
            [before.argmax(axis=1)], [after.argmax(axis=1)], [labels], unit.dataset.classes
        ),
    )


def by_class(found: Mapping[str, Answers]) -> dict[str, list[drift.Forgotten]]:
    """Return the classes of every split, and those of all shifted splits together."""
    lists = {name: one.classes for name, one in found.items()}
    moved = [one for one in found.values() if one.split.role == "ood"]
    names = {one.unit.dataset.classes for one in moved}
    if len(moved) > 1 and len(names) == 1:
        lists[SHIFTED] = drift.forgotten(
            [one.before.argmax(axis=1) for one in moved],
            [one.after.argmax(axis=1) for one in moved],
            [one.labels for one in moved],
            names.pop(),
        )
    return lists


def write_flips(found: Mapping[str, Answers], out: Path) -> Path | None:
    """Draw images whose answer changed sides, surest first; None where there is none.

    Below a picture stand its class and what the model took it for: afterwards where it was right
    before, before where it is right now.

    Raises:
        RunError: If the file cannot be written.
        DataError: If a picture is damaged.
    """
    rows, captions = {}, {}
    for name, one in found.items():
        for places, title, word in (
            (one.flips.lost, "right to wrong", "after"),
            (one.flips.gained, "wrong to right", "before"),
        ):
            if not len(places):
                continue
            some = places[:PICTURES]
            row = f"{name}, {title}:\n{len(places)} of {one.flips.n}"
            rows[row] = torch.stack(
                [fit(one.unit.dataset.image(int(at)), TILE, "bicubic") for at in some]
            )
            captions[row] = [(each["class"], f"{word}: {each[word]}") for each in one.flipped(some)]
    return write_sheet(rows, out, captions) if rows else None


def _counted(found: drift.Flips, places: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "count": len(places),
        "share": len(places) / found.n,
        "interval": list(found.interval(places)),
    }
