"""Suites of published data sets, made when the root is known. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import DataError
from . import coop, imagenet, imagenet_names
from .label_layouts import LAYOUTS, present
from .published import find, probe
from .splits import Split, Suite
from .transfer import cross_dataset

FOUR = ("imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r")
"""Shifts of the few-shot papers, in their order"""

OBJECTNET = "objectnet"

TASK_SUITES = {
    "imagenet": "imagenet-shift",
    "iwildcam": "wilds-iwildcam",
    "fmow": "wilds-fmow",
    "coco": "retrieval",
    "flickr30k": "retrieval",
    "emojishift-regions": "emojishift-segmentation",
    "regions": "segmentation",
}
"""Data set trained on to the suite that scores it"""

_WILDS = ("iwildcam", "fmow")


def _need(name: str, root: Path | None) -> Path:
    if root is None:
        raise DataError(
            f"suite {name} needs the directory of its data sets, and none is named; add --data "
            "ROOT. docs/data.md lists the layouts."
        )
    return root.expanduser()


def _shifted(dataset: str, root: Path) -> Split:
    """Return a shifted set scored over the columns of its own classes, before any softmax."""
    columns: tuple[tuple[int, ...], ...] | None = None
    if dataset in ("imagenet-r", "imagenet-a"):
        columns = tuple((label,) for label in imagenet_names.members(dataset[-1]))
    elif dataset == OBJECTNET:
        columns = find(OBJECTNET, "test", root).columns
    return Split(
        name=dataset.removeprefix("imagenet-"),
        role="ood",
        dataset=dataset,
        split="test",
        columns=columns,
    )


def _imagenet_shifts(name: str, root: Path | None, shifted: tuple[str, ...]) -> Suite:
    root = _need(name, root)
    found = [(dataset, probe(dataset, "test", root)) for dataset in shifted]
    missing = [(dataset, error) for dataset, error in found if isinstance(error, DataError)]
    if [dataset for dataset, _ in missing] == [OBJECTNET]:
        raise DataError(f"{missing[0][1]} Without ObjectNet, score suite domain-shift.")
    if missing:
        raise DataError(
            f"suite {name} lacks {', '.join(dataset for dataset, _ in missing)}: {missing[0][1]}"
        )
    return Suite(
        name=name,
        summary=SUMMARIES[name],
        splits=(
            Split(name="id", role="id", dataset="imagenet", split="test"),
            *(_shifted(dataset, root) for dataset in shifted),
        ),
        templates="imagenet",
    )


def _imagenet_shift(root: Path | None) -> Suite:
    return _imagenet_shifts("imagenet-shift", root, _FIVE)


def _domain_shift(root: Path | None) -> Suite:
    return _imagenet_shifts("domain-shift", root, FOUR)


def _imagenet_c(root: Path | None) -> Suite:
    _need("imagenet-c", root)
    return Suite(
        name="imagenet-c",
        summary=SUMMARIES["imagenet-c"],
        splits=(
            Split(name="id", role="id", dataset="imagenet", split="test"),
            *(
                Split(name=one, role="ood", dataset="imagenet-c", split=one)
                for one in imagenet.C_SPLITS
            ),
        ),
        templates="imagenet",
    )


def _cross_dataset(root: Path | None) -> Suite:
    _need("cross-dataset", root)
    return cross_dataset(
        "cross-dataset", "imagenet", tuple(coop.SETS), summary=SUMMARIES["cross-dataset"]
    )


def _of_wilds(dataset: str) -> Suite:
    return Suite(
        name=f"wilds-{dataset}",
        summary=SUMMARIES[f"wilds-{dataset}"],
        splits=(
            Split(name="id", role="id", dataset=dataset, split="id_test"),
            Split(name="ood", role="ood", dataset=dataset, split="test"),
        ),
        templates=dataset,
    )


def _wilds(root: Path | None) -> Suite:
    root = _need("wilds", root)
    found = {dataset: probe(dataset, "id_test", root) for dataset in _WILDS}
    there = [dataset for dataset, one in found.items() if not isinstance(one, DataError)]
    if len(there) == 1:
        return _of_wilds(there[0])
    if there:
        raise DataError(
            f"{root} holds iwildcam and fmow, which are two tasks; score suite wilds-iwildcam or "
            "wilds-fmow."
        )
    raise DataError(f"suite wilds finds neither iwildcam nor fmow: {found[_WILDS[0]]}")


def _segmentation(root: Path | None) -> Suite:
    root = _need("segmentation", root)
    found = present(root)
    if not found:
        places = ", ".join(f"{layout.folders[0]} ({name})" for name, layout in LAYOUTS.items())
        raise DataError(
            f"suite segmentation finds no labelled test set below {root}; looked for maps of "
            f"labels in {places}. docs/segmentation.md lists the layouts."
        )
    return Suite(
        name="segmentation",
        summary=SUMMARIES["segmentation"],
        splits=tuple(
            Split(name=name, role="target", task="segment", dataset=name, split="test")
            for name in found
        ),
        templates="vild-14",
    )


SUMMARIES = {
    "imagenet-shift": "ImageNet at --data, and V2, R, A, Sketch, ObjectNet; mean with and without",
    "domain-shift": "ImageNet at --data, and V2, Sketch, A, R, as few-shot papers have it",
    "imagenet-c": "ImageNet at --data, and ImageNet-C's 15 corruptions in 5 degrees",
    "wilds": "iWildCam or FMoW at --data, whichever is there",
    "wilds-iwildcam": "iWildCam at --data: cameras trained on and others; macro-F1 is published",
    "wilds-fmow": "FMoW at --data: years trained on and later ones; worst region is published",
    "segmentation": "labelled pixels at --data: A-150, A-847, PC-59, PC-459, PAS-20, as there are",
    "cross-dataset": "trained on ImageNet, unchanged on CoOp's ten other data sets at --data",
}

_FIVE = ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch", OBJECTNET)

MEMBERS: dict[str, tuple[str, ...]] = {
    "imagenet-shift": ("imagenet", *_FIVE),
    "domain-shift": ("imagenet", *FOUR),
    "imagenet-c": ("imagenet", "imagenet-c"),
    "wilds-iwildcam": ("iwildcam",),
    "wilds-fmow": ("fmow",),
    "cross-dataset": ("imagenet", *coop.SETS),
}
"""Suite to the data sets that it scores, which need not be there to be named"""

MAKERS: dict[str, Callable[[Path | None], Suite]] = {
    "imagenet-shift": _imagenet_shift,
    "domain-shift": _domain_shift,
    "imagenet-c": _imagenet_c,
    "wilds": _wilds,
    "wilds-iwildcam": lambda root: _of_wilds("iwildcam"),
    "wilds-fmow": lambda root: _of_wilds("fmow"),
    "segmentation": _segmentation,
    "cross-dataset": _cross_dataset,
}
"""Suite by name, made for a root"""
