"""The verb merge: several models become one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import Json, emit, emit_json, meter, numbers
from .errors import nearest, typed

KINDS = (
    "wise-ft", "soup", "task-arithmetic", "ties", "dare", "slerp", "fisher", "regmean",
    "model-stock",
)  # fmt: skip
"""As in `merges.kinds`, which imports torch"""


def merge(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(KINDS)}.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|MODEL",
            help="Models. The base comes first for wise-ft (zero-shot, then tuned), "
            "task-arithmetic, ties, dare and model-stock.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="New run directory.")],
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", help="Share of the second model, 0 to 1 (wise-ft, slerp)."),
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option("--shares", metavar="1,1,2", help="Weight of each input (soup, fisher)."),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Keep members while accuracy on val holds (soup).")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", metavar="1,0.5", help="Of each task vector (task-arithmetic, ties, dare)."
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", help="Factor on the merged vector (task-arithmetic, ties, dare)."),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option("--density", help="Share of entries that stay (ties: 0.2, dare: 0.5)."),
    ] = None,
    majority: Annotated[
        str | None,
        typer.Option(
            "--majority",
            metavar="RULE",
            help="Signs by total or frequency; none: add (ties, dare).",
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option("--scope", metavar="WHERE", help="Trim per_tensor or whole_model (ties)."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of what is drawn (dare, fisher).")
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option("--examples", metavar="N", help="Training images (fisher: 64, regmean: 256)."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Expectation over all classes, no draw (fisher).")
    ] = False,
    floor: Annotated[
        float | None, typer.Option("--floor", help="Smallest information, 1e-8 (fisher).")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option("--ratio", help="Off-diagonal factor, 0.9 (regmean).")
    ] = None,
    ridge: Annotated[
        float | None, typer.Option("--ridge", help="Where matrices are singular, 1e-6 (regmean).")
    ] = None,
    batch_norm: Annotated[
        int | None,
        typer.Option("--batch-norm", metavar="N", help="Renew normalisation on N images."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="ROOT", help="Where the task's data are now.")
    ] = None,
    json: Json = False,
) -> None:
    """Make one model out of several.

    The result is a run: it can be evaluated, reported and merged again. docs/merging.md has every
    kind in a formula. Fisher, regmean, greedy soups and --batch-norm look at images of the task
    that the first trained input records.
    """
    if kind not in KINDS:
        hint = nearest(kind, KINDS) or f"choose one of {', '.join(KINDS)}."
        raise typer.BadParameter(f"no merge is called {kind!r}; {hint}", param_hint="KIND")
    from .merging import merge as carry_out
    from .merging import phases
    from .records import document

    options: dict[str, Any] = {
        "alpha": alpha,
        "shares": _numbers(shares, "--shares"),
        "greedy": greedy or None,
        "weights": _numbers(weights, "--weights"),
        "scale": scale,
        "density": density,
        "majority": majority,
        "scope": scope,
        "seed": seed,
        "examples": examples,
        "exact": exact or None,
        "floor": floor,
        "ratio": ratio,
        "ridge": ridge,
    }
    given = {name: value for name, value in options.items() if value is not None}
    with meter(len(phases(kind, given, batch_norm))) as shown:

        def progress(phase: str, share: float) -> None:
            shown.describe(f"{out}: {phase}")
            shown.advance(share)

        carry_out(kind, inputs, out, root=data, batch_norm=batch_norm, progress=progress, **given)
    made = document(out)
    if json:
        emit_json({"path": str(out), **made})
        return
    emit(f"Wrote {out}\n{_told(made)}\nNext: perdure eval {typed(out)} --suite {_suite(made)}")


def suite_of(data: str | None, root: object, classes: str = "all") -> str:
    """Return what follows `--suite` for a model that was trained on these data."""
    from .data.suites import of_task

    found = of_task(data or "emojishift", classes) or "emojishift"
    return found if root is None else f"{found} --data {typed(root)}"


def _told(made: Any) -> str:
    """Say what was done, with every option that decides the result."""
    settled = {
        key: value for key, value in made.items() if key not in ("kind", "inputs", "greedy", "task")
    }
    words = []
    for key, value in settled.items():
        if isinstance(value, dict):
            value = " ".join(f"{name} {count}" for name, count in value.items())
        elif isinstance(value, list):
            value = ",".join(f"{one:g}" for one in value)
        words.append(f"{key} {value}")
    lines = [f"{made['kind']} of {len(made['inputs'])} models: {', '.join(words) or 'no options'}"]
    if "greedy" in made:
        found = made["greedy"]
        each = ", ".join(f"{100 * value:.1f}" for value in found["accuracies"])
        lines.append(
            f"accuracy on {found['split']} ({found['n']} images): {each}; "
            f"soup {100 * found['accuracy']:.1f}"
        )
    return "\n".join(lines)


def _suite(made: Any) -> str:
    recipes = [one["recipe"] for one in made["inputs"] if "recipe" in one]
    data = recipes[0]["data"] if recipes else {}
    return suite_of(data.get("name"), data.get("root"), data.get("classes", "all"))


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    return None if text is None else tuple(numbers(text, float, option))
