"""LoRA: what trains, the first loss, the delivered strength, batch statistics, a teacher."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from perdure import zoo
from perdure.batch import Batch
from perdure.distillation import Distillation
from perdure.errors import RecipeError, SurgeryError
from perdure.method import Context, parse_method
from perdure.methods.flyp import Flyp
from perdure.methods.lora import Lora, LoraLearner
from perdure.predictor import Predictor
from perdure.recipe import load_recipe
from perdure.weights import lerp

CLASSES = ("taco", "fire engine", "tiger", "whale")
CONTEXT = Context(6, CLASSES, ("a photo of a {}",), zoo.random_clip)
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}


def batch(student: Predictor, step: int = 1) -> Batch:
    random = torch.Generator().manual_seed(step)
    labels = torch.tensor([0, 1, 2, 3, 1])
    tokens = student.trim(student.tokenizer([f"a photo of a {CLASSES[i]}" for i in labels]))
    size = student.preprocess.size
    return Batch(torch.randn(5, 3, size, size, generator=random), tokens, labels)


def trained(method: Lora, student: Predictor, steps: int = 4) -> LoraLearner:
    learner = method.build(student, CONTEXT)
    assert isinstance(learner, LoraLearner)
    learner.train()
    live = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(live, lr=1e-2)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        torch.stack(list(learner(batch(student, step), step).terms.values())).sum().backward()
        optimizer.step()
        learner.after_step(step)
    return learner


def test_the_recipe_trains_107_008_numbers():
    recipe = load_recipe("emojishift/lora")
    learner = recipe.method.build(zoo.load("perdure-tiny"), CONTEXT)
    live = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in live) == 107_008
    assert not learner.student.clip.logit_scale.requires_grad


def test_recipes_name_their_loss():
    plain, multiple = load_recipe("emojishift/lora"), load_recipe("emojishift/lora-mpm")
    assert dataclasses.replace(
        plain.method, contrastive="mpm_nce", margin=0.05, smoothing=0.02
    ) == (multiple.method)
    assert dataclasses.replace(plain.optim, lr=multiple.optim.lr) == multiple.optim
    assert load_recipe("imagenet/lora").method.name == "lora"


def test_the_first_loss_is_that_of_flyp_on_the_untouched_model():
    first = Lora(rank=2).build(zoo.random_clip(), CONTEXT)
    second = Flyp().build(zoo.random_clip(), CONTEXT)
    data = batch(first.student)
    mine, theirs = first.train()(data, 1), second.train()(data, 1)
    assert torch.equal(mine.terms["contrastive"], theirs.terms["contrastive"])
    assert mine.terms.keys() == theirs.terms.keys()


def test_training_is_at_full_strength_and_delivery_at_alpha():
    one, half = (trained(Lora(rank=2, alpha=alpha), zoo.random_clip()) for alpha in (1.0, 0.5))
    start = zoo.random_clip().state_dict()
    for (name, mine), other in zip(
        one.student.added().items(), half.student.added().values(), strict=True
    ):
        assert torch.equal(mine, other), name
    assert half.student.surgeries[0].alpha == 1.0
    exported = half.export()
    assert exported.surgeries[0].alpha == 0.5
    whole, weak = one.export().fold().state_dict(), exported.fold().state_dict()
    assert any(not torch.equal(whole[name], value) for name, value in start.items())
    for name, value in lerp(start, whole, 0.5).items():
        torch.testing.assert_close(weak[name], value, rtol=0, atol=1e-6)


def test_first_weights_follow_from_the_seed_of_the_run_alone():
    first, again, other = (
        Lora(rank=2).build(zoo.random_clip(), dataclasses.replace(CONTEXT, seed=seed))
        for seed in (3, 3, 4)
    )
    pairs = zip(first.student.added().items(), again.student.added().values(), strict=True)
    assert all(torch.equal(one, two) for (_, one), two in pairs)
    name = "clip.visual.transformer.resblocks.0.attn.low_rank.down"
    assert not torch.equal(first.student.added()[name], other.student.added()[name])


def test_what_is_delivered_survives_a_file(tmp_path: Path):
    exported = trained(Lora(rank=2, alpha=0.7), zoo.random_clip()).export()
    exported.save(tmp_path / "predictor")
    again = Predictor.load(tmp_path / "predictor")
    assert again.surgeries == exported.surgeries
    data = batch(exported)
    with torch.no_grad():
        assert torch.equal(again.encode_image(data.images), exported.encode_image(data.images))


def test_a_text_tower_alone_leaves_batch_statistics_as_they_are():
    student = zoo.random_clip(vision_cfg=RESNET)
    before = {name: value.clone() for name, value in student.clip.visual.state_dict().items()}
    learner = trained(Lora(rank=2, towers=("text",)), student)
    after = learner.student.clip.visual.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert learner.training
    assert not learner.student.clip.visual.training
    with pytest.raises(SurgeryError, match=r"towers: \[text\]"):
        Lora().build(zoo.random_clip(vision_cfg=RESNET), CONTEXT)


def test_a_teacher_distils_into_the_updates():
    method = parse_method({"name": "lora", "rank": 2, "teacher": {"strength": 0.5, "beta": 1.0}})
    assert isinstance(method, Lora)
    assert method.teacher == Distillation(strength=0.5, beta=1.0)
    learner = trained(method, zoo.random_clip())
    terms = learner(batch(learner.student, 5), 5).terms
    assert set(terms) == {"contrastive", "feature", "relational", "interactive", "cross"}
    assert all(float(value.detach()) > 0 for value in terms.values())
    assert learner.distiller is not None
    names = learner.distiller.teacher.average.values().keys()
    assert names == learner.student.added().keys()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"rank": 0}, "method.rank"),
        ({"targets": ["qkv"]}, "method.targets"),
        ({"alpha": -0.5}, "method.alpha"),
        ({"teacher": {"strenght": 1}}, "method.teacher"),
    ],
)
def test_wrong_values_are_named_with_their_key(options, key):
    with pytest.raises(RecipeError, match=key):
        parse_method({"name": "lora", **options})
