"""Draw what segmentation answers before and after a training: docs/segmentation.png.

    python -m benchmarks.segmentation_picture RUN --out docs/segmentation.png

RUN is a run of emojishift/radapter-regions. One scene per domain: the picture, its true masks, and
the labels that zero-shot perdure-tiny and the run give to the regions, wrong ones in red.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perdure.data.datasets import templates_for
from perdure.data.scene_regions import ScenesWithMasks, open_scenes_with_masks
from perdure.data.segmented import label_of
from perdure.figure_style import COLOURS
from perdure.files import whole_file
from perdure.predictor import Predictor
from perdure.regions import region_inputs
from perdure.subjects import find

CHOSEN = {"id": 9, "rendition": 11, "sketch": 8}
"""Scene that is shown of each domain: one on which the two models differ"""


def answers(predictor: Predictor, scenes: ScenesWithMasks, row: int) -> list[str]:
    """Return the class that a model gives to each mask of a scene."""
    masks = torch.from_numpy(scenes.proposals(row).masks)
    regions, _ = region_inputs(
        scenes.image(row), masks, predictor.preprocess, masked=predictor.takes_masks
    )
    score = predictor.logits_fn(scenes.classes, templates_for("emojishift"))
    return [scenes.classes[int(best)] for best in score(regions).argmax(dim=1)]


def tinted(image: Tensor, masks: np.ndarray) -> np.ndarray:
    """Return an image with every mask in a colour of its own, (H, W, 3), in [0, 1]."""
    pixels = image.permute(1, 2, 0).numpy() / 255
    shown = 0.75 + 0.25 * pixels
    for colour, mask in zip(COLOURS, masks, strict=False):
        tint = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
        shown[mask] = 0.55 * tint + 0.45 * pixels[mask]
    return shown


def draw(tuned: Predictor, zero_shot: Predictor, out: Path, name: str = "tuned") -> Path:
    """Draw one row per domain.

    Args:
        tuned: After training.
        zero_shot: Before it.
        out: PNG to write.
        name: What the last column is called.
    """
    import matplotlib.pyplot as plt

    columns = ("scene", "true masks", "zero-shot", name)
    figure, axes = plt.subplots(
        len(CHOSEN), len(columns), figsize=(8.4, 6.4), dpi=110, squeeze=False
    )
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column)
    for line, (domain, row) in zip(axes, CHOSEN.items(), strict=True):
        scenes = open_scenes_with_masks("emojishift", domain)
        image, masks = scenes.image(row), scenes.proposals(row).masks
        truth = [scenes.classes[label_of(mask, scenes.truth(row))] for mask in masks]
        said = [None, truth, answers(zero_shot, scenes, row), answers(tuned, scenes, row)]
        for place, (axis, words) in enumerate(zip(line, said, strict=True)):
            axis.set(xticks=[], yticks=[])
            axis.imshow(
                image.permute(1, 2, 0).numpy() if words is None else tinted(image, masks),
                interpolation="nearest",
            )
            if place == 0:
                axis.set_ylabel(domain)
            for mask, word, right in zip(masks, words or (), truth, strict=False):
                rows, across = np.nonzero(mask)
                axis.text(
                    across.mean(), rows.mean(), word, ha="center", va="center", fontsize=7,
                    color="black" if word == right else "#b00000",
                    bbox={"facecolor": "white", "alpha": 0.8, "pad": 1, "linewidth": 0},
                )  # fmt: skip
    figure.tight_layout(pad=0.6)
    with whole_file(out) as temporary:
        figure.savefig(temporary, format="png")
    plt.close(figure)
    return out


def main() -> None:
    """Draw the picture of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a finished run of emojishift/radapter-regions")
    parser.add_argument("--out", type=Path, default=Path("docs/segmentation.png"))
    given = parser.parse_args()
    tuned, zero_shot = find(given.run).predictor(), find("perdure-tiny").predictor()
    print(f"Wrote {draw(tuned, zero_shot, given.out, 'R-Adapter on regions')}")


if __name__ == "__main__":
    main()
