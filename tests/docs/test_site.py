"""The site: every page has a place in it, and the reference names only what exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import yaml

import perdure

from .blocks import ROOT

DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
REFERENCE = sorted((DOCS / "reference").glob("*.md"))
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)")


def places(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from places(entry)


def test_every_page_is_in_the_navigation_once() -> None:
    found = sorted(places(CONFIG["nav"]))
    assert found == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_links_work_in_the_repository_and_on_the_site(page: Any) -> None:
    for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve()
        assert path.exists(), f"{page.name} links to {target}"
        assert path.is_relative_to(DOCS), f"{target} is not part of the site"


def test_the_reference_names_modules_that_exist_and_each_once() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in REFERENCE)
    named = re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE)
    assert len(named) == len(set(named)) > 30
    assert [name for name in named if find_spec(name) is None] == []


def test_the_reference_lists_every_public_name() -> None:
    text = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`perdure\.(\w+)`", text))
    errors = {name for name in perdure.__all__ if name.endswith("Error")}
    assert listed - errors == set(perdure.__all__) - errors - {"__version__"}


def test_the_reference_is_read_without_importing_the_package() -> None:
    (options,) = (plugin for plugin in CONFIG["plugins"] if isinstance(plugin, dict))
    python = options["mkdocstrings"]["handlers"]["python"]
    assert python["options"]["allow_inspection"] is False
