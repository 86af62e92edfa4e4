"""The small random CLIP on which the golden numbers of prompt learners and MERGETUNE were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perdure import building
from perdure.inputs import OpenClipTokenizer, Preprocess
from perdure.predictor import ModelSource, Predictor

CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {
        "layers": 2, "width": 64, "head_width": 64, "patch_size": 16, "image_size": 32,
    },
    "text_cfg": {
        "layers": 2, "width": 32, "heads": 2, "context_length": 77, "vocab_size": 49408,
    },
}  # fmt: skip


def golden_clip(numbers: Mapping[str, NDArray[Any]]) -> Predictor:
    """Return the model, as open_clip builds it, with CLIP's vocabulary, in evaluation mode.

    Args:
        numbers: Contents of `mergetune_tinyclip.npz`. Only the rows of token ids that occur in
            the golden prompts are there; all others are not a number.
    """
    clip = building.build(CONFIG)
    state = {
        name: torch.from_numpy(np.array(value))
        for name, value in numbers.items()
        if name != "config" and not name.startswith("token_embedding.")
    }
    table = torch.full((49408, 32), float("nan"))
    ids = torch.from_numpy(np.array(numbers["token_embedding.used_ids"]))
    table[ids] = torch.from_numpy(np.array(numbers["token_embedding.used_rows"]))
    state["token_embedding.weight"] = table
    building.fill(clip, state, "mergetune_tinyclip.npz")
    source = ModelSource("golden-clip", "", {"model_cfg": CONFIG, "preprocess_cfg": {}})
    pixels = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Predictor(clip, OpenClipTokenizer("clip", 77), pixels, source).eval()
