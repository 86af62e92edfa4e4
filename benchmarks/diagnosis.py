"""Measure what it costs to diagnose a run while it trains, on the bundled model.

    OMP_NUM_THREADS=1 python -m benchmarks.diagnosis [--every 20] [--rounds 7]

CPU time of one look (`diagnose:` in a recipe) against that of a training step of the same recipe,
in interleaved rounds, and the share of a step that it comes to where every k-th step has one.
"""

import argparse

import torch

from perdure.loop import steps
from perdure.recipe import Recipe, load_recipe
from perdure.runtime import Runtime
from perdure.work import Work

from .speed import ratio, timed
from .steps import prepare

RECIPES = ("emojishift/ft", "emojishift/tracer")


def compare(recipe: Recipe, rounds: int) -> list[str]:
    """Return the ratio of a look to a step, and the share of a step where every k-th has one."""
    assert recipe.diagnose is not None
    work = Work.prepare(recipe, Runtime("cpu", threads=1))
    assert work.watch is not None
    ticks = steps(
        work.learner,
        work.loader.batches(0, work.total),
        work.optimizer,
        work.schedule,
        work.runtime,
        read=lambda step: False,
    )
    watch, learner = work.watch, work.learner
    found = {"look": lambda: watch.look(learner), "step": lambda: next(ticks)}
    for action in found.values():
        action()
    next(ticks)  # the first step distils nothing
    seconds = timed(found, rounds)
    share = min(seconds["look"]) / recipe.diagnose.every / min(seconds["step"])
    name = f"{recipe.method.name}, {recipe.diagnose.images} images"
    return [
        f"- {name}: one look / one step (batch {recipe.optim.batch_size}): "
        f"{ratio(seconds, 'look', 'step')}",
        f"- {name}: every {recipe.diagnose.every} steps: {100 * share:.1f} % of a step",
    ]


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    prepare()
    torch.set_num_threads(1)
    for name in RECIPES:
        recipe = load_recipe(name, (f"diagnose.every={arguments.every}", "run.device=cpu"))
        print("\n".join(compare(recipe, arguments.rounds)))


if __name__ == "__main__":
    main()
