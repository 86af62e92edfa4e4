"""Predictor: what scores images against texts. Trained, averaged, merged, saved and evaluated."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn
from torch.nn import functional

from . import towers
from .batch import Pairs
from .errors import SurgeryError, TaskError, WeightsError
from .files import read_json, whole_directory, write_json
from .inputs import (
    OpenClipTokenizer,
    Preprocess,
    Tokenizer,
    locate_vocabulary,
    merges_file,
    tokenize_prompts,
)

__all__ = ["ModelSource", "Pairs", "Predictor", "Preprocess", "Tokenizer"]

FORMAT = 1
"""Version of the saved form; raised when an older reader would misunderstand it."""

_ROWS = 1024
"""Texts embedded at a time where there may be very many, as with 1,000 classes in 80 templates."""


@dataclass(frozen=True)
class ModelSource:
    """Where a predictor's architecture and first weights came from."""

    name: str
    """As given to `zoo.load`"""
    weights: str
    """Tag or file; empty where the name says it all"""
    config: dict[str, Any]
    """open_clip's description: {"model_cfg": ..., "preprocess_cfg": ...}"""


class Predictor(nn.Module):
    """A CLIP-like two-tower model and, after classifier training, a linear head.

    Args:
        clip: An open_clip model, or any module with `visual`, `encode_image`, `encode_text` and
            `logit_scale`.
        tokenizer: Texts to token ids (N, L).
        preprocess: Pixels to input.
        source: Architecture and origin, kept so that `save` can be undone.
    """

    clip: Any
    """Its methods are beyond what torch's types of a module can say"""
    head: nn.Linear | None
    classes: tuple[str, ...]
    """What the rows of the head stand for; empty without a head"""
    templates: tuple[str, ...]
    """The prompts the head started from; empty without a head"""
    fixed: frozenset[str]
    """Parameters that the architecture itself never trains, such as sine-cosine positions"""

    def __init__(
        self, clip: nn.Module, tokenizer: Tokenizer, preprocess: Preprocess, source: ModelSource
    ) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.source = source
        self.head = None
        self.classes = ()
        self.templates = ()
        self.fixed = frozenset(
            name for name, tensor in self.named_parameters() if not tensor.requires_grad
        )

    @property
    def scale(self) -> Tensor:
        """Inverse temperature exp(logit_scale), shape ()."""
        scale: Tensor = self.clip.logit_scale
        return scale.exp().reshape(())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.scale.device

    def forward(self, images: Tensor, tokens: Tensor) -> Pairs:
        """Embed images (B, 3, H, W) and tokens (N, L); matched rows where B = N."""
        return Pairs(self.encode_image(images), self.encode_text(tokens), self.scale)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed images (B, 3, H, W), unit rows (B, D)."""
        return _unit(towers.encode_image(self.clip, images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embed tokens (N, L), unit rows (N, D).

        Takes trimmed tokens too, and faster. Trimming is the caller's, who has the tokens on the
        host: reading their length here would make an accelerator wait.
        """
        return _unit(towers.encode_text(self.clip, tokens))

    def trim(self, tokens: Tensor) -> Tensor:
        """Cut tokens (N, L) to the longest text where no embedding changes, else return them."""
        return towers.trim(self.clip, tokens)

    def prompts(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Tokenise every name in every template, (C, T, L), on the host.

        Raises:
            TaskError: If there is no name or template, or a template has no place for the name.
        """
        if not names or not templates:
            raise TaskError(
                f"{len(names)} class names and {len(templates)} templates make no prompt; "
                "at least one of each is needed."
            )
        return tokenize_prompts(self.tokenizer, names, templates)

    def class_features(self, prompts: Tensor) -> Tensor:
        """Embed prompts (C, T, L) and average over templates, unit rows (C, D); differentiable.

        Each prompt is normalised before the mean, and the mean after it.

        Source: Radford et al. 2021, arXiv 2103.00020, section 3.1.4.
        """
        rows = self.trim(prompts.flatten(0, 1)).to(self.device)
        features = torch.cat([self.encode_text(part) for part in torch.split(rows, _ROWS)])
        return _unit(features.view(*prompts.shape[:2], -1).mean(dim=1))

    @torch.no_grad()
    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return class weights (C, D) for `logits`, without gradient.

        The rows of the head, divided by the scale and without the bias, if it was trained on all
        `names`; the text tower's class features otherwise. `logits_fn` also keeps the bias.
        """
        columns = self._columns(names)
        if self.head is None or columns is None:
            return self.class_features(self.prompts(names, templates))
        return self.head.weight[columns] / self.scale

    def logits(self, images: Tensor, classifier: Tensor) -> Tensor:
        """Score images (B, 3, H, W) against class weights (C, D): scale times cosine, (B, C)."""
        return _linear(self.encode_image(images), self.scale * classifier)

    def head_logits(self, features: Tensor) -> Tensor:
        """Score unit rows (B, D) with the head, (B, C) in float32.

        Raises:
            TaskError: If there is no head.
        """
        if self.head is None:
            raise TaskError(
                "this predictor has no linear head; call set_head first, or score with logits_fn."
            )
        return _linear(features, self.head.weight, self.head.bias)

    @torch.no_grad()
    def logits_fn(
        self, names: Sequence[str], templates: Sequence[str]
    ) -> Callable[[Tensor], Tensor]:
        """Return the function that scores images (B, 3, H, W) on classes, (B, C) in float32.

        Uses the head's rows if a head was trained on all `names`, else the text tower; the class
        weights are computed once, here.
        """
        columns = self._columns(names)
        if self.head is None or columns is None:
            weight = self.scale * self.class_features(self.prompts(names, templates))
            bias = None
        else:
            weight, bias = self.head.weight[columns], self.head.bias[columns]

        @torch.no_grad()
        def score(images: Tensor) -> Tensor:
            return _linear(self.encode_image(images), weight, bias)

        return score

    @torch.no_grad()
    def set_head(self, names: Sequence[str], templates: Sequence[str]) -> None:
        """Put a linear head on the image tower that starts as the zero-shot classifier.

        Its weight (C, D) is the class features times the scale and its bias is zero, so
        `head(encode_image(images))` equals the zero-shot logits.

        Source: WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903), section 2.
        """
        features = self.class_features(self.prompts(names, templates))
        self.head = head = _empty_head(features.shape[1], len(names)).to(features.device)
        head.weight.copy_(features * self.scale)
        head.bias.zero_()
        self.classes, self.templates = tuple(names), tuple(templates)

    def drop_head(self) -> None:
        """Forget the head: from now on the text tower scores."""
        self.head, self.classes, self.templates = None, (), ()

    def copy(self) -> Predictor:
        """Return an independent copy in evaluation mode; the tokeniser is shared."""
        return copy.deepcopy(self).eval()

    def fold(self, alpha: float | None = None) -> Predictor:
        """Return an independent copy without added modules, a plain CLIP.

        Args:
            alpha: Strength of the added modules, where there are any; None for their own.

        Raises:
            SurgeryError: If `alpha` is given and the model has no added modules to weaken.
        """
        if alpha is not None:
            raise SurgeryError(
                f"alpha is {alpha}, but {self.source.name} has no added modules to fold at that "
                "strength; to interpolate whole models use `perdure merge wise-ft`."
            )
        return self.copy()

    def save(self, path: Path) -> None:
        """Write `predictor.safetensors` and `predictor.json` to a directory, whole or not at all.

        Raises:
            WeightsError: If the tokeniser cannot be rebuilt from a name or file.
        """
        if self.tokenizer.vocabulary is None:
            raise WeightsError(
                "this predictor's tokeniser has no named vocabulary, so it could not be loaded "
                "again; use perdure.tokens.OpenClipTokenizer."
            )
        with whole_directory(Path(path)) as fresh:
            save_model(self, str(fresh / "predictor.safetensors"))
            record = {
                "format": FORMAT,
                "source": asdict(self.source),
                "preprocess": asdict(self.preprocess),
                "vocabulary": _keep_vocabulary(self.tokenizer, fresh),
                "context_length": self.tokenizer.context_length,
                "classes": self.classes,
                "templates": self.templates,
            }
            write_json(fresh / "predictor.json", record)

    @classmethod
    def load(cls, path: Path) -> Predictor:
        """Read what `save` wrote, in evaluation mode, on the CPU.

        Raises:
            WeightsError: If a file is missing, damaged or of a newer format.
        """
        path = Path(path)
        record = read_json(path / "predictor.json")
        if record.get("format") != FORMAT:
            raise WeightsError(
                f"{path / 'predictor.json'} has format {record.get('format')!r}; this version of "
                f"perdure reads format {FORMAT}. Use the version that wrote it."
            )
        try:
            predictor = cls._described(record, path)
        except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
            raise WeightsError(
                f"{path / 'predictor.json'} does not describe a predictor "
                f"({type(error).__name__}: {error}). The directory is damaged or was changed by "
                "hand; make it again."
            ) from error
        try:
            load_model(predictor, path / "predictor.safetensors")
        except (SafetensorError, RuntimeError, OSError) as error:
            raise WeightsError(
                f"cannot load {path / 'predictor.safetensors'}: {error}. The directory is damaged "
                "or was changed by hand; make it again."
            ) from error
        return predictor.eval()

    @classmethod
    def _described(cls, record: dict[str, Any], path: Path) -> Predictor:
        """Build, with random weights, what a `predictor.json` describes."""
        source, pixels = ModelSource(**record["source"]), record["preprocess"]
        (red, green, blue), (dark, medium, light) = pixels["mean"], pixels["std"]
        mean = (float(red), float(green), float(blue))
        std = (float(dark), float(medium), float(light))
        predictor = cls(
            towers.build(source.config["model_cfg"]),
            OpenClipTokenizer(
                locate_vocabulary(record["vocabulary"], path), int(record["context_length"])
            ),
            Preprocess(int(pixels["size"]), mean, std, str(pixels["interpolation"])),
            source,
        )
        predictor.classes = tuple(map(str, record["classes"]))
        predictor.templates = tuple(map(str, record["templates"]))
        if predictor.classes:
            width = source.config["model_cfg"]["embed_dim"]
            predictor.head = _empty_head(width, len(predictor.classes))
        return predictor

    def export_open_clip(self, path: Path) -> None:
        """Write a directory that plain open_clip loads as `local-dir:PATH`, whole or not at all.

        Holds `open_clip_config.json` and `open_clip_model.safetensors`; where there is a head also
        `head.safetensors` (weight (C, D), bias (C,)) and `classes.json`. The head takes unit rows.
        A vocabulary that open_clip does not know is named in the configuration under "perdure",
        which open_clip ignores: take the tokeniser from perdure then.
        """
        with whole_directory(Path(path)) as fresh:
            weights = {name: value.contiguous() for name, value in self.clip.state_dict().items()}
            save_file(weights, fresh / "open_clip_model.safetensors", {"format": "pt"})
            extra = {
                "vocabulary": _keep_vocabulary(self.tokenizer, fresh),
                "context_length": self.tokenizer.context_length,
            }
            write_json(fresh / "open_clip_config.json", {**self.source.config, "perdure": extra})
            if self.head is not None:
                head = {name: value.contiguous() for name, value in self.head.state_dict().items()}
                save_file(head, fresh / "head.safetensors")
                names = {"classes": self.classes, "templates": self.templates}
                write_json(fresh / "classes.json", names)

    def _columns(self, names: Sequence[str]) -> Tensor | None:
        """Return the head's row of each name; None if there is no head or it lacks one."""
        if self.head is None or not set(names) <= set(self.classes):
            return None
        if tuple(names) == self.classes:  # two classes of one name keep their own rows
            return torch.arange(len(names), device=self.device)
        return torch.tensor([self.classes.index(name) for name in names], device=self.device)


def _keep_vocabulary(tokenizer: Tokenizer, directory: Path) -> str | None:
    """Return what to record of a tokeniser, copying a vocabulary that is only a file."""
    path = merges_file(tokenizer.vocabulary)
    if path is None:
        return tokenizer.vocabulary
    shutil.copyfile(path, directory / "vocabulary.txt.gz")
    return "vocabulary.txt.gz"


def _empty_head(width: int, classes: int) -> nn.Linear:
    # Skips the random start, which would take numbers from the run's random state.
    return nn.Linear(width, classes, device="meta").to_empty(device="cpu")


def _unit(x: Tensor) -> Tensor:
    # Half precision has too few digits for unit length; autocast towers return it.
    return functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def _linear(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Score in float32 even under autocast: near 30, bfloat16 logits lie 0.125 apart."""
    with torch.autocast(features.device.type, enabled=False):
        return functional.linear(features, weight.to(features.dtype), bias)
