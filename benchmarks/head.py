"""Compare the cost of a zero-shot head with that of the usual loop over classes.

    OMP_NUM_THREADS=1 python -m benchmarks.head [--rounds 7]

The loop tokenises and embeds the texts of one class at a time over the whole context. perdure sorts
all texts by length and cuts every batch to its longest; it tokenises names and templates once each
and joins them. Embeddings and ids are compared before anything is timed.
"""

import argparse
import statistics
import time

import open_clip
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from perdure.inputs import OpenClipTokenizer, tokenize_prompts
from perdure.predictor import Predictor

from .pattern import shape
from .steps import prepare

CLASSES = 4
"""Embedded per round; all 1,000 are tokenised"""

CHUNK = 125
"""Classes tokenised per round"""


def loop(predictor: Predictor, prompts: Tensor) -> Tensor:
    """Return class features (C, D) of prompts (C, T, L), class by class."""
    rows = []
    for texts in prompts:
        features = functional.normalize(predictor.clip.encode_text(texts), dim=-1)
        rows.append(functional.normalize(features.mean(dim=0), dim=0))
    return torch.stack(rows)


def spent(action: object) -> float:
    """Return the CPU seconds of one call."""
    began = time.process_time()
    action()  # type: ignore[operator]
    return time.process_time() - began


def quartiles(values: list[float]) -> str:
    """Return median and quartiles for people."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def exact(predictor: Predictor, prompts: Tensor) -> None:
    """Print how far the two heads are apart, and their FLOPs."""
    with FlopCounterMode(display=False) as slow:
        expected = loop(predictor, prompts)
    with FlopCounterMode(display=False) as fast:
        found = predictor.class_features(prompts)
    share = fast.get_total_flops() / slow.get_total_flops()
    gap = float((found - expected).abs().max())
    print(f"- zero-shot head: largest difference of class features {gap:.1e}; FLOPs {share:.3f}")


def embedding(predictor: Predictor, templates: list[str], rounds: int) -> None:
    """Print the largest difference and the ratio of embedding one head."""
    names = open_clip.IMAGENET_CLASSNAMES
    theirs, mine, ratios = [], [], []
    for round_ in range(rounds):
        prompts = predictor.prompts(names[round_ * CLASSES : (round_ + 1) * CLASSES], templates)
        if round_ == 0:
            exact(predictor, prompts)
        theirs.append(spent(lambda prompts=prompts: loop(predictor, prompts)))
        mine.append(spent(lambda prompts=prompts: predictor.class_features(prompts)))
        ratios.append(mine[-1] / theirs[-1])
    texts = CLASSES * len(templates) / 1000
    print(
        f"- zero-shot head, {CLASSES} classes x {len(templates)} templates, perdure / loop: "
        f"{quartiles(ratios)}; ms per text {statistics.median(mine) / texts:.2f} and "
        f"{statistics.median(theirs) / texts:.2f}",
        flush=True,
    )


def tokenising(tokenizer: OpenClipTokenizer, templates: list[str]) -> None:
    """Print how many ids differ over all of ImageNet, and the ratio of tokenising."""
    names = open_clip.IMAGENET_CLASSNAMES
    wrong = total = 0
    theirs, mine = [], []
    for start in range(0, len(names), CHUNK):
        part = names[start : start + CHUNK]
        texts = [template.replace("{}", name) for name in part for template in templates]
        found: list[Tensor] = []
        theirs.append(spent(lambda found=found, texts=texts: found.append(tokenizer(texts))))
        mine.append(
            spent(
                lambda found=found, part=part: found.append(
                    tokenize_prompts(tokenizer, part, templates)
                )
            )
        )
        wrong += int((found[0] != found[1].flatten(0, 1)).any(dim=1).sum())
        total += len(texts)
    print(f"- tokenising {total:,} prompts of ImageNet: {wrong} differ from whole texts")
    per_text = 1e6 / (CHUNK * len(templates))
    print(
        "- tokenising by parts / whole texts: "
        f"{quartiles([a / b for a, b in zip(mine, theirs, strict=True)])}; microseconds per text "
        f"{statistics.median(mine) * per_text:.1f} and {statistics.median(theirs) * per_text:.1f}"
    )


def main() -> None:
    """Print equality first and ratios second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    prepare()
    tokenizer = OpenClipTokenizer("clip", 77)
    predictor = shape(vocabulary=49408).eval()
    predictor.tokenizer = tokenizer
    templates = [make("{}") for make in open_clip.OPENAI_IMAGENET_TEMPLATES]
    with torch.no_grad():
        embedding(predictor, templates, rounds)
    tokenising(tokenizer, templates)


if __name__ == "__main__":
    main()
