"""Pictures decoded before training: the same run bit for bit, and never another picture."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perdure.data import cache, decoded, own
from perdure.data.datasets import open_dataset
from perdure.data.loading import Loader
from perdure.errors import DataError, PerdureError
from perdure.kept_pictures import use_kept
from perdure.recipe import differences, load_recipe, parse_recipe, plain
from perdure.run import Run
from perdure.runtime import Runtime
from perdure.training import train
from perdure.zoo import random_clip

CPU = Runtime("cpu", threads=1)
CLIP = random_clip()
ROWS = 8


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for row in range(ROWS):
        file = tmp_path / "own" / "train" / ("cat", "dog")[row % 2] / f"{row}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + row, 60 - row, 3), dtype=np.uint8)
        # One lies on its side, as cameras write them, and one has no colours.
        picture = Image.fromarray(pixels).convert("L" if row == 3 else "RGB")
        exif = Image.Exif()
        exif[0x0112] = 6 if row == 2 else 1
        picture.save(file, exif=exif)
    return tmp_path / "own"


def table(root: Path, **run: Any) -> dict[str, Any]:
    return {
        "model": {"name": str(root.parent / "clip")},
        "data": {"name": "own", "root": str(root), "augment": "wide-crop-flip"},
        "method": {"name": "flyp"},
        "optim": {"lr": 1e-3, "batch_size": 3, "epochs": 2},
        "run": {"device": "cpu", "threads": 1, **run},
    }


def loader(root: Path, transform: str, **more: Any) -> Loader:
    data = open_dataset("own", "train", root, transform=transform)
    return Loader(
        data, CLIP.preprocess, CLIP.tokenizer, ("a {}",),
        batch_size=3, seed=1, augment="wide-crop-flip", **more,
    )  # fmt: skip


def said(_: str) -> None:
    """Hear nothing."""


@pytest.mark.parametrize("transform", ["exact", "fast"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_bit_for_bit(
    root: Path, tmp_path: Path, transform: str, workers: int
) -> None:
    usual, kept = (loader(root, transform, workers=workers) for _ in range(2))
    use_kept(kept, tmp_path / "cache", CPU, said)
    with patch.object(own, "decode", side_effect=AssertionError("decoded again")):
        found = list(kept.batches(0, 6))
    for one, other in zip(usual.batches(0, 6), found, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.labels, other.labels)


def test_a_run_is_the_same_bit_for_bit_and_decodes_every_picture_once(
    root: Path, tmp_path: Path
) -> None:
    random_clip().save(tmp_path / "clip")
    lines: list[str] = []
    train(parse_recipe(table(root)), tmp_path / "usual")
    recipe = parse_recipe(table(root, cache=str(tmp_path / "cache")))
    with patch.object(own, "decode", wraps=own.decode) as decode:
        train(recipe, tmp_path / "kept", say=lines.append)
        looks = ROWS  # at every picture, because there are so few, for the need of space
        assert decode.call_count == 2 * looks
        train(recipe, tmp_path / "again")
        assert decode.call_count == 2 * looks
    states = [Run(tmp_path / name).predictor().state_dict() for name in ("usual", "kept", "again")]
    for state in states[1:]:
        assert all(torch.equal(value, state[name]) for name, value in states[0].items())
    assert any("Decoding 8 pictures" in line and "MB" in line for line in lines)


def test_a_recipe_without_it_is_written_as_before_and_a_run_may_go_on_with_it(root: Path) -> None:
    without, with_it = parse_recipe(table(root)), parse_recipe(table(root, cache="kept"))
    assert "cache" not in plain(without)["run"]
    assert plain(with_it)["run"]["cache"] == "kept"
    assert not differences(without, with_it)


@given(st.integers(1, 5), st.integers(1, 5), st.permutations(range(3)))
@settings(deadline=None, max_examples=40)
def test_pixels_and_their_order_in_memory_come_back(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, order: list[int]
) -> None:
    sizes = [(3, height, width)[axis] for axis in order]
    raw = torch.randint(0, 256, sizes, dtype=torch.uint8)
    image = raw.permute(*np.argsort(order).tolist())
    packed = decoded.pack(image)
    folder = tmp_path_factory.mktemp("pixels")
    (folder / "pixels.bin").write_bytes(b"xyz" + packed.raw)
    crc = decoded.zlib.crc32(packed.raw)
    places = np.array([[3, packed.order, packed.height, packed.width, crc]])
    found = decoded.Decoded(folder, places).image(0)
    assert torch.equal(found, image)
    large = [side for side in image.shape if side > 1]
    if len(large) == 3 and len(set(image.stride())) == 3:
        assert found.stride() == image.stride()


def test_captions_of_one_picture_share_its_bytes(tmp_path: Path) -> None:
    pictures = [torch.full((3, 4, 5), value, dtype=torch.uint8) for value in (1, 1, 2, 1)]

    class Four:
        name, labels, classes, captioned = "four", np.arange(4), ("a",), True

        def __len__(self) -> int:
            return 4

    with patch.object(decoded, "source_of", return_value="it"):
        decoded.keep(tmp_path, Four(), map(decoded.pack, pictures))
        found = decoded.find(tmp_path, Four())
    assert found is not None
    assert all(torch.equal(found.image(row), pictures[row]) for row in range(4))
    assert (found.entry / "pixels.bin").stat().st_size == 3 * 60


def test_copies_in_other_processes_map_the_file_again(root: Path, tmp_path: Path) -> None:
    kept = loader(root, "exact")
    use_kept(kept, tmp_path, CPU, said)
    text = pickle.dumps(kept.source.pictures)
    assert len(text) < 5000
    copy = pickle.loads(text)
    assert torch.equal(copy.image(5), kept.source.dataset.image(5))


def test_changed_files_get_another_entry(root: Path, tmp_path: Path) -> None:
    use_kept(loader(root, "exact"), tmp_path / "cache", CPU, said)
    file = next(iter((root / "train" / "cat").iterdir()))
    Image.new("RGB", (30, 20), (9, 9, 9)).save(file)
    os.utime(file, ns=(1, 1))
    after, plainly = loader(root, "exact"), loader(root, "exact")
    use_kept(after, tmp_path / "cache", CPU, said)
    assert torch.equal(after.raw(1).images, plainly.raw(1).images)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("harm", ["flip", "cut", "no places", "no pixels", "another record"])
def test_damaged_entries_end_in_a_sentence(root: Path, tmp_path: Path, harm: str) -> None:
    use_kept(loader(root, "exact"), tmp_path, CPU, said)
    (entry,) = [path for path in tmp_path.iterdir() if path.name.startswith("own-")]
    pixels = entry / "pixels.bin"
    raw = bytearray(pixels.read_bytes())
    if harm == "flip":
        raw[len(raw) // 2] ^= 1
        pixels.write_bytes(raw)
    elif harm == "cut":
        pixels.write_bytes(raw[:-1])
    elif harm == "no places":
        (entry / "places.npy").write_bytes(b"")
    elif harm == "no pixels":
        pixels.unlink()
    else:
        (entry / "made-from.json").write_text("{}")
    again = loader(root, "exact")
    with pytest.raises(DataError, match=r"does not hold the pictures .* Delete it"):
        for _ in (use_kept(again, tmp_path, CPU, said), *again.batches(0, 3)):
            pass


def test_an_interrupted_entry_is_not_there(root: Path, tmp_path: Path) -> None:
    (root / "train" / "dog" / "7.jpg").write_bytes(b"hello")
    with (
        patch.object(decoded, "need", return_value=1),
        pytest.raises(DataError, match="cannot read the picture"),
    ):
        use_kept(loader(root, "exact"), tmp_path / "cache", CPU, said)
    assert not list((tmp_path / "cache").iterdir())


def test_a_disk_without_room_is_not_filled(root: Path, tmp_path: Path) -> None:
    with (
        patch.object(decoded, "need", return_value=10**18),
        pytest.raises(DataError, match=r"would need about 1,000,000,000.0 GB .* larger disk"),
    ):
        use_kept(loader(root, "exact"), tmp_path / "cache", CPU, said)
    assert not (tmp_path / "cache").exists()


def test_the_need_for_space_is_what_is_written(root: Path, tmp_path: Path) -> None:
    kept = loader(root, "exact")
    use_kept(kept, tmp_path, CPU, said)
    assert (
        decoded.need(kept.source.dataset)
        == (
            kept.source.pictures.entry / "pixels.bin"  # type: ignore[attr-defined]
        )
        .stat()
        .st_size
    )


def test_whoever_is_slower_takes_what_is_there(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    with cache.new_entry(entry) as slow:
        (slow / "from").write_text("slow")
        # The same process would write to the same temporary place; another has its own.
        with patch.object(os, "getpid", return_value=1), cache.new_entry(entry) as quick:
            (quick / "from").write_text("quick")
    assert (entry / "from").read_text() == "quick"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_drawn_pictures_are_refused(tmp_path: Path) -> None:
    recipe = load_recipe("emojishift/flyp", ("data.shots=1", f"run.cache={tmp_path}/c"))
    with pytest.raises(PerdureError, match=r"no picture files .* run\.cache"):
        train(recipe, tmp_path / "run")
