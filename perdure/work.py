"""Everything that a recipe names, built, and which steps of the training ask for what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.optim import Optimizer

from . import optim, towers, zoo
from .cached_views import require_fixed
from .data.datasets import Dataset, channels_of, is_of_sentences, with_masks
from .data.loading import Loader
from .diagnosis.watching import Watch, watch
from .guard import Guard
from .learner import Learner
from .method import Context
from .opening import all_classes, find_templates, load_student, open_split, open_validated
from .optim import Schedule
from .prediction import predict
from .recipe import Recipe
from .run import Run
from .runtime import Runtime


@dataclass
class Work:
    """A recipe with everything built that it names."""

    recipe: Recipe
    runtime: Runtime
    learner: Learner
    loader: Loader
    optimizer: Optimizer
    schedule: Schedule
    total: int
    validation: dict[str, Dataset]
    templates: tuple[str, ...]
    guard: Guard | None = None
    watch: Watch | None = None
    """What `diagnose` asks for, on the main process"""

    @classmethod
    def prepare(cls, recipe: Recipe, runtime: Runtime) -> Work:
        """Build everything, and write nothing.

        Raises:
            DataError: If data are missing or damaged.
            WeightsError: If the model is unknown or its weights do not fit.
            TaskError: If method and task do not fit.
        """
        data, spec = recipe.data, recipe.optim
        torch.manual_seed(recipe.seed)  # methods may draw first weights
        dataset = open_split(data, data.split, recipe.seed)
        templates = find_templates(data)
        classes = () if dataset.captioned else dataset.classes
        student = load_student(recipe.model, recipe.seed, classes)
        sentences = dataset.captioned and is_of_sentences(data.name)
        loader = Loader(
            dataset,
            student.preprocess,
            student.tokenizer,
            ("{}",) if sentences else templates,
            batch_size=spec.batch_size,
            seed=recipe.seed,
            augment=data.augment,
            workers=recipe.run.workers,
            trim=student.trim,
            device=runtime.device,
            rank=runtime.rank,
            world_size=runtime.world_size,
            cut=sentences,
            views=data.views,
        )
        total = spec.total_steps(loader.steps_per_epoch)
        context = Context(
            total,
            classes,
            templates,
            lambda: zoo.load(recipe.model.name, recipe.model.weights),
            recipe.seed,
            lambda: all_classes(data, recipe.seed),
            masks=channels_of(with_masks(dataset)) > 3,
        )
        learner = recipe.method.build(student, context).to(runtime.device).train()
        if learner.student.takes_masks:
            loader.add_masks()
        require_fixed(learner, data.views)
        if recipe.run.checkpointing:
            towers.checkpoint(learner.student.clip)
        optimizer, schedule = optim.make(learner, spec, total)
        validation = {n: open_validated(data, n, recipe.seed) for n in recipe.validate.splits}
        guard = Guard.of(recipe, runtime)
        watching = None
        if recipe.diagnose is not None and runtime.is_main:
            prompts = ("{}",) if sentences else templates
            watching = watch(recipe, learner, context.zeroshot(), dataset, prompts, validation)
        return cls(
            recipe, runtime, learner, loader, optimizer, schedule, total, validation, templates,
            guard, watching,
        )  # fmt: skip

    def logs(self, step: int) -> bool:
        """Return whether the log gets a line after this step."""
        return step % self.recipe.run.log_every == 0 or step in (1, self.total)

    def saves(self, step: int) -> bool:
        """Return whether a resumable state is written after this step."""
        run = self.recipe.run
        return run.keep if step == self.total else step % run.save_every == 0

    def validates(self, step: int) -> bool:
        """Return whether validation follows this step."""
        every = self.recipe.validate.every or self.loader.steps_per_epoch
        return bool(self.validation) and (step % every == 0 or step == self.total)

    def looks(self, step: int) -> bool:
        """Return whether the guard looks after this step."""
        if self.guard is None or self.validation:
            return self.guard is not None and self.validates(step)
        every = self.guard.spec.every or self.loader.steps_per_epoch
        return step % every == 0 or step == self.total

    def diagnoses(self, step: int) -> bool:
        """Return whether what has changed since the start is looked at after this step."""
        spec = self.recipe.diagnose
        return spec is not None and (step % spec.every == 0 or step == self.total)

    def reads(self, step: int) -> bool:
        """Return whether anybody needs the values of this step."""
        asks = (self.logs, self.saves, self.validates, self.looks, self.diagnoses)
        return any(wants(step) for wants in asks)

    def begin_guard(self, run: Run) -> str | None:
        """Let the guard of a new run measure before training; None where there is none."""
        if self.guard is None or (run.path.exists() and "guard" in run.status()):
            return None
        model = self.recipe.model
        return self.guard.begin(self.learner, lambda: zoo.load(model.name, model.weights))

    def validate(self) -> dict[str, float]:
        """Return the accuracy of what the learner would deliver now, per validation split."""
        predictor = self.learner.export().eval()
        accuracies = {}
        for name, dataset in self.validation.items():
            logits, labels = predict(predictor, dataset, self.templates, runtime=self.runtime)
            accuracies[name] = float(np.mean(logits.argmax(axis=1) == labels))
        return accuracies
