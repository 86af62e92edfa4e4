"""The small language of EmojiShift: names, styles, colours, and how they become captions."""

from collections.abc import Sequence

from .sprites import CONCEPTS, GROUPS, VENDORS

TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "an image of the {}",
    "a rendering of a {}",
    "a {}",
)
"""Prompts of a class head, averaged; one is sampled per image in contrastive fine-tuning"""

PHRASES = (
    "a photo of a {}",
    "a picture of a {}",
    "{}",
    "a {}",
    "an image of the {}",
    "one {}",
    "a good picture of a {}",
    "a rendering of a {}",
)
STYLE_PHRASE = "a {style} of a {name}"
PAIR_PHRASES = ("a {} and a {}", "a {} next to a {}", "a picture of a {} with a {}")
BACKGROUND_PHRASE = "{caption} on a {colour} background"

STYLES = {
    "noto": ("glossy picture", "shiny icon"),
    "noto-v1": ("rounded drawing", "old icon"),
    "twemoji": ("flat sticker", "flat drawing"),
    "emojione": ("soft drawing", "classic sticker"),
    "fluent": ("shaded render", "glowing picture"),
    "fluent-flat": ("paper cutout", "poster drawing"),
    "monotone": ("stencil", "black print"),
    "line": ("line art", "black and white icon"),
}

COLOURS = {
    "red": (0.85, 0.2, 0.2),
    "orange": (0.95, 0.55, 0.15),
    "yellow": (0.95, 0.87, 0.3),
    "green": (0.25, 0.65, 0.3),
    "teal": (0.2, 0.65, 0.65),
    "blue": (0.25, 0.4, 0.85),
    "purple": (0.55, 0.3, 0.7),
    "pink": (0.95, 0.6, 0.75),
    "brown": (0.5, 0.35, 0.22),
    "white": (0.93, 0.93, 0.93),
    "grey": (0.55, 0.55, 0.55),
    "black": (0.12, 0.12, 0.12),
}
"""Named background colours, RGB in [0, 1]"""

HYPERNYMS = {
    "food": "food",
    "drink": "drink",
    "flower": "flower",
    "clothing": "piece of clothing",
    "sport": "sport",
    "animal": "animal",
    "vehicle": "vehicle",
    "tool": "tool",
    "building": "building",
    "thing": "thing",
    "place": "view",
}

DRAWS = 8
"""Uniform numbers that one caption consumes"""

WRONG_NAME, HYPERNYM, STYLED, COLOURED = 0.03, 0.08, 0.35, 0.3


def pick(options: Sequence[str], draw: float) -> str:
    """Return the option that a uniform number in [0, 1) falls on."""
    return options[int(draw * len(options))]


def caption(
    draws: Sequence[float], concept: int, vendor: int, colour: str | None, second: int | None
) -> str:
    """Return a web-like caption for a pre-training image, with its occasional mistakes.

    Args:
        draws: `DRAWS` uniform numbers in [0, 1).
        concept: Index into `CONCEPTS`.
        vendor: Index into `VENDORS`; only its style is spoken of.
        colour: Name of a plain background's colour, else None.
        second: Concept of a second object, else None.
    """
    name = CONCEPTS[concept]
    if second is not None:
        text = pick(PAIR_PHRASES, draws[0]).format(name, CONCEPTS[second])
    else:
        if draws[1] < WRONG_NAME:
            name = pick(CONCEPTS, draws[2])
        elif draws[1] < WRONG_NAME + HYPERNYM:
            name = HYPERNYMS[GROUPS[name]]
        if draws[3] < STYLED:
            style = pick(STYLES[VENDORS[vendor]], draws[4])
            text = STYLE_PHRASE.format(style=style, name=name)
        else:
            text = pick(PHRASES, draws[5]).format(name)
    if colour is not None and draws[6] < COLOURED:
        text = BACKGROUND_PHRASE.format(caption=text, colour=colour)
    return text


def corpus() -> list[tuple[str, int]]:
    """Return the texts of this world and how much each counts when a vocabulary is learnt."""
    phrases = [*TEMPLATES, *PHRASES, *PAIR_PHRASES, STYLE_PHRASE, BACKGROUND_PHRASE]
    texts = [(phrase.replace("name", "").replace("style", ""), 40) for phrase in phrases]
    texts += [(style, 20) for styles in STYLES.values() for style in styles]
    texts += [(word, 20) for word in [*COLOURS, *HYPERNYMS.values()]]
    texts += [(name, 10) for name in CONCEPTS]
    return texts
