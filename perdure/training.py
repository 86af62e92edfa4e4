"""Carry out a recipe: train, save, validate, deliver."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from torch import nn

from .cached_views import embed_views, reuse, tell
from .data.loading import alive_workers
from .errors import DataError, DivergedError
from .files import finite
from .kept_pictures import use_kept
from .loop import Tick, steps
from .recipe import Recipe
from .run import Run
from .runtime import Runtime
from .signals import Interrupted, StopRequest
from .work import Work

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
        use_kept(work.loader, recipe.run.cache, runtime, say)
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
                use_kept(work.loader, recipe.run.cache, runtime, say)
                reuse(cached, work.loader)
        runtime.wait()
    except (DivergedError, DataError) as error:
        if runtime.is_main and run.path.exists():
            run.update_status(state="failed", error=str(error))
        raise
    finally:
        runtime.close()
    return run


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
