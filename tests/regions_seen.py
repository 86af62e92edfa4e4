"""Images as a model sees them: with a mask behind them where it takes masks."""

from __future__ import annotations

import torch
from torch import Tensor

from perdure.predictor import Predictor


def as_seen(images: Tensor, model: Predictor) -> Tensor:
    """Return images (B, 3, H, W), with their upper halves as masked regions if the model wants."""
    if not model.takes_masks:
        return images
    masks = torch.zeros_like(images[:, :1])
    masks[:, :, : images.shape[2] // 2] = 1
    return torch.cat([images, masks], dim=1)
