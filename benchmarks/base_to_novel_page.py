"""Turn base-to-novel records into `docs/results-base-to-novel.md`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.comparison import over_seeds, paired_difference, paired_harmonic_difference
from perdure.metrics import harmonic_of_means, mean_of_harmonics
from perdure.records import Record, summary
from perdure.tables import cell, table

Found = Mapping[str, Sequence[Record]]
"""Division to the records of its seeds"""

TITLES = {
    "zero-shot": "zero-shot",
    "coop": "CoOp",
    "coop early": "CoOp, stopped early",
    "kgcoop": "KgCoOp",
    "mma": "MMA",
    "coop + wise-ft 0.5": "CoOp + WiSE-FT 0.5 (contexts)",
    "coop + ties": "CoOp + TIES, density 0.2 (contexts)",
    "coop + dare": "CoOp + DARE, density 0.5 (contexts)",
    "coop + mergetune": "CoOp + MERGETUNE",
    "kgcoop + mergetune": "KgCoOp + MERGETUNE",
    "mma + mergetune": "MMA + MERGETUNE",
}
PARTS = {
    "coop + mergetune": "whole objective, start 0.3",
    "no path": "without the path term",
    "no anchor": "without the anchor",
    "continued": "host's loss alone, continued",
    "start 0": "start 0",
    "start 0.6": "start 0.6",
    "start 1": "start 1",
}
PAIRS = (
    ("coop", "zero-shot"), ("kgcoop", "zero-shot"), ("mma", "zero-shot"),
    ("coop + mergetune", "coop"), ("coop + mergetune", "coop early"),
    ("coop + mergetune", "kgcoop"), ("coop + mergetune", "coop + wise-ft 0.5"),
    ("coop + mergetune", "no path"), ("kgcoop + mergetune", "kgcoop"),
    ("mma + mergetune", "mma"), ("coop + ties", "coop"), ("coop + dare", "coop"),
)  # fmt: skip
WORDS = ("base", "novel", "harmonic", "base_ood", "novel_ood", "harmonic_ood")
HEAD = [
    "model", "base", "novel", "H", "rendition base", "novel", "H",
]  # fmt: skip


def flat(found: Found) -> list[Record]:
    """Return the records of all divisions."""
    return [record for records in found.values() for record in records]


def row(title: str, found: Found) -> list[str]:
    """Return the means over divisions and seeds."""
    words = [summary(record.splits) for record in flat(found)]
    return [title, *(cell(over_seeds([one[word] for one in words])) for word in WORDS)]


def both_means(title: str, found: Found) -> list[str]:
    """Return the harmonic mean of averages and the mean of harmonic means."""
    words = [summary(record.splits) for record in flat(found)]
    cells = [title]
    for base, novel in (("base", "novel"), ("base_ood", "novel_ood")):
        pair = [one[base] for one in words], [one[novel] for one in words]
        cells += [f"{100 * harmonic_of_means(*pair):.1f}", f"{100 * mean_of_harmonics(*pair):.1f}"]
    return cells


def right(found: Found, split: str) -> dict[str, NDArray[np.float64]]:
    """Return, per division, the share of seeds that have each image right, (N,)."""
    return {
        number: np.mean([record.correct()[split] for record in records], axis=0)
        for number, records in found.items()
    }


def against(first: Found, second: Found) -> list[str]:
    """Return differences of base, novel and harmonic mean with intervals, ID and rendition."""
    cells = []
    for suffix in ("", "_rendition"):
        pairs = [
            (right(first, f"{half}{suffix}"), right(second, f"{half}{suffix}"))
            for half in ("base", "novel")
        ]
        for ours, theirs in pairs:
            cells.append(signed(paired_difference(ours, theirs)))
        (base, other_base), (novel, other_novel) = pairs
        cells.append(signed(paired_harmonic_difference((base, novel), (other_base, other_novel))))
    return cells


def signed(found: Any) -> str:
    """Print a difference in points with its interval."""
    value, low, high = (100 * part for part in found)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def choices_part(choices: Mapping[str, Any]) -> str:
    """Return the table of what was chosen from what."""
    rows = []
    for name, entry in choices.items():
        tried = "; ".join(
            f"{' '.join(one['values'])}: {100 * one['base']:.1f} / {100 * one['novel']:.1f}"
            for one in entry["tried"]
        )
        rows.append([TITLES[name], " ".join(entry["chosen"]), entry["by"], tried])
    return table(["model", "chosen", "by", "candidates: base val / val_shift"], rows)


def page(found: Mapping[str, Found], choices: Mapping[str, Any]) -> str:
    """Return the whole page; rows that are not measured yet are left out."""
    done = {name: runs for name, runs in found.items() if all(runs.values())}
    main = [name for name in TITLES if name in done]
    remarks = Path("benchmarks/figures/base_to_novel_remarks.md")
    seeds = len(next(iter(done["coop"].values())))
    parts = [
        "# Base-to-novel on EmojiShift",
        "Written by `python -m benchmarks.base_to_novel` (resumable); not edited by hand. "
        "Protocol: [base-to-novel.md](base-to-novel.md). 40 of 80 classes are trained on, 16 "
        "images each, the other 40 only scored; two divisions of the classes, "
        f"{seeds} seeds each, shipped checkpoint. H: harmonic mean of base and novel accuracy of "
        "a run. Per cent, mean ± sample standard deviation over "
        f"{2 * seeds} runs; n = 800 images per half, division and domain.",
        "## Choices",
        "On the first division with seed 0: base classes of `val` (n = 800) and `val_shift` "
        "(n = 1,200), whose concepts belong to neither half. No test image of a held-out class is "
        "used for a choice; while the methods were built, one KgCoOp run and the zero-shot model "
        "had been scored on some, and one MMA run on held-out classes of `val`. CoOp's and MMA's "
        "rates are chosen on base classes alone, as published; MERGETUNE on other hosts takes the "
        "weight chosen on CoOp.",
        choices_part(choices),
        "## Results",
        table(HEAD, [row(TITLES[name], done[name]) for name in main]),
        "Published tables average accuracies first and take one harmonic mean of the averages; the "
        "mean of every run's own harmonic mean is at most that:",
        table(
            ["model", "H of averages", "mean of H", "rendition H of averages", "mean of H"],
            [both_means(TITLES[name], done[name]) for name in main],
        ),
        "Differences in points; brackets: 95 % bootstrap intervals over images, paired by image, "
        "over both divisions; they do not cover the choice of seeds.",
        table(
            ["first", "second", *HEAD[1:]],
            [
                [TITLES.get(a, PARTS.get(a, a)), TITLES.get(b, PARTS.get(b, b)),
                 *against(done[a], every_seed(done[b], done[a]))]
                for a, b in PAIRS if a in done and b in done
            ],
        ),
        "## What each part of MERGETUNE does, after CoOp",
        table(HEAD, [row(title, done[name]) for name, title in PARTS.items() if name in done]),
    ]  # fmt: skip
    if remarks.is_file():
        parts.append(remarks.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts) + "\n"


def every_seed(found: Found, like: Found) -> Found:
    """Return records whose divisions are those of another model."""
    return {number: found[number] for number in like}
