"""Compare reading pictures for training and evaluation with the usual way through pillow.

    OMP_NUM_THREADS=1 python -m benchmarks.reading [--rounds 7]

The usual way is torchvision's transforms on pillow pictures, picture by picture: a random box
resized by bicubic interpolation, mirroring, a float tensor, normalisation. Pixels of evaluation are
compared first, and who decoded them is counted; then CPU time per picture on one core.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock, patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from perdure.batch import Batch
from perdure.data import decoding
from perdure.data.datasets import Dataset, open_dataset
from perdure.data.loading import Loader, eval_batches
from perdure.inputs import Preprocess
from perdure.zoo import random_clip

from .pattern import Action
from .speed import ratio, timed
from .steps import prepare

PICTURES, HIGH, WIDE = 32, 375, 500
CLIP = Preprocess(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Readers(NamedTuple):
    """The same pictures, decoded in both ways."""

    files: list[Path]
    exact: Dataset
    fast: Dataset


def write(folder: Path, count: int = PICTURES, high: int = HIGH, wide: int = WIDE) -> Readers:
    """Write smooth pictures with some noise, as cameras make them, and open them."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        coarse = rng.integers(0, 256, (high // 25 + 2, wide // 25 + 2, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC))
        pixels = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        for split in ("train", "test"):
            file = folder / split / ("cat", "dog")[number % 2] / f"{number:03d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file, quality=85)
    exact, fast = (open_dataset("own", "train", folder, transform=how) for how in ("exact", "fast"))
    files = sorted((folder / "train").rglob("*.jpg"))
    return Readers(files, exact, fast)


def usual(files: list[Path], *sizing: Any, preprocess: Preprocess = CLIP) -> Callable[[], Tensor]:
    """Return what reads all pictures in the usual way, normalised floats (N, 3, S, S)."""
    scaled = transforms.Normalize(preprocess.mean, preprocess.std)
    steps = transforms.Compose([*sizing, transforms.ToTensor(), scaled])

    def read() -> Tensor:
        return torch.stack([steps(_opened(file)) for file in files])

    return read


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as opened:
        return opened.convert("RGB")


BICUBIC = transforms.InterpolationMode.BICUBIC
EVALUATION = (transforms.Resize(224, BICUBIC), transforms.CenterCrop(224))
TRAINING = (
    transforms.RandomResizedCrop(224, scale=(0.9, 1.0), interpolation=BICUBIC),
    transforms.RandomHorizontalFlip(),
)


def loader(data: Dataset) -> Loader:
    """Return perdure's batches of all pictures, with the same kind of augmentation."""
    return Loader(
        data, CLIP, random_clip().tokenizer, ("a photo of a {}",),
        batch_size=len(data), seed=0, augment="crop-flip",
    )  # fmt: skip


def evaluated(data: Dataset) -> Tensor:
    """Return all pictures as evaluation sees them, normalised floats."""
    return torch.cat(list(eval_batches(data, CLIP, len(data))))


def levels(pixels: Tensor) -> Tensor:
    """Return normalised floats as levels of 0 to 255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP.mean, CLIP.std))
    return (pixels * std + mean) * 255


def exact(found: Readers) -> None:
    """Print how far pixels are apart and who decoded them; stop if they are too far."""
    decode = Mock(side_effect=decoding.jpeg_decoder())
    with patch.object(decoding, "jpeg_decoder", lambda: decode):
        ways = {"fast": evaluated(found.fast)}
    ways |= {"exact": evaluated(found.exact), "pillow": usual(found.files, *EVALUATION)()}
    print(f"- pictures: {len(found.files)}; with fast, torchvision decodes {decode.call_count}")
    gaps = {}
    for first, second in (("fast", "exact"), ("fast", "pillow"), ("exact", "pillow")):
        gap = (levels(ways[first]) - levels(ways[second])).abs()
        gaps[first, second] = float(gap.max())
        print(f"- evaluation, {first} against {second}: largest difference "
              f"{gaps[first, second]:.2f} of 255 levels, mean {float(gap.mean()):.4f}")  # fmt: skip
    if gaps["fast", "exact"] > 1.01:
        sys.exit("fast pixels are more than one level from exact ones, which is not allowed")


def endless(source: Loader) -> Callable[[], Batch]:
    """Return what gives the next batch of a loader."""
    batches: Iterator[Batch] = source.batches(0, 10**9)
    return lambda: next(batches)


def actions(found: Readers) -> dict[str, Action]:
    """Return what is timed, by name."""
    exact, fast = loader(found.exact), loader(found.fast)
    return {
        "training, pillow": usual(found.files, *TRAINING),
        "training, exact": endless(exact),
        "training, fast": endless(fast),
        "training, exact, to uint8": lambda: exact.raw(1),
        "training, fast, to uint8": lambda: fast.raw(1),
        "evaluation, pillow": usual(found.files, *EVALUATION),
        "evaluation, exact": lambda: evaluated(found.exact),
        "evaluation, fast": lambda: evaluated(found.fast),
        "decoding, exact": lambda: [found.exact.image(i) for i in range(len(found.exact))],
        "decoding, fast": lambda: [found.fast.image(i) for i in range(len(found.fast))],
    }


def compare(found: Readers, rounds: int) -> list[str]:
    """Return a line per way: times as many pictures as the usual way, and their number."""
    doing = actions(found)
    for action in doing.values():
        action()
    seconds = timed(doing, rounds)
    lines = []
    for name in doing:
        kind = name.partition(",")[0]
        against = f"{kind}, {'exact' if kind == 'decoding' else 'pillow'}"
        rate = len(found.files) / statistics.median(seconds[name])
        lines.append(f"- {name}: {ratio(seconds, against, name)} times as many pictures as "
                     f"{against}; {rate:.0f} per second and core")  # fmt: skip
    return lines


def main() -> None:
    """Print equality first and ratios second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        found = write(Path(folder))
        exact(found)
        print(f"\nCPU time, median [quartiles] of {rounds} per-round ratios:\n")
        print("\n".join(compare(found, rounds)))


if __name__ == "__main__":
    main()
