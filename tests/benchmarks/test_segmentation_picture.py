"""The picture of docs/segmentation.md is drawn from whatever models say."""

import numpy as np
from PIL import Image

from benchmarks import segmentation_picture
from perdure.data.scene_regions import open_scenes_with_masks
from perdure.zoo import random_clip


def test_picture_shows_scenes_and_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation_picture, "CHOSEN", {"id": 3})
    scenes = open_scenes_with_masks("emojishift", "id")
    said = segmentation_picture.answers(random_clip(0), scenes, 3)
    assert len(said) == 4
    assert set(said) <= set(scenes.classes)
    out = segmentation_picture.draw(random_clip(0), random_clip(1), tmp_path / "x.png")
    assert np.asarray(Image.open(out)).std() > 10
    tinted = segmentation_picture.tinted(scenes.image(3), scenes.proposals(3).masks)
    assert tinted.shape == (96, 96, 3)
    assert 0 <= tinted.min() <= tinted.max() <= 1
