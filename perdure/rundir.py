"""What everybody must know of a run directory before reading in it. Imports no torch.

Whether it is one, of which format, and what a killed process may have left beside it. What the
files hold is known to `run` (training) and `records` (reports).
"""

from __future__ import annotations

from pathlib import Path

from .errors import RunError
from .files import UNFINISHED, abandoned, read_json

FORMAT = 1
"""Version of the layout; stands in `env.json`, which is written once, when a run begins"""

ENVIRONMENT = "env.json"


def is_run(path: Path) -> bool:
    """Return whether a directory says what was run in it."""
    return (path / "recipe.yaml").is_file() or (path / "merge.yaml").is_file()


def runs_in(path: Path, depth: int = 2) -> list[Path]:
    """Return the runs below a directory that is none itself, such as RUN/seed-0, RUN/seed-1.

    A run whose making was interrupted is not one.
    """
    found: list[Path] = []
    for child in sorted(path.glob("*/"), key=lambda child: (len(child.name), child.name)):
        if child.name.startswith(UNFINISHED):
            continue
        if is_run(child):
            found.append(child)
        elif depth > 1:
            found.extend(runs_in(child, depth - 1))
    return found


def require_readable(path: Path) -> None:
    """Refuse a run that a newer version has written, before its files are misread.

    Runs without a number are older than the number, and are read.

    Args:
        path: A run directory; where it is none, nothing is refused.

    Raises:
        RunError: If its format is newer than this version reads, or its environment is damaged.
    """
    file = path / ENVIRONMENT
    if not file.is_file():
        return
    record = read_json(file)
    found = record.get("format", FORMAT)
    if isinstance(found, int) and 1 <= found <= FORMAT:
        return
    versions = record.get("versions")
    writer = versions.get("perdure") if isinstance(versions, dict) else None
    by = f"perdure {writer}" if writer else "another version of perdure"
    raise RunError(
        f"the run {path} has format {found!r} and was written by {by}; this version reads formats "
        f"up to {FORMAT}. Use that version, or a newer one: pip install --upgrade perdure"
    )


def leftovers(folder: Path) -> list[Path]:
    """Return what killed processes left half-written in a directory of runs, and in the runs.

    Nothing ever reads them; they only take room.
    """
    places = {folder, *folder.glob("*/"), *runs_in(folder)}
    places |= {place / "state" for place in places if is_run(place)}
    return sorted({path for place in places for path in abandoned(place)})
