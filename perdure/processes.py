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
from types import FrameType
from typing import Any

PATIENCE = 5.0
"""Seconds in which the main process is expected to fail too, and the launcher to stop the others"""

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Variable with the file that torchrun quotes when it says which process failed"""

_LOST = ("gloo", "nccl")
"""What carries messages between processes, and is named where that fails"""


def world_size() -> int:
    """Return how many processes the launcher has started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return whether this process, of those that were started, writes files and results."""
    return os.environ.get("RANK", "0") == "0"


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
    """Context in which SIGTERM ends the program as Ctrl-C does: tidily, with 143.

    Python otherwise dies on the spot, and leaves files behind that were still being written. With
    several processes nothing is changed: one that waits for another inside torch would not hear.
    """

    def __init__(self) -> None:
        self._before: Any = None
        self._here = world_size() == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self._here:
            self._before = signal.signal(signal.SIGTERM, _terminate)

    def __exit__(self, *_: object) -> None:
        if self._here:
            signal.signal(signal.SIGTERM, self._before)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(2)


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
