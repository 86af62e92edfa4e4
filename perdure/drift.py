"""What fine-tuning did to a person's own pictures: how far features moved, what search now finds.

No labels are needed. With captions, search is judged by the picture that each describes; with free
queries, by the picture that the model found first before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import metrics, ranking
from .data.own import unlabelled
from .data.tables import TABLES, read_lines, read_table
from .embedding import embed_images, embed_texts, require_texts
from .errors import DataError
from .prediction import How, stay
from .predictor import Predictor

NEAREST = 10
"""Neighbours that are compared, and the first page of results"""


@dataclass(frozen=True)
class Query:
    """A text that is searched with, and the picture that it is judged by."""

    text: str
    picture: str
    """Path below the directory of the pictures"""
    before: int
    """Rank of the picture, 1 for the first place"""
    after: int


@dataclass(frozen=True)
class Search:
    """Text-to-image search before and after; shares in [0, 1]."""

    n: int
    """Queries"""
    judged_by: str
    """"captions", or "first result before" where nobody said what is right"""
    before: dict[str, float]
    """recall_at_1, _5, _10"""
    after: dict[str, float]
    change: tuple[float, float, float]
    """Of recall_at_1, after minus before, with its 95 % interval over paired queries"""
    better: int
    worse: int
    """Queries whose picture now ranks lower"""
    broken: tuple[Query, ...]
    """Of which the picture was among the first 10 and no longer is, those that fell most first"""
    repaired: int
    """The other way round"""


@dataclass(frozen=True)
class Drift:
    """How two models differ on the same pictures."""

    pictures: int
    cosine: float | None
    """Mean between a picture's features before and after; None where their sizes differ"""
    low_cosine: float | None
    """5 % of the pictures lie below"""
    interval: tuple[float, float] | None
    """Of the mean, 95 %, over pictures"""
    neighbours: int
    """Nearest pictures that are compared, at most 10"""
    kept: float
    """Mean share of a picture's nearest that are still among them"""
    kept_interval: tuple[float, float]
    moved: tuple[tuple[str, float], ...]
    """The pictures whose features moved most, and their cosines"""
    search: Search | None
    """None without captions and queries"""

    def to_dict(self) -> dict[str, Any]:
        """Return what is printed as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Texts:
    """What is searched with."""

    texts: tuple[str, ...]
    pictures: NDArray[np.int64] | None
    """(N,), the picture that each text describes; None where nobody knows"""


def read_captions(table: Path, directory: Path, files: Sequence[Path]) -> Texts:
    """Read a table of paths and captions.

    Args:
        table: CSV, TSV or JSON lines with a column of paths, relative to `directory` or to the
            table, and one of captions.
        directory: Where the pictures are.
        files: Pictures that are searched.

    Raises:
        DataError: If it is no such table, or names a picture that is not among `files`.
    """
    if table.suffix.lower() not in TABLES:
        raise DataError(
            f"{table} is no table that perdure reads; allowed endings: {', '.join(TABLES)}."
        )
    found = read_table(table)
    if not found.captioned:
        raise DataError(
            f"{table} has a column of labels, which goes before one of captions; take it out, or "
            "give the captions as --queries."
        )
    places = {file.resolve(): place for place, file in enumerate(files)}
    rows = []
    for row in found.rows:
        tried = [(root / row.path).resolve() for root in (directory, table.parent)]
        place = next((places[file] for file in tried if file in places), None)
        if place is None:
            raise DataError(
                f"{found.at(row)}: {row.path} is none of the {len(files)} pictures in {directory}. "
                "Paths are relative to that directory, or to the table."
            )
        rows.append(place)
    return Texts(tuple(row.text for row in found.rows), np.array(rows, dtype=np.int64))


def read_queries(file: Path) -> Texts:
    """Read one query per line; blank lines are left out.

    Raises:
        DataError: If the file cannot be read or has no query.
    """
    texts = tuple(dict.fromkeys(" ".join(line.split()) for line in read_lines(file).splitlines()))
    texts = tuple(text for text in texts if text)
    if not texts:
        raise DataError(f"{file} has no query; write one per line.")
    return Texts(texts, None)


def drift(
    before: Predictor,
    after: Predictor,
    files: Sequence[Path],
    directory: Path,
    texts: Texts | None = None,
    how: How | None = None,
) -> Drift:
    """Compare two models on the same pictures and queries.

    Args:
        before: Usually the zero-shot model.
        after: Usually what was trained from it.
        files: Two pictures or more.
        directory: What their names are relative to.
        texts: What to search with; None compares features only.
        how: Device, batch size, progress.

    Raises:
        DataError: If there are fewer than two pictures, or one cannot be decoded.
        TaskError: If a model's pictures cannot be compared with texts.
        WeightsError: If an embedding is not finite.
    """
    if len(files) < 2:
        raise DataError(f"{directory} has {len(files)} picture; two or more can be compared.")
    how = replace(how or How(), root=None, limit=None)
    models = (before, after)
    if texts is not None:
        for model in models:
            require_texts(model)
    dataset = unlabelled(tuple(files))
    pictures = [embed_images(model, {0.0: stay}, dataset, how)[0.0] for model in models]
    names = [_name(file, directory) for file in files]
    near = min(NEAREST, len(files) - 1)
    kept = ranking.neighbours_kept(pictures[0], pictures[1], near)
    cosines = None
    if pictures[0].shape == pictures[1].shape:
        cosines = (pictures[0].astype(np.float64) * pictures[1]).sum(axis=1)
    order = [] if cosines is None else cosines.argsort(kind="stable")[:NEAREST]
    return Drift(
        pictures=len(files),
        cosine=None if cosines is None else float(cosines.mean()),
        low_cosine=None if cosines is None else float(np.quantile(cosines, 0.05)),
        interval=None if cosines is None else metrics.bootstrap_interval(cosines),
        neighbours=near,
        kept=float(kept.mean()),
        kept_interval=metrics.bootstrap_interval(kept),
        moved=tuple((names[place], float(cosines[place])) for place in order)
        if cosines is not None
        else (),
        search=None if texts is None else _search(models, pictures, texts, names, how),
    )


def _search(
    models: Sequence[Predictor],
    pictures: Sequence[NDArray[np.float32]],
    texts: Texts,
    names: Sequence[str],
    how: How,
) -> Search:
    """Search the pictures with every text, by both models."""
    queries = [embed_texts(model, {0.0: stay}, texts.texts, how)[0.0] for model in models]
    numbers = np.arange(len(names))
    right = texts.pictures
    if right is None:
        first = np.zeros(len(texts.texts), dtype=np.int64)  # whatever is right, what comes first?
        right = ranking.rank(queries[0], pictures[0], first, numbers).first
    ranks = [
        ranking.rank(asked, held, right, numbers).rank
        for asked, held in zip(queries, pictures, strict=True)
    ]
    found = [{f"recall_at_{k}": v for k, v in ranking.recalls(one).items()} for one in ranks]
    page = [one < NEAREST for one in ranks]
    lost = np.flatnonzero(page[0] & ~page[1])
    lost = lost[(ranks[0] - ranks[1])[lost].argsort(kind="stable")]
    broken = tuple(
        Query(texts.texts[at], names[right[at]], int(ranks[0][at]) + 1, int(ranks[1][at]) + 1)
        for at in lost
    )
    return Search(
        n=len(right),
        judged_by="first result before" if texts.pictures is None else "captions",
        before=found[0],
        after=found[1],
        change=metrics.paired_bootstrap(ranks[1] == 0, ranks[0] == 0),
        better=int((ranks[1] < ranks[0]).sum()),
        worse=int((ranks[1] > ranks[0]).sum()),
        broken=broken,
        repaired=int((page[1] & ~page[0]).sum()),
    )


def _name(file: Path, directory: Path) -> str:
    return str(file.relative_to(directory)) if file.is_relative_to(directory) else str(file)
