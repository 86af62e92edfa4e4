"""One voice for all processes of a run: who prints, and how they end together. Imports no torch.

A launcher such as torchrun starts the same command several times. What is wrong with a recipe,
every process finds; what is wrong with a picture, only the one that decodes it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

PATIENCE = 5.0
"""Seconds in which the main process is expected to fail too, and the launcher to stop the others"""

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Variable with the file that torchrun quotes when it says which process failed"""

_stopped_by: int | None = None

_LOST = ("gloo", "nccl")
"""What carries messages between processes, and is named where that fails"""


def world_size() -> int:
    """Return how many processes the launcher has started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return whether this process, of those that were started, writes files and results."""
    return os.environ.get("RANK", "0") == "0"


def stopped_by() -> int | None:
    """Return the signal that `Termination` has met; what fails after it, fails because of it."""
    return _stopped_by


def has_lost_contact(error: RuntimeError) -> bool:
    """Return whether an error only tells that another process of this run has ended."""
    # torch has types of its own for some of them, DistNetworkError and others.
    named = type(error).__name__.startswith("Dist")
    return world_size() > 1 and (named or any(word in str(error).lower() for word in _LOST))


def may_speak(*, at_once: bool) -> bool:
    """Return whether this process, which has failed, should say why.

    Where the main process fails as well, it speaks for all: the launcher then stops the others,
    which end with 2 in here. Where it does not fail, nobody stops them, and they speak after
    `PATIENCE`.

    Args:
        at_once: Whether the main process need not wait; false where others know more about it.
    """
    if world_size() == 1 or (at_once and is_main()):
        return True
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
    time.sleep(PATIENCE)
    return True


def tell_launcher(message: str) -> None:
    """Leave an error where torchrun looks for it, so that its report ends with the reason."""
    path = os.environ.get(ERROR_FILE)
    if path is None or world_size() == 1:
        return
    told = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": told}, file)
    except OSError:
        pass  # the message has been printed already


class Termination:
    """Context in which Ctrl-C and SIGTERM end the program tidily: in one line, with 130 or 143.

    Python otherwise dies of SIGTERM on the spot, and leaves files behind that were still being
    written. With several processes nothing is changed: one that waits for another inside torch
    would not hear.

    Args:
        last: Whether the program ends with the context; signals that come later are ignored, so
            that a result that is there already is not followed by a failure.
    """

    def __init__(self, *, last: bool = False) -> None:
        self._last = last
        self._before: dict[int, Any] = {}
        self._here = world_size() == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        global _stopped_by
        _stopped_by = None
        for number in (signal.SIGINT, signal.SIGTERM) if self._here else ():
            # A shell starts what it puts into the background with Ctrl-C ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._terminate)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._last else handler)
        # Python remembers that KeyboardInterrupt has left text that it executed, such as what
        # dataclasses generate, and would in the end die of the signal though it was caught. It
        # forgets that where it executes another text.
        exec("")
        done = error is None or (isinstance(error, SystemExit) and not error.code)
        # Whatever came of it on its way: imports for example turn errors into others.
        if _stopped_by is not None and not done:
            with suppress(OSError):  # who reads it may have been stopped as well
                print(f"Stopped by {signal.Signals(_stopped_by).name}.", file=sys.stderr)
            raise SystemExit(128 + _stopped_by) from None

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        global _stopped_by
        _stopped_by = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(2)
