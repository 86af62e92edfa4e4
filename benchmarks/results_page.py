"""Turn the finished runs below `runs/results` into `docs/results.md`."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perdure.comparison import Curve, Point, Reading, at_equal_id, over_seeds
from perdure.data.emojishift import VERSION
from perdure.figures import frontier
from perdure.files import write_text
from perdure.records import Record, point, read, summary
from perdure.tables import cell, table

from .experiments import PLANS, ROOT, SECOND, SEEDS, SUITE, Choice

SHIFTS = ("v2", "rendition", "sketch", "hard", "corrupt")
TARGETS = (0.65, 0.70, 0.75, 0.80)
DRAWS = 2000
DRAWN = ("ft", "lp-ft", "flyp", "carot", "wma-sd", "tracer")
"""Methods in the picture; more would hide each other"""
LABELS = {
    "zero-shot": "zero-shot", "ft": "FT", "lp": "LP", "lp-ft": "LP-FT", "l2sp": "L2-SP",
    "flyp": "FLYP", "carot": "CaRot", "static-sd": "static SD", "ema-sd": "EMA-SD",
    "wma-sd": "WMA-SD", "tracer": "TRACER", "radapter": "R-Adapter, full rank",
    "radapter-low-rank": "R-Adapter, rank 16", "lora": "LoRA, FLYP loss",
    "lora-mpm": "LoRA, MPM-NCE",
}  # fmt: skip


class Runs:
    """The seeds of one method at one rate on one checkpoint."""

    def __init__(self, checkpoint: str, name: str, rate: float) -> None:
        folder = ROOT / checkpoint / name / f"{rate:g}"
        ready = [
            path for path in (folder / f"seed-{seed}" for seed in SEEDS)
            if (path / "scores" / f"{SUITE}.json").is_file()
        ]  # fmt: skip
        self.name, self.rate = name, rate
        self.records: list[Record] = [read(path, SUITE) for path in ready]

    def word(self, word: str) -> Reading:
        """Average one of the words of `perdure.reporting` over seeds."""
        return over_seeds([summary(record.splits)[word] for record in self.records])

    def split(self, split: str) -> Reading:
        """Average the accuracy on one split over seeds."""
        return over_seeds([record.splits[split]["accuracy"] for record in self.records])

    def curves(self) -> list[Curve]:
        """Return the curve over alpha of every seed."""
        return [
            Curve(
                self.name,
                record.seed,
                tuple(point(alpha, splits) for alpha, splits in sorted(record.sweep.items())),
            )
            for record in self.records
            if record.sweep
        ]

    def at_alpha(self, alpha: float, word: str) -> Reading:
        """Average a word over seeds at one alpha."""
        return over_seeds([summary(record.sweep[alpha])[word] for record in self.records])

    def right(self, splits: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return which images each seed has right, (seeds, N) per split."""
        found = [record.correct() for record in self.records]
        return {split: np.stack([one[split] for one in found]) for split in splits}

    def right_at(self, splits: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return the same at every alpha, (seeds, 9, N) per split."""
        files = [
            np.load(record.path / "scores" / f"{SUITE}.sweep-outcomes.npz")
            for record in self.records
        ]
        return {split: np.stack([file[split] for file in files]).astype(float) for split in splits}


def printed(found: tuple[float, float, float] | None) -> str:
    """Print a difference of shares in points with its interval."""
    if found is None:
        return "n/a"
    value, low, high = (100 * part for part in found)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


@cache
def resample(sizes: tuple[tuple[str, int], ...]) -> list[dict[str, NDArray[np.float64]]]:
    """Return the share of each image in every bootstrap sample."""
    generator = np.random.default_rng(0)
    return [
        {s: generator.multinomial(n, np.full(n, 1 / n)).astype(float) / n for s, n in sizes}
        for _ in range(DRAWS)
    ]


def intervals(
    statistic: Callable[[Mapping[str, NDArray[np.float64]]], Sequence[float | None]],
    sizes: Mapping[str, int],
) -> list[tuple[float, float, float] | None]:
    """Return statistics of image weights on the sets as they are, with 95 % intervals.

    Args:
        statistic: Weights that sum to 1 per split to values, None where one does not exist.
        sizes: Images per split.
    """
    whole = statistic({split: np.full(n, 1 / n) for split, n in sizes.items()})
    drawn = [statistic(weights) for weights in resample(tuple(sizes.items()))]
    found: list[tuple[float, float, float] | None] = []
    for position, value in enumerate(whole):
        known = [row[position] for row in drawn if row[position] is not None]
        if value is None or not known:
            found.append(None)
            continue
        low, high = np.quantile(np.array(known, dtype=np.float64), [0.025, 0.975])
        found.append((value, float(low), float(high)))
    return found


def sizes_of(runs: Runs) -> dict[str, int]:
    """Return the number of images per split."""
    return {split: int(entry["n"]) for split, entry in runs.records[0].splits.items()}


def difference(first: Runs, second: Runs, splits: Sequence[str]) -> str:
    """Print the mean accuracy of `first` minus that of `second`, paired by image."""
    ours, theirs = first.right(splits), second.right(splits)
    gaps = {split: ours[split].mean(0) - theirs[split].mean(0) for split in splits}

    def statistic(weights: Mapping[str, NDArray[np.float64]]) -> list[float | None]:
        return [float(np.mean([weights[split] @ gaps[split] for split in splits]))]

    return printed(intervals(statistic, {split: len(gaps[split]) for split in splits})[0])


def weighted_curves(
    name: str,
    right: Mapping[str, NDArray[np.float64]],
    weights: Mapping[str, NDArray[np.float64]],
) -> list[Curve]:
    """Return each seed's curve over alpha under image weights.

    Args:
        name: Method.
        right: Which images are right, (seeds, 9, N) per split.
        weights: (N,) per split.
    """
    splits = ("id", *SHIFTS)
    values = np.stack([right[split] @ weights[split] for split in splits], axis=-1)
    return [
        Curve(
            name,
            seed,
            tuple(
                Point(step / 8, float(row[0]), float(row[1:].mean()))
                for step, row in enumerate(rows)
            ),
        )
        for seed, rows in enumerate(values)
    ]


def mean_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of what exists."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def gaps_at_equal_id(first: Runs, rival: Runs, targets: Sequence[float]) -> list[str]:
    """Print OOD accuracy of `first` minus the rival's on their WiSE-FT curves, at ID accuracies.

    Seed by seed, seeds that reach the ID accuracy; every bootstrap draw reads the curves again.
    """
    splits = ("id", *SHIFTS)
    ours, theirs = first.right_at(splits), rival.right_at(splits)

    def statistic(weights: Mapping[str, NDArray[np.float64]]) -> list[float | None]:
        pairs = list(
            zip(
                weighted_curves(first.name, ours, weights),
                weighted_curves(rival.name, theirs, weights),
                strict=True,
            )
        )
        found = []
        for target in targets:
            read_off = [(own.ood_at(target), other.ood_at(target)) for own, other in pairs]
            found.append(
                mean_known([a - b for a, b in read_off if a is not None and b is not None])
            )
        return found

    return [printed(one) for one in intervals(statistic, sizes_of(first))]


def above_frontier(first: Runs, rival: Runs) -> str:
    """Print how far `first` lies above the rival's WiSE-FT curve, at its own ID accuracy.

    Seed by seed, against the curve of the same seed; seeds whose ID accuracy the curve does not
    reach are left out, and all missing is n/a. Every bootstrap draw reads the curves again.
    """
    splits = ("id", *SHIFTS)
    own, line = first.right(splits), rival.right_at(splits)

    def per_seed(weights: Mapping[str, NDArray[np.float64]]) -> list[float | None]:
        gaps: list[float | None] = []
        for seed, curve in enumerate(weighted_curves(rival.name, line, weights)):
            here = [float(own[split][seed] @ weights[split]) for split in splits]
            read_off = curve.ood_at(here[0])
            gaps.append(None if read_off is None else float(np.mean(here[1:])) - read_off)
        return gaps

    sizes = sizes_of(first)
    reached = over_seeds(per_seed({split: np.full(n, 1 / n) for split, n in sizes.items()}))
    text = printed(intervals(lambda weights: [mean_known(per_seed(weights))], sizes)[0])
    partly = 0 < reached.n < reached.of
    return f"{text} ({reached.n} of {reached.of} seeds)" if partly else text


def above_rate_line(first: Runs, slow: Runs, fast: Runs) -> Reading:
    """Return how far `first` lies above the line between a rival's two rates, seed by seed."""
    gaps: list[float | None] = []
    for own, low, high in zip(first.records, slow.records, fast.records, strict=True):
        line = Curve(slow.name, own.seed, (point(0, low.splits), point(1, high.splits)))
        here = point(0, own.splits)
        read_off = line.ood_at(here.id)
        gaps.append(None if read_off is None else here.ood - read_off)
    return over_seeds(gaps)


def main_rows(runs: Sequence[Runs], start: Record) -> list[list[str]]:
    """Return one table row per method, zero-shot first."""
    before = summary(start.splits)
    own = [cell(over_seeds([start.splits[split]["accuracy"]])) for split in ("id", *SHIFTS)]
    words = [f"{100 * before[word]:.1f}" for word in ("ood", "art", "ece_id", "ece_ood")]
    rows = [["zero-shot", "-", "-", "0", *own, *words, "0.0", "-"]]
    for one in runs:
        seconds = over_seeds([record.seconds for record in one.records]).mean
        lost = over_seeds([before["ood"] - summary(r.splits)["ood"] for r in one.records])
        rows.append(
            [
                LABELS[one.name],
                f"{one.rate:g}",
                str(len(one.records)),
                f"{one.records[0].trainable or 0:,}",
                *(cell(one.split(split)) for split in ("id", *SHIFTS)),
                *(cell(one.word(word)) for word in ("ood", "art", "ece_id", "ece_ood")),
                cell(lost),
                "-" if seconds is None else f"{seconds:.0f}",
            ]
        )
    return rows


MAIN = [
    "method", "rate", "seeds", "trainable", "ID", *SHIFTS, "OOD", "art", "ECE ID", "ECE OOD",
    "forgetting", "s",
]  # fmt: skip


def draw(choices: Mapping[str, Choice], out: Path) -> None:
    """Draw the WiSE-FT curves of some methods on the shipped checkpoint."""
    found = [Runs("seed-0", name, choices[name].rate) for name in DRAWN]
    start = read(ROOT / "seed-0" / "zero-shot", SUITE)
    before = summary(start.splits)
    frontier(
        [curve for one in found for curve in one.curves()],
        (before["id"], before["ood"]),
        out,
        suite=SUITE,
        shifted=SHIFTS,
        images=int(start.splits["id"]["n"]),
    )


def headline(choices: Mapping[str, Choice]) -> list[dict[str, str]]:
    """Return the few rows that the README shows, as printed."""
    start = summary(read(ROOT / "seed-0" / "zero-shot", SUITE).splits)
    words = ("id", "ood", "ece_ood")
    rows = [{"method": "zero-shot", **{word: f"{100 * start[word]:.1f}" for word in words}}]
    rate = choices["flyp"].rate
    for name, one in (("ft", choices["ft"].rate), ("flyp", rate), ("tracer", rate)):
        runs = Runs("seed-0", name, one)
        label = f"{LABELS[name]} (rate {one:g})"
        rows.append({"method": label, **{word: cell(runs.word(word)) for word in words}})
    faster = Runs("seed-0", "tracer", choices["tracer"].rate)
    label = f"TRACER (rate {faster.rate:g}, chosen on `val`)"
    rows.append({"method": label, **{word: cell(faster.word(word)) for word in words}})
    for runs in (Runs("seed-0", "flyp", rate), faster):
        half = {word: cell(runs.at_alpha(0.5, word)) for word in words}
        label = f"{LABELS[runs.name]} (rate {runs.rate:g}) + WiSE-FT 0.5"
        rows.append({"method": label, **half})
    return rows


def renew_headers(choices: Mapping[str, Choice], folder: Path) -> None:
    """Write what was measured into the headers of the recipes."""
    for name, choice in choices.items():
        one = Runs("seed-0", name, choice.rate)
        if not one.records:
            continue
        found = f"ID {cell(one.word('id'))}, OOD {cell(one.word('ood'))} %"
        if PLANS[name].fixed:
            half = [cell(one.at_alpha(0.5, word)) for word in ("id", "ood")]
            found = f"alpha 1: {found}; alpha 0.5: ID {half[0]}, OOD {half[1]} %"
        line = f"# Expected: {found} (mean ± sd of {len(one.records)} seeds, 1,600 images per set)"
        path = folder / f"{name}.yaml"
        text = re.sub(r"^# Expected: .*$", line, path.read_text(encoding="utf-8"), flags=re.M)
        write_text(path, text)


def page(choices: Mapping[str, Choice], open_ends: int) -> str:
    """Return the whole page."""
    parts = [intro(open_ends), chosen(choices)]
    for checkpoint, names in (("seed-0", tuple(PLANS)), ("seed-1", SECOND)):
        start = read(ROOT / checkpoint / "zero-shot", SUITE)
        runs = [Runs(checkpoint, name, choices[name].rate) for name in names]
        parts.append(checkpoint_part(checkpoint, [one for one in runs if one.records], start))
    parts.append(rates_part(choices))
    remarks = Path("benchmarks/figures/remarks.md")
    if remarks.is_file():
        parts.append(remarks.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts) + "\n"


def intro(open_ends: int) -> str:
    """Return what the page is and how its numbers came about."""
    left = f" **{open_ends} runs are still missing.**" if open_ends else ""
    return (
        "# Results on EmojiShift\n\n"
        "Written by `make results` (`python -m benchmarks.results`, resumable); not edited by hand."
        f"{left} World version {VERSION}, checkpoints and their hashes: "
        "[benchmark.md](benchmark.md). All trained models: 80 classes, 16 images each, AdamW, "
        "weight decay 0.1 (LP, L2-SP and adapters: 0), batch 64, 10 epochs (200 steps; "
        "LP 20 epochs), flips and shifts of up to 2 pixels; evaluation with five prompts "
        "averaged.\n\n"
        "Numbers are accuracies and errors in per cent: mean ± sample standard deviation over "
        "fine-tuning seeds (data and order). Intervals in brackets are 95 % bootstrap intervals "
        "over test images, paired by image, 2,000 draws; they do not cover the choice of seeds. "
        "`OOD`: unweighted mean of v2, rendition, sketch, hard, corrupt; `art`: of the first four; "
        "`ECE`: 15 equal-width bins over a whole set, OOD the mean over the five sets; "
        "`forgetting`: zero-shot OOD minus OOD. n = 1,600 images per set; `s`: seconds of training "
        "on one thread, two runs at a time."
    )


def chosen(choices: Mapping[str, Choice]) -> str:
    """Return the settings and what they were chosen from."""
    rows = []
    for name, choice in choices.items():
        plan = PLANS[name]
        grid = ", ".join(
            f"{rate:g}{'' if value is None else f' / {value:g}'}: {100 * val:.1f} / {100 * far:.1f}"
            for rate, value, val, far in choice.tried
        )
        knob = "" if choice.value is None else f", {plan.knob} = {choice.value:g}"
        rows.append([LABELS[name], f"rate {choice.rate:g}{knob}", grid])
    return (
        "## Choices\n\n"
        "Made on the first checkpoint with seed 0, on `val` (n = 1,600) and `val_shift` "
        "(n = 1,200) only: of a grid of factor 2 the smallest learning rate whose `val` accuracy "
        "is within one standard error of the best; then, at that rate, the further setting with "
        "the largest mean of both. Candidates as rate (/ setting): `val` / `val_shift` accuracy. "
        "The head's rate is ten times the rate (FT, L2-SP, LP-FT). Adapters and LoRA are chosen "
        "and listed at full strength, alpha 1; their WiSE-FT curve is their re-scaling.\n\n"
        + table(["method", "chosen", "candidates"], rows)
    )


def checkpoint_part(checkpoint: str, runs: Sequence[Runs], start: Record) -> str:
    """Return the tables of one checkpoint."""
    title = (
        "## The shipped checkpoint (pre-training seed 0)\n\n![ID against OOD](results.png)"
        if checkpoint == "seed-0"
        else "## The second checkpoint (pre-training seed 1), same settings"
    )
    rival = next((one for one in runs if one.name == "flyp"), None)
    parts = [title, table(MAIN, main_rows(runs, start))]
    swept = [one for one in runs if len(one.curves()) == len(one.records)]
    halves = [
        [
            f"{LABELS[one.name]} + WiSE 0.5",
            *(cell(one.at_alpha(0.5, w)) for w in ("id", "ood", "art", "ece_id", "ece_ood")),
        ]
        for one in swept
    ]
    parts += [
        "Half way to the start (WiSE-FT, alpha 0.5):",
        table(["method", "ID", "OOD", "art", "ECE ID", "ECE OOD"], halves),
        "OOD accuracy at equal ID accuracy, each method on its own WiSE-FT curve (alpha = 0, "
        "0.125, ..., 1), read per seed between neighbours, never extrapolated:",
        table(
            ["method", *(f"ID {100 * target:.0f}" for target in TARGETS)],
            [
                [LABELS[one.name]]
                + [cell(at_equal_id(one.curves(), target), of=True) for target in TARGETS]
                for one in swept
            ],
        ),
    ]
    if rival is not None and rival in swept:
        rows = []
        for one in runs:
            if one is rival or len(one.records) != len(rival.records):
                continue
            rows.append(
                [
                    LABELS[one.name],
                    difference(one, rival, ["id"]),
                    difference(one, rival, SHIFTS),
                    above_frontier(one, rival),
                ]
            )
        parts += [
            "Against FLYP: differences at each method's own chosen setting, and OOD accuracy above "
            "the FLYP + WiSE frontier at the method's own ID accuracy (seeds whose ID accuracy the "
            "frontier does not reach are left out):",
            table(
                ["method", "ID", "OOD", "OOD above the frontier"],
                rows,
            ),
            "Both interpolated: OOD accuracy minus FLYP's at equal ID accuracy, each on its own "
            "WiSE-FT curve:",
            table(
                ["method", *(f"ID {100 * target:.0f}" for target in TARGETS)],
                [
                    [LABELS[one.name], *gaps_at_equal_id(one, rival, TARGETS)]
                    for one in swept
                    if one is not rival and len(one.records) == len(rival.records)
                ],
            ),
        ]
    return "\n\n".join(parts)


def rates_part(choices: Mapping[str, Choice]) -> str:
    """Return the comparisons over learning rates and at one learning rate."""
    rate = choices["flyp"].rate
    flyp, slow = Runs("seed-0", "flyp", rate), Runs("seed-0", "flyp", rate / 2)
    parts = [
        "## Over learning rates (shipped checkpoint)",
        "FLYP at two rates gives a line; how far the others lie above it at their own ID accuracy, "
        "seed by seed:",
    ]
    candidates = [
        Runs("seed-0", name, one)
        for name in ("ft", "tracer", "wma-sd")
        for one in sorted(
            {choices[name].rate, choices["ft"].rate / 2, choices[name].rate * 2, rate}
        )
    ]
    full = [one for one in candidates if one.records]
    if slow.records and len(slow.records) == len(flyp.records):
        rows = [
            [LABELS[one.name], f"{one.rate:g}", cell(one.word("id")), cell(one.word("ood")),
             cell(above_rate_line(one, slow, flyp), of=True, sign=True), above_frontier(one, flyp)]
            for one in (slow, flyp, *full) if len(one.records) == len(flyp.records)
        ]  # fmt: skip
        header = ["method", "rate", "ID", "OOD", "above FLYP's line", "above FLYP + WiSE"]
        parts.append(table(header, rows))
    same = [Runs("seed-0", name, rate) for name in ("ema-sd", "wma-sd", "tracer")]
    if all(len(one.records) == len(flyp.records) for one in same):
        ema, wma, tracer = same
        rows = [
            [title, difference(a, b, ["id"]), difference(a, b, SHIFTS)]
            for title, a, b in (
                ("EMA-SD - FLYP", ema, flyp),
                ("WMA-SD - EMA-SD", wma, ema),
                ("TRACER - FLYP", tracer, flyp),
            )
        ]
        parts += [
            f"All at FLYP's rate ({rate:g}), so not at equal ID accuracy:",
            table(["difference", "ID", "OOD"], rows),
        ]
    return "\n\n".join(parts)
