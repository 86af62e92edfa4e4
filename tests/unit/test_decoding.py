"""`transform: fast`: the same pictures, errors and random choices, to within one level of 255."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from perdure.data import decoding
from perdure.data.augment import AUGMENTS, fit
from perdure.data.damaged import Damaged
from perdure.data.datasets import open_dataset, transform_of
from perdure.data.loading import Loader, eval_batches
from perdure.data.own import decode
from perdure.data.views import Part
from perdure.errors import DataError, RunError
from perdure.evaluation import evaluate
from perdure.inputs import Preprocess
from perdure.records import read
from perdure.reporting import report
from perdure.zoo import random_clip

SIZES = ((40, 40), (61, 47), (47, 190), (300, 41), (375, 500), (17, 23))


def photo(high: int, wide: int, seed: int = 0) -> Image.Image:
    """Return a smooth picture with some noise, as cameras make them."""
    rng = np.random.default_rng((high, wide, seed))
    coarse = rng.integers(0, 256, (high // 20 + 2, wide // 20 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0, 8, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def turned(orientation: int) -> dict[str, Any]:
    """Return options of a JPEG file that says how the camera was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"format": "JPEG", "exif": exif}


JPEGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"subsampling-{kind}": ("RGB", {"format": "JPEG", "subsampling": kind}) for kind in range(3)
    },
    "progressive": ("RGB", {"format": "JPEG", "progressive": True}),
    "grey": ("L", {"format": "JPEG"}),
    "no-ycc": ("RGB", {"format": "JPEG", "keep_rgb": True}),
    **{f"exif-{number}": ("RGB", turned(number)) for number in range(10)},
    "grey-turned": ("L", turned(6)),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cmyk": ("CMYK", {"format": "JPEG"}),
    "png": ("RGB", {"format": "PNG"}),
    "rgba": ("RGBA", {"format": "PNG"}),
    "palette": ("P", {"format": "PNG"}),
    "bits": ("1", {"format": "PNG"}),
    "deep": ("I;16", {"format": "PNG"}),
    "grey-alpha": ("LA", {"format": "PNG"}),
    "webp": ("RGB", {"format": "WEBP"}),
    "gif": ("P", {"format": "GIF"}),
    "bmp": ("RGB", {"format": "BMP"}),
    "tiff": ("CMYK", {"format": "TIFF"}),
}


def encoded(picture: Image.Image, mode: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    picture.convert(mode).save(file, **options)
    return file.getvalue()


def apart(first: Tensor, second: Tensor) -> int:
    assert first.shape == second.shape
    assert first.dtype == second.dtype == torch.uint8
    return int((first.int() - second.int()).abs().max())


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count in a list what torchvision has decoded."""
    calls: list[int] = []
    original = decoding.jpeg_decoder()
    assert original is not None

    def counted(content: bytes) -> Tensor:
        pixels = original(content)
        calls.append(len(content))
        return pixels

    monkeypatch.setattr(decoding, "jpeg_decoder", lambda: counted)
    return calls


@pytest.mark.parametrize("name", [*JPEGS, *OTHERS])
def test_evaluated_pixels_are_within_one_level(name: str, decoders: list[int]) -> None:
    mode, options = (JPEGS | OTHERS)[name]
    for high, wide in SIZES if name.startswith(("sub", "png")) else SIZES[1:3]:
        content = encoded(photo(high, wide), mode, options)
        exact, fast = (decode(io.BytesIO(content), name, how) for how in decoding.TRANSFORMS)
        assert apart(exact, fast) <= 1
        for size, interpolation in ((40, "bicubic"), (32, "bilinear")):
            assert apart(fit(exact, size, interpolation), fit(fast, size, interpolation)) <= 1
    assert bool(decoders) is (name in JPEGS)


def test_resized_pixels_are_those_of_pillow_to_within_one_level() -> None:
    picture = photo(375, 500)
    content = encoded(picture, "RGB", {"format": "JPEG"})
    whole = Image.open(io.BytesIO(content)).resize((298, 224), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(whole.crop((37, 0, 261, 224)))).permute(2, 0, 1)
    assert apart(fit(decode(io.BytesIO(content), transform="fast"), 224, "bicubic"), expected) <= 1


def test_jpeg_files_come_channels_last_so_that_resizing_copies_nothing() -> None:
    content = encoded(photo(61, 47), "RGB", {"format": "JPEG"})
    assert decode(io.BytesIO(content), transform="fast").stride() == (1, 3 * 47, 3)
    assert decode(io.BytesIO(content)).is_contiguous()


def answer(file: Path, how: Any) -> str:
    """Return the sum of a picture's pixels, or the paragraph that says why there are none."""
    try:
        return str(decode(file, transform=how).sum())
    except DataError as error:
        return str(error)


def test_damaged_pictures_are_refused_with_the_same_words(tmp_path: Path) -> None:
    whole = encoded(photo(61, 47), "RGB", {"format": "JPEG"})
    png = encoded(photo(61, 47), "RGB", {"format": "PNG"})
    deep = Image.fromarray(np.full((5, 5), 0.5, dtype=np.float32))
    refused = 0
    for number, content in enumerate(
        (whole[:-2], whole[: len(whole) // 2], whole[:40], whole[:2], b"", b"hello", png[:700],
         encoded(deep, "F", {"format": "TIFF"}), whole[:-2] + bytes(50), whole + b"more")
    ):  # fmt: skip
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(content)
        said = answer(file, "exact")
        assert answer(file, "fast") == said
        refused += "cannot read the picture" in said
    assert refused == 8
    with pytest.raises(DataError, match=r"gone\.jpg"):
        decode(tmp_path / "gone.jpg", transform="fast")


def test_pictures_too_large_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch, decoders: list[int]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="exceeds limit"):
        decode(io.BytesIO(encoded(photo(61, 47), "RGB", {"format": "JPEG"})), "x", "fast")
    assert not decoders


@pytest.fixture
def fresh() -> Iterator[None]:
    """Look for decoders anew, and again after the test."""
    decoding.jpeg_decoder.cache_clear()
    yield
    decoding.jpeg_decoder.cache_clear()


def test_where_torchvision_has_no_decoder_torchcodec_takes_over(
    monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    content = encoded(photo(61, 47), "RGB", {"format": "JPEG"})
    monkeypatch.setitem(sys.modules, "torchvision.io", ModuleType("torchvision.io"))
    other: Any = ModuleType("torchcodec.decoders")
    other.decode_jpeg = lambda content, mode: torch.full((3, 5, 5), len(content) % 256).byte()
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", other)
    found = decode(io.BytesIO(content), transform="fast")
    assert found.unique().tolist() == [len(content) % 256]


def test_where_nothing_else_decodes_pillow_does_and_says_so(
    monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    content = encoded(photo(61, 47), "RGB", {"format": "JPEG"})
    monkeypatch.setitem(sys.modules, "torchvision.io", ModuleType("torchvision.io"))
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.warns(UserWarning, match="no faster than with 'exact'"):
        fast = decode(io.BytesIO(content), transform="fast")
    assert torch.equal(fast, decode(io.BytesIO(content)))


def test_fused_normalisation_rounds_in_the_last_digit_alone() -> None:
    preprocess = Preprocess(4, (0.48, 0.45, 0.40), (0.26, 0.26, 0.27))
    levels = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    kept = levels.clone()
    found, expected = preprocess.normalize(levels, fused=True), preprocess.normalize(levels)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(levels, kept)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a person's own pictures: two classes, JPEG and PNG, two of them for testing."""
    folder = tmp_path_factory.mktemp("own")
    for split, count in (("train", 3), ("test", 2)):
        for seed, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                picture = photo(60 + 7 * number, 50 + 11 * seed, number)
                picture.save(folder / split / name / f"{number}.jpg", quality=90)
            picture.save(folder / split / name / "last.png")
    return folder


@pytest.mark.parametrize("augment", AUGMENTS)
def test_training_draws_the_same_boxes_mirrors_and_captions(root: Path, augment: Any) -> None:
    clip = random_clip()
    batches = []
    for how in decoding.TRANSFORMS:
        data = open_dataset("own", "train", root, transform=how)
        loader = Loader(
            data, clip.preprocess, clip.tokenizer, ("a {}", "one {}"),
            batch_size=8, seed=5, augment=augment,
        )  # fmt: skip
        batches.append(list(loader.batches(0, 4)))
    level = 1 / (255 * min(clip.preprocess.std))
    for exact, fast in zip(*batches, strict=True):
        assert torch.equal(exact.tokens, fast.tokens)
        assert torch.equal(exact.labels, fast.labels)
        assert float((exact.images - fast.images).abs().max()) <= 2.01 * level
    assert not torch.equal(batches[0][0].images, batches[0][3].images)


def test_views_know_how_their_pictures_are_decoded(root: Path) -> None:
    data = open_dataset("own", "test@fog-2", root, transform="fast")
    assert isinstance(data, Damaged)
    assert transform_of(Part(data, np.array([1]))) == "fast"
    assert transform_of(open_dataset("own", "test", root)) == "exact"
    assert transform_of(open_dataset("emojishift", "val")) == "exact"


def test_drawn_images_and_unknown_ways_are_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"emojishift has no files .* leave data\.transform"):
        open_dataset("emojishift", "val", transform="fast")
    other: Any = "quick"
    with pytest.raises(DataError, match="'quick'; allowed are exact and fast"):
        open_dataset("own", "test", root, transform=other)


@pytest.mark.parametrize("how", decoding.TRANSFORMS)
def test_workers_change_no_evaluated_pixel(root: Path, how: Any) -> None:
    data = open_dataset("own", "test", root, transform=how)
    preprocess = random_clip().preprocess
    alone, shared = (
        torch.cat(list(eval_batches(data, preprocess, 4, workers=workers))) for workers in (0, 2)
    )
    assert torch.equal(alone, shared)
    assert alone.is_contiguous()


def test_errors_of_workers_reach_the_person(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "test" / "cat" / "broken.jpg"
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        photo(50, 50).save(tmp_path / "test" / name / "0.jpg")
    file.write_bytes(b"hello")
    data = open_dataset("own", "test", tmp_path, transform="fast")
    with pytest.raises(DataError, match=r"cannot read the picture .*broken\.jpg"):
        list(eval_batches(data, random_clip().preprocess, 2, workers=1))


def evaluated(root: Path, out: Path, **options: Any) -> Path:
    """Evaluate a random model as a run of its own."""
    scores = evaluate(random_clip(), "own", root=root, **options)
    out.mkdir()
    (out / "merge.yaml").write_text(f"kind: zero-shot\nmodel: {out.name}\ninputs: []\n")
    scores.write(out / "scores")
    return out


def test_scores_say_how_pictures_were_decoded_and_are_compared_with_their_like(
    root: Path, tmp_path: Path
) -> None:
    exact = evaluated(root, tmp_path / "exact")
    again = evaluated(root, tmp_path / "again")
    fast = evaluated(root, tmp_path / "fast", transform="fast", workers=1)
    half = evaluated(root, tmp_path / "half", precision="bf16")
    assert [read(run).pixels for run in (exact, fast)] == ["exact, fp32", "fast, fp32"]
    stored = json.loads((exact / "scores" / "own.json").read_text())
    assert "decoding" not in stored["transform"]
    assert "precision" not in stored
    report([exact, again])
    with pytest.raises(RunError, match=r"different pixels .*exact, fp32, .*fast, fp32"):
        report([exact, fast])
    with pytest.raises(RunError, match=r"different pixels .*exact, fp32, .*exact, bf16"):
        report([exact, half])


def test_runs_of_before_there_was_a_choice_are_runs_of_today(tmp_path: Path) -> None:
    keys = []
    make: Callable[[str], str] = lambda data: (  # noqa: E731
        f"method: {{name: ft}}\ndata: {{name: own{data}}}\nseed: 0\n"
    )
    for number, data in enumerate(("", ", transform: exact", ", transform: fast")):
        run = tmp_path / str(number)
        (run / "scores").mkdir(parents=True)
        (run / "recipe.yaml").write_text(make(data))
        (run / "scores" / "own.json").write_text('{"definition": "d", "splits": {}}')
        keys.append(read(run).key)
    assert keys[0] == keys[1] != keys[2]
