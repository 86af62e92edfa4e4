"""Captioned pictures by which an alpha is chosen, and how well a line of models searches them.

What is measured is mean recall: the mean of recall at 1, 5 and 10 in both directions, RSUM / 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np

from .. import ranking
from ..data.datasets import validation_of
from ..data.layout import find_own
from ..data.paired import Paired, open_paired
from ..data.suites import Suite
from ..embedding import embed_images, embed_texts
from ..errors import DataError
from ..prediction import How
from ..sweeping import Line
from ..weights import Weights
from .report import Cost, Look, moves_of

MEASURE = "mean recall"
"""Of both directions at 1, 5 and 10"""

PURPOSE = "no alpha can be chosen"
"""What cannot be done where there is no validation, for messages"""

_MOST = max(ranking.KS)


@dataclass(frozen=True)
class Captions:
    """Which captioned pictures are looked at."""

    dataset: str
    """As in recipes"""
    split: str
    """On which nothing is reported"""
    root: Path | None
    name: str
    """In reports: the suite, or the data"""

    def open(self, how: How) -> Paired:
        """Open the pictures.

        Raises:
            DataError: If data are missing, or there are too few for recall to mean anything.
        """
        found = open_paired(self.dataset, self.split, self.root, how.transform)
        return enough(found.limited(how.limit), f"split {self.split} of {self.dataset}")


def enough(paired: Paired, what: str) -> Paired:
    """Return pictures, if there are so many that recall at 10 means something.

    Raises:
        DataError: If there are not.
    """
    if len(paired.labels) <= _MOST:
        raise DataError(
            f"{what} has {len(paired.labels)} pictures with captions to search in, of which the "
            f"first {_MOST} are everything, so {PURPOSE}; add pictures to it, at least "
            f"{_MOST + 1}."
        )
    return paired


def of_data(name: str, root: Path | None) -> Captions:
    """Return the validation captions of data that were trained on.

    Raises:
        DataError: If there are none besides those that are scored.
    """
    if name == "own" and root is not None and "test" not in find_own(root).splits:
        raise DataError(
            f"{root} has no split test, so suite retrieval scores split val itself and {PURPOSE} "
            "on it; add a split test."
        )
    return Captions(name, _validation(name), root, name)


def of_suite(suite: Suite, trained: str, root: Path | None) -> Captions:
    """Return the validation captions of a suite of retrieval.

    Args:
        suite: Names the task; its splits are not looked at.
        trained: Data that the run was trained on, which choose between several of a suite.
        root: Directory of the data.

    Raises:
        DataError: If the suite scores them, or has several sets of which none was trained on.
    """
    splits = [split for split in suite.splits if split.role == "id"] or list(suite.splits)
    inside = next((split for split in splits if split.dataset == trained), None)
    if inside is None:
        if len(splits) > 1:
            raise DataError(
                f"suite {suite.name} scores {', '.join(split.dataset for split in splits)}, and "
                f"the run was trained on {trained}, so nobody knows which of them chooses alpha; "
                "leave --suite away for the run's own captions, or name a --data with one of them."
            )
        inside = splits[0]
    validation = _validation(inside.dataset)
    if inside.split == validation:
        raise DataError(
            f"suite {suite.name} scores split {validation} itself, so {PURPOSE} on it; add a "
            "split test."
        )
    return Captions(inside.dataset, validation, root, suite.name)


def look_at_pairs(
    line: Line, paired: Paired, how: How, alphas: Sequence[float], edits: Sequence[Weights] = ()
) -> Look:
    """Search at every alpha and with every edit, decoding each picture once.

    Raises:
        TaskError: If the model's pictures have left the space of its own texts.
        WeightsError: If an embedding is not finite.
    """
    began = perf_counter()
    moves = moves_of(line, alphas, edits)
    texts = embed_texts(line.moving, moves, paired.captions, replace(how, progress=None))
    pictures = embed_images(line.moving, moves, paired.pictures, how)
    places = np.searchsorted(paired.labels, paired.caption_labels)
    shares, parts = [], []
    for key in moves:
        sides = (pictures[key], paired.labels), (texts[key], paired.caption_labels)
        asked, told = (
            ranking.rank(one[0], other[0], one[1], other[1]).rank
            for one, other in (sides, sides[::-1])
        )
        shares.append(ranking.shares_of_recall(asked, told, places))
        parts.append({"i2t R@1": float(np.mean(asked == 0)), "t2i R@1": float(np.mean(told == 0))})
    n = len(paired.labels)
    return Look(
        tuple(alphas),
        np.array(shares[: len(alphas)]),
        np.array(shares[len(alphas) :]),
        Cost(n, n * len(moves), 0, perf_counter() - began),
        MEASURE,
        tuple(parts[: len(alphas)]),
    )


def _validation(dataset: str) -> str:
    found = validation_of(dataset)
    if found is None:
        raise DataError(f"{dataset} has no captions on which nothing is reported, so {PURPOSE}.")
    return found
