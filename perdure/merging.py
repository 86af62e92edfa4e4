"""Models out of models: interpolation with the start (WiSE-FT) and means of several (soups).

Both act on all floating-point tensors of the predictor, towers, temperature, statistics of
normalisation layers and head together. A member without a linear head gets the head of its own
class features first, so that zero-shot models can be averaged with classifiers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from .errors import RunError, WeightsError
from .files import whole_directory, write_json, write_text
from .predictor import Predictor
from .run import Run, environment, write_model
from .runtime import Runtime
from .subjects import Subject, find, sha256_of
from .weights import lerp

Kind = Literal["wise-ft", "soup", "zero-shot"]

Head = tuple[tuple[str, ...], tuple[str, ...]]
"""Class names and templates of a linear head."""


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
    parts = _checked_shares(shares, len(members))
    return _average(map(_plain, members), parts, _shared_head(members))


def merge(
    kind: Kind,
    inputs: Sequence[Subject | Run | Path | str],
    out: Path | str,
    *,
    alpha: float | None = None,
    shares: Sequence[float] | None = None,
) -> Run:
    """Merge runs or named models into a new run directory that can be evaluated like any other.

    Members are read one after another: memory for three models is enough for any number.

    Args:
        kind: "wise-ft" (zero-shot first, tuned second), "soup", or "zero-shot", which keeps one
            untouched model as a run so that its scores can be reported.
        inputs: Run directories or names of models.
        out: New directory.
        alpha: Share of the tuned weights in [0, 1], for wise-ft.
        shares: Weights of the members of a soup; equal by default.

    Returns:
        The new run: `merge.yaml` names the inputs with their hashes, `predictor/` and `model/` are
        as in a trained run.

    Raises:
        RunError: If `out` exists or an input is no run.
        WeightsError: If the inputs do not fit together.
    """
    out = Path(out)
    subjects = [find(entry) for entry in inputs]
    parts = _parts(kind, len(subjects), alpha, shares)
    if out.exists():
        raise RunError(f"{out} exists already. Choose a new directory for --out, or remove it.")
    head = next(filter(None, (_recorded_head(subject) for subject in subjects)), None)
    entries: list[dict[str, Any]] = []
    merged = _average(_loaded(subjects, entries, kind), parts, head)
    document: dict[str, Any] = {"kind": kind}
    if kind == "wise-ft":
        document["alpha"] = alpha
    if kind == "soup":
        document["shares"] = [part / sum(parts) for part in parts]
    document["inputs"] = entries
    return keep(merged, document, out)


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
    if out.exists():
        raise RunError(f"{out} exists already. Choose a new directory for --out, or remove it.")
    with whole_directory(out) as fresh:
        merged.save(fresh / "predictor")
        note = write_model(merged, fresh / "model")
        write_text(fresh / "merge.yaml", yaml.safe_dump(dict(document), sort_keys=False))
        write_json(fresh / "env.json", environment(Runtime("cpu")))
        status = {"state": "finished"} | ({"note": note} if note else {})
        write_json(fresh / "status.json", status)
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
        result, member = _with_same_modules(result, member)
        if result.classes != member.classes:
            raise WeightsError(
                "the members' heads were trained on different classes "
                f"({len(result.classes)} and {len(member.classes)}, first difference: "
                f"{_first_difference(result.classes, member.classes)}). Merge models of one task."
            )
        blended = lerp(result.state_dict(), member.state_dict(), part / total if total else 0.0)
        result.load_state_dict(blended)
    assert result is not None
    return result


def _plain(member: Predictor, alpha: float | None = None) -> Predictor:
    return member.fold(alpha) if member.surgeries else member


def _with_same_modules(left: Predictor, right: Predictor) -> tuple[Predictor, Predictor]:
    """Give one of two predictors what the other has and cannot fold, at strength 0.

    Raises:
        WeightsError: If both have such modules, and not the same.
    """
    if left.surgeries == right.surgeries:
        return left, right
    if not left.surgeries:
        return _beside(left, right), right
    if not right.surgeries:
        return left, _beside(right, left)
    raise WeightsError(
        "the members have different added modules, which have no mean: "
        f"{left.surgeries} and {right.surgeries}. Merge runs of one method with the same settings."
    )


def _beside(plain: Predictor, other: Predictor) -> Predictor:
    """Return `plain` with the modules of `other` at strength 0."""
    start, own = other.fold(0.0), plain.copy()
    start.head, start.classes, start.templates = own.head, own.classes, own.templates
    start.source = own.source
    weights, theirs = start.state_dict(), own.state_dict()
    own_names = theirs.keys() - weights.keys()
    wrong = sorted(
        own_names | {n for n in theirs if n in weights and theirs[n].shape != weights[n].shape}
    )
    if wrong:
        raise WeightsError(
            f"{plain.source.name} and {other.source.name} are not one architecture, first "
            f"difference: {wrong[0]}. Merge models that were fine-tuned from the same start."
        )
    start.load_state_dict({**weights, **theirs})
    return start


def _with_head(member: Predictor, head: Head | None) -> Predictor:
    """Give a member without a head the zero-shot head of the others' classes, in place."""
    if head is not None and member.head is None:
        member.set_head(*head)
    return member


def _shared_head(members: Iterable[Predictor]) -> Head | None:
    return next(((one.classes, one.templates) for one in members if one.head is not None), None)


def _recorded_head(subject: Subject) -> Head | None:
    """Read a run's head classes without loading its weights."""
    from .files import read_json

    file = None if subject.run is None else subject.run / "predictor" / "predictor.json"
    if file is None or not file.is_file():
        return None
    record = read_json(file)
    classes = tuple(record["classes"])
    return (classes, tuple(record["templates"])) if classes else None


def _loaded(
    subjects: Sequence[Subject], entries: list[dict[str, Any]], kind: Kind
) -> Iterator[Predictor]:
    """Load members one by one and note where each came from."""
    for position, subject in enumerate(subjects):
        predictor = subject.predictor(1.0 if kind == "wise-ft" and position == 1 else None)
        entries.append(input_of(subject, predictor))
        yield predictor


def _parts(
    kind: Kind, count: int, alpha: float | None, shares: Sequence[float] | None
) -> tuple[float, ...]:
    """Check a merge's options and return the share of each input."""
    if kind == "wise-ft":
        if count != 2:
            raise RunError(f"wise-ft takes two inputs, zero-shot and tuned; found {count}.")
        if alpha is None or not 0.0 <= alpha <= 1.0:
            raise WeightsError(
                f"alpha is {alpha}, but must be given and lie in [0, 1]: "
                "0 is zero-shot, 1 the fine-tuned model."
            )
        return (1.0 - alpha, alpha)
    if alpha is not None:
        raise RunError(f"alpha is an option of wise-ft; {kind} has none. Use --shares for a soup.")
    if kind == "zero-shot" and count != 1:
        raise RunError(f"zero-shot keeps one model; found {count}.")
    return _checked_shares(shares, count)


def _checked_shares(shares: Sequence[float] | None, count: int) -> tuple[float, ...]:
    parts = (1.0,) * count if shares is None else tuple(float(share) for share in shares)
    if count == 0 or len(parts) != count or min(parts) < 0 or not 0 < sum(parts) < float("inf"):
        raise WeightsError(
            f"shares {list(parts)} do not fit {count} members; give one number >= 0 per member, "
            "not all of them zero."
        )
    return parts


def _first_difference(left: Sequence[str], right: Sequence[str]) -> str:
    for here, there in zip(left, right, strict=False):
        if here != there:
            return f"{here!r} and {there!r}"
    return "their number"
