"""Packages that only some things need: which, what for, and what to say where one is missing.

Imports none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from .errors import DependencyError


class Extra(NamedTuple):
    """An optional package."""

    use: str
    """What needs it"""
    command: str
    """What installs it"""


EXTRAS: dict[str, Extra] = {
    "transformers": Extra(
        "text towers and tokenisers of Hugging Face, such as SigLIP's", "pip install 'perdure[hf]'"
    ),
    "datasets": Extra("data sets of Hugging Face on disk", "pip install 'perdure[hf]'"),
    "peft": Extra(
        "writing and checking folders of the peft library", "pip install 'perdure[peft]'"
    ),
    "resvg_py": Extra("rebuilding the sprites of EmojiShift", "pip install 'perdure[world]'"),
}
"""Every optional package by the name it is imported under"""


def require(package: str, user: str) -> None:
    """Make sure that a package can be imported, before something fails inside another library.

    Args:
        package: One of `EXTRAS`, or any other name under which a package is imported.
        user: What needs it, for the error.

    Raises:
        DependencyError: If it cannot; holds the command that installs it.
    """
    try:
        import_module(package)
    except ImportError as error:
        command = EXTRAS[package].command if package in EXTRAS else f"pip install {package}"
        raise DependencyError(
            f"{user} needs the package {package}, which cannot be imported ({error}). "
            f"Install it with: {command}"
        ) from None


def explain(error: Exception, user: str) -> None:
    """Raise the missing package that an error of another library is about, if it is about one.

    Args:
        error: What was caught.
        user: What needs the package.

    Raises:
        DependencyError: If the error names a package that cannot be imported, or is itself one of
            a failed import.
    """
    for package in ("huggingface_hub", *(name for name in EXTRAS if name != "datasets")):
        # "datasets" is an everyday word, and no model needs the package of that name.
        if package in str(error):
            require(package, user)
    if isinstance(error, ImportError):
        reason = " ".join(str(error).split())[:300]
        command = f"pip install {error.name}" if error.name else EXTRAS["transformers"].command
        raise DependencyError(
            f"{user} needs a package that cannot be imported ({reason}). Install it with: {command}"
        ) from error
