"""Clips as the mean of their frames, with an optional look along time.

The mean needs nothing but the image tower, so a folded model stays what it is and costs nothing
more; but it cannot tell a clip from the same clip played backwards. `Temporal` can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import SurgeryError, TaskError
from .predictor import Predictor


class Temporal(nn.Module):
    """A depth-wise convolution over frames beside the frames' own features; starts as nothing.

    x + alpha * gelu(conv(x)), where the convolution looks at `kernel` neighbours of each feature
    and starts at zero. The first and the last frame are repeated beyond the ends, so that a
    clip of one frame has neighbours too. It mixes frames, which no layer of an image tower does,
    and can therefore not be folded; alpha weakens it like whatever was folded.

    Args:
        width: Of the features, D.
        kernel: Frames it looks at, odd, >= 3.
        alpha: Strength, in [0, 1].

    Raises:
        SurgeryError: If `kernel` is even or too small, or `alpha` is out of range.
    """

    def __init__(self, width: int, kernel: int = 3, alpha: float = 1.0) -> None:
        super().__init__()
        if kernel < 3 or kernel % 2 == 0:
            raise SurgeryError(
                f"the temporal kernel is {kernel}; it must be odd and 3 or more, so that every "
                "frame sees as many before it as after it."
            )
        self.alpha = _strength(alpha)
        self.weight = nn.Parameter(torch.zeros(width, 1, kernel))

    def forward(self, frames: Tensor) -> Tensor:
        """Return features (B, T, D) with what their neighbours add, not normalised."""
        if self.alpha == 0.0:
            return frames
        around = self.weight.shape[2] // 2
        rows = functional.pad(frames.transpose(1, 2), (around, around), mode="replicate")
        mixed = functional.conv1d(rows, self.weight, groups=rows.shape[1])
        return frames + self.alpha * functional.gelu(mixed).transpose(1, 2)


class VideoEncoder(nn.Module):
    """Embeds clips with an image tower: frame by frame, along time if asked, then their mean.

    Args:
        predictor: Plain CLIP; fold what has added modules first, at the alpha of the encoder.
        frames: T, the frames of every clip.
        temporal: Frames that a temporal convolution looks at, odd; None for the mean alone.
        alpha: Strength of the temporal part, in [0, 1].

    Raises:
        SurgeryError: If the predictor has modules that could be folded, or numbers are out of
            range.
    """

    def __init__(
        self,
        predictor: Predictor,
        frames: int,
        temporal: int | None = None,
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        if any(surgery.foldable for surgery in predictor.surgeries):
            raise SurgeryError(
                f"{predictor.source.name} has added modules; give the video encoder a plain model: "
                "predictor.fold(alpha)."
            )
        if frames < 1:
            raise SurgeryError(f"a clip of {frames} frames shows nothing; give 1 or more.")
        self.predictor = predictor
        self.frames = frames
        self.temporal = None
        if temporal is not None:
            width = int(predictor.source.config["model_cfg"]["embed_dim"])
            self.temporal = Temporal(width, temporal, alpha).to(predictor.device)

    def forward(self, clips: Tensor) -> Tensor:
        """Embed clips (B, T, 3, H, W), prepared like images, in unit rows (B, D)."""
        return self.pool(self.encode_frames(clips))

    def encode_frames(self, clips: Tensor) -> Tensor:
        """Embed every frame of clips (B, T, 3, H, W) as an image, unit rows (B, T, D).

        Raises:
            TaskError: If the shape is another, or clips have another number of frames.
        """
        if clips.ndim != 5 or clips.shape[1] != self.frames:
            raise TaskError(
                f"clips have shape {tuple(clips.shape)}; expected (B, {self.frames}, 3, H, W). "
                "Take every n-th frame of longer ones."
            )
        rows = self.predictor.encode_image(clips.flatten(0, 1))
        return rows.view(*clips.shape[:2], -1)

    def pool(self, frames: Tensor) -> Tensor:
        """Join frame features (B, T, D) into unit rows (B, D); differentiable."""
        if self.temporal is not None:
            frames = self.temporal(frames)
        return functional.normalize(frames.mean(dim=1), dim=-1)

    def set_alpha(self, alpha: float) -> None:
        """Set the strength of the temporal part; the image tower's is chosen when it is folded.

        Raises:
            SurgeryError: If there is no temporal part, or `alpha` is out of range.
        """
        if self.temporal is None:
            raise SurgeryError(
                "this video encoder takes the mean of its frames, which has no strength; build it "
                "with temporal=3."
            )
        self.temporal.alpha = _strength(alpha)

    @torch.no_grad()
    def logits_fn(
        self, names: Sequence[str], templates: Sequence[str]
    ) -> Callable[[Tensor], Tensor]:
        """Return the function that scores clips (B, T, 3, H, W) on classes, (B, C) in float32.

        Raises:
            TaskError: If there is no name or template.
        """
        predictor = self.predictor
        features = predictor.class_features(predictor.prompts(names, templates))
        weight = predictor.scale * features

        @torch.no_grad()
        def score(clips: Tensor) -> Tensor:
            return functional.linear(self(clips).float(), weight.float())

        return score


def _strength(alpha: float) -> float:
    if not 0.0 <= alpha <= 1.0:
        raise SurgeryError(
            f"alpha is {alpha}, but must lie in [0, 1]: 0 switches the temporal part off."
        )
    return alpha
