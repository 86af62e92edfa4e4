"""MERGETUNE: continued fine-tuning of a tuned model, of any method, back towards zero-shot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ..classifying import ClassifierLearner
from ..endpoints import endpoints, set_to, zeroshot_rows
from ..errors import TaskError
from ..learner import Learner
from ..method import Context, Count, Inner, NonNegative, Share
from ..path_loss import Grid
from ..predictor import Predictor
from ..repairing import Preset, Reduction, Space, filled_in
from .mergetune_learners import FeatureLearner, MergeTuneLearner, RowLearner


@dataclass(frozen=True, kw_only=True)
class MergeTune:
    """The loss of a host method at w, on the way from the tuned model to w, and a pull to CLIP.

    L(w) = L2(w) + `anchor_weight` D(w, w1) + `path_weight` mean over a of L2(w2 + a (w - w2)), for
    the host's loss L2, the zero-shot model w1 and the tuned model w2, which the recipe names under
    `model: init`. Only what the host trains moves, and the result is a model of the host's kind.

    w is what the host trains (space `parameters`), or the class rows that come of it (`classifier`;
    then L2 on the path is the host's loss without its own anchors, and image features are those of
    the model as it trains). What is left null is taken from the preset, or by space: in
    `classifier`, where scores are cosines, the values of the paper's ablations (8, 0.5, 0.3, 5) and
    a cosine; for full weights and linear heads, for which it has none, an anchor that is relative.

    Source: MERGETUNE, arXiv 2601.10497; the presets are what its public code (commit 6e211bc)
    optimises, which differs by host and from the paper.
    """

    name: ClassVar[str] = "mergetune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2601.10497"

    host: Inner
    """The method that made the tuned model: a table of its name and options"""
    preset: Preset | None = None
    """`released-prompt`: all on class rows, start 1, cosine anchor of 8, path 1 at 0.1, 0.3, ...;
    `released-mma`: no anchor, and a path of 10 to the zero-shot rows; `released-promptkd`: path in
    mixed image features, anchor of 100 at the tuned model. Keys beside it still count"""
    space: Space | None = None
    """What the path and the anchor are made of: class rows or trained weights; null for the rows
    where the host has some that train"""
    anchor_weight: NonNegative | None = None
    """Of the distance to the zero-shot model, the paper's lambda; null for 8, and for 1 where that
    is relative. With a cosine it is the code's W"""
    path_weight: NonNegative | None = None
    """Of the mean loss between the tuned model and this one, the paper's beta; null for 0.5"""
    start: Share | None = None
    """Share of the tuned model in the first weights, the rest zero-shot; the paper's tau; null for
    0.3"""
    points: Count | None = None
    """Number of places on the path at each step; null for 5"""
    grid: Grid | None = None
    """Where they are: the middles of equal parts, a random place in each of them, or 0.1 and on in
    steps of 1 / points as in the authors' code; null for the middles"""
    anchor: Literal["l2", "cosine", "fisher"] | None = None
    """The distance: squared; of rows also 1 - cosine, which is half the squared distance of unit
    rows; of weights also squared and weighted with the zero-shot model's diagonal Fisher
    information on the training data. Null for the cosine where scores are cosines, else squared"""
    reduction: Reduction | None = None
    """Of the distance: summed, the mean over scalars or rows, or relative to that of the tuned
    model, head and towers apart, half each; null for the mean over rows that make cosines, else
    relative, by which one weight means the same for models of all sizes"""
    fisher_steps: Count = 10
    """First steps on whose batches the Fisher information is estimated, the square of the gradient
    of the host's loss at the zero-shot weights; until then the estimate so far is used"""
    decay_towards: Literal["anchor", "zero"] | None = None
    """Where the optimiser's weight decay pulls; null for the anchor, the zero-shot model"""
    log_points: bool = False
    """Whether the loss of every place on the path is logged"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Build the host on the zero-shot model and start it between that and the tuned `student`.

        Raises:
            TaskError: If the task, the tuned model's head, or an option does not fit the host.
            WeightsError: If the tuned model is not one that the host could have made, or is the
                zero-shot model itself.
        """
        if isinstance(self.host, MergeTune):
            raise TaskError("method.host is mergetune itself; name the method that it repairs.")
        host = self.host.build(context.zeroshot(), context)
        ends = endpoints(host, student, context)
        settings = filled_in(self, host)
        parts = (self, settings, ends, context.seed)
        learner: MergeTuneLearner
        if settings.space == "parameters":
            learner = MergeTuneLearner(host, *parts)
        elif settings.space == "features":
            learner = FeatureLearner(host, *parts)
        else:
            assert isinstance(host, ClassifierLearner)
            zero = zeroshot_rows(host, context)
            set_to(host, ends, 1.0)
            with torch.no_grad():
                tuned = host.rows().clone()
            learner = RowLearner(host, *parts, zero, tuned)
        set_to(host, ends, settings.start)
        host.restart()
        return learner
