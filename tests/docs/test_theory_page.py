"""The page on theory shows what the command prints and draws, to the last digit."""

from __future__ import annotations

import pytest

from perdure import theory
from perdure.theory_figures import PICTURES
from perdure.theory_report import Setting, text

from .blocks import ROOT, blocks, commands

PAGE = ROOT / "docs" / "theory.md"


@pytest.mark.parametrize("number", [0, 1])
def test_the_tables_are_those_of_the_command(number: int) -> None:
    shown = [one for block in blocks(PAGE) if not block.title for one in commands_of(block)]
    command = shown[number]
    arguments = command.arguments[3:]
    assert arguments in (["theory", "--steps", "200"], ["theory", "--compare"])
    advice = theory.advise(200 if "--steps" in arguments else 25_030)
    printed = text(
        Setting(advice, advice.best), asked=False, compare="--compare" in arguments
    ).splitlines()
    missing = [line for line in command.printed if line != "..." and line not in printed]
    assert missing == []
    assert len(command.printed) > 10


def commands_of(block):
    return commands(block) if block.language == "console" else []


def test_the_numbers_in_its_sentences_are_computed() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    found = {(one.table, one.column): one.rho for one in theory.compare_published()}
    assert f"rank correlation {found['all', 'ID accuracy']:.2f}, n = 28 runs" in page
    assert f"OOD accuracy only up to a plateau ({found['all', 'OOD accuracy']:.2f})" in page
    good, wanted = theory.plateau(), theory.operate(0.5, 0.9, 25_030)
    assert f"predicted biases from {good.low:.3f} to {good.high:.2g}" in page
    assert f"over that range by {good.low_id - good.high_id:.1f} points" in page
    assert f"in the published run, {wanted.bias:.3f} (beta 0.5, strength 0.9" in page
    assert f"the recursion says {100 * wanted.gap:.1f} %" in page
    assert f"{100 * wanted.start_mass:.1f} % for beta 0.5 and 25,030 steps" in page
    gap = theory.round_errors(0.9, theory.ema_shares(0.9, 100)).gap
    assert gap[85] > 0.01 * gap[0] > gap[90]
    assert "below 1 % of its start after 90 rounds" in page
    assert f"T to the {-0.5 / 1.9:.2f}" in page


def test_its_pictures_are_all_that_the_command_draws() -> None:
    page = PAGE.read_text(encoding="utf-8")
    drawn = {f"{name}.png" for name in PICTURES}
    assert {path.name for path in (ROOT / "docs" / "theory").iterdir()} == drawn
    assert all(f"](theory/{name})" in page for name in drawn)
