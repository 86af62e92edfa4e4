"""Prompts that have a name, because publications share them, whatever the data set.

OpenAI's come from open_clip's file of texts, read when a set is asked for; short ones are in
`names/prompts.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from .imagenet_names import open_clip_texts

_FAINT = ("small", "vague", "distant", "partially visible", "hidden", "faint")
"""What TRACER's code adds, in its order"""


def openai_80() -> tuple[str, ...]:
    """Return the 80 prompts of OpenAI for ImageNet, in their order.

    Source: Radford et al. 2021, arXiv 2103.00020, as open_clip has them.
    """
    return tuple(template("{}") for template in open_clip_texts().OPENAI_IMAGENET_TEMPLATES)


def simple_7() -> tuple[str, ...]:
    """Return the 7 prompts of OpenAI that do nearly as well.

    Source: notes in the public code of arXiv 2103.00020, as open_clip has them.
    """
    return tuple(template("{}") for template in open_clip_texts().SIMPLE_IMAGENET_TEMPLATES)


def tracer_86() -> tuple[str, ...]:
    """Return OpenAI's 80 prompts and the six of TRACER's code, which its paper does not name.

    Source: the authors' code of arXiv 2605.29380.
    """
    return (*openai_80(), *(f"a photo containing a {word} {{}}." for word in _FAINT))


def _listed(texts: list[str]) -> Callable[[], tuple[str, ...]]:
    return lambda: tuple(texts)


_LISTS: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent / "names" / "prompts.yaml").read_text(encoding="utf-8")
)

SETS: dict[str, Callable[[], tuple[str, ...]]] = {
    "openai-80": openai_80,
    "simple-7": simple_7,
    "tracer-86": tracer_86,
    # A set that is called as its data set is found under that name already.
    **{name: _listed(texts) for name, texts in _LISTS["sets"].items()},
}
"""Every named set by its name in `data.templates` of a recipe."""

SET_OF: dict[str, str] = dict(_LISTS["of"])
"""Published data set to the set that it has by default"""
