"""One picture of a diagnosis: how alike features are, and where updates lie. Matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..figure_style import COLOURS, picture
from .diagnose import Diagnosis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = {"id": "-", "shifted": (0, (4, 2)), "prompts": "-"}


def draw_layers(found: Diagnosis, out: Path) -> Path:
    """Draw CKA from block to block and, where there is an update, its parts.

    Args:
        found: A diagnosis.
        out: PNG to write.

    Returns:
        `out`.
    """
    moved = [one for one in found.groups if one.inside is not None]
    with picture(out, figsize=(10.5, 4.4) if moved else (6, 4.4)) as figure:
        axes = figure.subplots(1, 2 if moved else 1, squeeze=False)[0]
        _similarity(found, axes[0])
        if moved:
            _parts(found, axes[1])
        figure.suptitle(
            f"{Path(found.subject).name} against {found.start}", x=0.01, ha="left", fontsize=12
        )
    return out


def _similarity(found: Diagnosis, axes: Axes) -> None:
    images = found.similarity.get("id") or found.similarity.get("shifted") or []
    ticks = [one.place.rpartition(" ")[2] for one in images]
    for number, (kind, rows) in enumerate(found.similarity.items()):
        for side, marker in (("image", "o"), ("text", "s")):
            own = [one for one in rows if one.place.startswith(side) and one.cka is not None]
            if not own:
                continue
            name = {"id": "images of the task", "shifted": "shifted images"}.get(kind, kind)
            last = max(len(ticks), len(own)) - 1  # towers of any depth end in an embedding
            axes.plot(
                [*range(len(own) - 1), last],
                [one.cka or 0.0 for one in own],
                color=COLOURS[number],
                linestyle=_DASHES[kind],
                marker=marker,
                markersize=4.5,
                label=f"{side} tower, {name} (n = {own[0].n})",
            )
    longest = max(
        (
            [o.place for o in rows if o.place.startswith("image")]
            for rows in found.similarity.values()
        ),
        key=len,
        default=[],
    )
    axes.set_xticks(range(len(longest)), [place.rpartition(" ")[2] for place in longest])
    axes.set_xlabel("block")
    axes.set_ylabel("linear CKA")
    axes.set_ylim(top=1.02)
    axes.set_title("Features that stayed alike")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8)


def _parts(found: Diagnosis, axes: Axes) -> None:
    """Squared norms add up, so bars are of them, relative to the largest part's."""
    moved = [one for one in found.groups if one.inside is not None]
    places = range(len(moved))
    inside = [100 * (one.inside or 0.0) for one in moved]
    axes.barh(places, inside, color=COLOURS[0], label="in the span of training inputs")
    rest = [100 - value for value in inside]
    axes.barh(places, rest, left=inside, color=COLOURS[1], label="outside")
    axes.plot(
        [100 * (one.random or 0.0) for one in moved],
        places,
        color="#222222",
        marker="|",
        markersize=14,
        markeredgewidth=2,
        linestyle="none",
        label="expected without preference",
    )
    axes.set_yticks(places, [f"{one.group} ({100 * (one.relative or 0.0):.1f} %)" for one in moved])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"% of the squared update (energy {found.conditions['energy']:g})")
    axes.set_title("Where the update lies (norm, % of the weights)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8)
