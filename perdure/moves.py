"""Several settings of one predictor's weights, and how to get from one to the next in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from .predictor import Predictor
from .weights import Weights, require_same

Moves = Mapping[float, Callable[[], None]]
"""Position on a curve to a function that moves a predictor's weights there, in place."""


class Tour:
    """Goes through positions again and again, forth and then back, moving no more than it must.

    Args:
        moves: Positions and how to get there.
    """

    def __init__(self, moves: Moves) -> None:
        self.moves = moves
        self._order = list(moves)
        self._here: float | None = None

    def __iter__(self) -> Iterator[float]:
        """Yield every position once, with the weights there."""
        if self._here is not None:
            self._order.reverse()  # begins where the last tour ended
        for position in self._order:
            if position != self._here:
                self.moves[position]()
                self._here = position
            yield position


def stay() -> None:
    """Leave the weights where they are."""


@torch.no_grad()
def put(predictor: Predictor, weights: Weights) -> None:
    """Give a predictor any weights of the same names and shapes, in place.

    Raises:
        WeightsError: If names or shapes differ.
    """
    live = predictor.state_dict()
    require_same(live, weights)
    # As `load_state_dict`, which takes several times as long as the copies themselves.
    for name, value in weights.items():
        live[name].copy_(value)
