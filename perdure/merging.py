"""Models out of models: interpolation with the start (WiSE-FT), soups, and every other merge.

All act on all floating-point tensors of the predictor, towers, temperature, statistics of
normalisation layers and head together. A member without a linear head gets the head of its own
class features first, so that zero-shot models can be averaged with classifiers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from .merges.members import (
    Head,
    fill,
    opened,
    other_classes,
    prepare,
    require_shared_base,
    with_same_modules,
)
from .merges.rules import Merger, checked_shares
from .predictor import Predictor
from .run import Run, environment, write_model
from .runtime import Runtime
from .subjects import Subject, find, sha256_of, tuned_part
from .weights import lerp, require_same

Progress = Callable[[str, float], None]
"""Called with what is being done, and the share of it that was done since the last call."""


def wise_ft(zero_shot: Predictor, tuned: Predictor, alpha: float) -> Predictor:
    """Return (1 - alpha) zero-shot + alpha tuned, tower and head together, as a new predictor.

    Equals `zero_shot` at 0 and `tuned` at 1 exactly. Integer tensors come from the nearer end.
    Modules that were added to the tuned end are folded at full strength, whatever their own alpha:
    here alpha is their strength. Those that cannot be folded, such as learned contexts, move in a
    straight line from their start, where they change nothing or as little as they can.

    Args:
        zero_shot: The start of the fine-tuning.
        tuned: Its end.
        alpha: Share of the tuned weights, in [0, 1].

    Raises:
        SurgeryError: If added modules cannot be weakened.
        WeightsError: If `alpha` is out of range, or names, shapes or head classes differ. The
            released code keeps tensors that only one end has and takes those of another shape
            from the tuned end, which silently merges different models; here both are errors.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903,
        equation 1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise WeightsError(
            f"alpha is {alpha}, but must lie in [0, 1]: 0 is zero-shot, 1 the fine-tuned model."
        )
    ends = (_plain(zero_shot), _plain(tuned, 1.0))
    return _average(iter(ends), (1.0 - alpha, alpha), _shared_head(ends))


def ends_of_line(zero_shot: Predictor, tuned: Predictor) -> tuple[Predictor, Predictor]:
    """Return both ends of the line on which `wise_ft` lies, with equal names, modules and classes.

    Args:
        zero_shot: As in `wise_ft`.
        tuned: As in `wise_ft`.

    Returns:
        The start, always a copy, and the end, which is `tuned` itself where nothing must be done
        to it.

    Raises:
        SurgeryError: As `wise_ft`.
        WeightsError: As `wise_ft`.
    """
    start, end = _plain(zero_shot), _plain(tuned, 1.0)
    head = _shared_head((start, end))
    start = _with_head(start.copy(), head)
    if head is not None and end.head is None:
        end = _with_head(end.copy(), head)
    start, end = with_same_modules(start, end)
    if start.classes != end.classes:
        raise other_classes(start.classes, end.classes)
    require_same(start.state_dict(), end.state_dict())
    return start, end


def soup(members: Sequence[Predictor], shares: Sequence[float] | None = None) -> Predictor:
    """Return the weighted mean of several predictors as a new predictor.

    Args:
        members: At least one, all fine-tuned from the same start; added modules are folded at
            their own alpha.
        shares: One number >= 0 per member, of which only the ratios matter; equal by default.

    Raises:
        WeightsError: If shares do not fit, or names, shapes or head classes differ.

    Source: Wortsman et al. 2022, "Model soups", arXiv 2203.05482 (uniform soup).
    """
    parts = checked_shares(shares, len(members))
    return _average(map(_plain, members), parts, _shared_head(members))


def aligned(models: Sequence[Predictor], *, weights: bool = True) -> list[Predictor]:
    """Return copies of several models between which one can move in a straight line.

    Added modules are folded at their own alpha. A model without a head gets that of its own class
    features where another has one.

    Args:
        models: Of one architecture.
        weights: Whether all weights move: then names and shapes must be equal, and a model without
            the learned contexts of another gets them at their start. Else classifiers alone move,
            and every model keeps its own prompts.

    Raises:
        WeightsError: If names, shapes, head classes or added modules do not fit.
    """
    plain = [_plain(model) for model in models]
    head = _shared_head(plain)
    copies = [_with_head(model.copy(), head) for model in plain]
    like = next((copy for copy in copies if copy.surgeries), None)
    if weights and like is not None:
        copies = [with_same_modules(copy, like)[0] for copy in copies]
    for copy in copies[1:]:
        if copy.classes != copies[0].classes:
            raise other_classes(copies[0].classes, copy.classes)
        if weights:
            require_same(copies[0].state_dict(), copy.state_dict())
    return copies


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


def _average(members: Iterator[Predictor], parts: Sequence[float], head: Head | None) -> Predictor:
    """Average as members arrive: each moves the mean so far by its share of what was seen."""
    result: Predictor | None = None
    total = 0.0
    for member, part in zip(members, parts, strict=True):
        total += part
        if result is None:
            result = _with_head(member.copy(), head)
            continue
        if head is not None and member.head is None:
            member = _with_head(member.copy(), head)
        result, member = with_same_modules(result, member)
        if result.classes != member.classes:
            raise other_classes(result.classes, member.classes)
        blended = lerp(result.state_dict(), member.state_dict(), part / total if total else 0.0)
        result.load_state_dict(blended)
    assert result is not None
    return result


def _plain(member: Predictor, alpha: float | None = None) -> Predictor:
    return member.fold(alpha) if member.surgeries else member


def _with_head(member: Predictor, head: Head | None) -> Predictor:
    """Give a member without a head the zero-shot head of the others' classes, in place."""
    if head is not None and member.head is None:
        member.set_head(*head)
    return member


def _shared_head(members: Iterable[Predictor]) -> Head | None:
    return next(((one.classes, one.templates) for one in members if one.head is not None), None)


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
