"""The two models that a method is continued between: its own start on CLIP, and a tuned model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .classifying import ClassifierLearner
from .errors import TaskError, WeightsError
from .heads import texts_apart
from .learner import Learner
from .method import Context
from .path_loss import statistics
from .predictor import Predictor
from .weights import Weights, lerp, trainable

_PREFIX = "student."


class Endpoints(NamedTuple):
    """Values of what a learner trains, by the names of its parameters; and of its statistics."""

    zeroshot: dict[str, Tensor]
    """As the method starts on the pre-trained model"""
    tuned: dict[str, Tensor]
    """Of the tuned model"""
    statistics: tuple[dict[str, Tensor], dict[str, Tensor]]
    """Running statistics of normalisation layers of both models, by names in the student"""


def endpoints(learner: Learner, tuned: Predictor, context: Context) -> Endpoints:
    """Return the weights that a learner trains, as they are and as a tuned model has them.

    A tuned model without a linear head, for a learner that has one, gets the zero-shot head of its
    own text tower; a student whose images are in its teacher's space gets the learner's.

    Args:
        learner: Of the method that made the tuned model, built on the pre-trained model.
        tuned: With the modules that the method adds; changed only by that head.
        context: The run.

    Raises:
        TaskError: If the tuned model's head is for other classes.
        WeightsError: If the tuned model has other weights than the learner, differs in some that
            the learner does not train, or in none that it does.
    """
    student = learner.student
    trained = trainable(learner)
    outside = [name for name in trained if not name.startswith(_PREFIX)]
    if outside:
        raise TaskError(
            f"the host trains {_some(outside)} outside its model, which no tuned model could hold; "
            "mergetune needs a host whose trained weights are all the model's own."
        )
    _fit_head(student, tuned, context)
    before, after = dict(student.named_parameters()), dict(tuned.named_parameters())
    _require_same_names(student, tuned, before, after)
    wrong = [
        f"{name} {tuple(after[name].shape)} instead of {tuple(one.shape)}"
        for name, one in before.items()
        if after[name].shape != one.shape
    ]
    if wrong:
        raise WeightsError(
            f"the tuned model (model.init) does not have the shapes of the host: {_some(wrong)}. "
            "Give the host the options that the tuned model was trained with."
        )
    moved = [name for name, one in before.items() if not torch.equal(one, after[name].to(one))]
    lost = [name for name in moved if _PREFIX + name not in trained]
    if lost:
        raise WeightsError(
            f"the tuned model (model.init) also differs from the pre-trained one in {_some(lost)}, "
            "which the host does not train and would lose. Name the host that trained them, or the "
            "pre-trained model that it started from under `model`."
        )
    if not moved:
        raise WeightsError(
            "the tuned model is the pre-trained model itself: there is nothing to repair. Set "
            "model.init to the run of the host, or to the weights that were tuned."
        )
    ends = ({name: params[name.removeprefix(_PREFIX)].detach().clone() for name in trained}
            for params in (before, after))  # fmt: skip
    zeroshot, end = ends
    first, second = (
        {name: one.clone() for name, one in statistics(each).items()} for each in (student, tuned)
    )
    return Endpoints(zeroshot, end, (first, second))


@torch.no_grad()
def zeroshot_rows(learner: ClassifierLearner, context: Context) -> Tensor:
    """Return the class rows of the pre-trained model, (C, D), that a host should stay near.

    Unit features of the task's own prompts, where the host's scores are cosines; the rows it starts
    with, a zero-shot head, where they are not. As in hosts that learn prompts, "_" is a space.
    """
    if not learner.cosine:
        return learner.rows().clone()
    names = [name.replace("_", " ") for name in context.classes]
    clip = context.zeroshot().eval()
    return clip.class_features(clip.prompts(names, context.templates))


@torch.no_grad()
def set_to(learner: Learner, ends: Endpoints, share: float) -> None:
    """Give a learner the weights and statistics between two ends: 0 the first, 1 the second."""
    for name, value in lerp(ends.zeroshot, ends.tuned, share).items():
        learner.get_parameter(name).copy_(value)
    buffers = statistics(learner.student)
    for name, value in lerp(*ends.statistics, share).items():
        buffers[name].copy_(value)


def _fit_head(student: Predictor, tuned: Predictor, context: Context) -> None:
    """Give the tuned model a head where the learner has one and it has none.

    Raises:
        TaskError: If the tuned model's head is for other classes.
        WeightsError: If it has one and the learner has none.
    """
    if student.head is not None and tuned.head is None and texts_apart(tuned.surgeries):
        # Of the same teacher, which a recipe names and another program's checkpoint does not hold.
        tuned.head = copy.deepcopy(student.head)
        tuned.classes, tuned.templates = student.classes, student.templates
    elif student.head is not None and tuned.head is None:
        tuned.set_head(context.classes, context.templates)
    elif student.head is None and tuned.head is not None:
        raise WeightsError(
            "the tuned model (model.init) has a linear head, which the host does not train and "
            "would lose. Name a host that trains one, such as ft."
        )
    elif student.classes != tuned.classes:
        raise TaskError(
            f"the tuned model's head (model.init) is for {len(tuned.classes)} classes "
            f"({_some(tuned.classes)}), the training data have {len(student.classes)} "
            f"({_some(student.classes)}). Train on the data that the model was tuned on."
        )


def _require_same_names(
    student: Predictor, tuned: Predictor, before: Weights, after: Weights
) -> None:
    missing = [name for name in before if name not in after]
    beyond = [name for name in after if name not in before]
    if not missing and not beyond:
        return
    have = ", ".join(one.name for one in tuned.surgeries) or "nothing"
    want = ", ".join(one.name for one in student.surgeries) or "nothing"
    parts = [f"it lacks {_some(missing)}"] * bool(missing)
    parts += [f"it has {_some(beyond)}, which the host has not"] * bool(beyond)
    raise WeightsError(
        f"the tuned model (model.init) is not one of the host: {'; '.join(parts)} (added modules: "
        f"{have}; the host adds {want}). Set model.init to a run of the host, with its options; a "
        "folded model no longer shows what was tuned."
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
