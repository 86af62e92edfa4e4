"""What the splits of one model come to: the words of reports that one model has. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .comparison import Point
from .metrics import harmonic_mean
from .ranking import KS

Splits = Mapping[str, Mapping[str, Any]]
"""Split name to its entry in a score file."""

HARMONIC = {"harmonic": ("base", "novel"), "harmonic_ood": ("base_ood", "novel_ood")}
"""Words for harmonic means, and the two words they are of"""

_LEAVES_OUT = {"art": "corrupt", "without_objectnet": "objectnet"}
"""Means over shifted sets but one, which exist where that one does"""


def summary(splits: Splits) -> dict[str, float]:
    """Return what the splits of one model come to, as far as their roles allow.

    The keys are those words of `perdure.reporting` that one model has by itself, and the names of
    the main metrics of tasks other than classification, averaged over their splits; of retrieval
    also `rsum`. Where images have groups, `worst_group_id` and `worst_group_ood` are the accuracies
    of the worst; where macro-F1 is published (iWildCam) there are `macro_f1_id` and `macro_f1_ood`.
    """
    ours = {name: entry for name, entry in splits.items() if entry.get("task") == "classify"}
    of_role: dict[str, list[str]] = {}
    for name, entry in ours.items():
        of_role.setdefault(entry["role"], []).append(name)
    shifted = of_role.get("ood", [])
    values: dict[str, float] = {}
    for word, names, metric in (
        ("id", of_role.get("id"), "accuracy"),
        ("ood", shifted, "accuracy"),
        ("art", [name for name in shifted if name != "corrupt"], "accuracy"),
        ("without_objectnet", [name for name in shifted if name != "objectnet"], "accuracy"),
        ("base", of_role.get("base"), "accuracy"),
        ("novel", of_role.get("novel"), "accuracy"),
        ("base_ood", of_role.get("base_ood"), "accuracy"),
        ("novel_ood", of_role.get("novel_ood"), "accuracy"),
        ("target", of_role.get("target"), "accuracy"),
        ("ece_id", of_role.get("id"), "ece"),
        ("ece_ood", shifted, "ece"),
    ):
        if names and _LEAVES_OUT.get(word, names[0]) in (*names, *shifted):
            values[word] = float(np.mean([ours[name][metric] for name in names]))
    for role in ("id", "ood"):
        entries = [ours[name] for name in of_role.get(role, [])]
        for word, key, counts in (
            ("macro_f1", "macro_f1", all(one.get("published") == "macro_f1" for one in entries)),
            ("worst_group", "worst_group_accuracy", True),
        ):
            if counts and entries and all(key in one for one in entries):
                values[f"{word}_{role}"] = float(np.mean([one[key] for one in entries]))
    others: dict[str, list[float]] = {}
    for entry in splits.values():
        if entry.get("task") != "classify":
            others.setdefault(str(entry["metric"]), []).append(main_value(entry))
    values |= {metric: float(np.mean(found)) for metric, found in others.items()}
    searched = [entry for entry in splits.values() if entry.get("task") == "retrieve"]
    if searched:
        values["rsum"] = rsum(searched)
    for word, (base, novel) in HARMONIC.items():
        if base in values and novel in values:
            values[word] = harmonic_mean(values[base], values[novel])
    return values


def rsum(entries: Sequence[Mapping[str, Any]]) -> float:
    """Return the sum of the six recalls (at 1, 5 and 10, both ways), averaged over data sets.

    A sum of shares, in [0, 6]; printed in per cent it is the RSUM of published tables, 0 to 600.

    Args:
        entries: Both directions of every data set.
    """
    of_set: dict[str, float] = {}
    for entry in entries:
        own = sum(float(entry[f"recall_at_{k}"]) for k in KS)
        of_set[entry["set"]] = of_set.get(entry["set"], 0.0) + own
    return float(np.mean(list(of_set.values())))


def main_value(entry: Mapping[str, Any]) -> float:
    """Return the value of a split's main metric, such as accuracy, in [0, 1]."""
    return float(entry[entry.get("metric", "accuracy")])


def point(position: float, splits: Splits) -> Point:
    """Return one model as a point of a trade-off curve."""
    values = summary(splits)
    return Point(position, values["id"], values["ood"])
