"""Models between models, in memory: WiSE-FT, soups, and copies that a straight line connects.

All floating-point tensors of a predictor move, towers, temperature, statistics of normalisation
layers and head together. A model without a linear head gets the head of its own class features
first, so that zero-shot models can be averaged with classifiers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .errors import WeightsError
from .merges.rules import checked_shares
from .predictor import Predictor
from .weights import lerp, require_same

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


def with_same_modules(left: Predictor, right: Predictor) -> tuple[Predictor, Predictor]:
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


def other_classes(left: Sequence[str], right: Sequence[str]) -> WeightsError:
    """Return the error of members whose heads were trained on different classes."""
    pairs = zip(left, right, strict=False)
    first = next((f"{one!r} and {two!r}" for one, two in pairs if one != two), "their number")
    return WeightsError(
        "the members' heads were trained on different classes "
        f"({len(left)} and {len(right)}, first difference: {first}). Merge models of one task."
    )


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
