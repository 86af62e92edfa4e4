"""Measure prompts, adapters, merges and MERGETUNE base-to-novel, and write their page.

    OMP_NUM_THREADS=1 python -m benchmarks.base_to_novel [--workers 2 | --page-only]

Two divisions of EmojiShift's classes, three seeds, 16 images per class. Settings are chosen on the
first division with seed 0, on base classes of `val` and on `val_shift`, whose concepts belong to
neither half; no choice uses held-out classes. Resumable.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from perdure import evaluate, merge
from perdure.files import read_json, write_json, write_text
from perdure.records import read, summary

from .base_to_novel_page import page
from .experiments import ROOT, SEEDS, Job, carry_out_all

FOLDER = ROOT / "base-to-novel"
FIGURE = Path("benchmarks/figures/base_to_novel.json")
PAGE = Path("docs/results-base-to-novel.md")
START = "perdure-tiny"


class Division(NamedTuple):
    """One way to halve the classes."""

    classes: str
    """As data.classes"""
    suite: str
    choice: str
    """Suite for choosing"""


DIVISIONS = {
    "1": Division("base", "emojishift-b2n", "emojishift-b2n-val"),
    "2": Division("base-2", "emojishift-b2n-2", "emojishift-b2n-val-2"),
}


class Row(NamedTuple):
    """A model of the table."""

    recipe: str
    """Shipped recipe, or kind of a merge of the zero-shot model with `init`"""
    settings: tuple[str, ...] = ()
    """Overrides of the recipe"""
    init: str | None = None
    """Row whose run it starts from"""
    options: dict[str, Any] | None = None
    """Of the merge; None for a training"""


ROWS: dict[str, Row] = {
    "coop": Row("coop"),
    "coop early": Row("coop"),
    "kgcoop": Row("kgcoop"),
    "mma": Row("mma"),
    "coop + mergetune": Row("mergetune-coop", init="coop"),
    "kgcoop + mergetune": Row("mergetune-kgcoop", init="kgcoop"),
    "mma + mergetune": Row("mergetune-mma", init="mma"),
    "coop + wise-ft 0.5": Row("wise-ft", init="coop", options={"alpha": 0.5}),
    "coop + ties": Row("ties", init="coop", options={"density": 0.2}),
    "coop + dare": Row("dare", init="coop", options={"density": 0.5}),
    "no path": Row("mergetune-coop", ("method.path_weight=0",), "coop"),
    "no anchor": Row("mergetune-coop", ("method.anchor_weight=0",), "coop"),
    "continued": Row(
        "mergetune-coop",
        ("method.path_weight=0", "method.anchor_weight=0", "method.start=1"),
        "coop",
    ),
    "start 0": Row("mergetune-coop", ("method.start=0",), "coop"),
    "start 0.6": Row("mergetune-coop", ("method.start=0.6",), "coop"),
    "start 1": Row("mergetune-coop", ("method.start=1",), "coop"),
}

GRIDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "coop": (("optim.lr=0.005",), ("optim.lr=0.02",), ("optim.lr=0.08",)),
    "coop early": (("optim.epochs=5",), ("optim.epochs=10",), ("optim.epochs=25",)),
    "kgcoop": tuple((f"method.anchor_weight={weight}",) for weight in (1, 4, 16)),
    "mma": (("optim.lr=0.03",), ("optim.lr=0.06",), ("optim.lr=0.12",)),
    "coop + mergetune": tuple((f"method.anchor_weight={weight}",) for weight in (1, 4, 16)),
}
"""What is chosen for a row; MERGETUNE on other hosts takes the weight chosen on CoOp"""

INHERITS = {
    "coop early": "coop", "kgcoop + mergetune": "coop + mergetune",
    "mma + mergetune": "coop + mergetune",
}  # fmt: skip
"""Rows that also take the setting chosen for another"""

BY_BASE = ("coop", "mma")
"""Rows whose rate is chosen on trained classes alone, as published methods do; the others by the
harmonic mean of base classes and `val_shift`"""

Chosen = Mapping[str, tuple[str, ...]]


def folder(name: str, division: str) -> Path:
    """Return the directory of a row's runs."""
    return FOLDER / division / name.replace(" + ", "-").replace(" ", "-")


def settings_of(name: str, division: str, seed: int, chosen: Chosen) -> tuple[str, ...]:
    """Return the overrides of one run."""
    found = [f"seed={seed}", f"data.classes={DIVISIONS[division].classes}"]
    found += ["run.threads=1", "run.device=cpu", "validate.splits=[]"]
    row = ROWS[name]
    if row.init is not None:
        found.append(f"model.init={folder(row.init, division) / f'seed-{seed}'}")
    kind = "coop + mergetune" if row.recipe == "mergetune-coop" else name
    for one in (INHERITS.get(kind, ""), kind):
        found += chosen.get(one, ())
    return (*found, *row.settings)


def choice_jobs(name: str, chosen: Chosen) -> list[Job]:
    """Return the runs from which the setting of a row is chosen."""
    known = settings_of(name, "1", 0, chosen)
    return [
        Job(
            FOLDER / "choices" / folder(name, "1").name / "-".join(values).replace("=", "-"),
            ROWS[name].recipe, (*known, *values), DIVISIONS["1"].choice, sweep=False,
        )
        for values in GRIDS[name]
    ]  # fmt: skip


def choose(workers: int) -> dict[str, dict[str, Any]]:
    """Carry out the grids in the order in which rows build on each other."""
    found: dict[str, dict[str, Any]] = {}
    chosen: dict[str, tuple[str, ...]] = {}
    for name in GRIDS:
        init = ROWS[name].init
        if init is not None:
            carry_out_all(jobs_of(init, "1", (0,), chosen), workers)
        jobs = choice_jobs(name, chosen)
        carry_out_all(jobs, workers)
        words = [summary(read(job.out, DIVISIONS["1"].choice).splits) for job in jobs]
        word = "base" if name in BY_BASE else "harmonic"
        best = max(range(len(jobs)), key=lambda place: words[place][word])
        chosen[name] = GRIDS[name][best]
        tried = [
            {"values": values, **{key: entry[key] for key in ("base", "novel", "harmonic")}}
            for values, entry in zip(GRIDS[name], words, strict=True)
        ]
        found[name] = {"chosen": list(chosen[name]), "by": word, "tried": tried}
        print(f"{name}: {chosen[name]}", flush=True)
    return found


def jobs_of(name: str, division: str, seeds: Sequence[int], chosen: Chosen) -> list[Job]:
    """Return the test runs of a row that is trained."""
    return [
        Job(
            folder(name, division) / f"seed-{seed}",
            ROWS[name].recipe,
            settings_of(name, division, seed, chosen),
            DIVISIONS[division].suite,
            sweep=False,
        )
        for seed in seeds
    ]


def merge_all(name: str, division: str) -> None:
    """Carry out the merges of a row and score them."""
    row = ROWS[name]
    assert row.init is not None
    for seed in SEEDS:
        out = folder(name, division) / f"seed-{seed}"
        options = dict(row.options or {})
        if row.recipe == "dare":
            options["seed"] = seed
        if not out.exists():
            merge(row.recipe, [START, folder(row.init, division) / f"seed-{seed}"], out, **options)
        score(out, DIVISIONS[division].suite)


def score(run: Path, suite: str) -> None:
    """Score a run, unless that is done."""
    if not (run / "scores" / f"{suite}.json").is_file():
        evaluate(run, suite)


def measure(workers: int) -> dict[str, Any]:
    """Carry out what is missing and return the choices."""
    choices = choose(workers)
    chosen = {name: tuple(entry["chosen"]) for name, entry in choices.items()}
    start = FOLDER / "zero-shot"
    if not start.exists():
        merge("zero-shot", [START], start)
    for number, division in DIVISIONS.items():
        score(start, division.suite)
        trained = [name for name, row in ROWS.items() if row.options is None]
        for later in (False, True):
            names = [name for name in trained if (ROWS[name].init is not None) is later]
            jobs = [job for name in names for job in jobs_of(name, number, SEEDS, chosen)]
            carry_out_all(jobs, workers)
        for name, row in ROWS.items():
            if row.options is not None:
                merge_all(name, number)
    return choices


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--page-only", action="store_true", help="write the page from what is done")
    asked = parser.parse_args()
    if not asked.page_only:
        write_json(FIGURE, measure(asked.workers))
    found = {
        name: {
            number: [
                read(path, division.suite)
                for path in sorted(folder(name, number).glob("seed-*"))
                if (path / "scores" / f"{division.suite}.json").is_file()
            ]
            for number, division in DIVISIONS.items()
        }
        for name in ROWS
    }
    start = {number: [read(FOLDER / "zero-shot", d.suite)] for number, d in DIVISIONS.items()}
    write_text(PAGE, page({"zero-shot": start, **found}, read_json(FIGURE)))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
