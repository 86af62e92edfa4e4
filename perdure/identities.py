"""What recipe and merge documents say a run is: its method, seed, settings. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .recipe import ASIDE, HOW

_LATER = {"data.transform": "exact"}
"""Keys that recipes of older versions lack, and the value that says what those did"""


def key_of(settings: Mapping[str, Any]) -> str:
    """Return settings as canonical text."""
    return json.dumps(settings, sort_keys=True, default=str)


def identity(document: Mapping[str, Any]) -> tuple[str, float | None, int | None, dict[str, Any]]:
    """Return method, interpolation share, seed, and settings of a recipe or merge document."""
    if "kind" in document:
        inputs = [identity(origin_of(entry)) for entry in document["inputs"]]
        seeds = {seed for _, _, seed, _ in inputs if seed is not None}
        methods = [method for method, _, _, _ in inputs if method != "zero-shot"]
        kind = str(document["kind"])
        settings: dict[str, Any] = {
            "alpha": None,
            "shares": None,
            **{key: value for key, value in document.items() if key != "greedy"},
            # A soup of three seeds is one thing, whatever the seeds: members in any order.
            "inputs": sorted(key_of(inner) for _, _, _, inner in inputs),
        }
        method = kind
        if methods and kind not in ("soup", "zero-shot", "checkpoint"):
            method = methods[-1] if kind == "wise-ft" else f"{methods[-1]} + {kind}"
        alpha = document.get("alpha") if kind == "wise-ft" else None
        return method, alpha, seeds.pop() if len(seeds) == 1 else None, settings
    if "method" in document:
        flat = _flatten({key: part for key, part in document.items() if key not in ASIDE})
        for key in ("seed", *(f"run.{name}" for name in HOW)):
            flat.pop(key, None)
        for key, value in _LATER.items():
            if flat.get(key) == value:
                del flat[key]
        seed = document.get("seed")
        return str(document["method"]["name"]), None, seed, flat
    named = str(document.get("model"))  # as the documents of untouched models have it
    foreign = "@" in named and not named.startswith("hf-hub:")
    return "checkpoint" if foreign else "zero-shot", None, None, _flatten(document)


def cached_views(document: Mapping[str, Any]) -> tuple[int, ...]:
    """Return how many fixed views of each image stood for augmentation that is new in every epoch.

    Args:
        document: Recipe, or merge document, whose inputs are looked at.

    Returns:
        The numbers, ascending; empty where no run had any.
    """
    if "kind" in document:
        each = [cached_views(origin_of(entry)) for entry in document["inputs"]]
        return tuple(sorted({views for found in each for views in found}))
    data = document.get("data")
    views = data.get("views") if isinstance(data, Mapping) else None
    return () if views is None else (int(views),)


def origin_of(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the recipe or merge document that an input of a merge came from, or its name."""
    for word in ("recipe", "merge"):
        if entry.get(word):
            found: Mapping[str, Any] = entry[word]
            return found
    return {"model": entry.get("model") or entry.get("subject")}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as dotted keys; the seed in the name of a run directory is removed."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        elif isinstance(value, str):
            flat[prefix + key] = re.sub(r"seed-\d+", "seed-*", value)
        else:
            flat[prefix + key] = value
    return flat
