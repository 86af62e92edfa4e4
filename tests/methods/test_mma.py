"""MMA: the authors' numbers, what trains, and texts that are never older than the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from perdure import towers, zoo
from perdure.batch import Batch
from perdure.errors import SurgeryError, TaskError
from perdure.method import Context
from perdure.methods.mma import Mma, MmaLearner
from perdure.predictor import Predictor
from perdure.surgery.residual import Residual
from perdure.surgery.side import Side
from tests.golden_clip import golden_clip

Golden = Callable[[str], dict[str, np.ndarray]]
CLASSES = ("taco", "tiger", "fire engine")


def golden_learner(
    data: dict[str, np.ndarray], clip: Predictor, scale_gradients: bool
) -> MmaLearner:
    side = Side(
        rank=int(data["adapter_dim"]), eta=float(data["scale"]), scale_gradients=scale_gradients,
        blocks=(int(data["adapter_start"]) - 1,),
    )  # fmt: skip
    clip.attach(side)
    clip.requires_grad_(False)
    for name, parameter in clip.added().items():
        parameter.requires_grad_(True)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(data[f"adapter/{published(name)}"]))
    return MmaLearner(clip, torch.from_numpy(data["tokenized_prompts"])).train()


def published(name: str) -> str:
    """Return the name that the authors' checkpoints give to one of our parameters."""
    kind = name.rpartition(".")[2]
    if "side_shared" in name:
        return f"shared_adapter.2.0.{kind}"
    tower = "visual" if ".visual." in name else "text"
    return f"{tower}_adapter.2.{'down.0' if '.down.' in name else 'up'}.{kind}"


def set_up(
    golden: Golden, scale_gradients: bool = True
) -> tuple[MmaLearner, dict[str, np.ndarray]]:
    data = golden("mergetune_mma")
    return golden_learner(data, golden_clip(golden("mergetune_tinyclip")), scale_gradients), data


def near(found: Tensor, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=tolerance, atol=tolerance)


def test_golden_block_with_and_without_its_adapter(golden: Golden) -> None:
    learner, data = set_up(golden)
    student = learner.student
    block, mask = student.clip.transformer.resblocks[1], student.clip.attn_mask
    x = torch.from_numpy(data["block/x_LND"]).transpose(0, 1)
    near(block(x, attn_mask=mask).transpose(0, 1), data["block/y_with_adapter"])
    student.set_alpha(0.0)
    near(block(x, attn_mask=mask).transpose(0, 1), data["block/y_without_adapter"])


@pytest.mark.parametrize("scale_gradients", [True, False])
def test_golden_model_loss_and_gradients_of_both_codes(
    golden: Golden, scale_gradients: bool
) -> None:
    learner, data = set_up(golden, scale_gradients)
    images = torch.from_numpy(data["images"])
    found = Batch(images, torch.zeros(6, 77).long(), torch.from_numpy(data["labels"]))
    near(learner.rows(), data["text_features_raw"])
    near(towers.encode_image(learner.student.clip, images), data["image_features_raw"])
    near(learner.logits(learner.embed(found), learner.rows()), data["logits"])
    loss = learner(found, 1).terms["task"]
    near(loss, data["loss_mma"])
    loss.backward()
    code = "official" if scale_gradients else "vendored"
    added = learner.student.added()
    assert len(added) == 10
    for name, parameter in added.items():
        assert parameter.grad is not None
        near(parameter.grad, data[f"grad_{code}/{published(name)}"], 1e-4)


def test_golden_loss_along_a_path_to_other_rows(golden: Golden) -> None:
    learner, data = set_up(golden, scale_gradients=False)
    images, labels = (torch.from_numpy(data[name]) for name in ("images", "labels"))
    rows, features = learner.rows(), learner.embed(Batch(images, labels, labels))
    end = torch.from_numpy(data["lmc/zeroshot_text_features_normalised"])
    alphas = torch.from_numpy(data["lmc/alphas"]).float()[:, None, None]
    path = rows + alphas * (end - rows)
    near(learner.logits(features, path), data["lmc/path_logits"])
    losses = learner.task_loss(features, path, labels)
    main = learner.task_loss(features, rows, labels)
    near(main, data["lmc/loss_main"])
    whole = main + float(data["lmc/W_LMC"]) * losses.mean()
    near(whole, data["lmc/loss"])
    whole.backward()
    for name, parameter in learner.student.added().items():
        assert parameter.grad is not None
        near(parameter.grad, data[f"lmc/grad/{published(name)}"], 1e-4)


def test_golden_texts_follow_the_weights_also_in_evaluation_mode(golden: Golden) -> None:
    learner, data = set_up(golden)
    learner.eval()
    images = torch.from_numpy(data["images"])
    found = Batch(images, torch.zeros(6, 77).long(), torch.zeros(6).long())
    near(learner.logits(learner.embed(found), learner.rows()), data["logits"])
    with torch.no_grad():
        for parameter in learner.student.added().values():
            parameter.mul_(float(data["stale/parameter_multiplier"]))
    near(learner.logits(learner.embed(found), learner.rows()), data["stale/logits_fresh"])
    stale = data["stale/logits_with_cached_text"]
    assert np.abs(stale - data["stale/logits_fresh"]).max() > 1e-3, "the numbers can tell"


def build(method: Mma, student: Predictor | None = None, seed: int = 0) -> MmaLearner:
    context = Context(10, CLASSES, ("a photo of a {}", "{}"), zoo.random_clip, seed)
    learner = method.build(student or zoo.random_clip(), context)
    assert isinstance(learner, MmaLearner)
    return learner.train()


def test_training_texts_are_one_prompt_per_class() -> None:
    student = zoo.random_clip()
    for template, expected in ((None, "a photo of a tiger"), ("the {}.", "the tiger.")):
        tokens: Any = build(Mma(template=template)).tokens
        wanted = student.tokenizer([expected])[0]
        assert torch.equal(tokens[1], wanted[: tokens.shape[1]])
        assert not wanted[tokens.shape[1] :].any()
    with pytest.raises(TaskError, match="has no place"):
        build(Mma(template="a tiger"))


def test_only_adapters_train_and_the_loss_falls() -> None:
    learner = build(Mma(eta=0.05))
    trained = {name for name, p in learner.named_parameters() if p.requires_grad}
    assert trained == {f"student.{name}" for name in learner.student.added()}
    assert not any(module.training for module in learner.student.clip.modules())
    random = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 40, 40, generator=random)
    data = Batch(images, torch.zeros(6, 20).long(), torch.tensor([0, 1, 2, 0, 1, 2]))
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
    found = []
    for step in range(1, 31):
        loss = learner(data, step).terms["task"]
        found.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found[-1] < 0.8 * found[0]


def test_first_adapters_follow_from_the_seed() -> None:
    one, two, other = (build(Mma(), seed=seed).student.added() for seed in (0, 0, 1))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_goes_on_with_adapters_of_the_one_before() -> None:
    first = build(Mma(eta=0.05)).export()
    first.set_alpha(0.5)
    again = build(Mma(eta=0.05), first.copy()).student
    tokens = again.tokenizer(["a taco"])
    torch.testing.assert_close(again.encode_text(tokens), first.encode_text(tokens))
    assert [surgery.alpha for surgery in again.surgeries] == [1.0]
    with pytest.raises(TaskError, match=r"eta=0\.05.* not those of the recipe .*eta=0\.1"):
        build(Mma(eta=0.1), first)
    adapted = zoo.random_clip()
    adapted.attach(Residual())
    assert [type(one) for one in build(Mma(), adapted).student.surgeries] == [Side]


def test_a_head_is_dropped_and_a_task_without_classes_is_refused() -> None:
    student = zoo.random_clip()
    student.set_head(CLASSES, ("{}",))
    assert build(Mma(), student).student.head is None
    with pytest.raises(TaskError, match="the task has none"):
        Mma().build(zoo.random_clip(), Context(1, (), ("{}",), zoo.random_clip))
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}
    with pytest.raises(SurgeryError, match=r"towers: \[text\]"):
        build(Mma(), zoo.random_clip(vision_cfg=resnet))
    assert build(Mma(towers=("text",)), zoo.random_clip(vision_cfg=resnet)).rows().requires_grad
