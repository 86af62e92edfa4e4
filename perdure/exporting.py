"""Export to other formats, checked: what was written is read back and compared before it stays."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import zoo
from .adapters import read_adapters, write_adapters
from .compression import Compressed, compress
from .errors import RunError, WeightsError
from .files import whole_directory
from .peft_format import read_peft, write_peft
from .peft_library import load_with_peft
from .predictor import Predictor
from .records import document
from .subjects import Subject, find

BOUND = 1e-4
"""Largest allowed difference of a number in a unit embedding"""

_INPUTS = 8
"""Random images, and random texts, that are compared"""


class Difference(NamedTuple):
    """Largest absolute difference between an export and its source."""

    image: float
    """Of unit image embeddings"""
    text: float
    """Of unit text embeddings"""
    scale: float
    """Of the inverse temperature exp(logit_scale), relative to it"""


def export_open_clip(
    subject: Subject | Path | str, out: Path | str, *, bound: float = BOUND
) -> Difference:
    """Write a model as a directory that plain open_clip loads as `local-dir:OUT`, and check it.

    Args:
        subject: A run, a merge result, or a model by name.
        out: New directory.
        bound: Largest difference that is accepted.

    Returns:
        The differences found on random inputs.

    Raises:
        RunError: If `out` exists or the run is not finished.
        WeightsError: If open_clip cannot read the result, or it differs by more than `bound`; then
            nothing is left at `out`.
    """
    out = _require_new(out)
    source = find(subject).predictor()
    with whole_directory(out) as fresh:
        source.export_open_clip(fresh)
        found = compare(source, _reload(fresh))
        if not all(value <= bound for value in found):  # also where a value is not a number
            raise WeightsError(
                f"the exported model differs from its source by {found.image:.2g} in image "
                f"embeddings, {found.text:.2g} in text embeddings and {found.scale:.2g} in scale; "
                f"at most {bound:g} is allowed, so nothing was written. open_clip reads this "
                "architecture differently; use the run's predictor/ with perdure instead."
            )
    return found


def export_adapters(
    subject: Subject | Path | str,
    out: Path | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
) -> Compressed | None:
    """Write what was added to a model, without the model, and read it back.

    Args:
        subject: A run of a method that adds modules, or a directory of such.
        out: New directory.
        rank: Keep at most so many ranks of every added matrix.
        energy: Instead of `rank`: keep this share, in (0, 1], of every matrix's squared singular
            values.

    Returns:
        What compressing lost; None where nothing was compressed.

    Raises:
        RunError: If `out` exists or the run is not finished.
        SurgeryError: If nothing was added to the model.
        WeightsError: If its base model has no name, or what was written reads differently; then
            nothing is left at `out`.
    """
    out = _require_new(out)
    found = find(subject)
    source = found.unfolded()
    lost = None
    if rank is not None or energy is not None:
        lost = compress(source, rank, energy)
        source = lost.predictor
    table = {} if found.run is None else document(found.run).get("method", {})
    with whole_directory(out) as fresh:
        write_adapters(source, fresh, table)
        again = read_adapters(fresh).state_dict()
        wrong = [
            name
            for name, value in source.state_dict().items()
            if not torch.equal(value, again[name])
        ]
        if wrong:
            raise WeightsError(
                f"{wrong[0]} and {len(wrong) - 1} other tensors read differently from what was "
                "written, so nothing was kept; they hold values that are not finite."
            )
    return lost


def export_peft(
    subject: Subject | Path | str, out: Path | str, *, bound: float = BOUND
) -> Difference:
    """Write low-rank updates as a folder of the peft library, and check it with that library.

    Args:
        subject: A run of the method lora, or a directory of its updates.
        out: New directory.
        bound: Largest difference that is accepted.

    Returns:
        The larger of the differences, on random inputs, of what peft computes with the folder and
        of what perdure reads from it.

    Raises:
        DependencyError: If the library is not installed.
        RunError: If `out` exists or the run is not finished.
        SurgeryError: If the model has other added modules than one set of low-rank updates.
        WeightsError: If peft cannot read the result, or either differs by more than `bound`; then
            nothing is left at `out`.
    """
    out = _require_new(out)
    source = find(subject).unfolded()
    base = source.source
    with whole_directory(out) as fresh:
        write_peft(source, fresh)
        plain = source.fold()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns in every forward pass of attention
            theirs = compare(
                plain, load_with_peft(zoo.load(base.name, base.weights or None).clip, fresh)
            )
        ours = compare(plain, read_peft(fresh).clip)
        found = Difference(*map(max, theirs, ours))
        if not all(value <= bound for value in (*theirs, *ours)):
            raise WeightsError(
                f"with the exported updates peft differs from the source by {theirs.image:.2g} in "
                f"image and {theirs.text:.2g} in text embeddings (read by perdure: "
                f"{ours.image:.2g}, {ours.text:.2g}); at most {bound:g} is allowed, so nothing was "
                "written. peft does not reach every layer of this architecture; use --to adapters "
                "or open_clip."
            )
    return found


def _require_new(out: Path | str) -> Path:
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise RunError(f"{out} exists already. Choose a new directory for --out, or remove it.")
    return out


@torch.no_grad()
def compare(source: Predictor, clip: Any) -> Difference:
    """Return how far an open_clip model is from a predictor, on random images and texts.

    Args:
        source: On the CPU, in evaluation mode.
        clip: Likewise.
    """
    random = torch.Generator().manual_seed(0)
    size = source.preprocess.size
    pixels = torch.randint(0, 256, (_INPUTS, 3, size, size), generator=random, dtype=torch.uint8)
    images = source.preprocess.normalize(pixels)
    tokens = source.tokenizer([_words(random, 1 + 3 * row) for row in range(_INPUTS)])
    scale = clip.logit_scale.exp().reshape(())
    return Difference(
        _largest(source.encode_image(images), clip.encode_image(images, normalize=True)),
        _largest(source.encode_text(tokens), clip.encode_text(tokens, normalize=True)),
        _largest(scale / source.scale, torch.ones(())),
    )


def _reload(path: Path) -> Any:
    """Load a directory as somebody would who has open_clip and not perdure."""
    import open_clip

    try:
        return open_clip.create_model(f"local-dir:{path.resolve()}", weights_only=True).eval()
    except Exception as error:  # json, torch, timm and open_clip itself each raise their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise WeightsError(
            f"open_clip cannot load the exported model ({reason}), so nothing was written. "
            "Use the run's predictor/ with perdure instead."
        ) from error


def _words(random: torch.Generator, length: int) -> str:
    """Return random letters in words of four."""
    letters = torch.randint(0, 26, (4 * length,), generator=random).tolist()
    text = "".join(chr(ord("a") + letter) for letter in letters)
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))


def _largest(first: Tensor, second: Tensor) -> float:
    return float((first.float() - second.float()).abs().max())
