"""Recipe files: where they are, what they build on with `base:`, and `key=value` overrides."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from .errors import RecipeError, nearest

Table = dict[str, Any]

RECIPES = Path(__file__).parent / "recipes"
"""The recipes that come with perdure"""

_MAX_DEPTH = 10
"""More `base:` steps than anybody needs, so a circle is found"""

_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError, AttributeError, LookupError, TypeError)
"""What PyYAML raises; the last three for tags that lie, such as `!!timestamp x`"""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error, not a silent replacement."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def find_recipe(name: str, directory: Path = Path()) -> Path:
    """Return the file that a path, relative to `directory`, or a shipped name stands for.

    Raises:
        RecipeError: If there is neither; names the nearest shipped recipe.
    """
    path = directory / Path(name).expanduser()
    if path.is_file():
        return path
    shipped = {str(file.relative_to(RECIPES).with_suffix("")): file for file in _shipped()}
    bare = name.removesuffix(".yaml")
    if bare in shipped:
        return shipped[bare]
    hint = nearest(bare, shipped) or nearest(bare, {short.split("/")[-1] for short in shipped})
    raise RecipeError(
        f"there is no recipe {name!r}: neither a file {path} nor a shipped recipe. "
        f"{hint or 'See `perdure list recipes` for the shipped ones.'}"
    )


def list_recipes() -> list[tuple[str, str]]:
    """Return name and first header line of every shipped recipe, by name."""
    rows = []
    for file in _shipped():
        with file.open(encoding="utf-8") as lines:
            header = next(lines, "").lstrip("# ").rstrip()
        rows.append((file.relative_to(RECIPES).with_suffix("").as_posix(), header))
    return rows


def parse_yaml(text: str, source: str) -> Table:
    """Parse a YAML document that must be a table with text keys.

    Args:
        text: The document.
        source: What to call it in errors.

    Raises:
        RecipeError: If it is not YAML or not a table.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"{source} is not valid YAML: {reason}") from None
    if not isinstance(value, dict):
        raise RecipeError(
            f"{source} holds {type(value).__name__}, but a recipe is a table of keys and values, "
            "such as 'seed: 0'."
        )
    return value


def read_document(path: Path, depth: int = 0) -> Table:
    """Read a YAML file over the file its `base:` names, if any; the nearer file wins.

    Args:
        path: The file.
        depth: Files already followed.

    Raises:
        RecipeError: If a file cannot be read or the bases run in a circle.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise RecipeError(f"cannot read the recipe {path} ({error}).") from None
    table = parse_yaml(text, str(path))
    base = table.pop("base", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise RecipeError(f"{path}: base is {base!r}, but must be the name or path of a recipe.")
    if depth == _MAX_DEPTH:
        raise RecipeError(f"{path}: more than {_MAX_DEPTH} recipes build on one another in a row.")
    return merge(read_document(find_recipe(base, path.parent), depth + 1), table)


def merge(base: Table, over: Table) -> Table:
    """Return `base` with the values of `over`; tables are merged, everything else is replaced.

    A method of another name replaces the whole method, because its options mean other things.
    """
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, dict) and not _renamed(below, value):
            result[key] = merge(below, value)
        else:
            result[key] = value
    return result


def override(table: Table, assignments: Iterable[str]) -> Table:
    """Return the table with assignments such as "optim.lr=3e-5" applied in order.

    Raises:
        RecipeError: Lists every assignment that is not of the form a.b=value.
    """
    faults = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            faults.append(f"{assignment!r} is not an override; write a.b=value: optim.lr=3e-5")
            continue
        try:
            value = yaml.load(text, Loader=_Loader)
        except _NOT_YAML:
            faults.append(f"{assignment!r}: the value is not valid YAML; put it in quotes")
            continue
        table = _with(table, path, value)
    if faults:
        raise RecipeError("\n".join(faults))
    return table


def _shipped() -> list[Path]:
    return sorted(RECIPES.rglob("*.yaml"))


def _with(table: Table, path: list[str], value: Any) -> Table:
    if len(path) == 1:
        return table | {path[0]: value}
    below = table.get(path[0])
    return table | {path[0]: _with(below if isinstance(below, dict) else {}, path[1:], value)}


def _renamed(below: Table, over: Table) -> bool:
    return "name" in over and over["name"] != below.get("name")
