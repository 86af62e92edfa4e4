"""A diagnosis for people: tables, two pictures, and the files of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..console import columns, percent
from ..files import whole_directory, write_json, write_text
from .answers import SHIFTED, write_flips
from .diagnose import Diagnosis
from .drift import SMALL, Forgotten, worst
from .pictures import draw_layers

WORST = 10
"""Classes that are named, unless told otherwise"""

FILES = ("diagnosis.json", "flips.json", "report.txt", "layers.png", "flips.png")


def write(found: Diagnosis, folder: Path, top: int = WORST) -> list[Path]:
    """Write the files of a diagnosis, all or none, in the place of what was in the folder.

    Args:
        found: What to write.
        folder: Is replaced.
        top: Classes to name in the report.

    Returns:
        What was written; a picture without anything to show is not.

    Raises:
        RunError: If it cannot be written.
        DataError: If a picture is damaged.
    """
    with whole_directory(folder) as fresh:
        write_json(fresh / "diagnosis.json", found.to_dict())
        write_json(fresh / "flips.json", found.flips())
        write_text(fresh / "report.txt", f"{report(found, top)}\n\n{_layers(found)}\n")
        draw_layers(found, fresh / "layers.png")
        write_flips(found.answers, fresh / "flips.png")
    return [folder / name for name in FILES if (folder / name).is_file()]


def report(found: Diagnosis, top: int = WORST) -> str:
    """Return what was found as tables.

    Args:
        found: A diagnosis.
        top: Classes to name, of the task and of shifted images.
    """
    seed = "" if found.seed is None else f" (seed {found.seed})"
    parts = [
        f"{found.subject}{seed} against {found.start}, suite {found.suite}",
        _answers(found),
        _flips(found),
        *_classes(found, top),
        _features(found),
        *([_groups(found)] if found.groups else []),
        *found.limits,
    ]
    return "\n\n".join(part for part in parts if part)


def _answers(found: Diagnosis) -> str:
    """One line per split: accuracy, how sure, and how well that fits."""
    header = ["split", "role", "images", "accuracy", "was", "change [95 %]", "confidence", "was",
              "ECE", "was", "fits at T", "was"]  # fmt: skip
    rows = []
    for name, one in found.answers.items():
        change = one.change
        row = [name, one.split.role, str(change.n)]
        row += [percent(change.after.accuracy), percent(change.before.accuracy)]
        row += [interval(*change.accuracy)]
        row += [percent(change.after.confidence), percent(change.before.confidence)]
        row += [percent(change.after.ece), percent(change.before.ece)]
        row += [number(change.after.temperature), number(change.before.temperature)]
        rows.append(row)
    return (
        "Accuracy, mean confidence and calibration error (15 bins) in per cent; T is the "
        "temperature\nthat would fit these very images best.\n" + columns(header, rows, left=2)
    )


def _flips(found: Diagnosis) -> str:
    header = ["split", "images", "right to wrong", "% [95 %]", "wrong to right", "% [95 %]"]
    rows = []
    for name, one in found.answers.items():
        row = [name, str(one.flips.n)]
        for places in (one.flips.lost, one.flips.gained):
            row += [
                str(len(places)),
                interval(len(places) / one.flips.n, *one.flips.interval(places)),
            ]
        rows.append(row)
    return "Images on which the answer changed sides\n" + columns(header, rows)


def _classes(found: Diagnosis, top: int) -> list[str]:
    """The task itself, and shifted images together, or each by itself where classes differ."""
    inside = [name for name, one in found.answers.items() if one.split.role in ("id", "base")]
    outside = (
        [SHIFTED] if SHIFTED in found.classes else [n for n in found.answers if n not in inside]
    )
    return [
        text for name in (*inside, *outside) if (text := _forgotten(name, found.classes[name], top))
    ]


def _forgotten(name: str, classes: Sequence[Forgotten], top: int) -> str:
    named = worst(classes, top)
    fell = len(worst(classes, len(classes)))
    if not named:
        return f"No class of {name} with {SMALL} or more images has lost accuracy."
    rows = [
        [
            one.name,
            str(one.n),
            percent(one.after),
            percent(one.before),
            interval(*one.change),
            "-" if one.taken_for is None else f"{one.taken_for} ({one.taken})",
        ]
        for one in named
    ]
    title = (
        f"Classes of {name} that lost most accuracy, %: {len(named)} of {fell} that lost, of "
        f"{len(classes)}"
    )
    return f"{title}\n" + columns(
        ["class", "images", "accuracy", "was", "change [95 %]", "now taken for"], rows
    )


def _features(found: Diagnosis) -> str:
    """One line per place; images of both kinds beside each other."""
    images = found.conditions["images"]
    kinds = [kind for kind in ("id", "shifted") if kind in found.similarity]
    by_place: dict[str, list[str]] = {}
    for kind in kinds:
        for one in found.similarity[kind]:
            by_place.setdefault(one.place, []).extend(
                [number(one.cka, 3), number(one.cosine, 3), str(one.n)]
            )
    rows = [[place, *cells] for place, cells in by_place.items()]
    for one in found.similarity.get("prompts", ()):
        cells = [number(one.cka, 3), number(one.cosine, 3), str(one.n)]
        rows.append([one.place, *cells, *["-"] * (3 * (len(kinds) - 1))])
    header = ["place", *(word for kind in kinds for word in (f"CKA {kind}", "cosine", "n"))]
    where = ", ".join(found.conditions["shifted"]) or "no shifted set"
    return (
        f"Features against those of the start: linear CKA and mean cosine. Text rows are those of "
        f"{images['prompts']}\nclass prompts, in the first columns. Shifted: {where}\n"
        + columns(header, rows)
    )


def _groups(found: Diagnosis) -> str:
    rows = [
        [
            one.group,
            str(one.layers),
            number(one.norm, 3),
            percent(one.relative, 2),
            percent(one.inside),
            percent(one.random),
        ]
        for one in found.groups
    ]
    conditions = found.conditions
    return (
        f"Update: norm, and the share of its square in the span of what comes into a matrix from "
        f"{conditions['images']['training']}\ntraining images and "
        f"{conditions['images']['prompts']} prompts (energy {conditions['energy']:g}); 'random' is "
        "the share of an update without preference\n"
        + columns(["part", "spans", "norm", "% of weights", "inside %", "random %"], rows)
    )


def _layers(found: Diagnosis) -> str:
    """One line per matrix, for the file."""
    header = [
        "matrix", "shape", "% of weights", "span", "inside %", "outputs %", "outputs shifted %",
        "shifted in span %", "largest singular", "stable rank", "effective rank",
    ]  # fmt: skip
    rows = [
        [
            one.name,
            f"{one.shape[0]} x {one.shape[1]}",
            percent(one.relative, 2),
            "-" if one.rank is None else str(one.rank),
            percent(one.inside),
            percent(one.output),
            percent(one.output_shifted),
            percent(one.shifted_inside),
            number(one.singular[0] if one.singular else None, 3),
            number(one.stable_rank, 1),
            number(one.effective_rank, 1),
        ]
        for one in found.layers
    ]
    if not rows:
        return "No matrix can be compared."
    return (
        "Every matrix. Outputs: |dW x| / |W x| over training inputs, and over those of shifted "
        "images.\n" + columns(header, rows, left=2)
    )


def interval(value: float, low: float, high: float) -> str:
    """Return a share and its interval in per cent."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number, or "-" if there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
