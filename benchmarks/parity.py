"""Compare perdure's corruptions with the maintained fork of imagecorruptions (extra `parity`).

    OMP_NUM_THREADS=1 python -m benchmarks.parity

Both get the same pictures of 224 pixels and, where chance plays a part, the same stream of random
numbers. Whoever draws in the same order must then give the same picture; whoever does not must
change pictures as much and in as varied a way. Prints a row per corruption, each severity in a
column, and stops with an error if one that has the published name does neither.
"""

import argparse
import sys
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perdure.corruptions.table import CORRUPTIONS, OTHER_NAMES, SEVERITIES

Picture = NDArray[np.uint8]

SIDE = 224
EQUAL = 1.0
"""Largest mean difference, in levels of 255, of pictures that count as the same"""

ALIKE = 0.15
"""Largest relative difference of strength and spread of damages that count as alike"""


class Stream(np.random.RandomState):
    """The fork's kind of random numbers, under the names that perdure's corruptions ask for."""

    def integers(self, low: int, high: int, size: Any = None) -> Any:
        """Draw whole numbers from [low, high)."""
        return self.randint(low, high, size)


class Row(NamedTuple):
    """One corruption at one severity; levels of 255."""

    apart: float
    """Mean absolute difference of the two damaged pictures"""
    mine: tuple[float, float]
    """Mean absolute change of a picture, and standard deviation of the change, by perdure"""
    theirs: tuple[float, float]

    @property
    def verdict(self) -> str:
        """Whether the two are "same", "alike" or "other"."""
        if self.apart <= EQUAL:
            return "same"
        pairs = zip(self.mine, self.theirs, strict=True)
        close = all(abs(a - b) <= ALIKE * max(a, b) for a, b in pairs)
        return "alike" if close else "other"


def pictures(count: int = 4, side: int = SIDE) -> list[Picture]:
    """Return pictures with smooth shades, edges and some noise."""
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        coarse = rng.integers(20, 236, (side // 28, side // 28, 3), dtype=np.uint8)
        how = Image.Resampling.BICUBIC if seed % 2 else Image.Resampling.NEAREST
        large = np.asarray(Image.fromarray(coarse).resize((side, side), how))
        found.append((large + rng.normal(0, 4, large.shape)).clip(0, 255).astype(np.uint8))
    return found


def ours(picture: Picture, name: str, severity: int, seed: int) -> Picture:
    """Damage a picture as `perdure.corruptions.table.corrupt` does, with the fork's stream."""
    module = import_module(f"perdure.corruptions.{CORRUPTIONS[name].module}")
    found = getattr(module, name)(picture.astype(np.float64) / 255, severity, Stream(seed))
    damaged: Picture = np.clip(found * 255, 0, 255).astype(np.uint8)
    return damaged


def forks(picture: Picture, name: str, severity: int, seed: int) -> Picture:
    """Damage a picture with the fork."""
    from imagecorruptions import corrupt

    np.random.seed(seed)
    own = {"seed": seed} if name in ("impulse_noise", "glass_blur") else {}
    damaged: Picture = corrupt(picture, corruption_name=name, severity=severity, **own)
    return damaged


def compare(name: str, severity: int, images: list[Picture], other: str | None = None) -> Row:
    """Return how far the two are apart; `other` is the fork's name where it has another."""
    gaps, changes = [], ([], [])  # type: ignore[var-annotated]
    for seed, picture in enumerate(images):
        pair = (ours(picture, name, severity, seed), forks(picture, other or name, severity, seed))
        mine, theirs = (one.astype(np.float64) for one in pair)
        gaps.append(np.abs(mine - theirs).mean())
        for kept, one in zip(changes, (mine, theirs), strict=True):
            kept.append(one - picture)
    strengths = [(float(np.abs(each).mean()), float(np.std(each))) for each in changes]
    return Row(float(np.mean(gaps)), strengths[0], strengths[1])


def table(images: list[Picture]) -> tuple[list[str], list[str]]:
    """Return the rows of a table, and the corruptions that need another name."""
    lines, wrong = [], []
    instead = {ours: theirs for theirs, ours in OTHER_NAMES.items()}
    for name in CORRUPTIONS:
        rows = [compare(name, severity, images, instead.get(name)) for severity in SEVERITIES]
        verdicts = {row.verdict for row in rows}
        verdict = next(each for each in ("other", "alike", "same") if each in verdicts)
        if verdict == "other" and name not in instead:
            wrong.append(name)
        cells = " | ".join(
            f"{row.apart:.2f} ({row.mine[0]:.1f}, {row.theirs[0]:.1f})" for row in rows
        )
        title = f"{name} / {instead[name]}" if name in instead else name
        lines.append(f"| {title} | {cells} | {verdict} |")
    return lines, wrong


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    lines, wrong = table(pictures())
    print("Mean absolute difference of the two (change by perdure, by the fork), levels of 255:\n")
    print("| corruption | 1 | 2 | 3 | 4 | 5 | |\n|---|---|---|---|---|---|---|")
    print("\n".join(lines))
    if wrong:
        sys.exit(f"these differ from the fork and need another name: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
