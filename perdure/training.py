"""Carry out a recipe: build everything it names, train, save, validate, deliver."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from . import optim, towers, zoo
from .data.datasets import Dataset, is_of_sentences, open_dataset, templates_for
from .data.loading import Loader
from .errors import DataError, DivergedError
from .foreign import is_foreign, read_tuned
from .learner import Learner
from .loop import Tick as Tick
from .loop import steps as steps
from .method import Context
from .optim import Schedule
from .prediction import predict
from .predictor import Predictor
from .recipe import DataSpec, ModelSpec, Recipe
from .run import Run
from .rundir import is_run
from .runtime import Runtime
from .signals import Interrupted, StopRequest
from .states import Cursor
from .subjects import find, is_kept_apart

Progress = Callable[[Tick, int], None]
"""Called after every step with the number of all steps."""

Say = Callable[[str], None]
"""Called with the few sentences that a person should read."""


def train(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Run:
    """Carry out a recipe and return the finished run directory.

    Nothing is written before everything the recipe names has been found and built.

    Args:
        recipe: What to do.
        out: New directory, unless `resume`.
        resume: Continue from the newest whole state, or from the start if there is none; on a CPU
            bitwise equal to never having stopped. A finished run is returned as it is.
        progress: Called after every step.
        say: Called with remarks for people.

    Raises:
        RunError: If `out` exists and `resume` is false, or it holds another recipe.
        Interrupted: On SIGINT or SIGTERM, after the state was saved.
        DivergedError: If a loss is not finite; the last good state stays.
        DataError: If data are missing or damaged.
        WeightsError: If the model is unknown or its weights do not fit.
        TaskError: If method and task do not fit.
    """
    run = Run(out)
    say = say or _ignore
    if not resume:
        run.require_new()
    elif run.path.exists():
        run.require_same(recipe)
        if run.finished:
            run.tidy(keep_states=recipe.run.keep)
            say(f"{run.path} is finished already; nothing to do.")
            return run
    runtime = Runtime(recipe.run.device, recipe.run.precision, recipe.run.threads)
    if not runtime.is_main:
        say = _ignore
    try:
        work = Work.prepare(recipe, runtime)
        runtime.wait()  # nobody may find the directory that the main process makes now
        if runtime.is_main and not run.path.exists():
            Run.create(run.path, recipe, runtime)
        runtime.wait()
        say(f"Training on {runtime.describe()}; {work.total} steps.")
        _carry_out(work, run, progress, say)
        runtime.wait()
    except (DivergedError, DataError) as error:
        if runtime.is_main and run.path.exists():
            run.update_status(state="failed", error=str(error))
        raise
    finally:
        runtime.close()
    return run


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

    @classmethod
    def prepare(cls, recipe: Recipe, runtime: Runtime) -> Work:
        """Build everything, and write nothing; raises as `train` does."""
        data, spec = recipe.data, recipe.optim
        torch.manual_seed(recipe.seed)  # methods may draw first weights
        dataset = _open(data, data.split, recipe.seed)
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
        )
        total = spec.total_steps(loader.steps_per_epoch)
        context = Context(
            total,
            classes,
            templates,
            lambda: zoo.load(recipe.model.name, recipe.model.weights),
            recipe.seed,
            lambda: _all_classes(data, recipe.seed),
        )
        learner = recipe.method.build(student, context).to(runtime.device).train()
        if recipe.run.checkpointing:
            towers.checkpoint(learner.student.clip)
        optimizer, schedule = optim.make(learner, spec, total)
        validation = {name: _validation(data, name, recipe.seed) for name in recipe.validate.splits}
        return cls(
            recipe, runtime, learner, loader, optimizer, schedule, total, validation, templates
        )

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

    def reads(self, step: int) -> bool:
        """Return whether anybody needs the values of this step."""
        return self.logs(step) or self.saves(step) or self.validates(step)

    def validate(self) -> dict[str, float]:
        """Return the accuracy of what the learner would deliver now, per validation split."""
        predictor = self.learner.export().eval()
        accuracies = {}
        for name, dataset in self.validation.items():
            logits, labels = predict(predictor, dataset, self.templates, runtime=self.runtime)
            accuracies[name] = float(np.mean(logits.argmax(axis=1) == labels))
        return accuracies


def load_student(model: ModelSpec, seed: int, classes: Sequence[str] = ()) -> Predictor:
    """Return the predictor that training starts from, with the modules that were added to it.

    Methods that train a plain CLIP fold these; those that continue what was added do not.

    Args:
        model: What it is.
        seed: Takes the place of "{seed}".
        classes: Of the task, for checkpoints in which something belongs to each class.

    Raises:
        RunError: If `model.init` is neither a finished run nor anything else that can be read.
        WeightsError: If the model is unknown or its weights do not fit.
    """
    if model.init is None:
        return zoo.load(model.name, model.weights)
    path = Path(str(model.init.expanduser()).replace("{seed}", str(seed)))
    if is_kept_apart(path):
        return find(path).unfolded()
    if not is_run(path) and is_foreign(path):
        return read_tuned(path, zoo.load(model.name, model.weights), classes)
    return Run(path).predictor()


def find_templates(data: DataSpec) -> tuple[str, ...]:
    """Return the prompts of the classes: given, of a named set, or those of the data set.

    Raises:
        DataError: If there is no such set.
    """
    if isinstance(data.templates, tuple):
        return data.templates
    return templates_for(data.templates or data.name, data.root)


def _carry_out(work: Work, run: Run, progress: Progress | None, say: Say) -> None:
    """Train from the newest state to the end and write the result."""
    recipe, runtime, learner, total = work.recipe, work.runtime, work.learner, work.total
    cursor = run.load_state(learner, work.optimizer)
    runtime.load_scaler_state(cursor.scaler)
    runtime.wait()  # nobody may delete a state that another process still reads
    if runtime.is_main:
        run.cut_log(cursor.step)
        run.update_status(state="running", total_steps=total, **_sizes(learner))
    if cursor.step:
        say(f"Resumed after step {cursor.step} of {total}.")
    before = cursor.seconds
    batches = work.loader.batches(cursor.step, total)
    with StopRequest() as stop:
        for tick in steps(
            learner,
            batches,
            work.optimizer,
            work.schedule,
            runtime,
            seed=recipe.seed,
            start=cursor.step,
            clip_norm=recipe.optim.clip_norm,
            # Several processes must agree on the steps at which they look at the signal.
            read=lambda step: (
                work.reads(step) or (runtime.world_size == 1 and (stop.number is not None))
            ),
        ):
            step = tick.step
            if progress:
                progress(tick, total)
            if tick.loss is None:
                continue
            seconds = before + tick.seconds
            cursor = replace(cursor, step=step, seconds=seconds, scaler=runtime.scaler_state())
            if runtime.is_main and work.logs(step):
                run.log(_row(tick))
                run.update_status(step=step, seconds=seconds)
            best = cursor.best_step
            if work.validates(step):
                cursor = _judge(cursor, work.validate(), run if runtime.is_main else None)
            stopping = step < total and runtime.total(stop.number is not None) > 0
            improved = cursor.best_step != best and step < total
            if runtime.is_main and (work.saves(step) or improved or stopping):
                run.save_state(cursor, learner, work.optimizer)
            if stopping:
                if runtime.is_main:
                    run.update_status(state="stopped", step=step, seconds=seconds)
                raise Interrupted(stop.number or signal.SIGTERM, step, run.path)
    delivered = total
    if recipe.validate.select == "best" and cursor.best_step is not None:
        delivered = cursor.best_step
        if delivered != total:
            run.load_step(delivered, learner, work.optimizer)
    if runtime.is_main:
        run.finish(
            learner.export().cpu(),
            keep_states=recipe.run.keep,
            step=total,
            delivered_step=delivered,
            seconds=cursor.seconds,
            best_step=cursor.best_step,
            best_value=cursor.best_value,
        )


def _judge(cursor: Cursor, accuracies: dict[str, float], run: Run | None) -> Cursor:
    """Log a validation and remember it if it is the best; a draw goes to the earlier one."""
    if run is not None:
        run.log({"step": cursor.step, "validation": accuracies})
    value = float(np.mean(list(accuracies.values())))
    if cursor.best_value is not None and value <= cursor.best_value:
        return cursor
    return replace(cursor, best_step=cursor.step, best_value=value)


def _row(tick: Tick) -> dict[str, object]:
    """Return a tick as the log holds it; JSON has no number for what is not finite."""
    stats = {
        name: value if math.isfinite(value) else None for name, value in (tick.stats or {}).items()
    }
    return {**tick._asdict(), "stats": stats}


def _sizes(learner: nn.Module) -> dict[str, int]:
    """Return how many numbers are trained, and how many there are."""
    parameters = list(learner.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return {"trainable": trainable, "parameters": sum(each.numel() for each in parameters)}


def _open(data: DataSpec, split: str, seed: int) -> Dataset:
    return open_dataset(
        data.name,
        split,
        data.root,
        seed=seed,
        shots=data.shots,
        classes=data.classes,
        sampling=data.sampling,
        damaged=data.damaged,
        transform=data.transform,
    )


def _validation(data: DataSpec, split: str, seed: int) -> Dataset:
    """Open images to validate on: all of them, unless few-shot subsets are the published ones."""
    if data.sampling == "coop":
        return _open(data, split, seed)
    return _open(replace(data, shots=None), split, 0)


def _all_classes(data: DataSpec, seed: int) -> tuple[str, ...]:
    """Return the class names of the whole data set, of which a recipe may take a part."""
    whole = _open(replace(data, classes="all"), data.split, seed)
    return () if whole.captioned else whole.classes


def _ignore(message: str) -> None:
    """Say nothing."""
