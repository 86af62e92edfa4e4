"""Every text that pictures may be trained with, as token ids, in as little memory as they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from ..inputs import Tokenizer, fill, refuse_cut

_CHUNK = 4096
"""Texts that are tokenised at a time"""


class Captions:
    """Every class name in every template, tokenised once.

    Args:
        classes: C names.
        templates: T prompts.
        tokenizer: Texts to ids.
        trim: As in `Loader`; None keeps the whole context.
        cut: As in `Loader`.

    Raises:
        DataError: If a class name is empty, or a text is longer than the model's context.
    """

    def __init__(
        self,
        classes: Sequence[str],
        templates: Sequence[str],
        tokenizer: Tokenizer,
        trim: Callable[[Tensor], Tensor] | None = None,
        *,
        cut: bool = False,
    ) -> None:
        empty = [index for index, name in enumerate(classes) if not name.strip()]
        if empty:
            raise DataError(f"class {empty[0]} has an empty name; every class needs one.")
        texts = (fill(template, name) for name in classes for template in templates)
        parts: list[NDArray[np.int32]] = []
        padding: list[NDArray[np.int32]] = []
        lengths: list[int] = []
        while chunk := list(islice(texts, _CHUNK)):
            tokens = tokenizer(chunk)
            if not cut:
                refuse_cut(tokenizer, chunk, tokens)
            # The longest caption of a batch is then known without looking at its tokens.
            own = [trim(row[None]).shape[1] if trim else len(row) for row in tokens]
            parts.append(tokens[:, : max(own)].numpy().astype(np.int32))
            padding.append(tokens[:, -1:].numpy().astype(np.int32))
            lengths += own
        # Whole contexts of a million captions would be half a gigabyte, nearly all of it padding.
        longest = max(lengths, default=0)
        wide = [
            np.concatenate([part, np.repeat(pad, longest - part.shape[1], axis=1)], axis=1)
            for part, pad in zip(parts, padding, strict=True)
        ]
        shape = (len(classes), len(templates))
        self.templates = len(templates)
        self._tokens = np.concatenate(wide or [np.zeros((0, 0), np.int32)]).reshape(*shape, longest)
        self._lengths = np.array(lengths, dtype=np.int32).reshape(shape)

    def pick(self, classes: NDArray[np.int64], templates: NDArray[np.int64]) -> Tensor:
        """Return the captions of B classes in B templates, cut to the longest, (B, L)."""
        longest = self._lengths[classes, templates].max(initial=1)
        return torch.from_numpy(self._tokens[classes, templates, :longest].astype(np.int64))
