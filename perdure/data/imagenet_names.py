"""ImageNet's class names, synsets and the classes of its variants, as data. Imports no torch.

They are read out of the files of open_clip and timm, which perdure needs anyway, without importing
these packages: that would take seconds and import torch.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from ..errors import DependencyError


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError(
            f"ImageNet's names come with {package}, which is not installed. Install it with: "
            "pip install perdure"
        )
    return Path(spec.submodule_search_locations[0])


@lru_cache(maxsize=1)
def open_clip_texts() -> Any:
    """Return open_clip's module of class names and prompts, alone."""
    file = _folder("open_clip") / "zero_shot_metadata.py"
    spec = spec_from_file_location("_perdure_zero_shot_metadata", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise DependencyError(
            f"the installed open_clip has no {file.name}. Install it again: "
            "pip install --upgrade open_clip_torch"
        )
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=8)
def _lines(name: str) -> tuple[str, ...]:
    return tuple(_info(name).read_text(encoding="utf-8").split())


def _info(name: str) -> Path:
    file = _folder("timm") / "data" / "_info" / name
    if not file.is_file():
        raise DependencyError(
            f"the installed timm has no {name}. Install it again: pip install --upgrade timm"
        )
    return file


def names() -> tuple[str, ...]:
    """Return OpenAI's 1,000 class names; two of them stand twice, "missile" and "sunglasses".

    Source: Radford et al. 2021, arXiv 2103.00020, as open_clip has them.
    """
    return tuple(open_clip_texts().IMAGENET_CLASSNAMES)


def synsets() -> tuple[str, ...]:
    """Return the 1,000 folder names in the order of the labels, which is sorted."""
    return _lines("imagenet_synsets.txt")


def members(variant: str) -> tuple[int, ...]:
    """Return the labels that ImageNet-"a" or "r" has pictures of, ascending."""
    return tuple(int(line) for line in _lines(f"imagenet_{variant}_indices.txt"))


def real_labels() -> tuple[tuple[int, ...], ...]:
    """Return the labels that people accept for each of the 50,000 validation pictures.

    Source: Beyer et al. 2020, arXiv 2006.07159, as timm has them.
    """
    found = json.loads(_info("imagenet_real_labels.json").read_text(encoding="utf-8"))
    return tuple(tuple(int(label) for label in labels) for labels in found)
