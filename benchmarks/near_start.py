"""L2-SP with the contrastive loss, so that it differs from FLYP in the penalty alone."""

from dataclasses import dataclass
from typing import ClassVar

from perdure.batch import Batch, Step
from perdure.learner import Learner, train_towers
from perdure.method import Context, NonNegative, register
from perdure.methods.flyp import Flyp, FlypLearner
from perdure.predictor import Predictor
from perdure.weights import Snapshot, distance, trainable


@dataclass(frozen=True, kw_only=True)
class NearStart(Flyp):
    """FLYP plus half the squared distance of all trained weights to their start."""

    name: ClassVar[str] = "near-start"

    strength: NonNegative = 0.3
    """Of the squared distance, halved; the value that recipe emojishift/l2sp chose on `val`"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Let the towers train and remember where they start."""
        student.drop_head()
        train_towers(student, self.towers)
        return NearStartLearner(student, self)


class NearStartLearner(FlypLearner):
    """The contrastive loss and the distance to a snapshot of the start."""

    def __init__(self, student: Predictor, method: NearStart) -> None:
        super().__init__(student, method)
        self.strength = method.strength
        self.start = Snapshot(trainable(student))

    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`."""
        terms, stats = super().forward(batch, step)
        gap = distance(trainable(self.student), self.start.values(), "sum")
        return Step({**terms, "distance": 0.5 * self.strength * gap}, stats)


register(NearStart.name, f"{__name__}:NearStart", "for benchmarks.theory_toy")
