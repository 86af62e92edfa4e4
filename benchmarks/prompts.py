"""Compare a step of MERGETUNE on learned contexts with the public code's way to compute it.

    OMP_NUM_THREADS=1 python -m benchmarks.prompts [--rounds 7]

The pattern, written from a description of what is computed, embeds the same images once more for
every place on the path, the class prompts of the tuned contexts in every step though they never
change, those of the learned ones twice, and texts over the whole context. It must first have the
FLOPs of the public code, within two per cent, and perdure's step its loss and gradient, also from
features of declared views (`data.views`). Then exact counters, CPU time, what embedding the views
costs beside that, and how often an evaluation embeds the class prompts.
"""

import argparse
import sys
from typing import Any, NamedTuple

import open_clip
import torch
from torch import Tensor
from torch.nn import functional

from perdure import towers
from perdure.batch import Batch
from perdure.inputs import OpenClipTokenizer
from perdure.method import Context, parse_method
from perdure.methods.mergetune_learners import RowLearner
from perdure.predictor import Predictor
from perdure.surgery.slots import contexts

from .pattern import Action, counted, shape
from .speed import ratio, timed
from .steps import prepare

OFFICIAL = {(32, 50): 264.1, (64, 16): 356.5}
"""GFLOP of a step of the public code (commit 6e211bc) by images and classes, same counter"""

TEMPLATE = "a photo of a {}."
HOST = {"name": "coop", "words": "a photo of a"}
TOLERANCE = 1e-5
"""Of the loss, relative, and of the gradient, relative to its largest entry"""


class Case(NamedTuple):
    """One shape of the comparison."""

    learner: RowLearner
    batch: Batch
    tokens: Tensor
    """Class prompts over the whole context, (C, L)"""
    tuned: Tensor
    """Context vectors of the tuned model"""


def model() -> Predictor:
    """Return the CLIP of all benchmarks with CLIP's own vocabulary."""
    predictor = shape(vocabulary=49408)
    predictor.tokenizer = OpenClipTokenizer("clip", 77)
    return predictor


def case(images: int, classes: int, make: Any = model) -> Case:
    """Return a learner between a tuned model and zero-shot, and a batch for it.

    Args:
        images: Rows of the batch.
        classes: The first of ImageNet's.
        make: Builds the pre-trained model.
    """
    names = tuple(open_clip.IMAGENET_CLASSNAMES[:classes])
    context = Context(10, names, (TEMPLATE,), make)
    start = parse_method(HOST).build(make(), context).export()
    generator = torch.Generator().manual_seed(1)
    table = contexts(start.clip).contexts
    with torch.no_grad():
        table += 0.3 * table.std() * torch.randn(table.shape, generator=generator)
    tuned = table.detach().clone()
    table = {"name": "mergetune", "host": HOST, "preset": "released-prompt", "start": 0.5}
    learner = parse_method(table).build(start, context).train()
    assert isinstance(learner, RowLearner)
    size = learner.student.preprocess.size
    labels = torch.randint(classes, (images,), generator=generator)
    pixels = torch.randn(images, 3, size, size, generator=generator)
    tokens = learner.student.prompts(names, ("{}",))[:, 0]
    return Case(learner, Batch(pixels, labels[:, None], labels), tokens, tuned)


def pattern(found: Case) -> Action:
    """Return a step, its loss and gradient, in the public code's manner."""
    learner, batch, tokens, tuned = found
    clip, table = learner.student.clip, contexts(learner.student.clip).contexts
    settings, zero = learner.settings, learner.zeroshot_rows

    def texts(values: Tensor | None = None) -> Tensor:
        if values is None:
            return towers.encode_text(clip, tokens)
        own = table.detach().clone()
        with torch.no_grad():
            table.copy_(values)
            rows = towers.encode_text(clip, tokens)
            table.copy_(own)
        return rows

    def loss(rows: Tensor) -> Tensor:
        features = functional.normalize(towers.encode_image(clip, batch.images), dim=-1)
        scores = learner.student.scale * features @ functional.normalize(rows, dim=-1).T
        return functional.cross_entropy(scores, batch.labels)

    def step() -> Tensor:
        learner.zero_grad()
        rows = texts()
        near = functional.cosine_similarity(rows, zero).mean()
        total = loss(rows) + settings.anchor_weight * (1 - near)
        first, last = texts(tuned), texts()
        places = learner.places(1)
        along = [loss(first + place * (last - first)) for place in places]
        total = total + settings.path_weight * sum(along) / len(places)
        total.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    return step


def ours(found: Case, half: bool = False) -> Action:
    """Return perdure's step, its loss and gradient."""

    def step() -> Tensor:
        found.learner.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            terms = found.learner(found.batch, 1).terms
        total = torch.stack(list(terms.values())).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    return step


def cached(found: Case) -> Case:
    """Return the same with features in the place of images, as with `data.views`."""
    batch = found.batch
    with torch.no_grad():
        features = found.learner.student.encode_image(batch.images)
    return found._replace(
        batch=batch._replace(images=batch.images[:, :, :0, :0], features=features)
    )


def views(found: Case) -> Action:
    """Return what embeds one view of every image of the batch."""

    @torch.no_grad()
    def embed() -> Tensor:
        return found.learner.student.encode_image(found.batch.images)

    return embed


def apart(found: Case, step: Action) -> tuple[float, float]:
    """Return how far loss and gradient of a step are from the pattern's, relative."""
    table = contexts(found.learner.student.clip).contexts
    results = []
    for action in (pattern(found), step):
        loss = action()
        assert isinstance(loss, Tensor)
        assert table.grad is not None
        results.append((float(loss), table.grad.clone()))
    (loss, slope), (other, another) = results
    gap = float((slope - another).abs().max() / slope.abs().max())
    return abs(loss - other) / abs(loss), gap


def texts_embedded(predictor: Predictor, names: tuple[str, ...], images: Tensor) -> int:
    """Return how often the text tower runs while four batches of images are scored."""
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    handle = predictor.clip.transformer.register_forward_hook(count)
    score = predictor.logits_fn(names, (TEMPLATE,))
    for part in images.chunk(4):
        score(part)
    handle.remove()
    return passes


def evaluation(found: Case, rounds: int) -> None:
    """Print what scoring a batch costs beside embedding its images."""
    predictor = found.learner.export()
    names = tuple(open_clip.IMAGENET_CLASSNAMES[: len(found.tokens)])
    images = found.batch.images
    passes = texts_embedded(predictor, names, images)
    score = predictor.logits_fn(names, (TEMPLATE,))

    @torch.no_grad()
    def embed() -> Tensor:
        return predictor.encode_image(images)

    actions: dict[str, Action] = {"scores": lambda: score(images), "images": embed}
    seconds = timed(actions, rounds)
    print(
        f"- evaluation, {len(images)} images, {len(names)} classes: text tower run {passes} x "
        f"for 4 batches; a batch / its images alone: {ratio(seconds, 'scores', 'images')}"
    )


def main() -> None:
    """Print counters and equality first, ratios second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    prepare()
    for (images, classes), gflop in OFFICIAL.items():
        found = case(images, classes)
        title = f"{images} images, {classes} classes"
        steps = {
            "pattern": pattern(found), "perdure": ours(found), "perdure, bf16": ours(found, True),
            "perdure, cached views": ours(cached(found)), "one view embedded": views(found),
        }  # fmt: skip
        flops = {name: counted(step)[0] for name, step in steps.items()}
        share = flops["pattern"] / gflop
        print(f"- {title}: pattern {share:.3f} of the public code's {gflop} GFLOP", flush=True)
        if abs(share - 1) > 0.02:
            sys.exit("the pattern is not the public code's, so ratios to it mean nothing")
        for name in ("perdure", "perdure, cached views"):
            loss, slope = apart(found, steps[name])
            print(f"- {title}: {name}: loss {loss:.1e} and gradient {slope:.1e} apart, relative")
            if max(loss, slope) > TOLERANCE:
                sys.exit("the two steps compute different things, so their ratio means nothing")
        seconds = timed(steps, rounds)
        for name in list(steps)[1:]:
            exact = flops[name] / flops["pattern"]
            print(f"- {title}: {name} / pattern {ratio(seconds, name, 'pattern')}; "
                  f"FLOPs {exact:.4f}, {1 / exact:.1f} x fewer", flush=True)  # fmt: skip
        evaluation(found, rounds)


if __name__ == "__main__":
    main()
