"""Ctrl-C and SIGTERM during training: remembered, so that the step can end and be saved."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from .errors import RunError, typed

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Interrupted(RunError):
    """Training was asked to stop and did, after saving everything.

    Args:
        number: The signal.
        step: Finished optimiser steps.
        path: The run directory.
    """

    def __init__(self, number: int, step: int, path: Path) -> None:
        super().__init__(number, step, path)
        self.number = number
        self.step = step
        self.path = path

    def __str__(self) -> str:
        """Say how to go on."""
        return (
            f"stopped by {signal.Signals(self.number).name} after step {self.step}; everything up "
            f"to there is saved in {self.path}. Go on with: "
            f"perdure train {typed(self.path / 'recipe.yaml')} --out {typed(self.path)} --resume"
        )


class StopRequest:
    """Context in which the first SIGINT or SIGTERM is only remembered; a second one acts at once.

    Outside the main thread, where Python allows no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal, once there was one"""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in _CAUGHT}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
