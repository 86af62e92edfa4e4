"""Runs out of runs: every kind of merge, carried out on disk and kept as a run.

All act on all floating-point tensors of the predictor, towers, temperature, statistics of
normalisation layers and head together. A member without a linear head gets the head of its own
class features first. WiSE-FT and soups of predictors in memory are in `interpolation`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .errors import RunError, WeightsError
from .files import whole_directory, write_json, write_text
from .merges.evidence import Task, choose, measured, needs_images
from .merges.importance import renew_statistics
from .merges.kinds import make
from .merges.means import Soup
from .merges.members import fill, opened, prepare, require_shared_base
from .merges.rules import Merger, checked_shares
from .predictor import Predictor
from .run import Run, environment, write_model
from .runtime import Runtime
from .subjects import Subject, find, sha256_of, tuned_part

Progress = Callable[[str, float], None]
"""Called with what is being done, and the share of it that was done since the last call."""


def merge(
    kind: str,
    inputs: Sequence[Subject | Run | Path | str],
    out: Path | str,
    *,
    root: Path | None = None,
    batch_norm: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Run:
    """Merge runs or named models into a new run directory that can be evaluated like any other.

    Tensors are read from disk one name at a time: memory for one model and one tensor of each
    input is enough. Inputs that are no plain models on disk (named models, runs with added modules,
    models that need a zero-shot head) are first written beside `out`, one after another.

    Args:
        kind: A name of `perdure.merges.kinds.MERGERS`, or "zero-shot", which keeps one untouched
            model as a run so that its scores can be reported.
        inputs: Run directories or names of models. Of kinds that act on task vectors the first is
            the base that the others were fine-tuned from; of wise-ft the zero-shot end.
        out: New directory.
        root: Directory of the data of the inputs' task, where it has moved.
        batch_norm: Images on which the running statistics of batch normalisation are measured anew.
        progress: Told what is being done, and the share of it that was done since the last call.
        **options: Fields of the kind, such as `alpha` of wise-ft or `density` of ties.

    Returns:
        The new run: `merge.yaml` names kind, options and the inputs with their hashes, `predictor/`
        and `model/` are as in a trained run.

    Raises:
        RunError: If `out` exists, an input is no run, or an option is not one of this kind.
        WeightsError: If an option is out of range, or the inputs do not fit together.
        DataError: If images are needed and none of the inputs says which, or they are missing.
    """
    out = Path(out)
    subjects = [find(entry) for entry in inputs]
    if kind == "zero-shot":
        return _keep_one(subjects, out, options)
    merger = make(kind, options)
    merger.check(len(subjects))
    if batch_norm is not None and batch_norm < 1:
        raise WeightsError(f"batch_norm is {batch_norm} images; it must be at least 1.")
    _require_new(out)
    require_shared_base(subjects, merger)
    task = Task.of(subjects, root) if needs_images(merger) or batch_norm else None
    with whole_directory(out) as fresh:
        work = fresh / "members"
        found = _merged(merger, subjects, task, batch_norm, work, progress or _ignore)
        shutil.rmtree(work, ignore_errors=True)
        _write(found.predictor, found.document, fresh)
    return Run(out)


def phases(kind: str, options: Mapping[str, Any], batch_norm: int | None = None) -> tuple[str, ...]:
    """Return what `merge` will tell its `progress`, in order; each comes to 1.

    Raises:
        RunError, WeightsError: As `merge`, where options are wrong.
    """
    merger = make(kind, options)
    images = needs_images(merger)
    return (
        "reading",
        *(["choosing"] if images and isinstance(merger, Soup) else []),
        *(["measuring"] if images and not isinstance(merger, Soup) else []),
        "merging",
        *(["renewing statistics"] if batch_norm is not None else []),
    )


class _Merged(NamedTuple):
    predictor: Predictor
    document: dict[str, Any]


def _merged(
    merger: Merger,
    subjects: Sequence[Subject],
    task: Task | None,
    batch_norm: int | None,
    work: Path,
    progress: Progress,
) -> _Merged:
    members = prepare(subjects, merger, work, partial(progress, "reading"))
    files = [member.directory / "predictor.safetensors" for member in members]
    result = Predictor.described(members[0].directory)
    more: dict[str, Any] = {}
    with opened(files) as tensors:
        if isinstance(merger, Soup) and merger.greedy:
            assert task is not None
            chosen = choose(result, tensors, task, partial(progress, "choosing"))
            merger, more = Soup(shares=chosen.shares), chosen.to_dict()
        with measured(members, merger, task, work, partial(progress, "measuring")) as known:
            fill(result, tensors, merger, known, partial(progress, "merging"))
    if batch_norm is not None:
        assert task is not None
        report = partial(progress, "renewing statistics")
        batches, count = task.batches(result, batch_norm, report)
        layers = renew_statistics(result, batches, count=count)
        more["batch_norm"] = {"images": batch_norm, "layers": layers}
    if task is not None:
        more["task"] = {"data": task.data.name, "split": task.data.split}
    recorded = {name: value for name, value in asdict(merger).items() if value is not None}  # type: ignore[call-overload]
    if isinstance(merger, Soup):
        parts = checked_shares(merger.shares, len(members))
        recorded = {"shares": [part / sum(parts) for part in parts]}
    entries = [dict(member.entry) for member in members]
    plain = {
        name: list(value) if isinstance(value, tuple) else value for name, value in recorded.items()
    }
    return _Merged(result, {"kind": merger.kind, **plain, **more, "inputs": entries})


def keep(merged: Predictor, document: Mapping[str, Any], out: Path | str) -> Run:
    """Write a predictor made of others as a run.

    Args:
        merged: The result.
        document: What `merge.yaml` says: `kind`, and `inputs` as `input_of` returns them.
        out: New directory.

    Raises:
        RunError: If `out` exists or cannot be written.
    """
    out = Path(out)
    _require_new(out)
    with whole_directory(out) as fresh:
        _write(merged, document, fresh)
    return Run(out)


def input_of(subject: Subject, predictor: Predictor) -> dict[str, Any]:
    """Return what `merge.yaml` says of an input: where it came from, and its hash."""
    return {**subject.origin(), "sha256": sha256_of(subject, predictor)}


def _keep_one(subjects: Sequence[Subject], out: Path, options: Mapping[str, Any]) -> Run:
    """Keep one untouched model as a run."""
    if len(subjects) != 1 or options:
        raise RunError(f"zero-shot keeps one model, without options; found {len(subjects)}.")
    _require_new(out)
    kept = subjects[0].predictor()
    kind = "checkpoint" if tuned_part(subjects[0].name) else "zero-shot"
    return keep(kept, {"kind": kind, "inputs": [input_of(subjects[0], kept)]}, out)


def _write(merged: Predictor, document: Mapping[str, Any], fresh: Path) -> None:
    """Write a run into a directory that is still being made."""
    status = {"state": "finished"}
    merged.save(fresh / "predictor")
    if note := write_model(merged, fresh / "model"):
        status["note"] = note
    write_text(fresh / "merge.yaml", yaml.safe_dump(dict(document), sort_keys=False))
    write_json(fresh / "env.json", environment(Runtime("cpu")))
    write_json(fresh / "status.json", status)


def _require_new(out: Path) -> None:
    if out.exists():
        raise RunError(f"{out} exists already. Choose a new directory for --out, or remove it.")


def _ignore(phase: str, share: float) -> None:
    """Say nothing."""
