"""Atomic writing: whoever reads sees the old file or the new one, never half of one."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

from .errors import RunError

UNFINISHED = ".unfinished-"
"""Prefix of everything that is still being written"""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file path beside `path` that takes its place if the block succeeds.

    Raises:
        RunError: If the disk is full, a limit is reached or the place is read-only; the old file,
            if there was one, is untouched.
    """
    temporary = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    with reported(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path` that takes its place if the block succeeds.

    A directory that was at `path` before is removed once the new one is complete, and so is what
    killed processes left of earlier attempts.

    Raises:
        RunError: As in `whole_file`.
    """
    temporary = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    outgoing = temporary.with_name(f"{temporary.name}-old")
    with reported(path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                flush(file)
            flush(temporary)
            if path.exists():  # a directory cannot be replaced by renaming, unlike a file
                path.rename(outgoing)
            temporary.rename(path)
            flush(path.parent)
            for left in abandoned(path.parent, path.name):
                shutil.rmtree(left, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(outgoing, ignore_errors=True)


def require_writable(path: Path) -> None:
    """Find out, before hours of work, whether a file can be written at `path`.

    Raises:
        RunError: If it cannot, or there is a directory.
    """
    with reported(path):
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "it is a directory")
        beside = next(place for place in path.absolute().parents if place.exists())
        with TemporaryFile(dir=beside):
            pass


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        RunError: As in `whole_file`.
    """
    with whole_file(path) as temporary:
        # Names of files may hold bytes that are no UTF-8; they are written as they are.
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused because JSON has neither.

    Raises:
        RunError: As in `whole_file`.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Return dicts, lists and numbers as JSON can hold them: None where a number is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that perdure has written.

    Raises:
        RunError: If the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{path} does not exist; name a run directory or file that perdure has written."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}); restore it or make it again.") from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise RunError(f"{path} holds a {kind} instead of an object; restore it or make it again.")
    return value


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process left half-written in `folder`."""
    for path in folder.glob(f"{UNFINISHED}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def abandoned(folder: Path, name: str | None = None) -> list[Path]:
    """Return what killed processes left half-written in `folder`; living ones may be at work.

    Args:
        folder: Need not exist.
        name: Of the file or directory that was to be written; None for any.
    """
    found = []
    for path in sorted(folder.glob(f"{UNFINISHED}*")):
        process, _, target = path.name.removeprefix(UNFINISHED).partition("-")
        wanted = name is None or target in (name, f"{name}-old")
        if wanted and process.isdecimal() and not _lives(int(process)):
            found.append(path)
    return found


def _lives(process: int) -> bool:
    """Return whether a process of this number runs here; only POSIX can ask without harm."""
    if process == os.getpid() or os.name != "posix":
        return process == os.getpid()
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def flush(path: Path) -> None:
    """Make the operating system put a file or a directory entry on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn what goes wrong while `path` is written into an error for people.

    Raises:
        RunError: If the disk is full, a limit is reached or the place is read-only.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(
            f"cannot write {path} ({reason}); what was there before is untouched. "
            "Free some space or write to another directory."
        ) from error
