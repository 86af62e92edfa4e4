"""What TRACER's linear theory says about a run, for people and for programs. No torch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import theory
from .console import columns
from .theory import Advice, Comparison, Operation

SHOWN = 3
"""Differences in order that are printed per column; JSON has all of them"""


FEW = 20
"""Updates of a teacher below which a choice of beta means little"""


class Setting(NamedTuple):
    """A run and what is recommended for it."""

    advice: Advice
    best: Operation
    """What is recommended: `advice.best`, or `advice.choice` where the strength is given"""

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return self.best.steps

    @property
    def every(self) -> int:
        """Steps between updates of the teacher."""
        return self.best.every

    @property
    def strength(self) -> float:
        """Of distillation."""
        return self.best.strength

    @property
    def target(self) -> float:
        """Bias that is wanted."""
        return self.advice.target

    @property
    def often(self) -> str:
        """How often the teacher is updated."""
        return "every step" if self.every == 1 else f"every {self.every:,} steps"

    @property
    def run(self) -> str:
        """The run in words."""
        return f"{_count(self.steps, 'step')}, teacher updated {self.often}"

    @property
    def betas(self) -> tuple[float, ...]:
        """Those that are compared, the recommended one among them."""
        return tuple(sorted({*theory.BETAS, self.best.beta}))


def text(of: Setting, *, asked: bool, compare: bool) -> str:
    """Return tables and sentences for a terminal.

    Args:
        of: The run.
        asked: Whether the wanted bias was asked for, and is not that of the published run.
        compare: Whether to compare with the published ablations.
    """
    title = f"TRACER's linear theory: {of.run}, strength (lambda) {of.strength:g}"
    sections = [f"{title}\n\n{_teachers(of)}", _advice(of, asked)]
    if compare:
        sections.append(_published(theory.compare_published()))
    else:
        sections.append("Beside the published ablations: perdure theory --compare")
    return "\n\n".join(sections)


def document(of: Setting, *, compare: bool) -> dict[str, Any]:
    """Return the same for programs, with all digits and all differences in order."""
    rows = [one for one in (of.advice.choice, *of.advice.others) if one is not of.best]
    published = theory.compare_published() if compare else None
    return {
        "steps": of.steps,
        "every": of.every,
        "strength": of.strength,
        "unit": "share of the pre-trained model's distance from the task's solution",
        "teachers": _line_up(of),
        "advice": {
            "wanted_bias": of.target,
            "reached": of.advice.reaches(of.best),
            "best": of.best._asdict(),
            "others": [one._asdict() for one in rows],
            "published_plateau": theory.plateau()._asdict(),
        },
        "published": published and [_comparison(one) for one in published],
    }


def _line_up(of: Setting) -> list[dict[str, Any]]:
    """Return every teacher with what it leaves."""
    rows = []
    for teacher in theory.line_up(of.steps, of.every, of.betas):
        errors = theory.round_errors(of.strength, teacher.shares)
        rows.append(
            {
                "name": teacher.name,
                "kind": teacher.kind,
                "value": teacher.value,
                "start_mass": _held(theory.start_mass(teacher.shares)),
                "bias": _held(float(errors.student_error[-1])),
                "gap": _held(float(errors.gap[-1])),
                "mean_gap": float(errors.gap.mean()),
            }
        )
    return rows


def _teachers(of: Setting) -> str:
    keys = {"start_mass": "start mass", "bias": "bias at end", "gap": "gap at end",
            "mean_gap": "mean gap"}  # fmt: skip
    rows = [[one["name"], *(_share(one[key]) for key in keys)] for one in _line_up(of)]
    explained = _wrapped(
        "Bias: distance of the student from the task's solution; gap: of the student from its "
        "teacher; both as shares of the pre-trained model's distance from the solution. Start "
        "mass: share of the pre-trained weights in the final teacher."
    )
    return columns(["teacher", *keys.values()], rows) + "\n" + explained


def _advice(of: Setting, asked: bool) -> str:
    """Say what is recommended, how it was found, and what it rests on."""
    best, choice, good = of.best, of.advice.choice, theory.plateau()
    published = "beta 0.5 and strength 0.9, leaves after its 25,030 steps"
    origin = "as asked for" if asked else f"what the published setting, {published}"
    how = [
        f"How it was chosen: the bias wanted is {_share(of.target)}, {origin}; beta is the one of "
        "0.05, 0.10, ..., 3.00 that comes nearest by the recursion of theorem C.8."
    ]
    if not of.advice.reaches(best):
        tried = f"at strength {best.strength:g}" if best is choice else "at any of these strengths"
        how.append(f"None leaves it {tried}; the nearest leaves {_share(best.bias)}.")
    elif best is not choice:
        how.append(f"At strength {choice.strength:g} none leaves it, so the strength was changed.")
    updates = -(-best.steps // best.every)
    if updates < FEW:
        how.append(
            f"A teacher of {_count(updates, 'update')} has a coarse kernel: beta hardly matters."
        )
    how.append("The other rows come nearest at other strengths; they differ in the gap.")
    rests = (
        "What it rests on: a linear model that is solved to its end between two updates (its "
        "numbers are a theorem); that the same bias is good at another length and on other data "
        "(an assumption); and that TRACER's published runs had their best OOD accuracy (within "
        f"{good.margin:.2f} points of {good.best:.2f} %, ImageNet's five shifted sets, one run "
        f"each) at predicted biases from {_share(good.low)} to {_share(good.high)}, over which ID "
        f"accuracy falls from {good.low_id:.2f} to {good.high_id:.2f} %. In a network on "
        "EmojiShift the order of teachers was as predicted, the sizes were not (docs/theory.md)."
    )
    header = ["strength", "beta", "start mass", "bias at end", "gap at end", ""]
    rows = sorted((choice, *of.advice.others), key=lambda one: one.strength)
    more = f" --set method.teacher_every={best.every}" if best.every > 1 else ""
    return "\n".join(
        [
            f"Recommended for {_count(best.steps, 'step')}: beta {best.beta:g}, strength "
            f"{best.strength:g}\n",
            columns(header, [_operation(one, best) for one in rows], left=0),
            _wrapped(" ".join(how)),
            _wrapped(rests),
            f"Next: --set method.beta={best.beta:g} --set method.strength={best.strength:g}{more}",
        ]
    )


def _operation(one: Operation, best: Operation) -> list[str]:
    shares = map(_share, (one.start_mass, one.bias, one.gap))
    return [f"{one.strength:g}", f"{one.beta:g}", *shares, "recommended" if one is best else ""]


def _published(found: Sequence[Comparison]) -> str:
    """Tell how well the predictions order the published runs, and where they do not."""
    rows: list[list[str]] = []
    wrong: list[str] = []
    for one in found:
        low, high = one.rho_range
        clear = [pair for pair in one.differences if not pair.noise]
        rows.append(
            [
                one.table, one.column, one.prediction, "falls" if one.expected < 0 else "rises",
                str(len(one.labels)), f"{one.rho:.2f}", f"{low:.2f} to {high:.2f}",
                f"{len(one.differences)} of {one.pairs}", str(len(clear)),
            ]
        )  # fmt: skip
        if one.table != "all":  # these are those of the tables, and many between them
            wrong += [f"  {one.column}: {a} -> {b}: {by:+.4g}" for a, b, by, _ in clear[:SHOWN]]
    header = [
        "varied", "published", "predicted", "should", "n", "rank corr.", "without any one",
        "wrong order", "clear",
    ]  # fmt: skip
    explained = _wrapped(
        "Rank correlation: Spearman's, of prediction and published column, and its range with any "
        "one run left out. Clear: pairs in the wrong order that differ by more than two standard "
        "deviations of a difference of two seeds (0.07 points ID, 0.15 OOD each); of ECE and KL "
        "no spread was published, and all count. OOD: mean of five sets; ECE as published, a mean "
        "over batches. Rows of `every` are predicted with the kernel time of the authors' code."
    )
    return "\n".join(
        [
            "TRACER's published ablations (ViT-B/16, ImageNet, 25,030 steps, one run per row) "
            "beside the linear model\n",
            columns(header, rows, left=4),
            explained,
            f"Where orders differ clearly (at most {SHOWN} per column; --json has all):",
            *wrong,
        ]
    )


def _comparison(one: Comparison) -> dict[str, Any]:
    rows = zip(one.labels, one.predicted, one.published, strict=True)
    return {
        "varied": one.table,
        "published": one.column,
        "predicted": one.prediction,
        "expected_sign": one.expected,
        "n": len(one.labels),
        "rank_correlation": one.rho,
        "rank_correlation_without_any_one": list(one.rho_range),
        "pairs": one.pairs,
        "wrong_order": [pair._asdict() for pair in one.differences],
        "rows": [{"run": a, "predicted": float(b), "published": float(c)} for a, b, c in rows],
    }


def _held(value: float) -> float:
    """Return 0 for what is too small for floats: products stop falling at the last of them."""
    return value if value > 1e-300 else 0.0


def _share(value: float) -> str:
    if value < 1e-99:
        return "< 1e-99"
    return f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, 96, break_on_hyphens=False)
