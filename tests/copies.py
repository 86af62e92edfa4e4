"""Small copies of every data set in every layout, and the suites that score them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets

from perdure.data import imagenet_names
from perdure.data.coop import SETS
from tests import layouts

FOUR = ("cat", "dog", "bus", "cup")


@dataclass(frozen=True)
class Case:
    """A small copy in one layout, and what scores it."""

    name: str
    write: Callable[[Path], Path]
    suite: str
    n: tuple[int, ...]
    """Of the suite's splits"""


def shards(root: Path) -> Path:
    for split in ("train", "test"):
        rows = [
            {"png": layouts.PNGS[label], "cls": str(label).encode(), "json": b"{}"}
            for label in range(4)
        ]
        layouts.shard(root / split / "0.tar", rows)
        layouts.shard(root / split / "1.tar", rows, 4)
        (root / split / "nshards.txt").write_text("2")
    (root / "classnames.txt").write_text("\n".join(FOUR))
    return root


def folders(root: Path) -> Path:
    for number, split in enumerate(("train", "val", "test", "ood_fog")):
        for label, name in enumerate(FOUR):
            layouts.picture(root / split / name / f"{number}.jpg", label)
    return root


def table(root: Path, separator: str = ",") -> Path:
    """Write one table with splits and groups."""
    rows = [separator.join(("filepath", "label", "split", "group"))]
    for split in ("train", "val", "test"):
        for label, name in enumerate(FOUR):
            file = layouts.picture(root / f"{split}-{name}.jpg", label)
            rows.append(separator.join((file.name, name, split, ("day", "night", "")[label % 3])))
    (root / "all.csv").write_text("\n".join(rows) + "\n")
    return root / "all.csv"


def hf(root: Path) -> Path:
    rows = {"image": [*layouts.JPEGS], "label": list(FOUR)}
    parts = {name: datasets.Dataset.from_dict(rows) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(root)
    return root


TITLES = ("a photo of a {}.", "a bad photo of the {}.")
HEADERS: dict[str, tuple[str, str]] = {
    "flyp": ("title\tfilepath", "{title}\t{path}"),
    "radapter": ("title\tfilepath\tclass", "{title}\t{path}\t{label}"),
    "tracer": ("title\tfilepath\tlabel_idx\tlabel_name", "{title}\t{path}\t{label}\t{name}"),
    "iwildcam": ("title,filepath,label", "{title},{path},{label}"),
    "open_clip": ("filepath,title", "{path},{title}"),
}


def prompts(root: Path, kind: str) -> Path:
    """Write FLYP's kind of table, a row per picture and prompt, and the test set small."""
    header, line = HEADERS[kind]
    for split in ("train", "test"):
        rows = [header]
        for label, name in enumerate(FOUR):
            path = layouts.picture(root / f"{split}-{name}.jpg", label).name
            for title in TITLES:
                values = {"title": title.format(name), "path": path, "label": label, "name": name}
                rows.append(line.format(**values))
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
    if kind in ("radapter", "iwildcam"):  # their labels are numbers
        (root / "classes.txt").write_text("\n".join(FOUR))
    return root


CASES = (
    *(
        Case(
            name, lambda root, name=name: layouts.coop(root, name), f"base-to-novel-{name}", (4, 4)
        )
        for name in SETS
    ),
    *(
        Case("iwildcam", lambda root, place=place: layouts.iwildcam(root, place), "wilds", (3, 3))
        for place in ("iwildcam_v2.0", "iwildcam", "")
    ),
    *(
        Case("fmow", lambda root, place=place: layouts.fmow(root, place), "wilds-fmow", (3, 3))
        for place in ("fmow_v1.1", "fmow", "")
    ),
    *(
        Case("coco", lambda root, kind=kind: layouts.coco(root, kind), "retrieval", (2, 10))
        for kind in ("karpathy", "splits", "ids")
    ),
    *(
        Case("flickr30k", lambda root, kind=kind: layouts.flickr(root, kind), "retrieval", (2, 10))
        for kind in ("karpathy", "lines")
    ),
    Case("wds", shards, "wds", (8,)),
    Case("hf", hf, "hf", (4,)),
    Case("own", folders, "own", (4, 4)),
    *(
        Case("own", lambda root, mark=mark: table(root, mark), "own", (4,))
        for mark in (",", "\t", ";", "|")
    ),
)


SMALL = {case.name: case for case in CASES}
"""One layout of each reader"""


def thousand(root: Path) -> Path:
    """Write ImageNet's folders of synsets, and others of their pictures that are links to them."""
    for number, synset in enumerate(imagenet_names.synsets()):
        layouts.picture(root / "synsets" / synset / f"ILSVRC2012_val_{number + 1:08d}.JPEG", number)
    (root / "numbers").mkdir()
    for number, synset in enumerate(imagenet_names.synsets()):
        (root / "numbers" / str(number)).symlink_to(root / "synsets" / synset)
    for variant in "ra":
        (root / variant).mkdir()
        for place in imagenet_names.members(variant):
            synset = imagenet_names.synsets()[place]
            (root / variant / synset).symlink_to(root / "synsets" / synset)
    return root
