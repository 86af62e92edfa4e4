"""Kept pixels: the same scores without decoding, another entry for whatever changes a pixel."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from perdure.data import own
from perdure.data.cache import made_from
from perdure.data.datasets import open_dataset
from perdure.data.loading import eval_batches
from perdure.data.views import Half, Part
from perdure.errors import DataError
from perdure.evaluation import evaluate
from perdure.inputs import Preprocess
from perdure.zoo import random_clip

PREPROCESS = random_clip().preprocess


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for number in range(3):
            file = tmp_path / "own" / "test" / name / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
    return tmp_path / "own"


def read(root: Path, cache: Path | None, split: str = "test") -> torch.Tensor:
    return torch.cat(
        list(eval_batches(open_dataset("own", split, root), PREPROCESS, 4, cache=cache))
    )


def test_pixels_are_decoded_once_and_stay_the_same(root: Path, tmp_path: Path) -> None:
    plain, cache = read(root, None), tmp_path / "cache"
    with patch.object(own, "decode", wraps=own.decode) as decode:
        first, second = read(root, cache), read(root, cache)
    assert decode.call_count == 6
    assert torch.equal(plain, first)
    assert torch.equal(plain, second)
    assert len(list(cache.iterdir())) == 1
    scores = [evaluate(random_clip(), "own", root=root, cache=each) for each in (None, cache)]
    assert scores[0].to_dict() == scores[1].to_dict()


def test_processes_keep_their_own_parts(root: Path, tmp_path: Path) -> None:
    data = open_dataset("own", "test", root)
    parts = [
        torch.cat(list(eval_batches(data, PREPROCESS, 2, rank=r, world_size=2, cache=tmp_path)))
        for r in (0, 1)
    ]
    assert torch.equal(torch.cat(parts), read(root, None))


def test_whatever_changes_a_pixel_gets_an_entry_of_its_own(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    data = open_dataset("own", "test", root)
    other = Preprocess(32, PREPROCESS.mean, PREPROCESS.std)
    keys = [
        made_from(data, PREPROCESS),
        made_from(data, other),
        made_from(open_dataset("own", "test", root, transform="fast"), PREPROCESS),
        made_from(open_dataset("own", "test@fog-3", root), PREPROCESS),
        made_from(open_dataset("own", "test@fog-4", root), PREPROCESS),
        made_from(Part(data, np.arange(6)[::-1]), PREPROCESS),
        made_from(Half(data, np.array([1])), PREPROCESS),
    ]
    assert len({str(key) for key in keys}) == len(keys)
    before = read(root, cache)
    file = root / "test" / "cat" / "0.jpg"
    Image.new("RGB", (50, 60), (9, 9, 9)).save(file)
    os.utime(file, ns=(1, 1))
    after = read(root, cache)
    assert torch.equal(after, read(root, None))
    assert not torch.equal(before, after)
    assert len(list(cache.iterdir())) == 2


def test_an_interrupted_entry_is_not_there_and_a_damaged_one_is_refused(
    root: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    file = root / "test" / "dog" / "2.jpg"
    whole = file.read_bytes()
    file.write_bytes(b"hello")
    with pytest.raises(DataError, match="cannot read the picture"):
        read(root, cache)
    assert not list(cache.iterdir())
    file.write_bytes(whole)
    read(root, cache)
    (entry,) = cache.iterdir()
    np.save(entry / "pixels.npy", np.zeros((5, 3, 2, 2), dtype=np.uint8))
    with pytest.raises(DataError, match=r"does not hold the pictures .* Delete it"):
        read(root, cache)
    (entry / "pixels.npy").unlink()
    with pytest.raises(DataError, match="does not hold the pictures"):
        read(root, cache)


def test_drawn_images_are_refused(tmp_path: Path) -> None:
    data = open_dataset("emojishift", "val")
    with pytest.raises(DataError, match="emojishift has no picture files"):
        next(eval_batches(data, PREPROCESS, 4, cache=tmp_path))
