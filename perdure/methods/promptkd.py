"""PromptKD: a student learns visual prompts and a projector from a stronger teacher, unlabelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from .. import towers, zoo
from ..batch import Batch
from ..classifying import ClassifierLearner
from ..collective import gather
from ..errors import RunError, TaskError, WeightsError, typed
from ..inputs import Preprocess
from ..learner import Learner, train_added
from ..losses import softened_kl
from ..method import Context, Count, Positive
from ..predictor import Predictor
from ..rundir import is_run, require_readable
from ..surgery.projector import Projector, layers_of, without_projector
from ..surgery.visual_prompts import VisualPrompts


@dataclass(frozen=True, kw_only=True)
class PromptKd:
    """The student's images meet the teacher's class rows, and its scores those of the teacher.

    Labels are not used: any images of the domain will do, also of classes that have no labels. The
    class rows are the teacher's, computed once for all classes of the data set and kept with the
    student as its head; so a saved student scores any of them and needs no teacher, and other
    names it cannot score.

    Source: Li et al., CVPR 2024, arXiv 2403.02781, and its public code.
    """

    name: ClassVar[str] = "promptkd"
    paper: ClassVar[str] = "https://arxiv.org/abs/2403.02781"

    teacher: str | None = None
    """Run directory ("{seed}" in it becomes the seed), "perdure-tiny", ARCH/TAG, "local-dir:PATH";
    null for the pre-trained model itself, which teaches nothing new and is for comparison"""
    prompts: Annotated[int, Field(ge=0)] = 4
    """Visual prompts per block; 0 trains the projector alone, as for a ResNet"""
    depth: Count | None = None
    """Blocks that get prompts of their own, the first included; null for three quarters: 9 of 12"""
    kd_weight: Positive = 1000.0
    """Of the divergence, which is a mean over images and classes: 1/C of the usual one"""
    temperature: Positive = 1.0
    """Divides the scores of both; the divergence is multiplied by its square"""

    def build(self, student: Predictor, context: Context) -> Learner:
        """Attach prompts and projector, or go on with those of the student; they alone train.

        The teacher's rows become the student's head.

        Raises:
            SurgeryError: If the image tower has no place for prompts.
            TaskError: If the task has no class names, the teacher has a head without some, or the
                student has other modules.
            RunError: If the teacher is an unfinished run.
            WeightsError: If the teacher is unknown.
        """
        if not context.classes:
            raise TaskError(
                "promptkd scores images against class names, but the task has none; use a "
                "classification data set, or a contrastive method such as tracer."
            )
        teacher = open_teacher(self.teacher, context).requires_grad_(False).eval()
        names, templates = context.all_classes(), context.templates
        if teacher.head is not None and not set(names) <= set(teacher.classes):
            missing = next(name for name in names if name not in teacher.classes)
            raise TaskError(
                f"the teacher {self.teacher} has a head of {len(teacher.classes)} classes, without "
                f"{missing!r}; name one that was trained on all {len(names)} classes of the data "
                "set, or one that scores with its text tower (flyp, tracer, radapter)."
            )
        rows = towers.unit(teacher.classifier(names, templates))
        width = int(student.source.config["model_cfg"]["embed_dim"])
        prompts = (VisualPrompts(self.prompts, self.depth),) if self.prompts else ()
        wanted = (*prompts, Projector(width, rows.shape[1]))
        student = train_added(student, wanted, context.seed)
        student.keep_rows(names, templates, rows)
        assert student.head is not None
        student.head.requires_grad_(False)
        return PromptKdLearner(student, self, teacher)


class PromptKdLearner(ClassifierLearner):
    """Divergence of the student's scores from the teacher's.

    Args:
        student: With projector and head; what trains is already chosen.
        method: The hyper-parameters.
        teacher: Frozen; not part of the learner's state, since the recipe names it.
    """

    def __init__(self, student: Predictor, method: PromptKd, teacher: Predictor) -> None:
        super().__init__(student)
        self.method = method
        self._teacher = (teacher,)  # a tuple: a module as attribute would be saved with the run
        self._score: Callable[[Tensor], Tensor] | None = None

    @property
    def fixed_features(self) -> bool:
        """No: the teacher looks at pixels, and what the projector reads is no unit row."""
        return False

    def embed(self, batch: Batch) -> Tensor:
        """Return unit features, in the teacher's space, of the batch of all processes, (B, D')."""
        # All rows together pass the batch normalisation, whose statistics then are the same, and
        # those of one process, on every process.
        with without_projector(self.student.clip) as project:
            raw = gather(towers.encode_image(self.student.clip, batch.images))
        return towers.unit(project(raw))

    def rows(self) -> Tensor:
        """Return the teacher's rows of all classes of the data set, (C, D'), without gradient."""
        assert self.student.head is not None
        return self.student.head.weight

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Return the teacher's scores of the batch of all processes, (B, C)."""
        (teacher,) = self._teacher
        if self._score is None or teacher.device != batch.images.device:
            teacher.to(batch.images.device)
            self._score = teacher.logits_fn(self.student.classes, self.student.templates)
        images = converted(batch.images, self.student.preprocess, teacher.preprocess)
        return gather(self._score(images).float())

    def task_loss(self, features: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted divergence of every set of rows, (...,) for rows (..., C, D')."""
        scores = self.logits(features, rows)
        return self.method.kd_weight * softened_kl(scores, targets, self.method.temperature)

    def train(self, mode: bool = True) -> PromptKdLearner:
        """Set the mode; only the projector's batch normalisation looks at batches."""
        super().train(mode)
        self.student.clip.eval()
        layers_of(self.student.clip).train(mode)
        return self


def open_teacher(name: str | None, context: Context) -> Predictor:
    """Return a teacher by name; None for the pre-trained model of the run.

    Raises:
        RunError: If it is a run that is not finished, or of a newer version.
        WeightsError: If there is none.
    """
    if name is None:
        return context.zeroshot()
    found = name.replace("{seed}", str(context.seed))
    path = Path(found).expanduser()
    if not is_run(path):
        try:
            return zoo.load(found)
        except WeightsError as error:
            raise WeightsError(
                f"method.teacher: {found} is no finished run, and {error} A teacher is trained "
                "first, in a run of its own."
            ) from None
    require_readable(path)
    if not (path / "predictor" / "predictor.json").is_file():
        raise RunError(
            f"method.teacher: {path} holds no finished run; finish it with perdure train "
            f"{typed(path / 'recipe.yaml')} --out {typed(path)} --resume, or name another teacher."
        )
    return Predictor.load(path / "predictor")


def converted(images: Tensor, mine: Preprocess, other: Preprocess) -> Tensor:
    """Return images (B, 3, H, W), prepared for one model, as another one wants them.

    Another size is reached by bicubic interpolation of the same views.
    """
    if (mine.mean, mine.std) != (other.mean, other.std):
        factor = [a / b for a, b in zip(mine.std, other.std, strict=True)]
        shift = [(a - b) / c for a, b, c in zip(mine.mean, other.mean, other.std, strict=True)]
        images = images * images.new_tensor(factor).view(3, 1, 1)
        images = images + images.new_tensor(shift).view(3, 1, 1)
    if mine.size == other.size:
        return images
    if not len(images):  # which interpolation refuses
        return images.new_zeros(*images.shape[:2], other.size, other.size)
    return functional.interpolate(
        images, (other.size, other.size), mode="bicubic", antialias=True, align_corners=False
    )
