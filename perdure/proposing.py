"""Mask proposals by models of the `transformers` library, written where suites look for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .data.own import decode
from .data.proposals import SETTINGS
from .data.segmented import Proposals
from .data.tables import read_lines
from .documents import parse_yaml
from .errors import RunError, WeightsError
from .extras import explain, require
from .files import whole_file

POINTS = ("sam", "sam2", "sam_hq", "edgetam")
"""Kinds of models that are asked at a grid of points"""

QUERIES = ("mask2former", "maskformer", "oneformer", "eomt")
"""Kinds of models that give one mask per query"""

Proposer = Callable[[Tensor], Proposals]
"""From an image (3, H, W), uint8, to proposals of its size"""


def load_proposer(
    model: str, *, download: bool = False, least: float = 0.05, options: Mapping[str, Any] = {}
) -> Proposer:
    """Load a model that proposes masks.

    Args:
        model: Directory with its files, or a name on the hub.
        download: Whether names may be fetched; else only what is on this machine is used.
        least: Of models with queries, the probability of an object below which a mask is left out.
        options: Of the generator of models that are asked at points, such as `points_per_crop`.

    Raises:
        DependencyError: If transformers is missing.
        WeightsError: If there is no such model here, or it proposes no masks.
    """
    require("transformers", "proposing masks")
    from transformers import AutoConfig

    where = {"local_files_only": not download}
    try:
        kind = AutoConfig.from_pretrained(model, **where).model_type
        if kind in POINTS:
            return _by_points(model, where, options)
        if kind in QUERIES:
            return _by_queries(model, where, least)
    except (OSError, ValueError, KeyError, ImportError) as error:
        explain(error, f"the model {model}")
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        raise WeightsError(
            f"cannot load the proposing model {model}: {reason}. Name a directory with "
            "config.json, weights and preprocessor_config.json"
            + ("." if download else ", or add --download to fetch a name from the hub.")
        ) from None
    raise WeightsError(
        f"{model} is of the kind {kind!r}, which proposes no masks that perdure knows; allowed are "
        f"{', '.join((*POINTS, *QUERIES))}."
    )


def _by_points(model: str, where: Mapping[str, Any], options: Mapping[str, Any]) -> Proposer:
    from PIL import Image
    from transformers import AutoModelForMaskGeneration, AutoProcessor, pipeline

    load: Any = AutoProcessor.from_pretrained  # untyped
    processor = load(model, **where)
    network = AutoModelForMaskGeneration.from_pretrained(model, **where).eval()
    generate = pipeline(
        "mask-generation", model=network, image_processor=processor.image_processor, device="cpu"
    )

    def look(image: Tensor) -> Proposals:
        found = generate(Image.fromarray(image.permute(1, 2, 0).numpy()), **options)
        return from_generator(found, (image.shape[1], image.shape[2]))

    return look


def _by_queries(model: str, where: Mapping[str, Any], least: float) -> Proposer:
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

    load: Any = AutoImageProcessor.from_pretrained  # untyped
    processor = load(model, **where)
    network = AutoModelForUniversalSegmentation.from_pretrained(model, **where).eval()

    @torch.no_grad()
    def look(image: Tensor) -> Proposals:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        out = network(pixel_values=processor(picture, return_tensors="pt")["pixel_values"])
        size = (image.shape[1], image.shape[2])
        return from_queries(out.masks_queries_logits[0], out.class_queries_logits[0], size, least)

    return look


def from_generator(found: Mapping[str, Any], size: tuple[int, int]) -> Proposals:
    """Return what a mask generator has found: masks, and how well it thinks that they fit.

    Args:
        found: Q `masks` (H, W) and their `scores`, as the "mask-generation" pipeline returns them.
        size: Of the image.
    """
    masks = [np.asarray(mask, dtype=bool) for mask in found["masks"]]
    scores = np.array([float(score) for score in found["scores"]], dtype=np.float32)
    stacked = np.stack(masks) if masks else np.zeros((0, *size), dtype=bool)
    return Proposals(stacked, None, np.clip(scores, 0, 1))


def from_queries(
    masks: Tensor, classes: Tensor, size: tuple[int, int], least: float = 0.05
) -> Proposals:
    """Return the masks of queries, with the probability that there is an object at all.

    The model's own classes are not kept: they are seldom those that are asked for.

    Args:
        masks: Logits, (Q, h, w).
        classes: Logits, (Q, C + 1), "no object" last.
        size: Of the image, to which masks are enlarged before they are cut at 0.5.
        least: Probability of an object below which a mask is left out.
    """
    there = 1 - classes.softmax(1)[:, -1]
    kept = there >= least
    if not kept.any():  # which interpolation refuses
        return Proposals(np.zeros((0, *size), bool), None, np.zeros(0, np.float32))
    grown = interpolate(masks[kept][None], size, mode="bilinear", align_corners=False)[0]
    return Proposals((grown > 0).numpy(), None, there[kept].numpy().astype(np.float32))


def propose(
    proposer: Proposer,
    pictures: Sequence[Path],
    out: Path,
    *,
    made_by: str = "",
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write `out/NAME.npz` for every picture that has none there, and return how many are new.

    Args:
        proposer: What proposes.
        pictures: Of different names, apart from their endings.
        out: Folder; `proposals.yaml` in it says what made them.
        made_by: Name of the model, for that file.
        progress: Told about finished pictures.

    Raises:
        DataError: If a picture cannot be decoded.
        RunError: If two pictures have one name, the folder is another model's, or a file cannot be
            written.
    """
    stems: dict[str, Path] = {}
    for picture in pictures:
        if picture.stem in stems:
            raise RunError(
                f"{stems[picture.stem]} and {picture} would both have their proposals in "
                f"{out / picture.stem}.npz; propose for one folder at a time."
            )
        stems[picture.stem] = picture
    settings = out / SETTINGS
    if settings.exists():
        before = parse_yaml(read_lines(settings), str(settings)).get("made_by", made_by)
        if made_by and before != made_by:
            raise RunError(
                f"{out} holds proposals by {before}, which would be mixed with those by {made_by}. "
                "Write to another folder, or remove these."
            )
    else:
        with whole_file(settings) as temporary:
            temporary.write_text(f"made_by: {json.dumps(made_by)}\n", encoding="utf-8")
    new = 0
    for stem, picture in stems.items():
        if not (out / f"{stem}.npz").exists():
            found = proposer(decode(picture))
            arrays: dict[str, Any] = {"masks": found.masks, "scores": found.scores}
            with whole_file(out / f"{stem}.npz") as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **{k: v for k, v in arrays.items() if v is not None})
            new += 1
        if progress is not None:
            progress(1)
    return new
