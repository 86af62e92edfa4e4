"""CoOp: learned contexts before class names, towers frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from .. import towers
from ..classifying import ClassifierLearner
from ..errors import TaskError
from ..learner import Learner, train_only
from ..method import Context, Count
from ..predictor import Predictor
from ..surgery.slots import Position, Slots, slots_of, text_tokens


@dataclass(frozen=True, kw_only=True)
class Coop:
    """Cross-entropy of class prompts whose context is learned; nothing else trains.

    Differs from the published code in nothing that is computed in float32; the code takes "a photo
    of a" whatever words it is given, which here is a default.

    Source: Zhou et al. 2022, arXiv 2109.01134, equations 2 and 3.
    """

    name: ClassVar[str] = "coop"
    paper: ClassVar[str] = "https://arxiv.org/abs/2109.01134"

    words: str | None = "a photo of a"
    """What the contexts start as, one vector per token; null for random numbers"""
    contexts: Count = 16
    """How many vectors there are where they start from random numbers"""
    position: Position = "end"
    """Where the class name stands: at the end, in the middle, or in front"""
    class_specific: bool = False
    """Whether every class has vectors of its own, which then fit no other class"""
    stop: bool = True
    """Whether a full stop ends the prompt, as published; captions of EmojiShift have none"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Add the contexts, or go on with those that the student has, and let them alone train.

        Raises:
            SurgeryError: If the text tower has no place for them.
            TaskError: If the task has no class names, or the student has other contexts.
        """
        student = student.plain()
        add_contexts(student, self, context)
        return PromptLearner(student, context.classes)


class PromptLearner(ClassifierLearner):
    """Cross-entropy of images against class prompts; towers stay in evaluation mode.

    Args:
        student: With contexts, which alone train.
        classes: C names.
    """

    prompts: Tensor

    def __init__(self, student: Predictor, classes: Sequence[str]) -> None:
        super().__init__(student)
        prompts = student.trim(student.prompts(classes, ("{}",))[:, 0])
        self.register_buffer("prompts", prompts.to(student.device), persistent=False)

    def train(self, mode: bool = True) -> PromptLearner:
        """Change the mode; frozen towers stay in evaluation mode, with their batch statistics."""
        super().train(mode)
        self.student.eval()
        return self

    def rows(self) -> Tensor:
        """Return the raw text features of the class prompts, (C, D)."""
        return towers.encode_text(self.student.clip, self.prompts)


def add_contexts(student: Predictor, method: Coop, context: Context) -> None:
    """Put the method's contexts on a student, unless it has them, and let nothing else train.

    Raises:
        SurgeryError: If the text tower has no place for them.
        TaskError: If the task has no class names, or the student has other contexts.
    """
    if not context.classes:
        raise TaskError(
            f"{method.name} learns the context of class names, but the task has none; use a "
            "classification data set, or a contrastive method such as flyp."
        )
    student.drop_head()
    wanted = _slots(student, method, context)
    present = slots_of(student.surgeries)
    if present is None:
        student.attach(wanted)
    elif replace(present, seed=wanted.seed, alpha=wanted.alpha) != wanted:
        raise TaskError(
            f"the model to start from has other contexts ({present}) than the recipe asks for "
            f"({wanted}). Give `method` the settings of the run in model.init, or start from a "
            "model without contexts."
        )
    train_only(student)
    for name, parameter in student.added().items():
        parameter.requires_grad_(name.endswith("contexts"))


def _slots(student: Predictor, method: Coop, context: Context) -> Slots:
    words = None if method.words is None else tuple(text_tokens(student.tokenizer, method.words))
    if words is not None and not words:
        raise TaskError(
            f"the tokeniser makes nothing of words: {method.words!r}; give at least one word, or "
            "null for random numbers."
        )
    return Slots(
        method.contexts if words is None else len(words),
        words,
        method.position,
        context.classes if method.class_specific else (),
        method.stop,
        context.seed,
    )
