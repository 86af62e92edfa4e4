"""Segmentation as a task: what is counted, whoever answers, and however it is divided."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from perdure.data import scenes
from perdure.data.scene_regions import open_scenes_with_masks
from perdure.data.segmented import UNKNOWN, Fusion, Proposals, label_of, open_segmented
from perdure.data.suites import suite as find_suite
from perdure.errors import DataError, WeightsError
from perdure.evaluation import evaluate
from perdure.overlap import confusion, overlap, overlap_scores
from perdure.prediction import How, stay
from perdure.regions import fuse, label_map, region_inputs
from perdure.sweeping import sweep
from perdure.tasks.segment import Segmentation, open_exam
from perdure.zoo import random_clip

SUITE = find_suite("emojishift-segmentation")
NAMES = ("red", "green", "blue")


class Flags:
    """Small images in stripes of three colours, of which the last is unknown to the left."""

    name = "flags"
    classes = NAMES
    fusion = Fusion()
    source = "stripes"

    def __init__(self, number=5, proposals=None):
        self.number = number
        self.reads = 0
        self.given = proposals

    def __len__(self):
        return self.number

    def image(self, index):
        self.reads += 1
        image = torch.zeros(3, 6 + index, 8, dtype=torch.uint8)
        for label in range(3):
            image[label, 2 * label : 2 * label + 2] = 255
        return image

    def truth(self, index):
        truth = np.repeat([0, 1, 2], 2)[:, None].repeat(8, axis=1)
        truth[4:, :2] = UNKNOWN
        return np.pad(truth, ((0, index), (0, 0)), constant_values=UNKNOWN)

    def proposals(self, index):
        if self.given is not None:
            return self.given
        truth = np.repeat([0, 1, 2], 2)[:, None].repeat(8, axis=1)
        truth = np.pad(truth, ((0, index), (0, 0)), constant_values=UNKNOWN)
        return Proposals(np.stack([truth == label for label in range(3)]))


class Eye:
    """Answers by the brightest colour; `wrong` shifts that by one class."""

    classes = ()
    device = torch.device("cpu")
    takes_masks = False
    preprocess = random_clip(0).preprocess

    def __init__(self, wrong=0):
        self.wrong = wrong

    def to(self, _device):
        return self

    def logits_fn(self, _names, _templates):
        return lambda images: images.mean(dim=(2, 3)).roll(self.wrong, dims=1) * 50


def exam(pictures):
    return Segmentation(SUITE.splits[0], pictures, np.arange(len(pictures)), ("{}",))


def judged(pictures, eye, how=None):
    found = exam(pictures).judge(eye, {0.0: stay}, how or How(), {})
    return found[0.0]["id"]


def test_whoever_sees_everything_is_perfect_and_whoever_errs_always_is_not():
    entry, outcomes = judged(Flags(), Eye())
    assert entry["miou"] == entry["pixel_accuracy"] == entry["mask_accuracy"] == 1
    assert entry["interval"] == [1, 1]
    assert (entry["n"], entry["masks"], entry["classes_scored"]) == (5, 15, 3)
    assert outcomes.label.tolist() == [0, 1, 2] * 5
    assert entry["iou"] == dict.fromkeys(NAMES, 1.0)
    entry, outcomes = judged(Flags(), Eye(wrong=1))
    assert entry["miou"] == entry["mask_accuracy"] == 0
    assert outcomes.prediction.tolist() == [1, 2, 0] * 5


def test_entry_is_what_a_plain_loop_counts():
    predictor, drawn = random_clip(0), open_scenes_with_masks("emojishift", "id")
    rows = np.array([3, 10, 11, 40])
    templates = ("a photo of a {}",)
    found = Segmentation(SUITE.splits[0], drawn, rows, templates).judge(
        predictor, {0.0: stay}, How(batch_size=5), {}
    )
    entry, outcomes = found[0.0]["id"]
    total, right = np.zeros((81, 81), np.int64), []
    score = predictor.logits_fn(drawn.classes, templates)
    for row in rows:
        masks = torch.from_numpy(drawn.proposals(row).masks)
        regions, valid = region_inputs(drawn.image(row), masks, predictor.preprocess)
        chances = score(regions).softmax(1)
        right += (chances.argmax(1).numpy() == drawn.scenes.labels[row]).tolist()
        pixels = label_map(fuse(chances, torch.from_numpy(valid)), masks, (96, 96))
        total += confusion(pixels, drawn.truth(row), 80)
    for key, value in overlap_scores(overlap(total)).items():
        assert entry[key] == pytest.approx(value)
    assert outcomes.correct.tolist() == right
    assert entry["mask_accuracy"] == np.mean(right)
    assert (outcomes.confidence > 1 / 80).all()
    low, high = entry["interval"]
    assert low <= high


def test_batches_and_processes_change_nothing():
    whole = judged(Flags(), Eye(wrong=1))
    for size in (1, 4, 100):
        assert judged(Flags(), Eye(wrong=1), How(batch_size=size)).entry == whole.entry
    parts = []
    for rank in range(2):
        alone = SimpleNamespace(
            rank=rank, world_size=2, device=torch.device("cpu"), to_host=lambda rows: rows.numpy()
        )
        parts.append(judged(Flags(), Eye(wrong=1), How(runtime=alone)))
    assert [part.entry["n"] for part in parts] == [3, 2]
    joined = np.concatenate([part.outcomes.prediction for part in parts])
    np.testing.assert_array_equal(joined, whole.outcomes.prediction)


def test_every_image_is_read_once_whatever_the_number_of_positions():
    flags, told = Flags(), []
    moves = dict.fromkeys((0.0, 0.5, 1.0), stay)
    found = exam(flags).judge(Eye(), moves, How(progress=told.append), {})
    assert list(found) == [0.0, 0.5, 1.0]
    assert flags.reads == len(flags)
    assert sum(told) == 3 * len(flags)


def test_small_probabilities_classes_and_scores_of_a_proposing_model():
    # Two masks at half the size; the model that proposed them is sure of the wrong class.
    masks = np.full((2, 3, 4), 0.1, np.float32)
    masks[0, 0], masks[1, 1:] = 0.9, 0.9
    sure = np.log(np.array([[0.01, 0.98, 0.005, 0.005], [0.98, 0.005, 0.01, 0.005]], np.float32))
    given = Proposals(masks, sure)
    clip_alone = judged(Flags(1, given), Eye())
    assert clip_alone.entry["fusion"]["weight"] == 0.7
    flags = Flags(1, given)
    flags.fusion = Fusion(weight=0.0)
    theirs, outcomes = judged(flags, Eye())
    assert outcomes.prediction.tolist() == [1, 0]
    assert theirs["mask_accuracy"] == 0
    # A mask that its model does not believe in loses its pixels to one that it does.
    full = np.ones((2, 6, 8), bool)
    both = np.stack([[9.0, 0, 0, 0], [0, 9.0, 0, 0]]).astype(np.float32)
    flags = Flags(1, Proposals(full, both, np.array([0.9, 0.2], np.float32)))
    flags.fusion = Fusion(weight=0.0)
    assert judged(flags, Eye()).entry["iou"] == {"red": 16 / 44, "green": 0.0, "blue": 0.0}


def test_image_without_masks_is_missed_and_none_at_all_is_refused():
    nothing = Proposals(np.zeros((0, 6, 8), bool))

    class Half(Flags):
        def proposals(self, index):
            return super().proposals(index) if index else nothing

    entry, outcomes = judged(Half(2), Eye())
    assert len(outcomes.label) == 3
    assert entry["pixel_accuracy"] == pytest.approx(0.5)
    assert entry["miou"] == pytest.approx(0.5)
    with pytest.raises(DataError, match=r"none of the masks .stripes. covers mostly labelled"):
        judged(Flags(1, nothing), Eye())


def test_diverged_model_is_refused():
    eye = Eye()
    eye.logits_fn = lambda *_: lambda images: torch.full((len(images), 3), float("nan"))
    with pytest.raises(WeightsError, match="not finite"):
        judged(Flags(), eye)


@pytest.mark.parametrize(
    ("truth", "label"),
    [([2, 2, 1], 2), ([-1, -1, 1], -1), ([1, -1], 1), ([0, 3], 0), ([-1], -1), ([], -1)],
)
def test_label_of_a_mask_is_that_of_most_of_its_pixels(truth, label):
    row = np.array([*truth, 5], dtype=np.int64)[None]
    mask = np.array([True] * len(truth) + [False])[None]
    assert label_of(mask, row) == label


def test_suite_scores_all_three_domains_and_limits_them():
    scores = evaluate(random_clip(0), SUITE, limit=3)
    assert list(scores.splits) == ["id", "rendition", "sketch"]
    assert {entry["n"] for entry in scores.splits.values()} == {3}
    found = scores.summary()
    assert found.keys() == {"miou"}
    expected = np.mean([entry["miou"] for entry in scores.splits.values()])
    assert found["miou"]["value"] == pytest.approx(expected)


def test_sweep_ends_are_the_models(tmp_path):
    start, tuned = random_clip(0), random_clip(1)
    found = sweep(start, tuned, SUITE, alphas=(0.0, 1.0), how=How(limit=2))
    for alpha, model in ((0.0, start), (1.0, tuned)):
        again = evaluate(model, SUITE, limit=2)
        assert found[alpha]["id"]["miou"] == pytest.approx(again["id"]["miou"])
    written = found[1.0].write(tmp_path)
    with np.load(written.with_name("emojishift-segmentation.outcomes.npz")) as stored:
        assert len(stored["sketch/label"]) == 8


def test_training_scenes_are_none_of_the_scored_ones(monkeypatch):
    codes = [domain.code for domain in (*scenes.DOMAINS.values(), *scenes.LEARNT.values())]
    assert len(set(codes)) == len(codes)
    few = scenes.LEARNT["train"]._replace(scenes=6)
    monkeypatch.setitem(scenes.LEARNT, "train", few)
    drawn = [scenes.open_scenes.__wrapped__("train", seed) for seed in (0, 1)]
    drawn.append(scenes.open_scenes("id"))
    for first, second in itertools.combinations(drawn, 2):
        same = (first.images[:, None] == second.images[None, :6]).flatten(2).all(2)
        assert not same.any()
        assert (first.labels != second.labels[:6]).any()


def test_what_there_is_not_is_named():
    with pytest.raises(DataError, match="no data set 'emoji' with labelled pixels"):
        open_segmented("emoji", "id")
    with pytest.raises(DataError, match="did you mean 'sketch'"):
        open_segmented("emojishift", "sketches")
    with pytest.raises(DataError, match="leave --data away"):
        open_exam(SUITE.splits[0], SUITE, How(root="somewhere"))
    for key, value in (("weight", 1.2), ("threshold", -1), ("expand", 0.5)):
        with pytest.raises(DataError, match=f"{key} is {value}"):
            Fusion(**{key: value})
