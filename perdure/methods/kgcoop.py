"""KgCoOp: learned contexts whose class features stay near those of hand-written prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..inputs import tokenize_prompts
from ..learner import Learner
from ..method import Context, NonNegative
from ..predictor import Predictor
from ..towers import unit
from .coop import Coop, PromptLearner, add_contexts


@dataclass(frozen=True, kw_only=True)
class KgCoop(Coop):
    """CoOp, and a pull of the class features to those of the data's own prompts.

    The pull is `anchor_weight` times 1 - mean cosine, as in the public code. On unit rows this is
    half the mean squared distance, so that `anchor_weight` is twice the lambda of the paper's
    equation 5, though both say 8.

    Source: Yao et al. 2023, arXiv 2303.13283, equations 4 and 5.
    """

    name: ClassVar[str] = "kgcoop"
    paper: ClassVar[str] = "https://arxiv.org/abs/2303.13283"

    anchor_weight: NonNegative = 8.0
    """Of 1 - mean cosine to the hand-written prompts"""
    templates: tuple[str, ...] | None = None
    """Hand-written prompts, with `{}` for the name; null for those of the data set"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Embed the hand-written prompts with the student, and add the contexts.

        Raises:
            SurgeryError: If the text tower has no place for them.
            TaskError: If the task has no class names, or the student has other contexts.
        """
        student = student.plain()
        add_contexts(student, self, context)
        anchor = written_rows(student, context.classes, self.templates or context.templates)
        return KgCoopLearner(student, self, context.classes, anchor)


class KgCoopLearner(PromptLearner):
    """Cross-entropy and the distance of the class rows to fixed ones.

    Args:
        student: With contexts, which alone train.
        method: The hyper-parameters.
        classes: C names.
        anchor: Unit rows to stay near, (C, D).
    """

    anchor: Tensor

    def __init__(
        self, student: Predictor, method: KgCoop, classes: Sequence[str], anchor: Tensor
    ) -> None:
        super().__init__(student, classes)
        self.method = method
        self.register_buffer("anchor", anchor)

    def anchors(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the pull to the anchor, by its name."""
        near = (unit(rows) * self.anchor).sum(dim=-1).mean()
        return {"anchor": self.method.anchor_weight * (1.0 - near)}


@torch.no_grad()
def written_rows(student: Predictor, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Embed class names in hand-written prompts, also of a model with contexts, unit rows (C, D).

    "_" in names is a space, as in prompts with contexts.

    Raises:
        TaskError: If a template has no place for the name.
    """
    spaced = [name.replace("_", " ") for name in names]
    return student.class_features(tokenize_prompts(student.tokenizer, spaced, templates))
