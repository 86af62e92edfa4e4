"""Look at data with a model before anything is trained on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .data.catalog import Catalog
from .data.datasets import open_dataset, templates_for
from .errors import DataError
from .prediction import predict, spread
from .predictor import Predictor

IMAGES = 200
"""Pictures of a split that a model looks at"""

_SURE = 3.0
"""Standard errors above chance from which labels are believed"""


@dataclass(frozen=True)
class Gate:
    """How well a model that was never trained on these data guesses their labels."""

    name: str
    split: str
    n: int
    accuracy: float
    chance: float
    """1 / C"""

    @property
    def above_chance(self) -> bool:
        """Whether the labels have to do with the pictures, for all that this model can see."""
        error = float(np.sqrt(self.chance * (1 - self.chance) / self.n))
        return self.accuracy > self.chance + _SURE * error

    def fault(self) -> str | None:
        """Return what is wrong, for people; None if nothing is."""
        if self.above_chance:
            return None
        return (
            f"{self.name}, {self.split}: zero-shot accuracy is {100 * self.accuracy:.1f} % on "
            f"{self.n} pictures, and chance is {100 * self.chance:.1f} %. Labels are probably "
            "permuted, or names do not say what is seen; look at a picture sheet "
            "(perdure data sheet)."
        )


def gate(
    predictor: Predictor,
    catalog: Catalog,
    root: Path,
    limit: int = IMAGES,
    progress: Callable[[int], None] | None = None,
) -> Gate:
    """Score some pictures of a split zero-shot.

    Raises:
        DataError: If the split has captions, or a picture is damaged.
    """
    if catalog.captioned:
        raise DataError(f"{catalog.name} has captions, no labels that could be permuted.")
    dataset = spread(open_dataset(catalog.name, catalog.split, root), limit)
    # One prompt: the gate asks whether there is any signal, not how much.
    templates = templates_for(catalog.name, root)[:1]
    logits, labels = predict(predictor, dataset, templates, progress=progress)
    accuracy = float(np.mean(logits.argmax(axis=1) == labels))
    return Gate(catalog.name, catalog.split, len(labels), accuracy, 1 / len(dataset.classes))
