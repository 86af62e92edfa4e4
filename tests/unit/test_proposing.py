"""Proposing masks: what models say becomes files that suites read."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    SwinConfig,
)

from perdure.cli import main
from perdure.data.proposals import read_proposals
from perdure.data.segmented import Proposals
from perdure.errors import DataError, RunError, WeightsError
from perdure.proposing import from_generator, from_queries, load_proposer, propose

SIZE = (24, 32)
LOOSE = {"points_per_crop": 2, "pred_iou_thresh": -1e9, "stability_score_thresh": -1e9}
"""A random model is sure of nothing"""


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    """A SAM of two small layers with random weights."""
    torch.manual_seed(0)
    config = SamConfig(
        vision_config={
            "hidden_size": 16, "output_channels": 8, "num_hidden_layers": 1, "image_size": 64,
            "num_attention_heads": 2, "patch_size": 16, "window_size": 2, "mlp_dim": 16,
            "global_attn_indexes": [0], "num_pos_feats": 4,
        },
        prompt_encoder_config={
            "hidden_size": 8, "image_size": 64, "patch_size": 16, "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 8, "mlp_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "attention_downsample_rate": 1, "iou_head_hidden_dim": 8, "iou_head_depth": 2,
        },
    )  # fmt: skip
    path = tmp_path_factory.mktemp("models") / "sam"
    SamModel(config).save_pretrained(path)
    processor = SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16},
    )  # fmt: skip
    SamProcessor(processor).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    """A Mask2Former of five queries with random weights."""
    torch.manual_seed(0)
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2, image_size=32,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, hidden_dim=32, feature_size=32, mask_feature_size=32,
        num_queries=5, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        encoder_feedforward_dim=8,
        dim_feedforward=8, num_labels=3,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("models") / "mask2former"
    Mask2FormerForUniversalSegmentation(config).save_pretrained(path)
    Mask2FormerImageProcessor(
        size={"shortest_edge": 32, "longest_edge": 64}, ignore_index=255
    ).save_pretrained(path)
    return path


def image():
    return torch.randint(0, 256, (3, *SIZE), generator=torch.Generator().manual_seed(0)).byte()


def test_sam_is_asked_at_points(sam):
    found = load_proposer(str(sam), options=LOOSE)(image())
    assert found.masks.shape[1:] == SIZE
    assert found.masks.dtype == bool
    assert len(found.scores) == len(found.masks)


def test_mask2former_gives_a_mask_per_query(mask2former):
    found = load_proposer(str(mask2former), least=0.0)(image())
    assert found.masks.shape == (5, *SIZE)
    assert ((found.scores >= 0) & (found.scores <= 1)).all()


def test_outputs_become_proposals():
    masks = [np.eye(3, dtype=bool), np.zeros((3, 3), bool)]
    found = from_generator({"masks": masks, "scores": torch.tensor([1.02, 0.5])}, (3, 3))
    assert found.masks.shape == (2, 3, 3)
    assert found.scores.tolist() == [1, 0.5]
    assert from_generator({"masks": [], "scores": []}, SIZE).masks.shape == (0, *SIZE)
    logits = torch.tensor([[[5.0, -5.0]], [[5.0, 5.0]]])
    classes = torch.tensor([[0.0, 0.0, 0.0], [-9.0, -9.0, 9.0]])
    found = from_queries(logits, classes, (2, 4))
    assert found.masks.tolist() == [[[True, True, False, False]] * 2]
    assert found.scores.tolist() == pytest.approx([2 / 3])
    nothing = from_queries(logits, classes[[1, 1]], (2, 4))  # no object anywhere
    assert nothing.masks.shape == (0, 2, 4)
    assert nothing.scores is not None
    assert nothing.scores.shape == (0,)


def test_files_are_written_once_and_read_back(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (SIZE[1], SIZE[0])).save(tmp_path / f"{name}.png")
    seen = []

    def proposer(picture):
        seen.append(picture.shape)
        return Proposals(np.ones((2, *SIZE), bool), None, np.array([0.25, 1], np.float32))

    pictures, out = [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out"
    assert propose(proposer, pictures[:1], out, made_by="me") == 1
    assert propose(proposer, pictures, out) == 1
    assert len(seen) == 2
    found = read_proposals(out / "b.npz", SIZE, 3)
    assert found.masks.all()
    assert found.scores.tolist() == [0.25, 1]
    assert (out / "proposals.yaml").read_text() == 'made_by: "me"\n'
    with pytest.raises(RunError, match="holds proposals by me, which would be mixed with those by"):
        propose(proposer, pictures, out, made_by="you")
    (tmp_path / "x").mkdir()
    with pytest.raises(RunError, match="would both have"):
        propose(proposer, [tmp_path / "a.png", tmp_path / "x" / "a.png"], out)
    with pytest.raises(DataError, match=r"none\.png is not there"):
        propose(proposer, [tmp_path / "none.png"], out)


def test_what_proposes_nothing_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot load the proposing model .*--download"):
        load_proposer(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WeightsError, match=r"kind 'bert'.*sam, sam2"):
        load_proposer(str(tmp_path))


def test_command_says_what_it_wrote(mask2former, tmp_path, capsys):
    Image.new("RGB", (SIZE[1], SIZE[0])).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as ended:
        main(["propose", str(mask2former), str(tmp_path), "--out", str(tmp_path / "out"), "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["new"] == 1
    assert read_proposals(tmp_path / "out" / "a.npz", SIZE, 3).masks.shape[1:] == SIZE
