"""The comparison of corruptions tells the same, the alike and the other apart."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import parity
from perdure.corruptions.table import CORRUPTIONS


def noise(picture: parity.Picture, sigma: float, seed: int, flip: int = 1) -> parity.Picture:
    """Add normal noise as the fork draws it, or the same noise mirrored."""
    np.random.seed(seed)
    found = picture / 255 + flip * np.random.normal(size=picture.shape, scale=sigma)
    return np.uint8(np.clip(found, 0, 1) * 255)


@pytest.mark.parametrize(
    ("sigma", "flip", "verdict"), [(0.08, 1, "same"), (0.08, -1, "alike"), (0.2, 1, "other")]
)
def test_verdicts(monkeypatch: pytest.MonkeyPatch, sigma: float, flip: int, verdict: str) -> None:
    monkeypatch.setattr(
        parity, "forks", lambda picture, name, severity, seed: noise(picture, sigma, seed, flip)
    )
    row = parity.compare("gaussian_noise", 1, parity.pictures(2, 56))
    assert row.verdict == verdict


def test_only_what_has_the_published_name_must_be_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    images = parity.pictures(1, 56)
    monkeypatch.setattr(parity, "SEVERITIES", (3,))
    monkeypatch.setattr(
        parity, "forks", lambda picture, name, severity, seed: np.zeros_like(picture)
    )
    lines, wrong = parity.table(images)
    assert len(lines) == len(CORRUPTIONS)
    assert set(wrong) == set(CORRUPTIONS) - {"rime", "splatter"}
    assert lines[8].startswith("| rime / frost |")
