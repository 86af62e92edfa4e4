"""Rebuild TRACER's toy experiment on EmojiShift, beside what its linear theory says.

    OMP_NUM_THREADS=1 python -m benchmarks.theory_toy [--page-only]

Image tower only, text tower frozen: FT, L2-SP, and self-distillation of image features from a
static, an exponential (EMA) and a Beta-weighted (WMA) teacher, five seeds each. Writes
`docs/theory-toy.md`. Resumable: finished runs and figures are kept.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perdure import evaluate, train, zoo
from perdure.data.datasets import open_dataset
from perdure.data.loading import eval_batches
from perdure.distillation import Distillation
from perdure.files import read_json, write_json
from perdure.predictor import Predictor
from perdure.recipe import Recipe, parse_recipe
from perdure.records import summary
from perdure.run import Run

from . import near_start

ROOT = Path("runs/theory-toy")
FIGURES = Path("benchmarks/figures/theory_toy.json")
SEEDS = (0, 1, 2, 3, 4)
STEPS = 200
STRENGTH = 0.9
IMAGES = 600
"""Of a split, evenly spread, whose embeddings are compared"""
LIMIT = 800
"""Images per split that are scored, evenly spread"""

_DISTIL: dict[str, Any] = {
    "name": "tracer", "strength": STRENGTH, "feature_weight": 3.906, "relational_weight": 0,
    "interactive_weight": 0, "cross_weight": 0, "stats": True,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "ft": {"name": "flyp"},
    "l2sp": {"name": near_start.NearStart.name},
    "static": _DISTIL | {"teacher": "static"},
    "ema": _DISTIL | {"teacher": "ema"},
    "wma": _DISTIL | {"teacher": "wma"},
}
"""`method` of the recipe, to which `towers: [image]` is added; FT first: others are read by it"""

Rows = NDArray[np.float64]


def recipe_of(method: str, seed: int) -> Recipe:
    """Return one run; all of them differ in method and seed alone."""
    return parse_recipe(
        {
            "model": {"name": "perdure-tiny"},
            "data": {"name": "emojishift", "shots": 16, "augment": "flip-shift"},
            "method": METHODS[method] | {"towers": ["image"]},
            # No weight decay: it would pull to zero, which the theory's problem does not.
            "optim": {"lr": 1e-3, "batch_size": 64, "steps": STEPS, "warmup": 0.05},
            "run": {"device": "cpu", "threads": 1},
            "seed": seed,
        }
    )


def embed(predictor: Predictor, split: str) -> Rows:
    """Return unit image features of a split."""
    dataset = open_dataset("emojishift", split)
    kept = np.linspace(0, len(dataset) - 1, IMAGES).round().astype(int)
    with torch.no_grad():
        batches = list(eval_batches(dataset, predictor.preprocess, 256))
        rows = torch.cat([predictor.encode_image(images) for images in batches])[kept]
    return rows.double().numpy()


def accuracies(subject: Predictor | Run) -> dict[str, float]:
    """Return what was gained (the task) and what was kept (shifts of it, and other concepts)."""
    task = summary(evaluate(subject, "emojishift", limit=LIMIT).splits)
    other = evaluate(subject, "emojishift-val", limit=LIMIT)["val_shift"]["accuracy"]
    return {"id": task["id"], "ood": task["ood"], "other": float(other)}


def measure(method: str, seed: int) -> dict[str, float]:
    """Carry out one run, or read it where it is finished, and return its figures."""
    run = train(recipe_of(method, seed), ROOT / method / f"seed-{seed}", resume=True)
    predictor = run.predictor()
    goal = Run(ROOT / "ft" / f"seed-{seed}").predictor()
    start = zoo.load("perdure-tiny")
    found = accuracies(run)
    for split, name in (("id", "task"), ("val_shift", "other")):
        origin = embed(start, split)
        moved, whole = embed(predictor, split) - origin, embed(goal, split) - origin
        # How far along the way that FT goes, and how long the own way is.
        found[f"along_{name}"] = float((moved * whole).sum() / (whole * whole).sum())
        found[f"length_{name}"] = float(np.linalg.norm(moved) / np.linalg.norm(whole))
    last = run.log_rows()[-1]
    if "feature" in last["terms"]:  # strength x weight x squared distance to the teacher
        squared = last["terms"]["feature"] / (STRENGTH * _DISTIL["feature_weight"])
        found["gap"] = float(np.sqrt(squared))
    return found


def predicted(strength: float) -> dict[str, tuple[float, float]]:
    """Return per method the share of FT's way, and the gap to the teacher as a share of it.

    Every round is solved exactly, as in the paper's model: of the teacher's error a share
    omega / (1 + lambda) is lost per round, and the student keeps lambda / (1 + lambda) of it.
    """
    found = {"ft": (1.0, 0.0)}
    for method in ("static", "ema", "wma"):
        mix, _ = Distillation(teacher=method).average(STEPS)  # type: ignore[arg-type]
        error = before = 1.0
        for k in range(1, STEPS + 1):
            before = error
            error *= 1 - (mix(k) if mix else 0.0) / (1 + strength)
        last = mix(STEPS) if mix else 0.0
        kept = strength / (1 + strength) * before
        found[method] = (1 - kept, (1 - last) / (1 + strength) * before)
    return found


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page-only", action="store_true", help="write the page from what is done")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    done: dict[str, Any] = read_json(FIGURES) if FIGURES.is_file() else {}
    if "zero-shot" not in done:
        done["zero-shot"] = accuracies(zoo.load("perdure-tiny"))
    for seed in () if asked.page_only else SEEDS:
        for method in METHODS:
            figures = done.setdefault(method, {})
            if str(seed) not in figures:
                figures[str(seed)] = measure(method, seed)
                write_json(FIGURES, done)
                print(method, seed, figures[str(seed)], flush=True)
    from .theory_page import write_page

    write_page(done)


if __name__ == "__main__":
    main()
