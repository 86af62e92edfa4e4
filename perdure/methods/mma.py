"""MMA: adapters beside the upper blocks of both towers, which share their middle layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor

from .. import towers
from ..classifying import ClassifierLearner
from ..errors import TaskError
from ..learner import Learner, train_added
from ..method import Context, Count, Positive
from ..predictor import Predictor
from ..surgery.side import Side


@dataclass(frozen=True, kw_only=True)
class Mma:
    """Multi-modal adapters, trained by the cross-entropy of class texts, with both towers frozen.

    Class texts are embedded anew in every step, since the adapters change them too; that costs one
    pass of the text tower over all classes, forward and back.

    Source: Yang et al., CVPR 2024, "MMA: Multi-Modal Adapter for Vision-Language Models", and its
    public code, from which the scaling of gradients comes.
    """

    name: ClassVar[str] = "mma"
    paper: ClassVar[str] = (
        "https://openaccess.thecvf.com/content/CVPR2024/html/"
        "Yang_MMA_Multi-Modal_Adapter_for_Vision-Language_Models_CVPR_2024_paper.html"
    )

    rank: Count = 32
    """Width of each adapter"""
    eta: Positive = 0.001
    """Fixed factor of what adapters add; keeps the start near the pre-trained model"""
    towers: tuple[Literal["image", "text"], ...] = ("image", "text")
    """Which towers get adapters; where it is one, no layers are shared"""
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Which blocks get adapters, from 0, counted in the tower that has fewer; the other tower's are
    those as far from its last. Null for the upper two thirds: 4 to 11 of 12"""
    scale_gradients: bool = True
    """Whether adapters get the gradients that they would have at eta = 1, as the authors' code
    does; without it they hardly move at published rates"""
    template: str | None = None
    """Prompt of the class names in training, with {} for the name; null for the first one of the
    data"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Attach adapters, or go on with those of the student, and let them alone train.

        Raises:
            SurgeryError: If a tower has no place for adapters.
            TaskError: If the task has no class names, or the student has other modules.
        """
        if not context.classes:
            raise TaskError(
                "mma scores images against class names, but the task has none; use a "
                "classification data set, or a contrastive method such as lora."
            )
        surgery = Side(
            rank=self.rank, eta=self.eta, towers=self.towers, blocks=self.blocks,
            scale_gradients=self.scale_gradients,
        )  # fmt: skip
        student = train_added(student, (surgery,), context.seed)
        template = context.templates[0] if self.template is None else self.template
        return MmaLearner(student, student.prompts(context.classes, (template,))[:, 0])


class MmaLearner(ClassifierLearner):
    """Cross-entropy of adapted image features against adapted class texts.

    Args:
        student: With adapters, which alone require gradients.
        tokens: (C, L), one prompt per class.
    """

    def __init__(self, student: Predictor, tokens: Tensor) -> None:
        super().__init__(student)
        self.register_buffer("tokens", student.trim(tokens), persistent=False)

    def rows(self) -> Tensor:
        """Return the raw rows of the training classes, (C, D), embedded now."""
        return towers.encode_text(self.student.clip, cast(Tensor, self.tokens))

    def train(self, mode: bool = True) -> MmaLearner:
        """Set the mode; the towers stay in evaluation mode, with their batch statistics."""
        super().train(mode)
        self.student.clip.eval()
        return self
