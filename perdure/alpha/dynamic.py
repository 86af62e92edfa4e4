"""An alpha for every image: the surer of the two ends of a line weighs more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import RunError, WeightsError
from ..inputs import Preprocess
from ..interpolation import wise_ft
from ..predictor import Predictor
from ..run import Run
from .rules import entropies, entropy_shares, nearest_centre


class Dynamic(nn.Module):
    """Both ends of a line and a few models on it; each image is scored by one of these.

    The ends are asked first. Their entropies give the image's own alpha, and the copy nearest to
    it scores. Three forward passes per image, and `len(alphas)` + 2 models in memory, less those
    that are ends. Scores as a `Predictor` does, so that it can be evaluated like one.

    Args:
        zero_shot: The start of the fine-tuning, with a head if `tuned` has one.
        tuned: Its end.
        alphas: Shares of the tuned weights in [0, 1], of the copies.

    Raises:
        WeightsError: If an alpha is out of range or missing, or the ends do not fit together.

    Source: Oh et al. 2024, "DaWin", arXiv 2410.03782.
    """

    def __init__(self, zero_shot: Predictor, tuned: Predictor, alphas: Sequence[float]) -> None:
        super().__init__()
        if not alphas:
            raise WeightsError("alphas is empty; give at least one copy, with an alpha in [0, 1].")
        self.alphas = tuple(sorted(alphas))
        self.ends = nn.ModuleList([wise_ft(zero_shot, tuned, float(end)) for end in (0, 1)])
        self.copies = nn.ModuleList([wise_ft(zero_shot, tuned, alpha) for alpha in self.alphas])

    @classmethod
    def load(cls, directory: Path | str) -> Dynamic:
        """Read what `perdure alpha --method dynamic --out DIRECTORY` wrote.

        Raises:
            RunError: If there are not both ends, `alpha-0` and `alpha-1`, and something between.
        """
        directory = Path(directory)
        found = sorted(
            float(path.name.removeprefix("alpha-")) for path in directory.glob("alpha-*")
        )
        if len(found) < 3 or (found[0], found[-1]) != (0.0, 1.0):
            raise RunError(
                f"{directory} holds no models for a choice per image: it needs alpha-0, alpha-1 "
                "and others between; make it with: perdure alpha RUN --method dynamic --out DIR"
            )
        start, end = (Run(directory / f"alpha-{alpha}").predictor() for alpha in (0, 1))
        return cls(start, end, found[1:-1])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._end.device

    @property
    def preprocess(self) -> Preprocess:
        """Pixels to input."""
        return self._end.preprocess

    @property
    def classes(self) -> tuple[str, ...]:
        """What the rows of the heads stand for; empty without heads."""
        return self._end.classes

    def logits_fn(
        self, names: Sequence[str], templates: Sequence[str]
    ) -> Callable[[Tensor], Tensor]:
        """Return the function that scores images (B, 3, H, W) on classes, (B, C) in float32."""
        ends, copies = (
            [each.logits_fn(names, templates) for each in part]  # type: ignore[operator]
            for part in (self.ends, self.copies)
        )

        @torch.no_grad()
        def score(images: Tensor) -> Tensor:
            surprise = [entropies(end(images).float().cpu().numpy()) for end in ends]
            nearest = nearest_centre(entropy_shares(*surprise), np.array(self.alphas))
            chosen = torch.from_numpy(nearest).to(images.device)
            logits = images.new_empty(len(images), len(names), dtype=torch.float32)
            for index, copy in enumerate(copies):
                mine = chosen == index
                if bool(mine.any()):
                    logits[mine] = copy(images[mine]).float()
            return logits

        return score

    @property
    def _end(self) -> Predictor:
        tuned = self.ends[1]
        assert isinstance(tuned, Predictor)
        return tuned
