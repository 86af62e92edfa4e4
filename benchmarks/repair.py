"""Measure MERGETUNE after robust fine-tuning on EmojiShift and write `docs/results-repair.md`.

    OMP_NUM_THREADS=1 python -m benchmarks.repair [--workers 2 | --page-only]

Hosts are FT at two rates, FLYP and TRACER, each followed by the recipe `emojishift/mergetune-HOST`
at a fifth of the host's rate. All are evaluated once, along their WiSE-FT lines. Resumable; takes
the runs of `benchmarks.results` and `benchmarks.best` that exist.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from perdure.comparison import over_seeds
from perdure.records import summary
from perdure.tables import cell, table

from .best import zero_shot
from .experiments import CHECKPOINTS, SEEDS, SUITE, Job, carry_out_all, study
from .results import read_choices, run_folder, test_jobs
from .results_page import LABELS, SHIFTS, Runs, above_frontier, difference, gaps_at_equal_id

PAGE = Path("docs/results-repair.md")
SHARE = 0.2
"""Of the host's rate, found on the prototype's validation sets"""
TARGETS = (0.75, 0.80, 0.85)
WORDS = ("id", "ood", "art", "ece_id", "ece_ood")


class Host(NamedTuple):
    """A fine-tuned model to be repaired."""

    name: str
    """Method and recipe"""
    factor: float = 1.0
    """On the rate that its selection rule chose"""

    @property
    def rate(self) -> float:
        """The learning rate of the host."""
        return read_choices()[self.name].rate * self.factor

    @property
    def title(self) -> str:
        """As in tables."""
        return f"{LABELS[self.name]}, rate {self.rate:g}"


HOSTS = {
    "seed-0": (Host("ft"), Host("ft", 0.25), Host("flyp"), Host("tracer")),
    "seed-1": (Host("ft"), Host("flyp")),
}
"""By checkpoint"""

VARIANTS: dict[str, tuple[str, ...]] = {
    "": (),
    "-no-path": ("method.path_weight=0",),
    "-no-anchor": ("method.anchor_weight=0",),
    "-continued": ("method.path_weight=0", "method.anchor_weight=0"),
}
"""What is left out of the objective, and the overrides that do so"""
ABLATED = ("ft", "flyp")
"""Hosts, at their own rate on the shipped checkpoint, that get the variants too, without lines"""


def host_jobs(checkpoint: str, host: Host) -> list[Job]:
    """Return the runs of a host."""
    return list(test_jobs(checkpoint, host.name, host.rate, read_choices(), sweep=True))


def repair_jobs(checkpoint: str, host: Host, variant: str = "") -> list[Job]:
    """Return the runs of MERGETUNE on a host."""
    rate = host.rate * SHARE
    settings = [f"optim.lr={rate:g}", f"model.name={CHECKPOINTS[checkpoint]}"]
    settings += ["run.threads=1", "run.device=cpu", *VARIANTS[variant]]
    if host.name == "ft":
        settings.append(f"optim.head_lr={10 * rate:g}")
    folder = run_folder(checkpoint, host.name, host.rate)
    return [
        Job(
            run_folder(checkpoint, f"mergetune-{host.name}{variant}", host.rate) / f"seed-{seed}",
            f"mergetune-{host.name}",
            (f"seed={seed}", f"model.init={folder / f'seed-{seed}'}", *settings),
            SUITE,
            sweep=not variant,
        )
        for seed in SEEDS
    ]  # fmt: skip


def ablated(checkpoint: str, host: Host) -> bool:
    """Return whether a host gets the variants."""
    return checkpoint == "seed-0" and host.name in ABLATED and host.factor == 1.0


def measure(workers: int) -> None:
    """Carry out what is missing: hosts, then their repair."""
    pairs = [(checkpoint, host) for checkpoint, hosts in HOSTS.items() for host in hosts]
    for checkpoint in CHECKPOINTS:
        zero_shot(checkpoint)
    carry_out_all([job for pair in pairs for job in host_jobs(*pair)], workers)
    carry_out_all([job for pair in pairs for job in repair_jobs(*pair)], workers)
    further = [
        job
        for pair in pairs
        if ablated(*pair)
        for variant in VARIANTS
        for job in repair_jobs(*pair, variant)
    ]
    carry_out_all(further, workers)


def repaired(checkpoint: str, host: Host, variant: str = "") -> Runs:
    """Return the finished runs of MERGETUNE on a host."""
    return Runs(checkpoint, f"mergetune-{host.name}{variant}", host.rate)


def row(label: str, runs: Runs, alpha: float | None = None) -> list[str]:
    """Return a table row of runs as they are, or at one point of their lines."""
    found = [runs.word(word) if alpha is None else runs.at_alpha(alpha, word) for word in WORDS]
    return [label, *map(cell, found)]


def change(first: Runs, second: Runs, word: str) -> str:
    """Print the difference of a word, seed by seed: mean and sample standard deviation."""
    pairs = zip(first.records, second.records, strict=True)
    gaps = [summary(one.splits)[word] - summary(two.splits)[word] for one, two in pairs]
    return cell(over_seeds(gaps), sign=True)


def checkpoint_part(checkpoint: str, hosts: Sequence[Host]) -> str:
    """Return the tables of one checkpoint."""
    rows, changes, equal = [], [], []
    flyp = next(host for host in hosts if host.name == "flyp")
    rival = Runs(checkpoint, "flyp", flyp.rate)
    for host in hosts:
        own = Runs(checkpoint, host.name, host.rate)
        mended = repaired(checkpoint, host)
        if not mended.records:
            continue
        rows += [
            row(host.title, own),
            row("+ WiSE-FT 0.75", own, 0.75),
            row("+ WiSE-FT 0.5", own, 0.5),
            row("+ MERGETUNE", mended),
            row("+ MERGETUNE + WiSE-FT 0.75", mended, 0.75),
            row("+ MERGETUNE + WiSE-FT 0.5", mended, 0.5),
        ]
        changes.append(
            [
                host.title,
                difference(mended, own, ["id"]),
                difference(mended, own, SHIFTS),
                change(mended, own, "ece_ood"),
                above_frontier(mended, own),
                "-" if host.name == "flyp" else above_frontier(mended, rival),
            ]
        )
        equal.append([host.title, *gaps_at_equal_id(mended, own, TARGETS)])
    which = "shipped" if checkpoint == "seed-0" else "second"
    points = [f"ID {100 * target:.0f}" for target in TARGETS]
    return "\n\n".join(
        [
            f"## The {which} checkpoint",
            table(["model", "ID", "OOD", "art", "ECE ID", "ECE OOD"], rows),
            "What MERGETUNE changes in its host, and whether that lies above the host's own "
            "WiSE-FT line and above that of FLYP, at equal ID accuracy (OOD accuracy):",
            table(["host", "ID", "OOD", "ECE OOD", "above own line", "above FLYP's line"], changes),
            "MERGETUNE + WiSE-FT minus the host + WiSE-FT: OOD accuracy at equal ID accuracy:",
            table(["host", *points], equal),
        ]
    )


def parts_part() -> str:
    """Return the table of what each term does."""
    names = {
        "": "whole objective",
        "-no-path": "without the path term",
        "-no-anchor": "without the anchor",
        "-continued": "host's loss alone, continued",
    }
    rows = []
    for host in (host for host in HOSTS["seed-0"] if ablated("seed-0", host)):
        own, whole = Runs("seed-0", host.name, host.rate), repaired("seed-0", host)
        for variant, name in names.items():
            runs = repaired("seed-0", host, variant)
            if not runs.records:
                continue
            against = ["-", "-"]
            if variant:
                against = [difference(whole, runs, ["id"]), difference(whole, runs, SHIFTS)]
            rows.append([host.title, *row(name, runs), above_frontier(runs, own), *against])
    head = ["host", "objective", "ID", "OOD", "art", "ECE ID", "ECE OOD", "above own line"]
    return "\n\n".join(
        [
            "## What each term does",
            "The shipped checkpoint. Last columns: the whole objective minus this row.",
            table([*head, "ID gained", "OOD gained"], rows),
        ]
    )


def page(
    hosts: Mapping[str, Sequence[Host]] = HOSTS,
    program: str = "repair",
    of: str = "robust fine-tuning",
) -> str:
    """Return the page of some hosts.

    Args:
        hosts: By checkpoint; FLYP among them, whose line others are compared with.
        program: That writes the page.
        of: What the hosts are.
    """
    remarks = Path(f"benchmarks/figures/{program}_remarks.md")
    parts = [
        f"# MERGETUNE after {of}, on EmojiShift",
        f"Written by `python -m benchmarks.{program}` (resumable); not edited by hand. Method: "
        "[methods/mergetune.md](methods/mergetune.md). Every host is trained as in "
        "[results.md](results.md), then continued for half as many steps at a fifth of its rate "
        "from the middle between zero-shot and tuned weights: relative anchor 1, path weight 1, "
        "one random point per step, no weight decay. These settings come from the benchmark's "
        "prototype and were not chosen again.",
        "3 seeds, mean ± sample standard deviation; n = 1,600 images per set; OOD: unweighted mean "
        "of five shifted sets, art: of four; ECE in per cent, 15 bins. Brackets: 95 % bootstrap "
        "intervals over images, paired by image; they do not cover the choice of seeds.",
        *(checkpoint_part(checkpoint, found) for checkpoint, found in hosts.items()),
    ]
    if any(ablated(checkpoint, host) for checkpoint in hosts for host in hosts[checkpoint]
           if repaired(checkpoint, host, "-no-path").records):  # fmt: skip
        parts.append(parts_part())
    if remarks.is_file():
        parts.append(remarks.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    study(__doc__, measure, page, PAGE)
