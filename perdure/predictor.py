"""Predictor: what scores images against texts. Trained, averaged, merged, saved and evaluated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import building, heads, passes, stored, towers
from .batch import Pairs
from .errors import TaskError
from .inputs import Preprocess, Tokenizer, tokenize_prompts
from .stored import ModelSource
from .surgery import operations
from .surgery.mask_prompts import takes_masks
from .surgery.operations import Surgery, with_alpha
from .surgery.slots import slots_of

__all__ = ["ModelSource", "Pairs", "Predictor", "Preprocess", "Tokenizer"]


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
    surgeries: tuple[Surgery, ...]
    """What was added to `clip`, in that order; empty for a plain CLIP"""

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
        self.surgeries = ()
        self._added: frozenset[str] = frozenset()

    @property
    def scale(self) -> Tensor:
        """Inverse temperature exp(logit_scale), shape ()."""
        scale: Tensor = self.clip.logit_scale
        return scale.exp().reshape(())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.scale.device

    @property
    def takes_masks(self) -> bool:
        """Whether images may have a fourth channel: masks, above 0 inside the region."""
        return takes_masks(self.surgeries)

    def forward(self, images: Tensor, tokens: Tensor) -> Pairs:
        """Embed images (B, 3, H, W) and tokens (N, L); matched rows where B = N.

        Raises:
            TaskError: If images are projected away from the space of the texts.
        """
        if heads.texts_apart(self.surgeries):
            raise TaskError(
                f"this {self.source.name} is a student whose images live in the space of its "
                "teacher, so they cannot be compared with its own texts; start from another model."
            )
        return Pairs(self.encode_image(images), self.encode_text(tokens), self.scale)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed images (B, 3, H, W), or (B, 4, H, W) where it takes masks, unit rows (B, D)."""
        return towers.unit(towers.encode_image(self.clip, images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embed tokens (N, L), unit rows (N, D); trimmed ones faster.

        Trimming is the caller's: reading lengths here would make an accelerator wait.
        """
        return towers.unit(towers.encode_text(self.clip, tokens))

    def trim(self, tokens: Tensor) -> Tensor:
        """Cut tokens (N, L) to the longest text where no embedding changes, else return them."""
        return towers.trim(self.clip, tokens)

    def prompts(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Tokenise every name in every template, (C, T, L), on the host; with contexts (C, 1, L).

        Raises:
            TaskError: If a name or template is missing, or contexts belong to other classes.
        """
        if (slots := slots_of(self.surgeries)) is not None:
            return slots.prompts(self.tokenizer, names)
        return tokenize_prompts(self.tokenizer, names, templates)

    def class_features(self, prompts: Tensor) -> Tensor:
        """Embed prompts (C, T, L) and average over templates, unit rows (C, D); differentiable.

        Each prompt is normalised before the mean, and the mean after it. Prompts of similar length
        go through the tower together, so that little padding does.

        Source: Radford et al. 2021, arXiv 2103.00020, section 3.1.4.
        """
        rows = passes.embedded_texts(self.encode_text, self.clip, prompts.flatten(0, 1))
        return towers.unit(rows.view(*prompts.shape[:2], -1).mean(dim=1))

    @torch.no_grad()
    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return class weights (C, D) for `logits`, without gradient.

        Rows of the head over the scale, without its bias, which `logits_fn` keeps, if it was
        trained on all `names`; the text tower's class features otherwise.
        """
        columns = heads.columns(self.head, self.classes, names, self.surgeries)
        if self.head is None or columns is None:
            return self.class_features(self.prompts(names, templates))
        return self.head.weight[columns] / self.scale

    def logits(self, images: Tensor, classifier: Tensor) -> Tensor:
        """Score images (B, 3, H, W) against class weights (C, D): scale times cosine, (B, C)."""
        return towers.score(self.encode_image(images), self.scale * classifier)

    def head_logits(self, features: Tensor) -> Tensor:
        """Score unit rows (B, D) with the head, (B, C) in float32.

        Raises:
            TaskError: If there is no head.
        """
        if self.head is None:
            raise TaskError(
                "this predictor has no linear head; call set_head first, or score with logits_fn."
            )
        return towers.score(features, self.head.weight, self.head.bias)

    @torch.no_grad()
    def logits_fn(
        self, names: Sequence[str], templates: Sequence[str]
    ) -> Callable[[Tensor], Tensor]:
        """Return the function that scores images (B, 3, H, W) on classes, (B, C) in float32.

        Its rows are the head's if that was trained on all `names`, else the text tower's of now.
        """
        columns = heads.columns(self.head, self.classes, names, self.surgeries)
        if self.head is None or columns is None:
            rows = self.class_features(self.prompts(names, templates))
            weight, bias = self.scale * rows, None
        else:
            weight, bias = self.head.weight[columns], self.head.bias[columns]

        @torch.no_grad()
        def score(images: Tensor) -> Tensor:
            return towers.score(passes.embedded(self.encode_image, self.clip, images), weight, bias)

        return score

    @torch.no_grad()
    def set_head(self, names: Sequence[str], templates: Sequence[str]) -> None:
        """Put a linear head on the image tower that starts as the zero-shot classifier.

        Of unit rows it makes the zero-shot logits: class features times scale, bias zero.

        Source: WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903), section 2.
        """
        self.keep_rows(names, templates, self.class_features(self.prompts(names, templates)))

    def keep_rows(self, names: Sequence[str], templates: Sequence[str], rows: Tensor) -> None:
        """Put a linear head on the image tower that scores as class rows (C, D) do."""
        self.head = heads.head_of(rows, self.scale)
        self.classes, self.templates = tuple(names), tuple(templates)

    def drop_head(self) -> None:
        """Forget the head: from now on the text tower scores."""
        self.head, self.classes, self.templates = None, (), ()

    def copy(self) -> Predictor:
        """Return an independent copy in evaluation mode; the tokeniser is shared."""
        return copy.deepcopy(self).eval()

    def attach(self, surgery: Surgery, seed: int = 0) -> None:
        """Add modules to the towers, which compute as before until these are trained.

        Args:
            surgery: What to add, and where.
            seed: Of first weights that are drawn, so that they are equal on every process.

        Raises:
            SurgeryError: If the towers have no place for them, or have them already.
        """
        before = self.state_dict().keys()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            surgery.attach(self.clip)
        self._added |= self.state_dict().keys() - before
        self.surgeries = (*self.surgeries, surgery)

    def added(self) -> dict[str, nn.Parameter]:
        """Return the live parameters of the added modules by their names in this predictor."""
        return {name: value for name, value in self.named_parameters() if name in self._added}

    def added_state(self) -> dict[str, Tensor]:
        """Return the live parameters and buffers of the added modules, as `state_dict` does."""
        return {name: value for name, value in self.state_dict().items() if name in self._added}

    def set_alpha(self, alpha: float) -> None:
        """Set the strength of all added modules.

        Raises:
            SurgeryError: If there are none, or alpha is out of range.
        """
        operations.require_any(self.surgeries, f"alpha cannot be {alpha}", self.source.name)
        for surgery in self.surgeries:
            surgery.set_alpha(self.clip, alpha)
        self.surgeries = tuple(with_alpha(surgery, alpha) for surgery in self.surgeries)

    def fold(self, alpha: float | None = None) -> Predictor:
        """Return an independent plain CLIP, in evaluation mode.

        Modules that cannot be folded stay; their weights take the strength, which is then 1.

        Args:
            alpha: Strength of the added modules, where there are any; None for their own.

        Raises:
            SurgeryError: If `alpha` is given and the model has no added modules to weaken, or it
                is out of range.
        """
        if alpha is not None:
            operations.require_any(self.surgeries, f"alpha is {alpha}", self.source.name)
        plain = self.copy()
        plain.surgeries = operations.fold_all(plain.clip, self.surgeries, alpha)
        plain._added &= plain.state_dict().keys()
        return plain

    def plain(self) -> Predictor:
        """Return this predictor itself where nothing was added to it, else its `fold()`."""
        return self.fold() if self.surgeries else self

    @contextmanager
    def folded(self, alpha: float | None = None) -> Iterator[Predictor]:
        """Be what `fold(alpha)` returns inside the block; after it all is back, bit for bit.

        Raises:
            SurgeryError: If there are none, as inside such a block, or alpha is out of range.
        """
        operations.require_any(self.surgeries, "there is nothing to fold", self.source.name)
        kept = self.clip, self.surgeries, self._added
        # Another set of weights, and not a subtraction: that would leave rounding errors behind.
        plain = self.fold(alpha)
        self.clip, self.surgeries, self._added = plain.clip, plain.surgeries, plain._added
        try:
            yield self
        finally:
            self.clip, self.surgeries, self._added = kept

    def save(self, path: Path) -> None:
        """Write `predictor.safetensors` and `predictor.json` to a directory, whole or not at all.

        Added modules are kept as they are, with their strength.

        Raises:
            WeightsError: If the tokeniser cannot be rebuilt from a name or file.
        """
        record: dict[str, Any] = {
            "source": asdict(self.source),
            "preprocess": asdict(self.preprocess),
            "classes": self.classes,
            "templates": self.templates,
        }
        if self.surgeries:
            record["surgeries"] = [operations.to_record(surgery) for surgery in self.surgeries]
        if self.head is not None:
            record["head_width"] = self.head.in_features
        stored.write(self, self.tokenizer, record, Path(path))

    @classmethod
    def load(cls, path: Path) -> Predictor:
        """Read what `save` wrote, in evaluation mode, on the CPU.

        Raises:
            WeightsError: If a file is missing, damaged or of a newer format.
        """
        return stored.read(Path(path), cls._described).eval()

    @classmethod
    def described(cls, path: Path) -> Predictor:
        """Build what `save` described, with any weights; raises as `load` does."""
        return stored.describe(Path(path), cls._described).eval()

    @classmethod
    def _described(cls, record: dict[str, Any], path: Path) -> Predictor:
        """Build, with random weights, what a `predictor.json` describes."""
        source, tokenizer, preprocess = stored.parts(record, path)
        clip = building.build(source.config["model_cfg"])
        predictor = cls(clip, tokenizer, preprocess, source)
        predictor.classes = tuple(map(str, record["classes"]))
        predictor.templates = tuple(map(str, record["templates"]))
        if predictor.classes:
            width = record.get("head_width", source.config["model_cfg"]["embed_dim"])
            predictor.head = stored.empty_head(int(width), len(predictor.classes))
        for entry in record.get("surgeries", ()):
            predictor.attach(operations.from_record(entry))
        return predictor

    def export_open_clip(self, path: Path) -> None:
        """Write a directory that plain open_clip loads as `local-dir:PATH`, whole or not at all.

        Holds `open_clip_config.json` and `open_clip_model.safetensors`; of a head, which takes unit
        rows, `head.safetensors` (weight (C, D), bias (C,)) and `classes.json`. A vocabulary that
        open_clip does not know is named under "perdure" in the configuration: take the tokeniser
        from perdure then. Added modules are folded; those that cannot be raise SurgeryError.
        """
        operations.require_plain(self.surgeries)
        names = {"classes": self.classes, "templates": self.templates}
        stored.write_open_clip(
            self.plain().clip, self.tokenizer, self.source.config, Path(path), self.head, names
        )
