"""Prompts that have a name, because publications share them, whatever the data set.

The texts come from open_clip, which is imported when a set is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

_FAINT = ("small", "vague", "distant", "partially visible", "hidden", "faint")
"""What TRACER's code adds, in its order"""


def openai_80() -> tuple[str, ...]:
    """Return the 80 prompts of OpenAI for ImageNet, in their order.

    Source: Radford et al. 2021, arXiv 2103.00020, as open_clip has them.
    """
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def tracer_86() -> tuple[str, ...]:
    """Return OpenAI's 80 prompts and the six of TRACER's code, which its paper does not name.

    Source: the authors' code of arXiv 2605.29380.
    """
    return (*openai_80(), *(f"a photo containing a {word} {{}}." for word in _FAINT))


SETS: dict[str, Callable[[], tuple[str, ...]]] = {
    "openai-80": openai_80,
    "tracer-86": tracer_86,
}
"""Every named set by its name in `data.templates` of a recipe."""
