"""Retrieval: which caption belongs to a picture, and which picture to a caption.

One split gives two entries, one per direction. What belongs together is known by the number of the
picture, never by the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import metrics, ranking
from ..data.paired import Paired, open_paired
from ..data.splits import Split, Suite
from ..embedding import count_cut, embed_images, embed_texts, require_texts
from ..prediction import How, Moves
from ..predictor import Predictor
from . import Judged, Outcomes, short_hash

DIRECTIONS = ("image_to_text", "text_to_image")
"""What a query is, and what is looked for"""

FOLD = 1000
"""Pictures of the smaller galleries that COCO's 5,000 are also scored in"""


@dataclass(frozen=True)
class Retrieval:
    """Pictures and captions that are each other's answers."""

    split: Split
    paired: Paired

    @property
    def images(self) -> int:
        """Return how many pictures and captions are embedded."""
        return len(self.paired.labels) + len(dict.fromkeys(self.paired.captions))

    def judge(
        self,
        predictor: Predictor,
        moves: Moves,
        how: How,
        temperatures: Mapping[float, float],
    ) -> dict[float, dict[str, Judged]]:
        """Rank with several settings of a predictor's weights; see `perdure.tasks.Exam`.

        Raises:
            TaskError: If the model's pictures have left the space of its own texts.
        """
        require_texts(predictor)  # before minutes of decoding
        pictures = embed_images(predictor, moves, self.paired.pictures, how)
        captions = embed_texts(predictor, moves, self.paired.captions, how)
        about = {
            "pictures": len(self.paired.labels),
            "captions": len(self.paired.captions),
            "captions_sha256": short_hash(self.paired.captions),
            "captions_cut": count_cut(predictor, self.paired.captions),
        }
        return {
            position: {
                f"{self.split.name}_{direction}": self._judged(
                    direction, pictures[position], captions[position], about
                )
                for direction in DIRECTIONS
            }
            for position in moves
        }

    def _judged(
        self,
        direction: str,
        pictures: NDArray[np.float32],
        captions: NDArray[np.float32],
        about: Mapping[str, Any],
    ) -> Judged:
        """Score one direction."""
        sides = (pictures, self.paired.labels), (captions, self.paired.caption_labels)
        (asked, own), (held, theirs) = sides if direction == DIRECTIONS[0] else sides[::-1]
        found = ranking.rank(asked, held, own, theirs)
        values: dict[str, Any] = {
            f"recall_at_{k}": value for k, value in ranking.recalls(found.rank).items()
        }
        if in_folds(len(self.paired.labels)):
            folds = ranking.recall_of_folds(asked, held, own, theirs, FOLD)
            values |= {f"fold_recall_at_{k}": value for k, value in folds.items()}
            values |= {"folds": len(self.paired.labels) // FOLD, "fold_pictures": FOLD}
        entry = {
            "role": self.split.role,
            "task": self.split.task,
            "metric": "recall_at_1",
            "set": self.split.name,
            "direction": direction,
            "n": len(own),
            **values,
            "interval": list(metrics.bootstrap_interval(found.rank == 0, of=own)),
            "median_rank": float(np.median(found.rank)) + 1,
            **about,
        }
        return Judged(entry, Outcomes(own, theirs[found.first], found.score, found.rank))


def in_folds(pictures: int) -> bool:
    """Return whether a gallery is also scored in folds: several whole thousands, as COCO's is."""
    return pictures >= 2 * FOLD and pictures % FOLD == 0


def open_exam(split: Split, suite: Suite, how: How, inside: tuple[str, ...] = ()) -> Retrieval:
    """Open a split.

    Args:
        split: What to search in.
        suite: Unused; captions need no prompts.
        how: Data and number of pictures.
        inside: Unused.

    Raises:
        DataError: If data are missing, or have no captions.
    """
    paired = open_paired(split.dataset, split.split, how.root, how.transform)
    return Retrieval(split, paired.limited(how.limit))
