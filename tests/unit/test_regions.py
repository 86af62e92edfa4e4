"""Regions under masks: OVSeg's golden numbers, and what must hold for any mask."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import DataError
from perdure.inputs import Preprocess
from perdure.regions import (
    blank_outside,
    expand_box,
    fuse,
    label_map,
    pixel_scores,
    region_inputs,
    region_pixels,
    stretch,
    tight_boxes,
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OPENAI = Preprocess(224, MEAN, STD)


@pytest.fixture
def numbers(golden):
    return {key: torch.tensor(value) for key, value in golden("r_adapter_ovseg").items()}


def test_golden_regions(numbers):
    image, threshold = numbers["region/image"], float(numbers["region/mask_thr"])
    masks = numbers["region/mask_probability"] > threshold
    found, valid = region_inputs(image, masks, OPENAI)
    assert valid.tolist() == numbers["region/valid"].tolist()
    boxes = tight_boxes(masks)
    for index in np.flatnonzero(valid):
        assert boxes[index].tolist() == numbers[f"region/crop{index}_box_x0y0x1y1"].tolist()
        cut, inside = blank_outside(image, masks[index], MEAN)
        torch.testing.assert_close(cut, numbers[f"region/crop{index}"], atol=1e-4, rtol=0)
        assert torch.equal(inside.float(), numbers[f"region/crop{index}_mask"][0])
    seen = numbers["region/regions_normalised_subsampled_28"]
    torch.testing.assert_close(found[:, :, 4::8, 4::8], seen, atol=1e-5, rtol=1e-5)
    mean, std = numbers["region/regions_normalised_mean_std"].tolist()
    assert found.mean().item() == pytest.approx(mean, abs=1e-5)
    assert found.std(correction=0).item() == pytest.approx(std, abs=1e-4)


def test_golden_masks_of_regions_for_mask_prompts(numbers):
    image, threshold = numbers["region/image"], float(numbers["region/mask_thr"])
    masks = numbers["region/mask_probability"] > threshold
    plain, _ = region_inputs(image, masks, OPENAI)
    found, valid = region_inputs(image, masks, OPENAI, masked=True)
    assert torch.equal(found[:, :3], plain)
    assert torch.equal(found[:, 3:, 4::8, 4::8], numbers["region/region_masks_subsampled_28"])
    for index, region in zip(np.flatnonzero(valid), found, strict=True):
        pixels = region_pixels(image, masks[index], 224, MEAN, masked=True)
        assert torch.equal(pixels[:3], region_pixels(image, masks[index], 224, MEAN))
        assert torch.equal(OPENAI.normalize(pixels[None])[0, 3], region[3])
        assert torch.equal(OPENAI.normalize(pixels[None], fused=True)[0, 3].round(), region[3])
    for number in (0, 1):  # where the authors' code ends in an error
        few, _ = region_inputs(image, masks[:number], OPENAI, masked=True)
        assert few.shape == (number, 4, 224, 224)


def test_golden_box_grows_around_its_centre(numbers):
    expected = numbers["region/expand_box_in_3_2_12_9_ratio1p5"].tolist()
    assert list(expand_box((3, 2, 12, 9), 1.5)) == expected
    assert list(expand_box((3, 2, 12, 9), 1.5, (24, 20))) == (
        numbers["region/expand_box_clipped"].tolist()
    )
    assert expand_box((3, 2, 12, 9), 1.5, (13, 8)) == (0, 0, 13, 8)


@pytest.mark.parametrize("name", ["w045", "w060", "w070", "w100", "no_clip", "w000"])
def test_golden_fusion(numbers, name):
    proposed = numbers["fuse/mask_class_logits_Q_Cplus1"].softmax(1)[:, :-1]
    clip = numbers["fuse/clip_logits_valid_Cplus1"][:, :-1].softmax(1)
    valid, masks = numbers["fuse/valid"], numbers["fuse/mask_logits_Q_h_w"].sigmoid()
    if name == "w000":  # OVSeg's word for CLIP alone
        scores = fuse(clip, valid)
    elif name == "no_clip":
        scores = fuse(clip, valid, proposed, 0.0)
    else:
        scores = fuse(clip, valid, proposed, int(name[1:]) / 100)
    expected = numbers[f"fuse/semseg_{name}"]
    torch.testing.assert_close(pixel_scores(scores, masks), expected, atol=1e-5, rtol=1e-5)
    best = label_map(scores, masks, tuple(masks.shape[1:]))
    np.testing.assert_array_equal(best, expected.argmax(0).numpy())


def test_masks_may_be_smaller_than_the_image():
    random = torch.Generator().manual_seed(0)
    scores, masks = torch.rand(4, 3, generator=random), torch.rand(4, 5, 6, generator=random)
    late = torch.nn.functional.interpolate(
        pixel_scores(scores, masks)[None], (20, 24), mode="bilinear", align_corners=False
    )[0]
    np.testing.assert_array_equal(label_map(scores, masks, (20, 24)), late.argmax(0).numpy())


def test_label_map_in_strips_is_the_same_and_uncovered_pixels_are_nothing(monkeypatch):
    masks = torch.zeros(2, 9, 8, dtype=torch.bool)
    masks[0, :4, :4], masks[1, 3:, 2:] = True, True
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]])
    whole = label_map(scores, masks, (9, 8))
    monkeypatch.setattr("perdure.regions._BUDGET", 3 * 11)
    np.testing.assert_array_equal(label_map(scores, masks, (9, 8)), whole)
    assert whole[0, 0] == 0
    assert whole[8, 7] == 2
    assert whole[3, 3] == 0  # 0.9 + 0.2
    assert whole[0, 7] == 3  # under no mask
    assert (label_map(scores[:0], masks[:0], (9, 8)) == 3).all()


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
def test_a_box_holds_its_mask_and_no_more(seed, height, width):
    masks = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) > 0.7
    for mask, box in zip(masks, tight_boxes(masks), strict=True):
        left, top, right, bottom = box.tolist()
        assert mask[top:bottom, left:right].sum() == mask.sum()
        if mask.any():
            inner = mask[top:bottom, left:right]
            assert inner[0].any()
            assert inner[-1].any()
            assert inner[:, 0].any()
            assert inner[:, -1].any()
        else:
            assert box.tolist() == [0, 0, 0, 0]


def test_a_full_mask_is_the_stretched_image_and_wider_boxes_see_more():
    image = torch.randint(0, 256, (3, 10, 12), generator=torch.Generator().manual_seed(1))
    image = image.to(torch.uint8)
    everything = torch.ones(1, 10, 12, dtype=torch.bool)
    small = Preprocess(8, MEAN, STD)
    found, _ = region_inputs(image, everything, small)
    torch.testing.assert_close(found[0], small.normalize(stretch(image.float(), 8)))
    mask = torch.zeros(10, 12, dtype=torch.bool)
    mask[4:6, 5:9] = True
    assert blank_outside(image, mask, MEAN)[0].shape == (3, 2, 4)
    assert blank_outside(image, mask, MEAN, expand=2.0)[0].shape == (3, 4, 8)
    none, valid = region_inputs(image, torch.zeros(2, 10, 12, dtype=torch.bool), small)
    assert none.shape == (0, 3, 8, 8)
    assert not valid.any()


def test_ends_of_the_fusion():
    clip, proposed = torch.tensor([[0.7, 0.3]]), torch.tensor([[0.2, 0.8], [0.5, 0.4]])
    valid = torch.tensor([True, False])
    assert torch.equal(fuse(clip, valid, proposed, 0.0), proposed)
    assert torch.equal(fuse(clip, valid, proposed, 1.0), torch.tensor([[0.7, 0.3], [1.0, 1.0]]))
    with pytest.raises(DataError, match=r"weight of CLIP is 1\.5"):
        fuse(clip, valid, proposed, 1.5)
    with pytest.raises(DataError, match="1 rows of CLIP do not fit 2 regions"):
        fuse(clip, torch.tensor([True, True]), proposed)
