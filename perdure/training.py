"""Carry out a recipe: build everything it names, train, save, validate, deliver."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from . import optim, towers, zoo
from .cached_views import embed_views, require_fixed, reuse, tell
from .data.datasets import Dataset, channels_of, is_of_sentences, with_masks
from .data.loading import Loader, alive_workers
from .diagnosis.watching import Watch, watch
from .errors import DataError, DivergedError
from .files import finite
from .guard import Guard
from .learner import Learner
from .loop import Tick as Tick
from .loop import steps as steps
from .method import Context
from .opening import all_classes, open_split, open_validated
from .opening import find_templates as find_templates
from .opening import load_student as load_student
from .optim import Schedule
from .prediction import predict
from .recipe import Recipe
from .run import Run
from .runtime import Runtime
from .signals import Interrupted, StopRequest

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
        DataError: If data are missing or damaged, or a process that loads them was killed.
        WeightsError: If the model is unknown or its weights do not fit.
        TaskError: If method and task do not fit, or the start is below the guard's floor.
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
        cached = embed_views(work.learner, work.loader, recipe.data.views, work.total, runtime, say)
        said = work.begin_guard(run)
        runtime.wait()  # nobody may find the directory that the main process makes now
        if runtime.is_main and not run.path.exists():
            Run.create(run.path, recipe, runtime)
        tell(cached, run, runtime)
        if said is not None and work.guard is not None:
            if runtime.is_main:
                run.update_status(guard=work.guard.record)
            say(said)
        runtime.wait()
        say(f"Training on {runtime.describe()}; {work.total} steps.")
        with alive_workers():
            while not _carry_out(work, run, progress, say):
                runtime.wait()
                del work  # its memory is needed
                work = Work.prepare(recipe, runtime)
                reuse(cached, work.loader)
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
    guard: Guard | None = None
    watch: Watch | None = None
    """What `diagnose` asks for, on the main process"""

    @classmethod
    def prepare(cls, recipe: Recipe, runtime: Runtime) -> Work:
        """Build everything, and write nothing; raises as `train` does."""
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


def _carry_out(work: Work, run: Run, progress: Progress | None, say: Say) -> bool:
    """Train from the newest state to the end and write the result.

    Return False where the guard acted: to be called again, with everything built anew.
    """
    recipe, runtime, learner, total = work.recipe, work.runtime, work.learner, work.total
    guard = work.guard
    if guard is not None:
        guard.read(run)
    ended = guard is not None and guard.stopped
    cursor = run.load_state(learner, work.optimizer)
    runtime.load_scaler_state(cursor.scaler)
    runtime.wait()  # nobody may delete a state that another process still reads
    if runtime.is_main:
        if not ended:
            run.cut_log(cursor.step)
        if guard is not None:
            guard.catch_up(run)
        run.update_status(state="running", total_steps=total, **_sizes(learner))
    if cursor.step:
        say(f"Resumed after step {cursor.step} of {total}.")
    before = cursor.seconds
    loaded = closing(work.loader.batches(total if ended else cursor.step, total))
    schedule = work.schedule if guard is None else guard.lowered(work.schedule)
    with loaded as batches, StopRequest() as stop:
        for tick in steps(
            learner,
            batches,
            work.optimizer,
            schedule,
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
                run.log(finite(tick._asdict()))
                run.update_status(step=step, seconds=seconds)
            if work.watch is not None and work.diagnoses(step):
                run.log({"step": step, "diagnosis": work.watch.look(learner)})
            if work.validates(step):
                accuracies = work.validate()
                cursor = cursor.judged(accuracies)
                if runtime.is_main:
                    run.log({"step": step, "validation": accuracies})
            asked = runtime.total(stop.number is not None) > 0
            if guard is not None and work.looks(step):
                look = guard.look(learner.export())
                if not guard.holds(look):
                    say(guard.act(run, cursor, look, write=runtime.is_main))
                    if asked and not guard.stopped:
                        _interrupt(run, stop, cursor.good_step, before, write=runtime.is_main)
                    return False
                cursor = replace(cursor, good_step=step)
                if runtime.is_main:
                    run.log({"step": step, "guard": look._asdict()})
            stopping = step < total and asked
            marked = step < total and step in (cursor.good_step, cursor.best_step)
            if runtime.is_main and (work.saves(step) or marked or stopping):
                run.save_state(cursor, learner, work.optimizer)
            if stopping:
                _interrupt(run, stop, step, seconds, write=runtime.is_main)
    reached = cursor.good_step if ended else total
    if ended and cursor.step != reached:
        run.load_step(reached, learner, work.optimizer)
    delivered = reached
    if recipe.validate.select == "best" and cursor.best_step is not None:
        delivered = cursor.best_step
        if delivered != reached:
            run.load_step(delivered, learner, work.optimizer)
    if runtime.is_main:
        run.finish(
            learner.export().cpu(),
            keep_states=recipe.run.keep,
            step=reached,
            delivered_step=delivered,
            seconds=cursor.seconds,
            best_step=cursor.best_step,
            best_value=cursor.best_value,
        )
    return True


def _interrupt(run: Run, stop: StopRequest, step: int, seconds: float, *, write: bool) -> NoReturn:
    """End training that was asked to stop, with everything up to `step` saved."""
    if write:
        run.update_status(state="stopped", step=step, seconds=seconds)
    raise Interrupted(stop.number or signal.SIGTERM, step, run.path)


def _sizes(learner: nn.Module) -> dict[str, int]:
    """Return how many numbers are trained, and how many there are."""
    parameters = list(learner.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return {"trainable": trainable, "parameters": sum(each.numel() for each in parameters)}


def _ignore(message: str) -> None:
    """Say nothing."""
