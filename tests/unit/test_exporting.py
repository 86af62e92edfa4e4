"""Export: plain open_clip reads the same model, and a wrong one leaves nothing behind."""

from __future__ import annotations

import open_clip
import pytest
import torch

from perdure import exporting
from perdure.errors import RunError, WeightsError
from perdure.exporting import BOUND, Difference, compare, export_open_clip
from perdure.merging import merge
from perdure.zoo import random_clip


@pytest.fixture
def merged(tmp_path):
    """A merge of two models with a head."""
    for seed in (0, 1):
        random_clip(seed).save(tmp_path / f"member-{seed}")
    merge("soup", [str(tmp_path / f"member-{seed}") for seed in (0, 1)], tmp_path / "soup")
    return tmp_path / "soup"


def test_plain_open_clip_gets_the_same_embeddings(merged, tmp_path):
    out = tmp_path / "clip"
    found = export_open_clip(merged, out)
    assert max(found) < 1e-5
    assert {"open_clip_config.json", "open_clip_model.safetensors"} <= {
        file.name for file in out.iterdir()
    }
    clip = open_clip.create_model(f"local-dir:{out}").eval()
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        theirs = clip.encode_image(images, normalize=True)
        merged_soup = exporting.find(merged).predictor().encode_image(images)
    assert torch.allclose(theirs, merged_soup, atol=1e-6)


def test_another_model_is_far_away():
    source = random_clip(0)
    assert max(compare(source, random_clip(0).clip)) == 0.0
    other = compare(source, random_clip(1).clip)
    assert min(other.image, other.text) > 100 * BOUND


@pytest.mark.parametrize("part", ["visual.proj", "text_projection", "logit_scale"])
def test_a_changed_part_is_refused_and_nothing_stays(merged, tmp_path, monkeypatch, part):
    reload = exporting._reload

    def damaged(path):
        clip = reload(path)
        with torch.no_grad():
            dict(clip.named_parameters())[part].view(-1)[0].add_(0.5)
        return clip

    monkeypatch.setattr(exporting, "_reload", damaged)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(WeightsError, match=r"at most 0\.0001 is allowed, so nothing was written"):
        export_open_clip(merged, tmp_path / "clip")
    assert sorted(tmp_path.iterdir()) == before


def test_not_a_number_is_refused(merged, tmp_path, monkeypatch):
    wrong = Difference(0.0, float("nan"), 0.0)
    monkeypatch.setattr(exporting, "compare", lambda source, clip: wrong)
    with pytest.raises(WeightsError, match="nan in text"):
        export_open_clip(merged, tmp_path / "clip")
    assert not (tmp_path / "clip").exists()


def test_what_open_clip_cannot_load_is_refused(merged, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("unknown architecture")

    monkeypatch.setattr(open_clip, "create_model", refuse)
    with pytest.raises(WeightsError, match="unknown architecture"):
        export_open_clip(merged, tmp_path / "clip")
    assert not (tmp_path / "clip").exists()


def test_an_existing_place_is_left_alone(merged, tmp_path):
    (tmp_path / "clip").mkdir()
    with pytest.raises(RunError, match="exists already"):
        export_open_clip(merged, tmp_path / "clip")
    assert list((tmp_path / "clip").iterdir()) == []
