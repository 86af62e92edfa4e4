"""Towers: activations computed again, tokens before examples, prompts sorted by length."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from perdure import towers
from perdure.batch import Batch
from perdure.errors import TaskError
from perdure.learner import Learner, evaluating, train_only
from perdure.method import METHODS, Context, parse_method
from perdure.predictor import Predictor
from perdure.preflight import preflight
from perdure.recipe import Recipe, differences, parse_recipe
from perdure.run import Run
from perdure.training import train
from perdure.weights import run_at, trainable
from perdure.zoo import random_clip
from tests.regions_seen import as_seen

CLASSES = ("taco", "fire engine", "a striped tiger")
TEMPLATES = ("a photo of a {}", "{}", "a picture of the big {}.")
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}


def batch(student: Predictor) -> Batch:
    size = student.preprocess.size
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    images = as_seen(images, student)
    texts = ["a taco", "the tiger", "fire engine", "a photo of a taco"]
    return Batch(images, student.trim(student.tokenizer(texts)), torch.tensor([0, 2, 1, 0]))


def gradients(learner: Learner) -> dict[str, Tensor]:
    """Return the gradients of step 2, where teachers have moved and are asked."""
    learner.zero_grad()
    data = batch(learner.student)
    torch.manual_seed(0)
    torch.stack(list(learner(data, 2).terms.values())).sum().backward()
    return {
        name: value.grad.clone()
        for name, value in learner.named_parameters()
        if value.grad is not None
    }


def built(table: dict[str, Any], **changes: Any) -> Learner:
    student = random_clip(**changes)
    context = Context(4, CLASSES, TEMPLATES, lambda: random_clip(**changes), masks=True)
    method: Any = parse_method(table)
    if "host" in table:
        host = method.host.build(student, context)
        with torch.no_grad():
            for value in trainable(host).values():
                value *= 1.05
        student = host.export()
    learner: Learner = method.build(student, context)
    learner.train()
    with torch.no_grad():
        for parameter in learner.student.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter += 0.01 * parameter.std()  # away from the teacher
    return learner


@pytest.mark.parametrize("name", METHODS)
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    host = {"host": {"name": "flyp"}} if name == "mergetune" else {}
    learner = built({"name": name, **host})
    expected = gradients(learner)
    assert any(value.any() for value in expected.values())
    towers.checkpoint(learner.student.clip)
    found = gradients(learner)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (value - found[key]).abs().max() <= 1e-6 * max(1.0, float(value.abs().max())), key


def test_checkpointing_draws_the_same_random_numbers_again() -> None:
    tower = {"patch_dropout": 0.5, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    learner = built({"name": "flyp"}, vision_cfg={**tower, "image_size": 32})
    expected = gradients(learner)
    towers.checkpoint(learner.student.clip)
    found = gradients(learner)
    assert all(torch.allclose(value, found[key], atol=1e-6) for key, value in expected.items())


def test_checkpointing_computes_more_and_borrowed_weights_get_their_own_gradients() -> None:
    student = random_clip().train()
    train_only(student, student.clip)
    data = batch(student)

    def cost(weights: dict[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        with FlopCounterMode(display=False) as flops:
            pairs = run_at(student, leaves, data.images, data.tokens)
            (pairs.image @ pairs.text.T).diagonal().sum().backward()
        return flops.get_total_flops(), {key: leaves[key].grad for key in leaves if "mlp" in key}

    def own() -> int:
        with FlopCounterMode(display=False) as flops:
            pairs = student(data.images, data.tokens)
            (pairs.image @ pairs.text.T).sum().backward()
        return int(flops.get_total_flops())

    other = {name: 1.1 * value.detach() for name, value in student.named_parameters()}
    plain, before = own(), cost(other)
    towers.checkpoint(student.clip)
    assert 1.15 * plain < own() < 4 / 3 * plain
    after = cost(other)
    assert before[0] == after[0]
    assert all(torch.equal(value, after[1][name]) for name, value in before[1].items())
    assert own() > 1.15 * plain  # and the model is as it was


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (RESNET, r"image tower \(ModifiedResNet\) has batch normalisation"),
        (
            {"timm_model_name": "resnet18", "timm_pool": "", "timm_proj": "linear"},
            r"image tower \(TimmModel\) has batch normalisation",
        ),
    ],
)
def test_towers_that_cannot_are_refused(config: dict[str, Any], reason: str) -> None:
    student = random_clip(vision_cfg={**config, "image_size": 32})
    with pytest.raises(TaskError, match=reason + r".*optim\.batch_size"):
        towers.checkpoint(student.clip)
    train_only(student, student.clip.transformer)
    towers.checkpoint(student.clip)  # the tower that cannot does not train


def test_a_tower_that_open_clip_cannot_ask_is_refused() -> None:
    student = random_clip()
    student.clip.visual = nn.Linear(2, 2)
    with pytest.raises(TaskError, match=r"image tower \(Linear\) cannot compute its blocks again"):
        towers.checkpoint(student.clip)


def test_timm_transformers_can() -> None:
    config = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}
    learner = built({"name": "flyp"}, vision_cfg={**config, "image_size": 160})
    expected = gradients(learner)
    towers.checkpoint(learner.student.clip)
    found = gradients(learner)
    assert all(torch.allclose(value, found[key], atol=1e-6) for key, value in expected.items())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip") / "tiny"
    random_clip().save(path)
    return str(path)


def recipe(clip: str, checkpointing: bool, method: str = "tracer") -> Recipe:
    run = {"device": "cpu", "threads": 1, "save_every": 2, "log_every": 1}
    return parse_recipe(
        {
            "model": {"name": clip},
            "data": {"name": "emojishift", "shots": 1},
            "method": {"name": method},
            "optim": {"lr": 1e-3, "batch_size": 16, "steps": 4},
            "run": {**run, "checkpointing": checkpointing},
        }
    )


class Kill(Exception):
    """Nothing of ours handles it."""


def test_a_run_may_be_resumed_with_or_without_checkpointing(clip: str, tmp_path: Any) -> None:
    def kill(tick: Any, total: int) -> None:
        if tick.step == 3:
            raise Kill

    whole = train(recipe(clip, False), tmp_path / "whole")
    with pytest.raises(Kill):
        train(recipe(clip, True), tmp_path / "parts", progress=kill)
    said: list[str] = []
    parts = train(recipe(clip, True), tmp_path / "parts", resume=True, say=said.append)
    assert "Resumed after step 2 of 4." in said
    assert differences(recipe(clip, True), recipe(clip, False)) == []
    one, two = (Run(run.path).predictor().state_dict() for run in (whole, parts))
    assert all(torch.allclose(value, two[name], atol=1e-6) for name, value in one.items())


def test_preflight_counts_the_activations_that_are_kept(clip: str) -> None:
    kept, again = (preflight(recipe(clip, each)).memory for each in (False, True))
    assert 0 < again.activations < 0.5 * kept.activations
    assert again.known == kept.known
    head = preflight(recipe(clip, False, "ft")).memory
    assert head.activations < kept.activations  # the text tower does not train


def test_half_precision_runs_tokens_first_and_changes_nothing_else() -> None:
    student = random_clip().eval()
    data = batch(student)
    attention: Any = student.clip.visual.transformer.resblocks[0].attn
    seen = []
    attention.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    tokens = (student.clip.visual.image_size[0] // student.clip.visual.patch_size[0]) ** 2 + 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        turned = student(data.images, data.tokens)
        assert seen[-1] == tokens
        plain = student.clip.encode_image(data.images)
        assert seen[-1] == len(data.images)
    assert torch.equal(turned.image, nn.functional.normalize(plain.float(), dim=-1))
    student(data.images, data.tokens)
    assert seen[-1] == len(data.images)  # with gradient, or in float32
    student.clip.visual.transformer.resblocks[1].attn = copy.deepcopy(attention).requires_grad_()
    student.clip.visual.transformer.resblocks[1].mlp = nn.Identity()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), evaluating(student):
        student.encode_image(data.images)
    assert seen[-1] == len(data.images)  # a changed block may need its layout


def test_sorted_prompts_give_the_features_of_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure import passes

    monkeypatch.setattr(passes, "TEXTS", 2)
    student = random_clip().eval()
    prompts = student.prompts(CLASSES, TEMPLATES)
    shapes: list[tuple[int, ...]] = []
    whole = [
        nn.functional.normalize(student.clip.encode_text(rows), dim=-1).mean(0) for rows in prompts
    ]
    embed = Predictor.encode_text

    def noted(self: Predictor, tokens: Tensor) -> Tensor:
        shapes.append(tuple(tokens.shape))
        return embed(self, tokens)

    monkeypatch.setattr(Predictor, "encode_text", noted)
    found = student.class_features(prompts)
    expected = nn.functional.normalize(torch.stack(whole), dim=-1)
    assert (found - expected).abs().max() < 1e-6
    lengths = towers.lengths(student.clip, prompts.flatten(0, 1)).sort().values.tolist()
    assert [shape[1] for shape in shapes] == [max(lengths[at : at + 2]) for at in range(0, 9, 2)]
    found[2, 0].backward()
    assert student.clip.token_embedding.weight.grad is not None
