"""What every example adds to the metric of tables, so that models compare example by example.

No torch. Accuracy is paired by image or question; of retrieval both directions by picture, whose
captions go together; of segmentation the counts of pixels of every image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .comparison import Difference, paired_difference, paired_overlap_difference
from .errors import DataError, RunError
from .overlap import Overlap, dense
from .ranking import KS, shares_of_recall
from .records import Record

Shares = NDArray[np.float64]


class Sample(NamedTuple):
    """One set of images that a model was scored on."""

    role: str
    counts: Overlap | None = None
    """Of segmentation, each (N, C)"""
    shares: Shares | None = None
    """(N,), whose mean is the metric; of retrieval that of both directions"""
    rsum: Shares | None = None
    """(N,), whose mean is the sum of the six recalls, where ranks were kept"""


def samples(record: Record) -> dict[str, Sample]:
    """Return the sets of a run by name; both directions of retrieval are one.

    Raises:
        RunError: If outcomes are missing, damaged, or of a version that kept less.
    """
    stored = record.outcomes()
    found: dict[str, Sample] = {}
    for name, entry in record.splits.items():
        role, task = str(entry["role"]), entry.get("task", "classify")
        if task == "segment":
            found[name] = Sample(role, counts=_counts(record, name, entry, stored))
        elif task == "retrieve":
            if entry["direction"] == "image_to_text":
                back = f"{entry['set']}_text_to_image"
                found[str(entry["set"])] = _searched(role, name, back, stored)
        else:
            right = stored[f"{name}/prediction"] == stored[f"{name}/label"]
            found[name] = Sample(role, shares=right.astype(np.float64))
    return found


def differences(
    first: Sequence[Mapping[str, Sample]], second: Sequence[Mapping[str, Sample]]
) -> dict[str, Difference]:
    """Return paired differences of two models by role, and of `rsum` where both have ranks.

    Args:
        first: The sets of a model, one mapping per seed; seeds are averaged.
        second: The same sets of the other model.

    Raises:
        ValueError: If sets or images differ.
    """
    roles: dict[str, list[str]] = {}
    for name, sample in first[0].items():
        roles.setdefault(sample.role, []).append(name)
    found: dict[str, Difference] = {}
    for role, names in roles.items():
        labelled = [name for name in names if first[0][name].counts is not None]
        others = [name for name in names if name not in labelled]
        if others:
            found[role] = paired_difference(
                *(mean_shares(seeds, others) for seeds in (first, second))
            )
        if labelled:
            word = f"{role} miou" if others else role
            found[word] = paired_overlap_difference(
                *(_overlaps(seeds, labelled) for seeds in (first, second))
            )
    ranked = [name for name, one in first[0].items() if one.rsum is not None]
    if ranked and all(one[name].rsum is not None for one in (*first, *second) for name in ranked):
        found["rsum"] = paired_difference(
            *(
                {name: _mean([one[name].rsum for one in seeds]) for name in ranked}
                for seeds in (first, second)
            )
        )
    return found


def mean_shares(seeds: Sequence[Mapping[str, Sample]], names: Sequence[str]) -> dict[str, Shares]:
    """Return what every example of some sets adds, averaged over seeds."""
    return {name: _mean([one[name].shares for one in seeds]) for name in names}


def _overlaps(
    seeds: Sequence[Mapping[str, Sample]], names: Sequence[str]
) -> dict[str, list[Overlap]]:
    counts = {name: [one[name].counts for one in seeds] for name in names}
    return {name: [one for one in own if one is not None] for name, own in counts.items()}


def _mean(seeds: Sequence[Shares | None]) -> Shares:
    found: Shares = np.mean([one for one in seeds if one is not None], axis=0)
    return found


def _counts(
    record: Record, name: str, entry: Mapping[str, Any], stored: Mapping[str, NDArray[Any]]
) -> Overlap:
    again = f"perdure eval {record.path} --suite {record.suite} --again"
    if f"{name}/pixels" not in stored:
        raise RunError(
            f"{record.path}: its scores of {record.suite} are of a version that kept no pixels per "
            f"image, so mIoU cannot be paired; score it again: {again}"
        )
    try:
        return dense(stored[f"{name}/pixels"], int(entry["n"]))
    except DataError as error:
        raise RunError(f"{record.path}: {error} Score it again: {again}") from None


def _searched(role: str, there: str, back: str, stored: Mapping[str, NDArray[Any]]) -> Sample:
    pictures, own = stored[f"{there}/label"], stored[f"{back}/label"]
    places = np.searchsorted(pictures, own)
    first = [
        (stored[f"{name}/prediction"] != stored[f"{name}/label"]).astype(np.int64)
        for name in (there, back)
    ]
    rsum = None
    if f"{there}/rank" in stored and f"{back}/rank" in stored:
        ranks = stored[f"{there}/rank"], stored[f"{back}/rank"]
        rsum = 2 * len(KS) * shares_of_recall(*ranks, places)
    return Sample(role, shares=shares_of_recall(first[0], first[1], places, (1,)), rsum=rsum)
