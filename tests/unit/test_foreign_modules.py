"""Adapters of MMA and students of PromptKD, in the layouts in which their public programs write."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perdure import towers, zoo
from perdure.errors import TaskError, WeightsError
from perdure.foreign import read_tuned
from perdure.method import Context, parse_method
from perdure.predictor import Predictor
from perdure.surgery.projector import Projector, layers_of
from perdure.surgery.side import Side
from perdure.surgery.visual_prompts import VisualPrompts
from tests.golden_clip import golden_clip
from tests.unit.test_foreign import save

Golden = Callable[[str], dict[str, np.ndarray]]
NAMES = ("taco", "sushi roll", "cup")
VISION = {"layers": 4, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
RANK, OUT = 4, 24


@pytest.fixture(scope="module")
def base() -> Predictor:
    """Return a CLIP of two blocks in each tower."""
    return zoo.random_clip()


def blocks(base: Predictor) -> int:
    return len(base.clip.visual.transformer.resblocks)


def side_state(base: Predictor, depths: tuple[int, ...], prefix: str = "") -> dict[str, Tensor]:
    """Return what an adapter learner saves: half precision, with buffers of the classes."""
    widths = {"text": base.clip.transformer.width, "visual": base.clip.visual.transformer.width}
    state = OrderedDict()
    for depth in depths:
        for tower, width in widths.items():
            state[f"{tower}_adapter.{depth}.down.0.weight"] = torch.randn(RANK, width).half()
            state[f"{tower}_adapter.{depth}.down.0.bias"] = torch.randn(RANK).half()
            state[f"{tower}_adapter.{depth}.up.weight"] = torch.randn(width, RANK).half()
            state[f"{tower}_adapter.{depth}.up.bias"] = torch.randn(width).half()
        state[f"shared_adapter.{depth}.0.weight"] = torch.randn(RANK, RANK).half()
        state[f"shared_adapter.{depth}.0.bias"] = torch.randn(RANK).half()
    state["token_embedding"] = torch.randn(3, 20, widths["text"]).half()
    state["tokenized_prompts"] = torch.zeros(3, 20, dtype=torch.long)
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "adapter_learner."])
def test_golden_adapters_score_as_the_authors_program(
    tmp_path: Path, golden: Golden, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = golden("mergetune_mma")
    monkeypatch.setattr("perdure.foreign_modules.ETA", float(data["scale"]))
    state = {
        prefix + name.removeprefix("adapter/"): torch.from_numpy(value)
        for name, value in data.items()
        if name.startswith("adapter/")
    }
    state[prefix + "token_embedding"] = torch.zeros(5, 77, 32)
    state[prefix + "tokenized_prompts"] = torch.from_numpy(data["tokenized_prompts"])
    clip = golden_clip(golden("mergetune_tinyclip"))
    place = save(tmp_path / "adapter_learner" / "model.pth.tar-5", state).parent.parent
    found = read_tuned(place, clip)
    assert not clip.surgeries
    images = torch.from_numpy(data["images"])
    tokens = torch.from_numpy(data["tokenized_prompts"])
    with torch.no_grad():
        text = towers.encode_text(found.clip, tokens)
        image = towers.encode_image(found.clip, images)
        logits = found.logits(images, towers.unit(text))
    for ours, theirs in (
        (text, "text_features_raw"),
        (image, "image_features_raw"),
        (logits, "logits"),
    ):
        np.testing.assert_allclose(ours.numpy(), data[theirs], rtol=1e-4, atol=1e-5)


def test_adapters_go_on_as_a_start_of_mma_and_of_mergetune_over_it(
    tmp_path: Path, base: Predictor
) -> None:
    count = blocks(base)
    upper = tuple(range(count // 3 + 1, count + 1))
    path = save(tmp_path / "model.pth.tar-5", side_state(base, upper))
    found = read_tuned(path, base)
    assert found.surgeries == (Side(rank=RANK, eta=0.001),)
    only = read_tuned(save(tmp_path / "last", side_state(base, (count,))), base)
    assert only.surgeries == (Side(rank=RANK, eta=0.001, blocks=(count - 1,)),)
    context = Context(4, NAMES, ("a {}",), zoo.random_clip)
    host = {"name": "mma", "rank": RANK}
    student = parse_method(host).build(found.copy(), context).export()
    for name, value in found.added().items():
        assert torch.equal(student.added()[name], value)
    table = {"name": "mergetune", "host": host, "space": "parameters", "start": 1}
    repaired = parse_method(table).build(found.copy(), context).export()
    for name, value in found.added().items():
        torch.testing.assert_close(repaired.added()[name], value, rtol=1e-6, atol=0)
    with pytest.raises(TaskError, match="are not those of the recipe"):
        parse_method({"name": "mma"}).build(found.copy(), context)


def test_adapters_that_do_not_fit_are_explained(tmp_path: Path, base: Predictor) -> None:
    path, count = tmp_path / "model.pth.tar-5", blocks(base)

    def read(state: dict[str, Tensor]) -> None:
        read_tuned(save(path, state), base)

    state = side_state(base, (count,))
    with pytest.raises(WeightsError, match=f"beside blocks {count + 3} to {count + 3}, counted in"):
        read(side_state(base, (count + 3,)))
    with pytest.raises(WeightsError, match="has an adapter 0, which changes the embeddings"):
        read(side_state(base, (0, count)))
    short = {name: value for name, value in state.items() if "shared" not in name}
    with pytest.raises(
        WeightsError, match=rf"lacks layers of adapters: {count}: shared\.0\.weight"
    ):
        read(short)
    with pytest.raises(WeightsError, match=rf"shared_adapter\.{count}\.0 in .* has shape \(\)"):
        read({**state, f"shared_adapter.{count}.0.weight": torch.tensor(1.0)})
    wide = {**state, f"visual_adapter.{count}.down.0.weight": torch.zeros(RANK, 768)}
    with pytest.raises(WeightsError, match=rf"down\.weight is \({RANK}, 768\) instead of"):
        read(wide)
    with pytest.raises(WeightsError, match=r"numbers that are not finite: .*up\.bias"):
        read({**state, f"text_adapter.{count}.up.bias": torch.full((32,), torch.inf)})
    deeper = zoo.random_clip(vision_cfg=VISION)
    with pytest.raises(WeightsError, match="4 blocks in the image tower and 2 in the text tower"):
        read_tuned(save(path, state), deeper)
    with pytest.warns(UserWarning, match=r"1 tensors beside the adapters \(text_encoder\.x\)"):
        read({**state, "text_encoder.x": torch.zeros(1)})


class TheirProjector(nn.Module):
    """A projector written out as PromptKD describes it: two 1 x 1 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(width, OUT, 1), nn.BatchNorm2d(OUT), nn.ReLU(), nn.Conv2d(OUT, OUT, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.conv1(features[:, :, None, None])[:, :, 0, 0]


def student(depth: int, tokens: int = 2) -> tuple[Predictor, dict[str, Tensor], nn.Module]:
    """Return a base, the state of a student of it, and the student's projector."""
    clip = zoo.random_clip(vision_cfg=VISION)
    width = clip.source.config["model_cfg"]["embed_dim"]
    theirs = TheirProjector(width)
    with torch.no_grad():
        for _ in range(3):  # statistics that are not those of the start
            theirs(torch.randn(8, width) + 0.3)
    tower = clip.clip.visual.state_dict()
    state = {f"image_encoder.{name}": value.clone() for name, value in tower.items()}
    state["logit_scale"] = clip.clip.logit_scale.detach().clone()
    for place in range(depth):
        where = "" if place == 0 else f"transformer.resblocks.{place}."
        name = f"image_encoder.{where}{'VPT_shallow' if place else 'VPT'}"
        state[name] = torch.randn(tokens, VISION["width"])
    state |= {f"VPT_image_trans.{name}": one for name, one in theirs.state_dict().items()}
    return clip, state, theirs.eval()


def by_hand(clip: Predictor, state: dict[str, Tensor], theirs: nn.Module, images: Tensor) -> Tensor:
    """Embed images with prompts behind the patches, block by block."""
    visual = clip.clip.visual
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    start = visual.class_embedding.expand(len(x), 1, -1)
    x = torch.cat([start, x], dim=1) + visual.positional_embedding
    length = x.shape[1]
    for place, block in enumerate(visual.transformer.resblocks):
        name = f"transformer.resblocks.{place}.VPT_shallow" if place else "VPT"
        prompts = state.get(f"image_encoder.{name}")
        if prompts is not None:
            x = torch.cat([x[:, :length], prompts.expand(len(x), -1, -1)], dim=1)
        x = block(visual.ln_pre(x) if place == 0 else x)
    return towers.unit(theirs(visual.ln_post(x[:, 0]) @ visual.proj))


@pytest.mark.parametrize("depth", [0, 1, 3, 4])
def test_a_student_embeds_images_as_its_program(tmp_path: Path, depth: int) -> None:
    clip, state, theirs = student(depth)
    place = tmp_path / "VLPromptLearner"
    save(place / "model-best.pth.tar", {f"module.{name}": one for name, one in state.items()})
    found = read_tuned(tmp_path, clip)
    prompts = () if not depth else (VisualPrompts(2, None if depth == 3 else depth),)
    assert found.surgeries == (*prompts, Projector(32, OUT))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            found.encode_image(images), by_hand(clip, state, theirs, images), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(TaskError, match="of a recipe of promptkd that names the teacher"):
        found.logits_fn(NAMES, ("a {}",))
    rows = towers.unit(torch.randn(3, OUT))
    found.keep_rows(NAMES, ("a {}",), rows)
    with torch.no_grad():
        logits = found.logits_fn(NAMES, ("a {}",))(images)
        expected = found.scale * by_hand(clip, state, theirs, images) @ rows.T
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_student_gets_the_rows_of_the_teacher_that_a_recipe_names(tmp_path: Path) -> None:
    clip, state, _ = student(3)
    path = save(tmp_path / "model-best.pth.tar", state)
    teacher = tmp_path / "teacher"
    zoo.random_clip(embed_dim=OUT, seed=3).export_open_clip(teacher)
    host: dict[str, Any] = {"name": "promptkd", "teacher": f"local-dir:{teacher}", "prompts": 2}
    context = Context(4, NAMES, ("a {}",), lambda: zoo.random_clip(vision_cfg=VISION))
    for table in (host, {"name": "mergetune", "host": host, "preset": "released-promptkd"}):
        learner = parse_method(table).build(read_tuned(path, clip), context)
        made = learner.export()
        projector = layers_of(made.clip)
        expected = state["VPT_image_trans.conv1.3.bias"]
        torch.testing.assert_close(projector.last.bias.detach(), expected, rtol=1e-6, atol=1e-7)
        assert made.classes == NAMES
        assert made.logits_fn(NAMES, ("a {}",))(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def test_students_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    clip, state, _ = student(2)
    path = tmp_path / "model-best.pth.tar"

    def read(changed: dict[str, Tensor], base: Predictor = clip) -> None:
        read_tuned(save(path, changed), base)

    def without(part: str) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if part not in name}

    with pytest.raises(WeightsError, match=r"lacks VPT_image_trans\.conv1\.3\.weight"):
        read(without("conv1.3"))
    with pytest.raises(WeightsError, match=r"visual prompts in blocks \[1\], counted from 0"):
        read(without("image_encoder.VPT"))
    with pytest.raises(WeightsError, match=r"conv1\.weight has other values"):
        read({**state, "image_encoder.conv1.weight": torch.randn(32, 3, 8, 8)})
    with pytest.raises(WeightsError, match=r"conv1\.weight \(8, 3, 8, 8\), is \(32, 3, 8, 8\)"):
        read({**state, "image_encoder.conv1.weight": torch.randn(8, 3, 8, 8)})
    with pytest.raises(WeightsError, match=r"image_encoder\.other which that model has not"):
        read({**state, "image_encoder.other": torch.zeros(1)})
    with pytest.raises(
        WeightsError, match=r"resblocks\.1\.prompts\.weight is \(2, 40\) instead of"
    ):
        read({**state, "image_encoder.transformer.resblocks.1.VPT_shallow": torch.zeros(2, 40)})
    with pytest.raises(WeightsError, match=r"image_encoder\.VPT in .* has shape \(32,\)"):
        read({**state, "image_encoder.VPT": torch.zeros(32)})
    with pytest.raises(WeightsError, match=r"conv1\.0 in .* has shape \(24,\)"):
        read({**state, "VPT_image_trans.conv1.0.weight": torch.zeros(24)})
    with pytest.raises(WeightsError, match=r"conv1.0.bias in .* has shape \(3,\)"):
        read({**state, "VPT_image_trans.conv1.0.bias": torch.zeros(3)})
    with pytest.raises(WeightsError, match=r"not finite: visual\.projector\.last\.bias"):
        read({**state, "VPT_image_trans.conv1.3.bias": torch.full((OUT,), torch.nan)})


@pytest.mark.parametrize(
    "names",
    [
        (
            "prompt_learner.ctx",
            "image_encoder.VPT",
            "text_encoder.transformer.resblocks.1.VPT_shallow",
        ),
        ("prompt_learner.text_ctx", "prompt_learner.token_prefix"),
        ("adapter.fc.0.weight",),
        ("image_encoder.VPT",),
    ],
)
def test_prompts_in_both_towers_and_other_adapters_are_refused(
    tmp_path: Path, base: Predictor, names: tuple[str, ...]
) -> None:
    path = save(tmp_path / "model-best.pth.tar", {name: torch.zeros(4, 32) for name in names})
    with pytest.raises(WeightsError, match="perdure reads CoOp, KgCoOp, MMA and PromptKD"):
        read_tuned(path, base)
