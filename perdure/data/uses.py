"""Suites of other uses than telling classes apart: search, questions, what was never trained on.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import DataError, nearest
from . import coop, vqa
from .catalog import NotThereError
from .found import find_found
from .published import probe
from .splits import Role, Split, Suite, Task

EMOJI_DOMAINS: dict[str, Role] = {"id": "id", "rendition": "ood", "sketch": "ood"}
"""Of the embedded pictures with captions and of the embedded scenes: the artist that tasks train on
and two groups of others"""

FORGETTING = "forgetting"
"""Name of the suite; followed by a hyphen and a data set it leaves that one out"""

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
    name, split, version = ("", "", 1) if there else _captions_of(root)
    splits = dict.fromkeys(there, "test") or {name: split}
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


def searched(root: Path) -> tuple[str, ...]:
    """Return the data sets at a root that suite `retrieval` scores, whether or not they are whole.

    Raises:
        DataError: If there is none and no captions of one's own either.
    """
    there = [name for name in SEARCHED if not isinstance(probe(name, "test", root), NotThereError)]
    return tuple(there) or (_captions_of(root)[0],)


def _captions_of(root: Path) -> tuple[str, str, int]:
    """Return kind, split and version of a person's own captioned pictures that are scored."""
    missing = f"suite retrieval finds neither coco nor flickr30k nor captions of your own at {root}"
    try:
        found = find_found(root)
        split = next((name for name in ("test", "val") if name in found.splits), None)
        captioned = split is not None and found.captioned(split)
    except DataError as error:
        raise DataError(f"{missing}: {error}") from None
    if split is None:
        raise DataError(
            f"{missing}: there is no split test or val, only {', '.join(found.splits)}. "
            "docs/retrieval.md has an example."
        )
    if not captioned:
        raise DataError(
            f"{missing}: split {split} has labels, no captions. docs/retrieval.md has an example."
        )
    return found.name, split, found.version((split,))


def forgetting(root: Path | None, without: str | None = None) -> Suite:
    """Return the suite of tasks that a model was not trained on.

    Args:
        root: Where published data sets are looked for; None for the embedded concepts that no task
            trains on.
        without: Data set that the model was trained on and that is left out.

    Raises:
        DataError: If nothing is found, something is damaged, or `without` is unknown.
    """
    if root is None and without is None:
        return Suite(
            name=FORGETTING,
            summary=SUMMARIES[FORGETTING],
            splits=tuple(
                Split(name=split, role="target", dataset="emojishift", split=split)
                for split in ("untrained", "untrained_rendition", "untrained_sketch")
            ),
            templates="emojishift",
        )
    name = f"{FORGETTING}-{without}" if without else FORGETTING
    root = need_root(name, root)
    sets = ("imagenet", *coop.SETS)
    if without is not None and without not in sets:
        raise DataError(
            f"suite {name} would leave out {without!r}, which it does not have. Known: "
            f"{', '.join(sets)}. {nearest(without, sets)}".rstrip()
        )
    found = {each: probe(each, "test", root) for each in sets if each != without}
    for one in found.values():
        if isinstance(one, DataError) and not isinstance(one, NotThereError):
            raise one
    there = [each for each, one in found.items() if not isinstance(one, DataError)]
    if not there:
        raise DataError(
            f"suite {name} finds no data set of classes below {root}; looked for "
            f"{', '.join(found)}. docs/data.md lists the layouts; without --data it scores what "
            "comes with perdure."
        )
    return Suite(
        name=name,
        summary=SUMMARIES[FORGETTING],
        splits=tuple(
            Split(name=each, role="target", dataset=each, split="test", templates=each)
            for each in there
        ),
        templates=there[0],
    )


def _vqa(root: Path | None) -> Suite:
    """Every set of questions that is there."""
    root = need_root("vqa", root)
    found = {name: vqa.find_files(name, root) for name in vqa.SETS}
    there = {name: files for name, files in found.items() if files is not None}
    if not there:
        raise DataError(
            f"suite vqa finds no questions at {root}: neither vqa.json, nor VQA's "
            "v2_OpenEnded_mscoco_val2014_questions.json with its annotations, nor ScienceQA's "
            "problems.json. docs/data.md describes them."
        )
    return Suite(
        name="vqa",
        summary=SUMMARIES["vqa"],
        splits=tuple(
            Split(name=name, role="target", task="answer", dataset=name, split="test")
            for name in there
        ),
        templates="emojishift",
        version=sum(vqa.fingerprint(files) for files in there.values()),
    )


SUMMARIES = {
    FORGETTING: "embedded concepts that no task trains on; at --data every set of classes there",
    "vqa": "questions with candidate answers at --data: vqa.json, VQA v2, ScienceQA",
    "retrieval": "captions and pictures at --data: COCO, Flickr30k, or your own",
}

MAKERS: dict[str, Callable[[Path | None], Suite]] = {
    "retrieval": _retrieval,
    "vqa": _vqa,
    FORGETTING: forgetting,
}
"""Suite by name, made for a root"""
