"""EmojiShift's renderer: sprites on procedural backgrounds under random nuisances.

An image is a pure function of its key and of what `Scenes` says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .paint import Draws, backgrounds, blur, coordinates, over, place, rotate_hue, take_sprites
from .sprites import covered

CANVAS = 40
"""Pixels per side of an image"""

CORRUPTIONS = (
    "gaussian",
    "impulse",
    "blur",
    "pixelate",
    "contrast",
    "fog",
    "posterise",
    "grey",
    "hue",
)


@dataclass(frozen=True)
class Preset:
    """How hard a scene is. Ranges of uniform draws unless said otherwise."""

    scale: tuple[float, float]
    """Side of the sprite's box as a share of the canvas"""
    rotation: float
    """Largest angle either way, in degrees"""
    hue: float
    """Largest hue rotation either way, in units of pi"""
    clutter: float
    """Probability of small sprites near the border"""
    occluder: float
    """Probability of a rectangle in front"""
    kinds: tuple[float, float, float, float]
    """Probabilities of `KINDS`"""
    shift: float = 0.18
    """Largest offset of the centre, in half canvas widths"""
    noise: float = 0.06
    """Largest standard deviation of the pixel noise"""
    pale: bool = False
    """Backgrounds like paper"""


PRESETS = {
    "pre": Preset((0.55, 1.0), 25, 0.15, 0.25, 0.15, (0.25, 0.2, 0.4, 0.15)),
    "id": Preset((0.5, 0.95), 25, 0.15, 0.35, 0.25, (0.05, 0.15, 0.7, 0.1), noise=0.05),
    "clean": Preset((0.55, 1.0), 25, 0.15, 0.15, 0.1, (0.5, 0.3, 0.1, 0.1)),
    "paper": Preset((0.55, 1.0), 25, 0.0, 0.1, 0.1, (0.8, 0.15, 0.05, 0.0), pale=True),
    "hard": Preset((0.45, 0.75), 45, 0.15, 0.8, 0.5, (0.0, 0.1, 0.6, 0.3), shift=0.3, noise=0.08),
    "easy": Preset((0.8, 1.0), 8, 0.03, 0.0, 0.0, (0.7, 0.2, 0.1, 0.0), shift=0.08, noise=0.03),
    "plain": Preset((0.55, 1.0), 25, 0.15, 0.15, 0.1, (1.0, 0.0, 0.0, 0.0)),
}
PRESET_NAMES = tuple(PRESETS)


class Scenes(NamedTuple):
    """What N images show; everything else is drawn from `keys`."""

    keys: Sequence[int]
    """(N,), below 2**128"""
    vendors: NDArray[np.int64]
    """(N,)"""
    concepts: NDArray[np.int64]
    """(N,)"""
    presets: NDArray[np.int64]
    """(N,), index into `PRESET_NAMES`"""
    seconds: NDArray[np.int64]
    """(N,), concept of a second object beside the first, or -1"""
    corruptions: NDArray[np.int64]
    """(N,), index into `CORRUPTIONS`, or -1"""


class Rendered(NamedTuple):
    """Images and what a caption may say about them."""

    images: Tensor
    """(N, 3, H, W), uint8"""
    masks: Tensor
    """(N, H, W), bool: where the first object covers more than half of a pixel"""
    colours: list[str | None]
    """Name of the background's colour if it is plain and named"""


def clutter(draws: Draws, probability: Tensor, canvas: Tensor, rotation: Tensor) -> Tensor:
    """Lay up to two small sprites, drawn from covered cells only, near the border."""
    vendors, concepts = np.nonzero(covered())
    size = canvas.shape[-1]
    first = draws.take()
    for share in (1.0, 0.5):
        cell = (draws.take() * len(vendors)).long().numpy()
        small = functional.avg_pool2d(take_sprites(vendors[cell], concepts[cell]), 2)
        edge, along = draws.between(0.65, 0.95), draws.between(-0.95, 0.95)
        side = (draws.take() * 4).long()
        edge = torch.where(side % 2 == 0, edge, -edge)
        x, y = torch.where(side < 2, edge, along), torch.where(side < 2, along, edge)
        layer = place(small, size, draws.between(0.2, 0.35), x, y, draws, rotation)
        shown = (first < probability * share).float()[:, None, None, None]
        canvas = over(layer * shown, canvas)
    return canvas


def corrupt(images: Tensor, kinds: NDArray[np.int64], draws: Draws, noise: Tensor) -> Tensor:
    """Damage images (N, 3, H, W) in [0, 1] by the corruption each asks for; -1 leaves it alone."""
    angle = draws.between(0.4 * math.pi, 1.6 * math.pi)
    images = images.clone()
    size = images.shape[-1]
    for kind in sorted({int(kind) for kind in kinds} - {-1}):
        rows = torch.from_numpy(np.nonzero(kinds == kind)[0])
        part = images[rows]
        if CORRUPTIONS[kind] == "gaussian":
            part = part + 0.2 * draws.normal[rows]
        elif CORRUPTIONS[kind] == "impulse":
            pepper = draws.pepper[rows]
            part = torch.where(pepper < 0.07, 0.0, torch.where(pepper > 0.93, 1.0, part))
        elif CORRUPTIONS[kind] == "blur":
            part = blur(part, 5)
        elif CORRUPTIONS[kind] == "pixelate":
            part = functional.interpolate(
                functional.interpolate(part, (14, 14), mode="area"), (size, size)
            )
        elif CORRUPTIONS[kind] == "contrast":
            part = (part - part.mean((1, 2, 3), keepdim=True)) * 0.3 + 0.5
        elif CORRUPTIONS[kind] == "fog":
            part = 0.4 * part + 0.6 * (0.6 + 0.4 * noise[rows])
        elif CORRUPTIONS[kind] == "posterise":
            part = (part.clamp(0, 1) * 3).round() / 3
        elif CORRUPTIONS[kind] == "grey":
            part = part.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        else:
            part = rotate_hue(part, angle[rows])
        images[rows] = part
    return images


def render(scenes: Scenes, size: int = CANVAS) -> Rendered:
    """Draw N scenes. About 0.6 ms of one core each at 40 pixels."""
    draws = Draws(scenes.keys, size)
    chosen = [PRESETS[PRESET_NAMES[int(index)]] for index in scenes.presets]

    def each(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)

    pale = torch.tensor([preset.pale for preset in chosen])
    rotation = each([math.radians(preset.rotation) for preset in chosen])
    kinds = torch.tensor([preset.kinds for preset in chosen]).cumsum(1)
    canvas, noise, colours = backgrounds(draws, kinds, pale, size)
    canvas = clutter(draws, each([preset.clutter for preset in chosen]), canvas, rotation)

    pair = torch.from_numpy(scenes.seconds >= 0)
    scale = draws.between(
        each([preset.scale[0] for preset in chosen]), each([preset.scale[1] for preset in chosen])
    )
    scale = torch.where(pair, 0.55 * scale, scale)
    shift = each([preset.shift for preset in chosen]) * torch.where(pair, 0.4, 1.0)
    side = torch.where(draws.take() < 0.5, 0.45, -0.45) * pair
    hue = each([preset.hue * math.pi for preset in chosen])
    layers = []
    for concepts, offset in ((np.maximum(scenes.seconds, 0), -side), (scenes.concepts, side)):
        x, y = draws.between(-shift, shift) + offset, draws.between(-shift, shift)
        layer = place(take_sprites(scenes.vendors, concepts), size, scale, x, y, draws, rotation)
        colour = rotate_hue(layer[:, :3], draws.between(-hue, hue)).clamp(min=0)
        layers.append(torch.cat([torch.minimum(colour, layer[:, 3:]), layer[:, 3:]], dim=1))
    layers[0] = layers[0] * pair[:, None, None, None]
    strength = torch.where(draws.take() < 0.4, 0.35, 0.0)[:, None, None, None]
    for layer in layers:
        shadow = functional.avg_pool2d(
            functional.pad(layer[:, 3:], (4, 0, 4, 0))[..., :size, :size], 5, 1, 2
        )
        canvas = over(layer, canvas * (1 - strength * shadow))
    masks = layers[1][:, 3] > 0.5

    x, y = coordinates(size)
    centre_x, centre_y = draws.between(-0.8, 0.8), draws.between(-0.8, 0.8)
    wide, high = draws.between(0.1, 0.35), draws.between(0.1, 0.35)
    inside = ((x - centre_x[:, None, None]).abs() < wide[:, None, None]) & (
        (y - centre_y[:, None, None]).abs() < high[:, None, None]
    )
    shown = draws.take() < each([preset.occluder for preset in chosen])
    inside = inside & shown[:, None, None]
    canvas = torch.where(inside[:, None], draws.colour()[:, :, None, None], canvas)

    contrast, brightness = draws.between(0.75, 1.25), draws.between(-0.15, 0.15)
    canvas = (canvas - 0.5) * contrast[:, None, None, None] + 0.5
    canvas = canvas + brightness[:, None, None, None]
    grey = (draws.take() < 0.05)[:, None, None, None]
    canvas = torch.where(grey, canvas.mean(1, keepdim=True), canvas)
    soft = (draws.take() < 0.3)[:, None, None, None]
    canvas = torch.where(soft, blur(canvas, 3), canvas)
    sigma = draws.take() * each([preset.noise for preset in chosen])
    canvas = (canvas + sigma[:, None, None, None] * draws.normal).clamp(0, 1)
    canvas = corrupt(canvas, scenes.corruptions, draws, noise)
    images = (canvas.clamp(0, 1) * 255).round().to(torch.uint8)
    return Rendered(images, masks & ~inside, colours)
