"""Write the generated parts of the documentation, or check that they are current.

    python -m benchmarks.pages [--check]

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`. Figures that take
long to measure are read from `benchmarks/figures/*.json`, where the measuring scripts leave them.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from perdure.data.emojishift import VERSION
from perdure.data.sprites import ATLAS, CLASSES, VENDORS, VOCABULARY, covered
from perdure.data.suites import SUITES
from perdure.method import METHODS

from .barriers import barriers

DOCS = Path("docs")
FIGURES = Path("benchmarks/figures")
CHECKPOINTS = {
    "perdure-tiny, seed 0 (shipped)": Path("perdure/assets/perdure-tiny"),
    "perdure-tiny, seed 1": Path("benchmarks/perdure-tiny-1"),
}


def coverage() -> str:
    """Return which drawings of the 80 classes pre-training has not seen, by vendor."""
    lines = ["| set | seen of 80 | not seen |", "|---|---|---|"]
    for vendor, row in zip(VENDORS, covered()[:, : len(CLASSES)], strict=True):
        missing = [name for name, seen in zip(CLASSES, row, strict=True) if not seen]
        lines.append(f"| {vendor} | {int(row.sum())} | {', '.join(missing)} |")
    return "\n".join(lines)


def hashes() -> str:
    """Return the SHA-256 of everything that makes up the world."""
    files = [ATLAS, VOCABULARY, Path("perdure/data/names/emojishift.yaml")]
    files += [folder / "open_clip_model.safetensors" for folder in CHECKPOINTS.values()]
    root = Path.cwd()
    lines = [f"EmojiShift version {VERSION}.", "", "| file | SHA-256 |", "|---|---|"]
    for file in files:
        name = file.resolve().relative_to(root)
        lines.append(f"| `{name}` | `{hashlib.sha256(file.read_bytes()).hexdigest()}` |")
    return "\n".join(lines)


def zero_shot() -> str:
    """Return zero-shot accuracy per split, all, seen and unseen drawings apart."""
    measured = json.loads((FIGURES / "zero_shot.json").read_text(encoding="utf-8"))
    splits = list(next(iter(measured.values())))
    lines = [
        "Accuracy in %, five prompts averaged; in brackets seen / unseen drawings. "
        "Chance is 1.25 (`val_shift`: 1.67).",
        "",
        "| checkpoint | " + " | ".join(f"`{split}`" for split in splits) + " |",
        "|---" * (len(splits) + 1) + "|",
    ]
    for checkpoint, values in measured.items():
        cells = []
        for split in splits:
            entry = values[split]
            unseen = "-" if entry["unseen"] is None else f"{100 * entry['unseen']:.1f}"
            whole, seen = 100 * entry["accuracy"], 100 * entry["seen"]
            cells.append(f"{whole:.1f} ({seen:.1f} / {unseen})")
        lines.append(f"| {checkpoint} | " + " | ".join(cells) + " |")
    sizes = {entry["n"] for values in measured.values() for entry in values.values()}
    lines += ["", f"n = {max(sizes)} images per set, {min(sizes)} in `val_shift`."]
    return "\n".join(lines)


def headline() -> str:
    """Return the few results that stand for all."""
    rows = json.loads((FIGURES / "headline.json").read_text(encoding="utf-8"))
    lines = ["| model | ID accuracy | OOD accuracy | OOD calibration error |", "|---|---|---|---|"]
    lines += [
        f"| {row['method']} | {row['id']} | {row['ood']} | {row['ece_ood']} |" for row in rows
    ]
    return "\n".join(lines)


def methods() -> str:
    """Return the table of registered methods."""
    lines = ["| method | what it does |", "|---|---|"]
    lines += [f"| `{name}` | {entry.summary} |" for name, entry in METHODS.items()]
    return "\n".join(lines)


def suites() -> str:
    """Return the table of evaluation suites."""
    lines = ["| suite | splits | about |", "|---|---|---|"]
    for name, suite in SUITES.items():
        splits = ", ".join(f"`{split.name}`" for split in suite.splits) or "what is found"
        lines.append(f"| `{name}` | {splits} | {suite.summary} |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "barriers": barriers,
    "coverage": coverage,
    "hashes": hashes,
    "zero-shot": zero_shot,
    "headline": headline,
    "methods": methods,
    "suites": suites,
}


def renew(text: str) -> str:
    """Return a page with every generated part made again."""

    def part(match: re.Match[str]) -> str:
        body = PARTS[match["name"]]()
        return f"<!-- generated: {match['name']} -->\n{body}\n<!-- end -->"

    pattern = r"<!-- generated: (?P<name>[a-z-]+) -->\n.*?<!-- end -->"
    return re.sub(pattern, part, text, flags=re.DOTALL)


def main() -> int:
    """Renew or check every page; return 1 if a checked page is out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    check = parser.parse_args().check
    stale = []
    for page in [Path("README.md"), *sorted(DOCS.rglob("*.md"))]:
        old = page.read_text(encoding="utf-8")
        new = renew(old)
        if new != old:
            stale.append(page)
            if not check:
                page.write_text(new, encoding="utf-8")
    for page in stale:
        print(f"{page}: {'out of date; run python -m benchmarks.pages' if check else 'renewed'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
