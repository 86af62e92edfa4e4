"""Regions of an image under masks: cut out, scored, and put back as a label map.

The pipeline is that of OVSeg (Liang et al. 2023, arXiv 2210.04150, section 3): what lies outside a
mask becomes CLIP's mean colour, the tight box is stretched to the model's square, and CLIP's
probabilities meet those of whatever proposed the masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from .errors import DataError
from .inputs import Preprocess

_BUDGET = 1 << 23
"""Class scores of pixels in memory at a time"""


def tight_boxes(masks: Tensor) -> Tensor:
    """Return the smallest boxes around masks, (Q, 4): left, top, and exclusive right, bottom.

    Args:
        masks: (Q, H, W), bool. An empty one has the box 0, 0, 0, 0.
    """
    edges = []
    for axis in (1, 2):  # of columns, then rows
        seen = masks.any(dim=axis)
        length = seen.shape[1]
        first = seen.int().argmax(dim=1)
        last = length - seen.flip(1).int().argmax(dim=1)
        some = seen.any(dim=1)
        edges.append((first * some, last * some))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1)


def expand_box(
    box: Sequence[int], ratio: float, size: tuple[int, int] | None = None
) -> tuple[int, int, int, int]:
    """Enlarge a box around its centre; corners are cut off to whole pixels.

    Args:
        box: Left, top, right, bottom.
        ratio: Of the new sides to the old.
        size: Width and height that the box stays within; None for no limit but 0 at the left and
            top.
    """
    left, top, right, bottom = box
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    half_x, half_y = (right - left) * ratio / 2, (bottom - top) * ratio / 2
    x0, y0 = max(int(middle_x - half_x), 0), max(int(middle_y - half_y), 0)
    x1, y1 = int(middle_x + half_x), int(middle_y + half_y)
    if size is not None:
        x1, y1 = min(x1, size[0]), min(y1, size[1])
    return x0, y0, x1, y1


def blank_outside(
    image: Tensor, mask: Tensor, mean: Sequence[float], *, expand: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cut the box of a mask out of an image, with the mean colour outside the mask.

    Args:
        image: (3, H, W), 0 to 255.
        mask: (H, W), bool, not empty.
        mean: Per channel, on the scale of 0 to 1.
        expand: Sides of the box, as a multiple of the tight one's.

    Returns:
        The cut-out, float (3, h, w), 0 to 255, and its mask (h, w).
    """
    left, top, right, bottom = (int(edge) for edge in tight_boxes(mask[None])[0])
    if expand != 1.0:
        height, width = mask.shape
        left, top, right, bottom = expand_box((left, top, right, bottom), expand, (width, height))
    inside = mask[top:bottom, left:right]
    colour = 255.0 * torch.tensor(mean, dtype=torch.float32)[:, None, None]
    return torch.where(inside, image[:, top:bottom, left:right].float(), colour), inside


def stretch(region: Tensor, size: int) -> Tensor:
    """Resize a cut-out (3, h, w) to a square, whatever its aspect, as OVSeg does: (3, S, S).

    Bicubic without smoothing; values may overshoot their range a little.
    """
    return interpolate(region[None], (size, size), mode="bicubic", align_corners=False)[0]


def stretch_mask(mask: Tensor, size: int) -> Tensor:
    """Resize a mask (h, w), bool, to a square by its nearest pixels, (1, S, S), float, 0 or 1."""
    return interpolate(mask[None, None].float(), (size, size), mode="nearest")[0]


def region_pixels(
    image: Tensor, mask: Tensor, size: int, mean: Sequence[float], *, masked: bool = False
) -> Tensor:
    """Return one region as an image to train on, (3, S, S), uint8.

    Args:
        image: (3, H, W), uint8.
        mask: (H, W), bool, not empty.
        size: Side of the model's square.
        mean: Colour outside the mask, per channel, on the scale of 0 to 1.
        masked: Add the mask as a fourth channel, 0 or 255: (4, S, S).
    """
    region, inside = blank_outside(image, mask, mean)
    pixels = stretch(region, size).round().clamp(0, 255)
    if masked:
        pixels = torch.cat([pixels, 255 * stretch_mask(inside, size)])
    return pixels.to(torch.uint8)


def region_inputs(
    image: Tensor,
    masks: Tensor,
    preprocess: Preprocess,
    *,
    expand: float = 1.0,
    masked: bool = False,
) -> tuple[Tensor, NDArray[np.bool_]]:
    """Return what the image tower sees of every region, and which masks are not empty.

    Args:
        image: (3, H, W), uint8.
        masks: (Q, H, W), bool.
        preprocess: Of the model.
        expand: As in `blank_outside`.
        masked: Add masks as a fourth channel, 0 or 1, for models with mask prompts.

    Returns:
        Normalised regions (V, 3, S, S), or (V, 4, S, S), of the V masks that are not empty, and
        (Q,).
    """
    valid = masks.flatten(1).any(dim=1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    size = preprocess.size
    rows = [torch.empty(0, 3 + masked, size, size)]
    for mask in masks[valid]:
        region, inside = blank_outside(image, mask, preprocess.mean, expand=expand)
        channels = [stretch((region / 255 - mean) / std, size)]
        channels += [stretch_mask(inside, size)] * masked
        rows.append(torch.cat(channels)[None])
    return torch.cat(rows), valid.numpy()


def fuse(
    clip: Tensor, valid: Tensor, proposed: Tensor | None = None, weight: float = 0.7
) -> Tensor:
    """Combine what CLIP and the proposing model say of Q masks over C classes, (Q, C).

    p = p_mask^(1 - weight) * p_clip^weight; regions CLIP has not seen have p_clip = 1. Without
    probabilities of the proposing model, p = p_clip, and 0 for those regions; OVSeg's code calls
    this a weight of 0, which here is the other end: the proposing model alone.

    Args:
        clip: Probabilities of the V valid masks, (V, C).
        valid: (Q,), bool.
        proposed: Probabilities of all masks, (Q, C), which may sum to less than 1 where one class
            was "no object".
        weight: Of CLIP, in [0, 1].

    Raises:
        DataError: If the weight is out of range or shapes do not fit.

    Source: Liang et al. 2023, arXiv 2210.04150, section 3, whose weights differ per data set.
    """
    if not 0 <= weight <= 1:
        raise DataError(f"the weight of CLIP is {weight}; it must lie in [0, 1].")
    if len(clip) != int(valid.sum()) or (proposed is not None and len(proposed) != len(valid)):
        raise DataError(
            f"{len(clip)} rows of CLIP do not fit {int(valid.sum())} regions of {len(valid)} masks"
            + (f", of which {len(proposed)} have classes." if proposed is not None else ".")
        )
    if proposed is None:
        found = clip.new_zeros(len(valid), clip.shape[1])
        found[valid] = clip
        return found
    seen = torch.ones_like(proposed)
    seen[valid] = clip.to(proposed.dtype)
    return proposed ** (1 - weight) * seen**weight


def pixel_scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Return the score of every class at every pixel, (C, H, W): sum_q p_qc m_q.

    Args:
        classes: (Q, C).
        masks: (Q, H, W), in [0, 1].

    Source: Cheng et al. 2021, arXiv 2107.06278, section 3.4.
    """
    return torch.einsum("qc,qhw->chw", classes, masks.to(classes.dtype))


def label_map(classes: Tensor, masks: Tensor, size: tuple[int, int]) -> NDArray[np.int64]:
    """Return the best class of every pixel, (H, W); C where all scores are 0.

    Needs the scores of few pixels at a time, however many classes there are.

    Args:
        classes: (Q, C).
        masks: (Q, h, w), in [0, 1]; brought to the image's size, which gives the same scores as
            doing so afterwards, because both steps are linear.
        size: Of the image, (H, W).
    """
    if not len(masks):
        return np.full(size, classes.shape[1], dtype=np.int64)
    if tuple(masks.shape[1:]) != size:
        masks = interpolate(masks[None].float(), size, mode="bilinear", align_corners=False)[0]
    flat = masks.flatten(1).T.to(classes.dtype)  # classes last: the best of a row is found fast
    rows = max(1, _BUDGET // max(1, classes.shape[1]))
    parts = []
    for part in torch.split(flat, rows):
        best, which = (part @ classes).max(dim=1)
        parts.append(torch.where(best > 0, which, classes.shape[1]))
    whole: NDArray[np.int64] = torch.cat(parts).view(size).cpu().numpy()
    return whole
