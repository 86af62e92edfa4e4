"""Loading: the same batch for the same step, whoever loads it, and exact pixels and captions."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from perdure.data import caption_tokens, loading
from perdure.data.loading import Captions, Loader, eval_batches, fit
from perdure.errors import DataError, TaskError
from perdure.zoo import random_clip

CLASSES = ("rat", "field hockey", "fish cake with swirl")
TEMPLATES = ("a {}", "a photo of a {}")


@dataclass
class Toy:
    """Images whose pixels say which one they are."""

    n: int = 11
    size: int = 40
    classes: tuple = CLASSES
    name: str = "toy"
    captioned: bool = False
    broken: int = -1

    def __len__(self):
        return self.n

    @property
    def labels(self):
        return np.arange(self.n) % len(self.classes)

    def image(self, index):
        if index == self.broken:
            raise DataError(f"image {index} is broken")
        ramp = torch.arange(self.size, dtype=torch.uint8) + 10 * index
        return ramp.expand(3, self.size, self.size).clone()


@pytest.fixture(scope="module")
def clip():
    return random_clip()


def loader(clip, data=None, **options):
    options = {"batch_size": 4, "seed": 3, "trim": clip.trim} | options
    return Loader(
        Toy() if data is None else data, clip.preprocess, clip.tokenizer, TEMPLATES, **options
    )


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))


@pytest.mark.parametrize("augment", list(loading.AUGMENTS))
def test_batches_depend_on_nothing_but_seed_and_step(clip, augment):
    whole = list(loader(clip, augment=augment).batches(0, 7))
    assert [len(batch.labels) for batch in whole] == [4, 4, 3, 4, 4, 3, 4]
    resumed = list(loader(clip, augment=augment).batches(4, 7))
    assert all(map(equal, whole[4:], resumed))
    other = next(loader(clip, augment=augment, seed=4).batches(0, 7))
    assert not equal(whole[0], other)


def test_workers_change_neither_batches_nor_the_global_random_numbers(clip):
    alone = list(loader(clip, augment="crop").batches(2, 6))
    before = torch.get_rng_state()
    shared = list(loader(clip, augment="crop", workers=2).batches(2, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert all(map(equal, alone, shared))


def test_processes_share_a_batch_in_order(clip):
    options = {"augment": "flip-shift", "trim": None}
    whole = list(loader(clip, **options).batches(0, 3))
    parts = [list(loader(clip, rank=r, world_size=2, **options).batches(0, 3)) for r in (0, 1)]
    for together, *shares in zip(whole, *parts, strict=True):
        joined = [torch.cat(pieces) for pieces in zip(*(one[:3] for one in shares), strict=True)]
        assert equal(together, joined)


def test_captions_name_the_class_and_are_cut_to_the_longest_of_the_batch(clip):
    source = loader(clip, batch_size=1)
    seen = set()
    for batch in source.batches(0, 60):
        name = CLASSES[int(batch.labels)]
        texts = [template.format(name) for template in TEMPLATES]
        full = clip.tokenizer(texts)
        length = batch.tokens.shape[1]
        fits = [
            torch.equal(batch.tokens[0], row[:length]) and not row[length:].any() for row in full
        ]
        assert any(fits)
        assert batch.tokens[0, -1] == full.max()
        seen.add(texts[fits.index(True)])
    assert len(seen) == len(CLASSES) * len(TEMPLATES)


def test_cut_captions_embed_as_whole_ones(clip):
    rows = np.array([0, 1])
    cut = Captions(CLASSES, TEMPLATES, clip.tokenizer, clip.trim).pick(rows, rows)
    whole = Captions(CLASSES, TEMPLATES, clip.tokenizer).pick(rows, rows)
    assert cut.shape[1] < whole.shape[1] == 20
    assert torch.allclose(clip.encode_text(cut), clip.encode_text(whole), atol=1e-6)


def test_names_are_tokenised_once(clip):
    calls = []

    def counting(texts):
        calls.append(len(texts))
        return clip.tokenizer(texts)

    source = Loader(Toy(), clip.preprocess, counting, TEMPLATES, batch_size=4, seed=0)
    list(source.batches(0, 9))
    assert calls == [len(CLASSES) * len(TEMPLATES)]


def test_loading_a_batch_reads_no_tensor_value(clip):
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Reads.count += "_local_scalar_dense" in str(func)
            return func(*args, **(kwargs or {}))

    batches = loader(clip).batches(0, 3)
    next(batches)  # starting an epoch may read
    with Reads():
        list(batches)
    assert Reads.count == 0


def test_pixels_are_normalised_once_and_exactly(clip):
    data = Toy()
    (images,) = eval_batches(data, clip.preprocess, 100)
    mean, std = clip.preprocess.mean[0], clip.preprocess.std[0]
    expected = (data.image(2)[0].double() / 255 - mean) / std
    assert torch.allclose(images[2, 0].double(), expected, atol=1e-6)


def test_evaluation_keeps_the_order_over_batches_and_processes(clip):
    whole = torch.cat(list(eval_batches(Toy(), clip.preprocess, 100)))
    parts = [
        images
        for rank in range(3)
        for images in eval_batches(Toy(), clip.preprocess, 2, rank=rank, world_size=3)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_mirror_and_shift_move_pixels_and_invent_none():
    image = Toy().image(0)
    seen = set()
    for index in range(200):
        moved = loading.AUGMENTS["flip-shift"](image, 40, "bicubic", np.random.default_rng(index))
        row = moved[0, 0].tolist()
        assert sorted(row) == list(range(40))
        start = row.index(0)
        seen.add((row[(start + 1) % 40] == 39, start))
    assert len(seen) == 10  # two directions, five shifts


@pytest.mark.parametrize(("name", "mirrors"), [("crop", False), ("crop-flip", True)])
def test_crop_has_the_models_size_and_nearly_the_whole_picture(name, mirrors):
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    image[:, :, 40:] = 255
    brighter = set()
    for index in range(50):
        cropped = loading.AUGMENTS[name](image, 40, "bicubic", np.random.default_rng(index))
        assert cropped.shape == (3, 40, 40)
        assert 0.4 < cropped.float().mean() / 255 < 0.6
        brighter.add(bool(cropped[0, 0, 0] > cropped[0, 0, -1]))
    assert brighter == ({False, True} if mirrors else {False})
    assert image[:, :, 40:].eq(255).all()


def test_wide_crops_have_eight_to_a_hundred_per_cent_of_the_area():
    image = torch.arange(200).expand(3, 200, 200).to(torch.uint8)
    shares, mirrored = [], set()
    for index in range(200):
        rng = np.random.default_rng(index)
        cropped = loading.AUGMENTS["wide-crop-flip"](image, 40, "bilinear", rng)
        assert cropped.shape == (3, 40, 40)
        row = cropped[0, 0].float()
        shares.append(float((row.max() - row.min()) / 200))
        mirrored.add(bool(row[0] > row[-1]))
    assert mirrored == {False, True}
    assert 0.2 < min(shares) < 0.35 < 0.85 < max(shares) <= 1  # widths, whose squares are areas


@pytest.mark.parametrize("shape", [(100, 60), (33, 90), (20, 20), (40, 41)])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resizing_agrees_with_pillow(shape, mode):
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, size=(5, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(smooth).resize(shape[::-1], Image.Resampling.BILINEAR)
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    short = min(shape)
    height, width = 40 * shape[0] // short, 40 * shape[1] // short
    filter_ = Image.Resampling.BICUBIC if mode == "bicubic" else Image.Resampling.BILINEAR
    left, top = round((width - 40) / 2), round((height - 40) / 2)
    expected = picture.resize((width, height), filter_).crop((left, top, left + 40, top + 40))
    difference = fit(image, 40, mode).int() - torch.from_numpy(np.array(expected)).permute(2, 0, 1)
    assert difference.abs().max() <= 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_reported_in_its_own_words(clip, workers):
    source = loader(clip, Toy(broken=5), workers=workers)
    with pytest.raises(DataError, match=r"^image 5 is broken$"):
        list(source.batches(0, 3))


def test_only_the_end_of_a_worker_is_explained():
    with pytest.raises(RuntimeError, match=r"^something else$"), loading.alive_workers():
        raise RuntimeError("something else")
    said = r"pid\(s\) 7.*use fewer run\.workers"
    with pytest.raises(DataError, match=said), loading.alive_workers():
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")


def test_tokens_in_chunks_are_those_of_all_at_once(clip, monkeypatch):
    names = tuple(f"{'very ' * (number % 5)}rat {number}" for number in range(23))
    whole = Captions(names, TEMPLATES, clip.tokenizer, clip.trim)
    monkeypatch.setattr(caption_tokens, "_CHUNK", 5)
    parts = Captions(names, TEMPLATES, clip.tokenizer, clip.trim)
    rows, prompts = np.arange(23), np.arange(23) % 2
    assert torch.equal(whole.pick(rows, prompts), parts.pick(rows, prompts))
    plain = Captions(names, TEMPLATES, clip.tokenizer)
    texts = [TEMPLATES[number % 2].format(name) for number, name in enumerate(names)]
    assert torch.equal(plain.pick(rows, prompts), clip.tokenizer(texts))
    assert whole.pick(rows[:1], prompts[:1]).shape[1] < whole.pick(rows, prompts).shape[1]


def test_bad_names_templates_and_empty_data_are_errors(clip):
    with pytest.raises(DataError, match="class 1 has an empty name"):
        Captions(("rat", " "), TEMPLATES, clip.tokenizer)
    with pytest.raises(TaskError, match="no place for the class name"):
        Captions(("rat",), ("a photo",), clip.tokenizer)
    with pytest.raises(DataError, match="0 examples"):
        loader(clip, Toy(n=0))
