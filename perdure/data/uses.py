"""Suites of other uses than telling classes apart: search, questions, what was never trained on.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import DataError
from .catalog import NotThereError
from .layout import find_own, fingerprint
from .published import probe
from .splits import Role, Split, Suite, Task

EMOJI_DOMAINS: dict[str, Role] = {"id": "id", "rendition": "ood", "sketch": "ood"}
"""Of the embedded pictures with captions and of the embedded scenes: the artist that tasks train on
and two groups of others"""

SEARCHED = ("coco", "flickr30k")
"""Published data sets that suite `retrieval` scores"""


def embedded(name: str, task: Task, summary: str, splits: tuple[str, ...] = ("{}",)) -> Suite:
    """Return a suite of EmojiShift's three domains.

    Args:
        name: Of the suite.
        task: What is asked.
        summary: For listings.
        splits: What is asked in each domain; {} is its name.
    """
    return Suite(
        name=name,
        summary=summary,
        splits=tuple(
            Split(
                name=each.format(domain).replace("/", "_"),
                role=role,
                task=task,
                dataset="emojishift",
                split=each.format(domain),
            )
            for domain, role in EMOJI_DOMAINS.items()
            for each in splits
        ),
        templates="emojishift",
    )


EMBEDDED = (
    embedded(
        "emojishift-retrieval",
        "retrieve",
        "embedded: captions of pictures and pictures of captions, in three domains",
    ),
    embedded(
        "emojishift-vqa",
        "answer",
        "embedded: which thing, how many and where, in scenes of three domains",
        ("{}/which", "{}/count", "{}/where"),
    ),
)
"""Suites that need no files"""


def need_root(name: str, root: Path | None) -> Path:
    """Return where the data of a suite are.

    Raises:
        DataError: If nobody says.
    """
    if root is None:
        raise DataError(
            f"suite {name} needs the directory of its data sets, and none is named; add --data "
            "ROOT. docs/data.md lists the layouts."
        )
    return root.expanduser()


def _retrieval(root: Path | None) -> Suite:
    """COCO and Flickr30k, whichever is there (the division's test split); else own captions."""
    root = need_root("retrieval", root)
    found = {name: probe(name, "test", root) for name in SEARCHED}
    for one in found.values():
        if isinstance(one, DataError) and not isinstance(one, NotThereError):
            raise one  # it is there and damaged, which must not look like not being there
    there = [name for name, one in found.items() if not isinstance(one, DataError)]
    splits = dict.fromkeys(there, "test") or {"own": _own_captions(root)}
    version = 1 if there else fingerprint(find_own(root), splits.values())
    return Suite(
        name="retrieval",
        summary=SUMMARIES["retrieval"],
        splits=tuple(
            Split(name=name, role="target", task="retrieve", dataset=name, split=split)
            for name, split in splits.items()
        ),
        templates="coco",
        version=version,
    )


def _own_captions(root: Path) -> str:
    """Return the split of a person's own captioned pictures that is scored."""
    missing = f"suite retrieval finds neither coco nor flickr30k nor a table of captions at {root}"
    try:
        own = find_own(root)
        captioned = own.captioned
    except DataError as error:
        raise DataError(f"{missing}: {error}") from None
    split = next((name for name in ("test", "val") if name in own.splits), None)
    if not captioned or split is None:
        what = "no split test or val" if captioned else "labels, no captions"
        raise DataError(f"{missing}; what is there has {what}. docs/retrieval.md has an example.")
    return split


SUMMARIES = {
    "retrieval": "captions and pictures at --data: COCO, Flickr30k, or a table of your own",
}

MEMBERS: dict[str, tuple[str, ...]] = {"retrieval": SEARCHED}
"""Suite to the data sets that it scores, as far as they are there"""

MAKERS: dict[str, Callable[[Path | None], Suite]] = {"retrieval": _retrieval}
"""Suite by name, made for a root"""
