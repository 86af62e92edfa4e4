"""Measure the untouched checkpoints on every split, seen and unseen drawings apart.

    python -m benchmarks.zero_shot

Writes `benchmarks/figures/zero_shot.json`, which `docs/benchmark.md` shows.
"""

from pathlib import Path

import numpy as np
import torch

from perdure.data.captions import TEMPLATES
from perdure.data.emoji_domains import SPLITS
from perdure.data.emojishift import open_emojishift
from perdure.files import write_json
from perdure.prediction import predict
from perdure.zoo import load

from .pages import CHECKPOINTS, FIGURES


def measure(folder: Path) -> dict[str, dict[str, float | int | None]]:
    """Return accuracy per split, over all, seen and unseen drawings."""
    predictor = load(f"local-dir:{folder}")
    found: dict[str, dict[str, float | int | None]] = {}
    for split in SPLITS:
        if split == "train":
            continue
        data = open_emojishift(split)
        logits, labels = predict(predictor, data, TEMPLATES)
        right = logits.argmax(1) == labels
        parts = {"seen": right[data.seen], "unseen": right[~data.seen]}
        found[split] = {
            "n": len(labels),
            "accuracy": float(right.mean()),
            **{name: float(part.mean()) if part.size else None for name, part in parts.items()},
        }
    shifts = [found[name]["accuracy"] for name in ("v2", "rendition", "sketch", "hard", "corrupt")]
    print(folder, {name: entry["accuracy"] for name, entry in found.items()})
    print("ood", float(np.mean([value for value in shifts if value is not None])))
    return found


def main() -> None:
    """Measure every checkpoint that the benchmark publishes."""
    torch.set_num_threads(1)
    measured = {name: measure(folder) for name, folder in CHECKPOINTS.items()}
    write_json(FIGURES / "zero_shot.json", measured)


if __name__ == "__main__":
    main()
