"""Mask prompts: tokens for what lies outside a region, learned with everything else frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..batch import Batch, Step
from ..errors import TaskError
from ..learner import Learner, train_added
from ..method import Context, Count
from ..objective import Contrastive, objective
from ..predictor import Predictor
from ..surgery.mask_prompts import MaskPrompts


@dataclass(frozen=True, kw_only=True)
class MaskPromptTuning(Contrastive):
    """Regions meet their nouns; only the tokens that stand for blanked patches learn.

    A last stage: no weight of the model moves, and whole images are embedded as before. What was
    tuned already is folded at its strength.

    Source: Liang et al. 2023, arXiv 2210.04150, section 3.3, and the authors' code.
    """

    name: ClassVar[str] = "maskprompts"
    paper: ClassVar[str] = "https://arxiv.org/abs/2210.04150"

    depth: Count | None = None
    """Places that get tokens: the input, and what comes out of the first `depth` - 1 blocks; null
    for 3, as published, or as many as there are blocks"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Attach tokens, or go on with those of the student; they alone train.

        Raises:
            SurgeryError: If the image tower has no place for them.
            TaskError: If the data have no masks, the loss needs what the model lacks, or the
                student has other modules that stay.
        """
        if not context.masks:
            raise TaskError(
                "maskprompts learns from images with masks, but the data have none; use "
                "data.name: regions or emojishift-regions, undamaged."
            )
        self.check(student)
        student = train_added(student, (MaskPrompts(self.depth),), context.seed)
        return MaskPromptLearner(student, self)


class MaskPromptLearner(Learner):
    """The contrastive loss of regions and nouns.

    Args:
        student: With mask prompts, which alone require gradients.
        method: The hyper-parameters.
    """

    def __init__(self, student: Predictor, method: MaskPromptTuning) -> None:
        super().__init__(student)
        self.method = method

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`."""
        return objective(self.student, batch, step, self.method)

    def train(self, mode: bool = True) -> MaskPromptLearner:
        """Set the mode; the towers stay in evaluation mode, with their batch statistics."""
        super().train(mode)
        self.student.clip.eval()
        return self
