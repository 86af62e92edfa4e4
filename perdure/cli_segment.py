"""The verb that makes mask proposals: propose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Json, emit, emit_json, meter


def propose(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Directory of a SAM or Mask2Former, or a name.")
    ],
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PICTURES", help="Folders or files of pictures.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="One npz per picture; old ones stay.")
    ],
    download: Annotated[
        bool, typer.Option("--download", help="Fetch MODEL from the hub if it is not here.")
    ] = False,
    json: Json = False,
) -> None:
    """Propose masks for pictures, for suite `segmentation`.

    Needs perdure[seg]. Goes on where it was stopped. Masks have the size of their pictures; SAM's
    scores are the overlap that it expects, those of the others the probability of an object.
    """
    from .predicting import find_pictures
    from .proposing import load_proposer
    from .proposing import propose as carry_out

    files = find_pictures(pictures)
    with meter(len(files)) as shown:
        shown.describe(f"{model}: loading")
        proposer = load_proposer(model, download=download)
        shown.describe(f"{model}: proposing")
        new = carry_out(proposer, files, out, made_by=model, progress=shown.advance)
    if json:
        emit_json({"out": str(out), "pictures": len(files), "new": new})
        return
    emit(f"Wrote the proposals of {new} of {len(files)} pictures to {out}")
