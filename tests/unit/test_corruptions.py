"""Damage to images: closed forms where there are some, and what holds for every kind."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from perdure.corruptions import blur, digital, filters, noise, weather
from perdure.corruptions.table import CORRUPTIONS, SEVERITIES, corrupt
from perdure.data.damaged import SIDE, Damaged, damaged_suite, read_split
from perdure.data.datasets import open_dataset
from perdure.data.suites import suite
from perdure.errors import DataError


def picture(high: int = 48, wide: int = 56) -> np.ndarray:
    rows, columns = np.indices((high, wide))
    planes = [rows * 255 / high, columns * 255 / wide, ((rows // 6 + columns // 6) % 2) * 255]
    return np.stack(planes, axis=-1).astype(np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_keeps_the_shape_repeats_itself_and_hurts_more_when_severe(name):
    image = picture()
    found = [corrupt(image, name, severity, seed=1, index=3) for severity in SEVERITIES]
    for one in found:
        assert one.shape == image.shape
        assert one.dtype == np.uint8
        assert not np.array_equal(one, image)
    assert np.array_equal(found[2], corrupt(image, name, 3, seed=1, index=3))
    assert np.array_equal(image, picture()), "the image itself was changed"
    if name not in {"rime", "saturate", "fog"}:  # not published as monotonous
        hurt = [np.abs(one.astype(float) - image).mean() for one in found]
        assert hurt[4] > hurt[0]


RANDOM = sorted(
    set(CORRUPTIONS)
    - {"defocus_blur", "gaussian_blur", "zoom_blur", "brightness", "contrast", "saturate"}
    - {"pixelate", "jpeg_compression"}
)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_and_seeds_are_damaged_in_their_own_way_where_chance_plays_a_part(name):
    image = picture()
    first = corrupt(image, name, 3, seed=0, index=0)
    others = [corrupt(image, name, 3, seed=0, index=1), corrupt(image, name, 3, seed=1, index=0)]
    assert all(np.array_equal(first, one) is (name not in RANDOM) for one in others)


def test_there_are_fifteen_to_report_and_four_to_choose_on():
    assert sum(one.common for one in CORRUPTIONS.values()) == 15
    assert len(CORRUPTIONS) == 19


def test_noise_has_the_published_moments():
    image = np.full((200, 200, 3), 0.5)
    found = noise.gaussian_noise(image, 1, rng()) - 0.5
    assert abs(found.mean()) < 1e-3
    assert found.std() == pytest.approx(0.08, rel=0.02)
    # A Poisson count of mean 0.5 * 60 has the variance of its mean.
    assert noise.shot_noise(image, 1, rng()).var() == pytest.approx(0.5 / 60, rel=0.03)
    assert noise.speckle_noise(image, 5, rng()).std() == pytest.approx(0.5 * 0.6, rel=0.02)
    impulse = noise.impulse_noise(image, 5, rng())
    assert (impulse == 1).mean() == pytest.approx(0.135, rel=0.05)
    assert (impulse == 0).mean() == pytest.approx(0.135, rel=0.05)


def test_smoothing_keeps_the_mean_and_widens_a_point_to_its_gaussian():
    point = np.zeros((61, 61, 1))
    point[30, 30] = 1.0
    found = filters.smooth(point, 3.0)[:, :, 0]
    assert found.sum() == pytest.approx(1.0, abs=1e-5)
    places = np.arange(61) - 30
    assert (found.sum(axis=0) * places**2).sum() == pytest.approx(9.0, rel=0.01)
    assert np.allclose(found, found.T, atol=1e-7)
    assert filters.smooth(point, 0.0) is point


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 1), st.sampled_from(sorted(set(CORRUPTIONS))), st.sampled_from(SEVERITIES))
def test_what_only_moves_or_averages_leaves_one_colour_alone(level, name, severity):
    module = {"blur": blur, "digital": digital}.get(CORRUPTIONS[name].module)
    if module is None or name in {"jpeg_compression", "saturate", "glass_blur"}:
        return
    image = np.full((24, 32, 3), np.rint(level * 255) / 255)
    found = getattr(module, name)(image, severity, rng())
    assert np.allclose(found, image, atol=1e-5)


def test_a_smeared_point_is_a_line_and_nothing_gets_lost():
    point = np.zeros((41, 41, 1))
    point[20, 20] = 1.0
    found = filters.smeared(point, 5, 3.0, 0.0)[:, :, 0]
    assert found.sum() == pytest.approx(1.0)
    assert np.flatnonzero(found.sum(axis=1)).tolist() == [20]
    assert (found > 0).sum() == 11


def test_glass_moves_pixels_one_after_the_other_and_leaves_the_border(monkeypatch):
    monkeypatch.setattr(blur, "smooth", lambda image, sigma: image)
    number = np.arange(224 * 224).reshape(224, 224)
    image = np.stack([number % 256, number // 256, number * 0], axis=-1) / 255
    found = np.rint(blur.glass_blur(image, 4, rng()) * 255).astype(int)
    source = found[:, :, 0] + 256 * found[:, :, 1]
    rows, columns = source // 224 - number // 224, source % 224 - number % 224
    inside = np.zeros((224, 224), dtype=bool)
    inside[4:222, 4:222] = True
    assert not rows[~inside].any()
    assert not columns[~inside].any()
    # A pixel takes what lies up to 3 away, where that has moved already in rounds before, or in
    # this one from below or the right.
    assert 3 < np.abs(rows).max() < 40
    assert rows[inside].std() > 1.5
    assert len(np.unique(source)) < 0.8 * source.size, "some pixels are there twice, others lost"


def test_contrast_brightness_and_saturation_are_their_formulas():
    image = picture().astype(float) / 255
    mean = image.mean(axis=(0, 1))
    assert np.allclose(digital.contrast(image, 3, rng()), mean + 0.2 * (image - mean))
    bright = weather.brightness(image, 2, rng())
    assert np.allclose(bright.max(axis=2), np.clip(image.max(axis=2) + 0.2, 0, 1))
    pale = digital.saturate(image, 1, rng())
    assert np.allclose(pale.max(axis=2), image.max(axis=2))
    spans = [np.ptp(one, axis=2) for one in (pale, image)]
    assert np.allclose(spans[0], 0.3 * spans[1])


def test_jpeg_and_pixelation_are_those_of_pillow():
    image = picture()
    kept = io.BytesIO()
    PIL.Image.fromarray(image).save(kept, "JPEG", quality=15)
    assert np.array_equal(
        corrupt(image, "jpeg_compression", 3), np.asarray(PIL.Image.open(kept).convert("RGB"))
    )
    blocks = corrupt(np.repeat(np.repeat(picture(8, 8), 4, 0), 4, 1), "pixelate", 5)
    assert len(np.unique(blocks.reshape(-1, 3), axis=0)) <= 64


def test_clouds_fill_the_unit_interval():
    field = weather.plasma(100, 2.0, rng())
    assert field.shape == (128, 128)
    assert (field.min(), field.max()) == (0.0, 1.0)
    assert np.abs(np.diff(field, axis=0)).mean() < 0.1, "neighbours differ little"


def test_lengths_follow_the_size_of_the_image():
    small, large = picture(112, 112), np.repeat(np.repeat(picture(112, 112), 2, 0), 2, 1)
    shrunk = corrupt(large, "gaussian_blur", 4)[::2, ::2].astype(float)
    assert np.abs(shrunk - corrupt(small, "gaussian_blur", 4)).mean() < 3


@pytest.mark.parametrize(
    ("name", "severity", "said"),
    [("frost", 1, "'rime'"), ("fogg", 1, "fog"), ("fog", 6, "1 (light) to 5"), ("snow", 0, "is 0")],
)
def test_what_is_not_in_the_table_is_refused(name, severity, said):
    with pytest.raises(DataError, match=said.replace("(", r"\(").replace(")", r"\)")):
        corrupt(picture(), name, severity)


def test_an_image_of_another_shape_is_refused():
    with pytest.raises(DataError, match=r"\(48, 56\)"):
        corrupt(picture()[:, :, 0], "fog", 1)


class Large:
    """One picture larger than the damage is meant for."""

    name, classes, captioned = "large", ("thing",), False
    labels = np.zeros(1, dtype=np.int64)

    def __len__(self) -> int:
        return 1

    def image(self, index: int):
        import torch

        return torch.from_numpy(picture(500, 700)).permute(2, 0, 1)


def test_large_images_are_shrunk_before_they_are_damaged():
    found = Damaged(Large(), "contrast", 1).image(0)
    assert tuple(found.shape) == (3, SIDE, round(700 * SIDE / 500))


def test_a_damaged_split_has_the_images_labels_and_classes_of_its_whole():
    whole = open_dataset("emojishift", "id", classes="base")
    found = open_dataset("emojishift", "id@contrast-5", classes="base")
    assert (found.classes, len(found), found.name) == (whole.classes, len(whole), whole.name)
    assert np.array_equal(found.labels, whole.labels)
    expected = corrupt(whole.image(7).permute(1, 2, 0).numpy(), "contrast", 5, 0, 7)
    assert np.array_equal(found.image(7).permute(1, 2, 0).numpy(), expected)


def test_a_suite_of_damage_has_the_task_and_seventy_five_shifts_of_it():
    found = suite("corrupt-emojishift")
    assert [split.role for split in found.splits] == ["id"] + ["ood"] * 75
    assert found.splits[1].split == "id@gaussian_noise-1"
    few = damaged_suite(suite("emojishift"), ("fog", "snow"), (1, 5))
    assert [split.name for split in few.splits] == ["id", "fog-1", "fog-5", "snow-1", "snow-5"]
    assert few.definition != found.definition


@pytest.mark.parametrize(
    ("name", "said"), [("corrupt", "corrupt-own"), ("corrupt-emojishift-b2n", "no split of the")]
)
def test_suites_without_a_task_to_damage_are_refused(name, said):
    with pytest.raises(DataError, match=said):
        suite(name)


def test_a_split_without_severity_is_refused():
    assert read_split("test") == ("test", None)
    assert read_split("test@fog-3") == ("test", ("fog", 3))
    with pytest.raises(DataError, match="severity from 1 to 5"):
        read_split("test@fog")


@pytest.mark.parametrize(
    ("severity", "strength"), [(1, 12.5), (2, 16.25), (3, 21.25), (4, 25.0), (5, 30.0)]
)
def test_elastic_transform_is_the_published_fork_rebuilt_with_scipy(severity, strength):
    """Formula of imagecorruptions-imaug 1.1.5, on a picture that is not square."""
    image = picture(96, 160).astype(float) / 255
    found = digital.elastic_transform(image, severity, rng(2))
    draws, fields = rng(2), []
    for _ in range(2):
        noise = draws.uniform(-96 * 0.005, 96 * 0.005, (96, 160))
        fields.append(
            strength * ndimage.gaussian_filter(noise, (0.96, 1.6), mode="reflect", truncate=3)
        )
    rows, columns = np.indices((96, 160)).astype(float)
    expected = [
        ndimage.map_coordinates(
            image[..., plane], [rows + fields[1], columns + fields[0]], order=1, mode="reflect"
        )
        for plane in range(3)
    ]
    assert np.allclose(found, np.stack(expected, axis=-1), atol=1e-4)


def test_scores_of_damage_that_has_changed_do_not_compare_with_new_ones():
    plain = suite("emojishift")
    assert damaged_suite(plain).version == plain.version + 1
