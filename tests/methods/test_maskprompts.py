"""Mask prompts as a method: what trains, where masks come from, and a run from start to scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from perdure import zoo
from perdure.data.augment import AUGMENTS, fit
from perdure.data.damaged import Damaged
from perdure.data.datasets import Half, Part, channels_of, open_dataset, with_masks
from perdure.data.loading import Loader, eval_batches
from perdure.data.segmented import Fusion, Proposals
from perdure.data.suites import suite
from perdure.diagnosis.pairs import bring_together
from perdure.errors import TaskError
from perdure.evaluation import evaluate
from perdure.method import Context
from perdure.methods.maskprompts import MaskPromptTuning
from perdure.objective import objective
from perdure.prediction import How, predict, stay
from perdure.predictor import Predictor
from perdure.recipe import load_recipe
from perdure.run import Run
from perdure.surgery.low_rank import LowRank
from perdure.surgery.mask_prompts import MaskPrompts
from perdure.surgery.residual import Residual
from perdure.surgery.side import Side
from perdure.tasks.segment import Segmentation
from perdure.training import train

CLASSES = ("taco", "tiger", "fire engine")
TEMPLATES = ("a photo of a {}",)
SUITE = suite("emojishift-segmentation")


def context(masks: bool = True) -> Context:
    return Context(4, CLASSES, TEMPLATES, zoo.random_clip, masks=masks)


def regions(shots: int = 1) -> Any:
    return open_dataset("emojishift-regions", "train", shots=shots)


def loader(student: Predictor, data: Any, **options: Any) -> Loader:
    return Loader(
        data, student.preprocess, student.tokenizer, TEMPLATES, batch_size=8, seed=0, **options
    )


def test_only_tokens_train_on_top_of_what_was_tuned_and_a_run_goes_on() -> None:
    tuned = zoo.random_clip()
    tuned.attach(Residual(alpha=0.4))
    with torch.no_grad():
        for value in tuned.added().values():
            value.add_(0.1)
    folded = tuned.fold()
    learner = MaskPromptTuning().build(tuned, context())
    student = learner.student
    trained = [name for name, one in student.named_parameters() if one.requires_grad]
    assert trained == ["clip.visual.mask_prompts.weight"]
    for name, value in folded.state_dict().items():
        assert torch.equal(student.state_dict()[name], value), "tuned weights stay"
    assert not learner.train().student.clip.training
    again = MaskPromptTuning().build(learner.export(), context()).student
    assert torch.equal(again.get_parameter(trained[0]), student.get_parameter(trained[0]))


def test_loss_is_the_contrastive_one_of_masked_regions() -> None:
    method = MaskPromptTuning(contrastive="mpm_nce", margin=0.1)
    learner = method.build(zoo.random_clip(), context())
    batches = loader(learner.student, regions())
    batches.add_masks()
    (batch,) = batches.batches(0, 1)
    found = learner(batch, 1)
    expected = objective(learner.student, batch, 1, method)
    assert torch.equal(found.terms["contrastive"], expected.terms["contrastive"])
    found.terms["contrastive"].backward()
    gradient = learner.student.get_parameter("clip.visual.mask_prompts.weight").grad
    assert gradient is not None
    assert gradient[0].any()
    assert gradient[1].any()
    bare = objective(learner.student, batch._replace(images=batch.images[:, :3]), 1, method)
    assert not torch.equal(bare.terms["contrastive"], expected.terms["contrastive"])


def test_data_without_masks_and_other_modules_are_refused() -> None:
    with pytest.raises(TaskError, match=r"the data have none; use data\.name: regions"):
        MaskPromptTuning().build(zoo.random_clip(), context(masks=False))
    recipe = load_recipe("emojishift/maskprompts", ("model.init=null", "data.name=emojishift"))
    with pytest.raises(TaskError, match="the data have none"):
        train(recipe, Path("nothing-is-written"))
    assert not Path("nothing-is-written").exists()
    student = zoo.random_clip()
    student.attach(Side(rank=2, eta=0.1))
    with pytest.raises(TaskError, match="not those of the recipe"):
        MaskPromptTuning().build(student, context())


def test_views_keep_masks_and_other_data_stay_as_they_are() -> None:
    data = regions()
    masked = with_masks(data)
    assert (channels_of(data), channels_of(masked)) == (3, 4)
    assert torch.equal(masked.image(5)[:3], data.image(5))
    assert set(masked.image(5)[3].unique().tolist()) == {0, 255}
    part, half = Part(data, np.array([7, 5])), Half(data, np.arange(0, 80, 2))
    assert torch.equal(with_masks(part).image(1), masked.image(5))
    assert channels_of(with_masks(half)) == 4
    assert torch.equal(with_masks(half).image(0)[:3], half.image(0))
    assert channels_of(half) == 3
    pictures = open_dataset("emojishift", "train", shots=1)
    damaged = Damaged(data, "fog", 3)  # it may move pixels away from under their masks
    for other in (pictures, damaged):
        assert with_masks(other) is other
        assert channels_of(other) == 3


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("size", [40, 24])
def test_masks_move_with_their_images_and_keep_two_values(augment: str, size: int) -> None:
    random = np.random.default_rng(0)
    mask = torch.zeros(40, 48, dtype=torch.bool)
    mask[8:32, 10:40] = True
    image = (255 * mask).to(torch.uint8).expand(4, -1, -1).contiguous()
    for seed in range(5):
        change = AUGMENTS[augment]
        found = change(image, size, "bicubic", np.random.default_rng(seed))
        plain = change(image[:3], size, "bicubic", np.random.default_rng(seed))
        assert torch.equal(found[:3], plain), "pixels are those without a mask"
        assert set(found[3].unique().tolist()) <= {0, 255}
        assert ((found[0] > 127) != (found[3] > 0)).float().mean() < 0.12, "to one row of pixels"
    noise = torch.from_numpy(random.integers(0, 256, (4, 40, 40))).to(torch.uint8)
    assert torch.equal(fit(noise, 40, "bicubic"), noise)


def test_loaders_give_masks_only_when_asked(tmp_path: Path) -> None:
    student, data = zoo.random_clip(), regions()
    plain = loader(student, data, augment="crop-flip")
    (before,) = plain.batches(0, 1)
    plain.add_masks()
    (after,) = plain.batches(0, 1)
    assert before.images.shape == (8, 3, 40, 40)
    assert torch.equal(after.images[:, :3], before.images)
    assert set(after.images[:, 3].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(after.tokens, before.tokens)
    (seen,) = eval_batches(with_masks(Part(data, np.arange(3))), student.preprocess, 8)
    assert seen.shape == (3, 4, 40, 40)


def test_pairs_of_files_have_masks_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    numbers = np.zeros((20, 30), np.uint8)
    numbers[5:15, 5:20] = 3
    numbers[5:10, 5:12] = 0
    Image.fromarray(numbers).save(tmp_path / "numbers.png")
    rows = [
        {"image": "a.png", "noun": "dog", "mask": "numbers.png", "instance": 3},
        {"image": "a.png", "noun": "cat", "box": [2, 3, 12, 18]},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = open_dataset("regions", "train", tmp_path)
    found = with_masks(plain)
    assert torch.equal(found.image(0)[:3], plain.image(0))
    inside = found.image(0)[3] > 0
    assert inside.float().mean() == pytest.approx(1 - 0.5 * 7 / 15, abs=0.01)
    assert not inside[:100, :100].any()
    assert (found.image(1)[3] == 255).all(), "a box has nothing outside"


class Flags:
    """One picture of two halves, with masks of which some are empty."""

    name, classes, fusion, source = "flags", ("red", "green"), Fusion(), "stripes"

    def __init__(self, valid: int, empty: int) -> None:
        self.valid, self.empty = valid, empty

    def __len__(self) -> int:
        return 2

    def image(self, index: int) -> Tensor:
        image = torch.zeros(3, 12, 16, dtype=torch.uint8)
        image[0, :6], image[1, 6:] = 255, 255
        return image

    def truth(self, index: int) -> np.ndarray:
        return np.repeat([0, 1], 6)[:, None].repeat(16, axis=1)

    def proposals(self, index: int) -> Proposals:
        valid = self.valid if index else max(self.valid, 1)
        masks = np.zeros((valid + self.empty, 12, 16), dtype=bool)
        masks[0, :6] = True
        masks[1:valid, 6:, 4:] = True
        return Proposals(masks)


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize(("valid", "empty"), [(0, 1), (1, 0), (1, 2), (2, 1)])
def test_any_number_of_regions_can_be_labelled(valid: int, empty: int, batch_size: int) -> None:
    model = zoo.random_clip()
    model.attach(MaskPrompts())
    flags = Flags(valid, empty)
    exam = Segmentation(SUITE.splits[0], flags, np.arange(2), ("{}",))  # type: ignore[arg-type]
    judged = exam.judge(model.eval(), {0.0: stay}, How(batch_size=batch_size), {})[0.0]["id"]
    assert judged.entry["n"] == 2
    assert judged.entry["masks"] == len(judged.outcomes.label) >= 1 + valid


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short run on the bundled model."""
    changes = (
        "model.init=null", "data.shots=2", "optim.epochs=null", "optim.steps=3",
        "optim.batch_size=32", "validate.splits=[val]", "run.threads=1",
    )  # fmt: skip
    place = tmp_path_factory.mktemp("maskprompts") / "run"
    return train(load_recipe("emojishift/maskprompts", changes), place)


def test_a_run_leaves_whole_images_alone_and_scores_regions_with_masks(run: Run) -> None:
    tuned, start = run.predictor(), zoo.load("perdure-tiny")
    images = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tuned.encode_image(images), start.encode_image(images))
    assert not (run.path / "model").exists(), "plain open_clip cannot hold tokens"
    data = open_dataset("emojishift-regions", "val")
    data = Part(data, np.arange(64))
    (masked,) = eval_batches(with_masks(data), tuned.preprocess, 64)
    expected = tuned.logits_fn(data.classes, TEMPLATES)(masked)
    found = predict(tuned, data, TEMPLATES).logits
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert not np.allclose(found, predict(start, data, TEMPLATES).logits, atol=0.1)
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert any("validation" in line for line in lines)


def test_scores_of_segmentation_see_masks_and_strengths(run: Run) -> None:
    tuned = run.predictor()
    found = {}
    for alpha in (1.0, 0.5):
        tuned.set_alpha(alpha)
        scores = evaluate(tuned, SUITE, limit=3)
        found[alpha] = [scores.outcomes[name].confidence for name in scores.splits]
        assert {entry["n"] for entry in scores.splits.values()} == {3}
    start = evaluate(zoo.load("perdure-tiny"), SUITE, limit=3)
    plain = [start.outcomes[name].confidence for name in start.splits]
    pairs = ((found[1.0], found[0.5]), (found[1.0], plain))
    for one, other in pairs:
        assert not any(np.allclose(a, b, atol=1e-3) for a, b in zip(one, other, strict=True))


def test_diagnosis_says_whose_the_weights_of_the_towers_are(run: Run) -> None:
    start = zoo.load("perdure-tiny")
    (said,) = bring_together(start, run.predictor()).limits
    assert "the towers' own weights are those of the start" in said
    tuned = start.copy()
    with torch.no_grad():
        for value in tuned.clip.visual.parameters():
            value.mul_(1.01)
    tuned.attach(MaskPrompts())
    (said,) = bring_together(start, tuned).limits
    assert "were changed by an earlier run (model.init)" in said


def test_updates_can_be_added_to_a_model_with_mask_prompts(run: Run) -> None:
    tuned = run.predictor()
    images = torch.randn(2, 4, 40, 40, generator=torch.Generator().manual_seed(0))
    before = tuned.encode_image(images)
    tuned.attach(LowRank(rank=2))
    assert torch.equal(tuned.encode_image(images), before)
    assert tuned.fold().surgeries == (MaskPrompts(),)
