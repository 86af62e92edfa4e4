"""Learned contexts: word vectors that belong to no word, and class prompts made with them.

A negative id in a token tensor, -k, stands for context vector k, counted from 1. Texts of words
have none and are embedded bit for bit as before, so that a model with contexts still reads
captions.

Source: Zhou et al. 2022, "Learning to prompt for vision-language models", arXiv 2109.01134.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import DataError, SurgeryError, TaskError
from ..inputs import Tokenizer, places_of
from ..towers import text_tower
from .operations import Surgery, check_alpha

Position = Literal["end", "middle", "front"]
"""Where the class name stands: behind the contexts, between their halves, or before them."""

STD = 0.02
"""Of the first values of contexts that do not start as words"""


@dataclass(frozen=True)
class Slots:
    """Context vectors in the place of a template's words.

    Raises:
        SurgeryError: If a field is out of range.
    """

    name: ClassVar[str] = "slots"
    foldable: ClassVar[bool] = False

    count: int = 4
    """Vectors of a prompt, M"""
    words: tuple[int, ...] | None = None
    """Ids of the M tokens that the vectors start as; None for normal random numbers"""
    position: Position = "end"
    """Where the class name stands"""
    classes: tuple[str, ...] = ()
    """Names of classes that have vectors of their own, in this order; empty for shared vectors"""
    stop: bool = True
    """Whether a prompt ends in a full stop"""
    seed: int = 0
    """Of random first values"""
    alpha: float = 1.0
    """Strength, >= 0: 0 the first values, 1 the learned ones"""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise SurgeryError(f"count is {self.count}, but must be at least 1 context vector.")
        if self.words is not None and len(self.words) != self.count:
            raise SurgeryError(
                f"{len(self.words)} words cannot start {self.count} context vectors; give one "
                "token for each, or none for random numbers."
            )
        check_alpha(self.alpha)

    def attach(self, clip: nn.Module) -> None:
        """Add the vectors to the table of token embeddings; texts of words are embedded as before.

        Raises:
            SurgeryError: If the text tower has no such table, or there are vectors already.
        """
        path, table = _table(clip)
        if isinstance(table, ContextEmbedding):
            raise SurgeryError(
                f"{path} has learned contexts already; start from a model without them."
            )
        where = table.weight.device
        if self.words is None:
            random = torch.Generator().manual_seed(self.seed)
            rows = self.count * max(len(self.classes), 1)
            start = (STD * torch.randn(rows, table.embedding_dim, generator=random)).to(where)
        else:
            if max(self.words) >= table.num_embeddings or min(self.words) < 0:
                raise SurgeryError(
                    f"the words {list(self.words)} are no tokens of this model, whose ids are 0 to "
                    f"{table.num_embeddings - 1}."
                )
            rows_of_words = table.weight.detach()[torch.tensor(self.words, device=where)]
            start = rows_of_words.repeat(max(len(self.classes), 1), 1)
        owner, _, leaf = path.rpartition(".")
        made = ContextEmbedding(table, start.to(table.weight.dtype), self.alpha)
        setattr(clip.get_submodule(owner), leaf, made.train(table.training))

    def fold(self, clip: nn.Module, alpha: float) -> None:
        """Move the vectors to a place between their first values and the learned ones; they stay.

        Raises:
            SurgeryError: If there are none, or alpha is out of range.
        """
        check_alpha(alpha)
        table = contexts(clip)
        with torch.no_grad():
            table.contexts.lerp_(table.start, 1.0 - alpha)
        table.alpha = 1.0

    def set_alpha(self, clip: nn.Module, alpha: float) -> None:
        """Set where between their first values and the learned ones the vectors act.

        Raises:
            SurgeryError: If there are none, or alpha is out of range.
        """
        check_alpha(alpha)
        contexts(clip).alpha = alpha

    def prompts(self, tokenizer: Tokenizer, names: Sequence[str]) -> Tensor:
        """Return one prompt per class, with negative ids for the vectors, (C, 1, L), on the host.

        Whatever start and end the tokeniser puts around a text stay where they are; "_" in names is
        a space.

        Args:
            tokenizer: Of the model.
            names: C classes.

        Raises:
            TaskError: If there is no name, or vectors belong to other classes.
            DataError: If a prompt is longer than the model's context, or nothing of a name is left.
        """
        if not names:
            raise TaskError("no class names, so there is no prompt; at least one is needed.")
        blocks = self._blocks(names)
        bodies = name_tokens(tokenizer, [name.replace("_", " ") for name in names], self.stop)
        start, end, pad, room = frame(tokenizer)
        rows = []
        for name, block, (word, rest) in zip(names, blocks, bodies, strict=True):
            ids = [-1 - (block * self.count + slot) for slot in range(self.count)]
            before = {"end": self.count, "middle": self.count // 2, "front": 0}[self.position]
            row = [*start, *ids[:before], *word, *ids[before:], *rest, *end]
            if len(row) > room:
                raise DataError(
                    f"the prompt of class {name[:200]!r} has {len(row)} tokens with "
                    f"{self.count} context vectors, but the model reads {room}; shorten the name "
                    "or use fewer vectors."
                )
            rows.append(row + [pad] * (room - len(row)))
        return torch.tensor(rows, dtype=torch.int64)[:, None]

    def _blocks(self, names: Sequence[str]) -> Sequence[int]:
        """Return which vectors each class uses: those of its own, or the shared ones."""
        if not self.classes:
            return [0] * len(names)
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise TaskError(
                f"the contexts were learned for each of {len(self.classes)} classes alone, so "
                f"there are none for {unknown[0]!r} and {len(unknown) - 1} other classes. Ask for "
                f"the training classes ({', '.join(self.classes[:3])}, ...), or train with shared "
                "contexts (class_specific: false), which fit every name."
            )
        return places_of(names, self.classes)


class ContextEmbedding(nn.Embedding):
    """A table of token embeddings in which negative ids name context vectors.

    Args:
        table: What it replaces; its weight is taken over as it is.
        start: First values of the vectors, (R, W).
        alpha: Strength.
    """

    start: Tensor

    def __init__(self, table: nn.Embedding, start: Tensor, alpha: float = 1.0) -> None:
        super().__init__(
            table.num_embeddings, table.embedding_dim, table.padding_idx, _weight=table.weight.data
        )
        self.weight = table.weight
        self.contexts = nn.Parameter(start.clone())
        self.register_buffer("start", start.clone())
        self.alpha = alpha

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (...,), (..., W)."""
        words = super().forward(ids.clamp(min=0))
        vectors: Tensor = self.contexts
        if self.alpha != 1.0:
            vectors = self.start + self.alpha * (vectors - self.start)
        # A choice by `where` and not by index, which would make an accelerator wait.
        chosen = vectors[(-1 - ids).clamp(min=0)]
        return torch.where((ids < 0)[..., None], chosen.to(words.dtype), words)


def slots_of(surgeries: Iterable[Surgery]) -> Slots | None:
    """Return the learned contexts among surgeries, if there are any."""
    return next((one for one in surgeries if isinstance(one, Slots)), None)


def contexts(clip: nn.Module) -> ContextEmbedding:
    """Return the table with the context vectors of a model.

    Raises:
        SurgeryError: If there are none.
    """
    table = _table(clip)[1]
    if not isinstance(table, ContextEmbedding):
        raise SurgeryError("the model has no learned contexts.")
    return table


def frame(tokenizer: Tokenizer) -> tuple[list[int], list[int], int, int]:
    """Return what a tokeniser puts before and behind a text, what it pads with, and its room L.

    CLIP's have a start and an end; those of SigLIP have no start, and pad with their end.
    """
    empty, some = tokenizer(["", _PROBE]).tolist()
    start = 0
    while start < len(empty) and empty[start] == some[start]:
        start += 1
    pad, end = empty[-1], empty[start:]
    while end and end[-1] == pad:
        end.pop()
    return empty[:start], end, pad, len(empty)


def name_tokens(
    tokenizer: Tokenizer, names: Sequence[str], stop: bool
) -> list[tuple[list[int], list[int]]]:
    """Return the ids of each name as it stands inside a sentence, and those of what follows it.

    Args:
        tokenizer: Of the model.
        names: With spaces.
        stop: Whether a full stop follows; some tokenisers drop it.

    Raises:
        DataError: If the tokeniser makes nothing of a name.
    """
    texts = [f"{_PROBE} {name}" for name in names]
    tokens = tokenizer([_PROBE, *texts, *(f"{text}." for text in texts)])
    first, *bodies = _bodies(tokens, frame(tokenizer))
    # A word before the name, because some tokenisers read the first word of a text differently.
    bodies = [body[len(first) :] for body in bodies]
    found = []
    for name, word, whole in zip(names, bodies[: len(names)], bodies[len(names) :], strict=True):
        if not word:
            raise DataError(
                f"the tokeniser makes nothing of the class name {name!r}, so the class cannot be "
                "told from others; give it a name in letters."
            )
        sentence = whole if stop else word
        found.append((sentence[: len(word)], sentence[len(word) :]))
    return found


def text_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text without start, end and padding."""
    return _bodies(tokenizer([text]), frame(tokenizer))[0]


_PROBE = "x"
"""A word that every vocabulary has"""


def _bodies(tokens: Tensor, around: tuple[list[int], list[int], int, int]) -> list[list[int]]:
    """Return the ids of texts without start, end and padding."""
    start, end, pad, _ = around
    bodies = []
    for row in tokens.tolist():
        while row and row[-1] == pad:
            row.pop()
        bodies.append(row[len(start) : len(row) - len(end)])
    return bodies


def _table(clip: nn.Module) -> tuple[str, nn.Embedding]:
    """Return the path and the module of a text tower's token embeddings.

    Raises:
        SurgeryError: If it has none.
    """
    text: Any = text_tower(clip)
    table = getattr(text, "token_embedding", None)
    inner: Any = getattr(text, "transformer", None)
    if table is None and hasattr(inner, "get_input_embeddings"):  # Hugging Face
        table = inner.get_input_embeddings()
    path = next((path for path, module in clip.named_modules() if module is table), None)
    if path is None or not isinstance(table, nn.Embedding):
        raise SurgeryError(
            f"the text tower ({type(text).__name__}) has no table of token embeddings that "
            "contexts could be added to; use the text towers of open_clip or Hugging Face."
        )
    return path, table
