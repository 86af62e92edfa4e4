"""MERGETUNE in the space of class rows: the authors' numbers, heads, presets, misfits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from perdure import losses, zoo
from perdure.batch import Batch
from perdure.classifying import ClassifierLearner
from perdure.endpoints import Endpoints
from perdure.errors import TaskError
from perdure.method import Context, parse_method
from perdure.methods.mergetune import MergeTune
from perdure.methods.mergetune_learners import FeatureLearner, MergeTuneLearner, RowLearner
from perdure.path_loss import grid
from perdure.predictor import Predictor
from perdure.repairing import filled_in
from perdure.surgery.slots import contexts
from perdure.towers import unit
from tests.golden_clip import golden_clip
from tests.hosts import CONTEXT, batch, build, gradients, total, tuned

Golden = Callable[[str], dict[str, Any]]
PETS = ("a photo of a {}, a type of pet.",)
CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}
COOP = {"name": "coop", "words": "a photo of a"}


def set_up(golden: Golden, **options: Any) -> tuple[RowLearner, dict[str, Any], Batch]:
    """Return MERGETUNE on the authors' fine-tuned contexts, their numbers and their batch."""
    data, weights = golden("mergetune_lmc_prompt"), golden("mergetune_tinyclip")

    def zeroshot() -> Predictor:
        clip = golden_clip(weights)
        with torch.no_grad():  # rows of tokens that occur nowhere are not a number
            clip.clip.token_embedding.weight.nan_to_num_()
        return clip

    context = Context(5, tuple(map(str, data["classnames"])), PETS, zeroshot)
    start = parse_method(COOP).build(zeroshot(), context).export()
    with torch.no_grad():
        contexts(start.clip).contexts.copy_(torch.from_numpy(data["ctx_finetuned"]))
    table = {"name": "mergetune", "host": COOP, "preset": "released-prompt", **options}
    learner = parse_method(table).build(start, context).train()
    assert isinstance(learner, RowLearner)
    labels = torch.from_numpy(data["labels"])
    return learner, data, Batch(torch.from_numpy(data["images"]), labels[:, None], labels)


def near(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    values = found.detach().numpy() if isinstance(found, Tensor) else found
    np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", ["A_cosine_N5", "B_l2_N10", "C_init_cosine_N5"])
def test_golden_terms_path_and_gradient(golden: Golden, case: str) -> None:
    numbers = {
        key.partition("/")[2]: value
        for key, value in golden("mergetune_lmc_prompt").items()
        if key.startswith(f"{case}/")
    }
    learner, _, found = set_up(
        golden, anchor=str(numbers["loss_type"]), anchor_weight=float(numbers["W"]),
        path_weight=float(numbers["W_LMC"]), points=int(numbers["NUM_SAMPLES"]), log_points=True,
    )  # fmt: skip
    table = contexts(learner.student.clip).contexts
    near(table, golden("mergetune_lmc_prompt")["ctx_finetuned"], 0)  # where the code starts
    with torch.no_grad():
        table.copy_(torch.from_numpy(numbers["ctx"]))
    near(learner.zeroshot_rows, numbers["zeroshot_text_features"])
    near(learner.tuned_rows, numbers["text_features_finetuned_raw"])
    near(learner.host.rows(), numbers["text_features_current_raw"])
    near(learner.host.logits(learner.host.embed(found), learner.host.rows()),
         numbers["logits_main"])  # fmt: skip
    near(learner.places(1), numbers["alphas"], 1e-12)
    step = learner(found, 1)
    near([float(step.stats[f"path_{i}"]) for i in range(1, len(numbers["alphas"]) + 1)],
         numbers["path_ce"])  # fmt: skip
    near(step.terms["task"] + step.terms["anchor"], numbers["loss_main_clip"])
    near(step.stats["anchor_distance"], numbers["loss_clip"])
    near(step.terms["path"], float(numbers["W_LMC"]) * numbers["loss_LMC"])
    near(total(step), numbers["loss"])
    total(step).backward()
    assert table.grad is not None
    near(table.grad, numbers["grad_ctx"], 1e-4)


def test_golden_five_steps(golden: Golden) -> None:
    learner, data, found = set_up(golden)
    table = contexts(learner.student.clip).contexts
    optimizer = torch.optim.SGD(
        [table], lr=1, momentum=float(data["traj/momentum"]),
        weight_decay=float(data["traj/weight_decay"]),
    )  # fmt: skip
    assert learner.decays_to() == {}
    for number, rate in enumerate(data["traj/lr"]):
        near(table, data["traj/ctx"][number])
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        step = learner(found, number + 1)
        task, anchor, path = (step.terms[name] for name in ("task", "anchor", "path"))
        parts = [total(step), task + anchor, anchor / 8, path]
        near([float(part.detach()) for part in parts], data["traj/losses"][number], 1e-4)
        total(step).backward()
        optimizer.step()
    near(table, data["traj/ctx"][5], 1e-4)


class Students(ClassifierLearner):
    """A host whose image features are numbers that train, compared with a teacher's scores."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(zoo.random_clip())
        self.student.requires_grad_(False)
        self.student.features = nn.Parameter(torch.from_numpy(data["features_current_unit"]))
        self.student.theta = nn.Parameter(torch.from_numpy(data["theta_current"]))
        self.data = data

    def embed(self, batch: Batch) -> Tensor:
        return self.student.features

    def rows(self) -> Tensor:
        return torch.from_numpy(self.data["teacher_text_unit"])

    def task_loss(self, features: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        scores = float(self.data["logit_scale_current"]) * features @ rows.T
        found = losses.softened_kl(scores, targets, float(self.data["TEMPERATURE"]))
        return float(self.data["KD_WEIGHT"]) * found

    def targets(self, batch: Batch) -> Tensor:
        return torch.from_numpy(self.data["teacher_logits"])


def test_golden_released_objective_of_students(golden: Golden) -> None:
    data = golden("mergetune_promptkd")
    host = Students(data)
    method = MergeTune(
        host=parse_method({"name": "promptkd"}), preset="released-promptkd", log_points=True
    )
    settings = filled_in(method, host)
    theta = {"student.theta": torch.from_numpy(data["theta_pretrained"])}
    before = {"student.features": torch.from_numpy(data["features_pretrained_unit"])}
    ends = Endpoints(theta | before, theta | before, ({}, {}))
    learner = FeatureLearner(host, method, settings, ends, 0)
    found = learner(Batch(torch.zeros(7, 3, 2, 2), torch.zeros(7, 1), torch.zeros(7)), 1)
    weight = float(data["KD_WEIGHT"])
    near(found.terms["task"], weight * data["loss_kd"])
    near([float(found.stats[f"path_{i}"]) for i in range(1, 11)],
         weight * data["lmc_per_alpha_float64"])  # fmt: skip
    near(found.terms["path"], float(data["BETA_LMC"]) * data["lmc"])
    # There the mean is over the 162 scalars of theta; here the features are among what trains.
    gap = (host.student.features - before["student.features"]).square().sum()
    expected = 100 * (162 * float(data["l2_reg"]) + float(gap.detach())) / (162 + 7 * 8)
    assert float(found.terms["anchor"].detach()) == pytest.approx(expected, rel=2e-5)


def test_a_students_path_begins_at_the_tuned_students_own_features() -> None:
    host = {"name": "promptkd", "teacher": "perdure-tiny", "depth": 1}
    learner = build(host, preset="released-promptkd", log_points=True)
    assert isinstance(learner, FeatureLearner)
    now, method = batch(learner), learner.host
    assert learner.settings.start == 1
    assert learner(now, 1).terms["anchor"] == 0
    with torch.no_grad():
        expected = tuned(host).encode_image(now.images)
    torch.testing.assert_close(learner.before(now), expected)
    with torch.no_grad():
        for parameter in learner.student.added().values():
            parameter += 0.05
    found = learner(now, 2)
    torch.testing.assert_close(learner.before(now), expected)
    features, targets = method.embed(now), method.targets(now)
    for number, place in enumerate(grid("released", 10), 1):
        mixed = (1 - place) * expected + place * features
        value = method.task_loss(mixed, method.rows(), targets)
        torch.testing.assert_close(found.stats[f"path_{number}"], value.detach(), **CLOSE)
    assert found.terms["anchor"] > 0


def test_golden_released_path_of_adapters_leads_to_zero_shot(golden: Golden) -> None:
    data = golden("mergetune_mma")

    class Rows(ClassifierLearner):
        """A host of the authors' rows and features."""

        def __init__(self) -> None:
            super().__init__(zoo.random_clip())
            self.student.requires_grad_(False)
            self.student.table = nn.Parameter(torch.from_numpy(data["text_features_raw"]))
            self.student.clip.logit_scale.data.fill_(float(np.log(1 / 0.07)))

        def embed(self, batch: Batch) -> Tensor:
            return unit(torch.from_numpy(data["image_features_raw"]))

        def rows(self) -> Tensor:
            return self.student.table

    host = Rows()
    method = MergeTune(host=parse_method({"name": "mma"}), preset="released-mma")
    settings = filled_in(method, host)
    assert settings.path_weight == float(data["lmc/W_LMC"])
    start = {"student.table": host.student.table.detach().clone()}
    zero = torch.from_numpy(data["lmc/zeroshot_text_features_normalised"])
    ends = Endpoints(start, start, ({}, {}))
    learner = RowLearner(host, method, settings, ends, 0, zero, start["student.table"])
    labels = torch.from_numpy(data["labels"])
    found = learner(Batch(labels[:, None], labels, labels), 1)
    assert found.terms.keys() == {"task", "path"}
    near(found.terms["path"], data["lmc/loss"] - data["lmc/loss_main"], 5e-5)


@pytest.mark.parametrize("host", [COOP, {"name": "kgcoop"}, {"name": "mma"}], ids=str)
def test_all_places_on_the_path_are_those_one_by_one(host: dict[str, Any]) -> None:
    learner = build(host, points=3, log_points=True)
    assert isinstance(learner, RowLearner)
    now, own = batch(learner), learner.host
    found = learner(now, 1)
    features, rows = own.embed(now), own.rows()
    for number, place in enumerate(grid("midpoints", 3), 1):
        at = torch.lerp(learner.tuned_rows, rows, place)
        value = functional.cross_entropy(own.logits(features, at), now.labels)
        torch.testing.assert_close(found.stats[f"path_{number}"], value.detach())
    cosines = functional.cosine_similarity(rows, learner.zeroshot_rows)
    torch.testing.assert_close(found.stats["anchor_distance"], 1 - cosines.mean().detach())
    expected = {"task", "path", "anchor"} | ({"host_anchor"} if host["name"] == "kgcoop" else set())
    assert found.terms.keys() == expected


def test_half_the_mean_squared_distance_of_unit_rows_is_the_cosine_anchor() -> None:
    distances = {
        anchor: build(COOP, anchor=anchor, reduction="mean")(batch(build(COOP)), 1).stats
        for anchor in ("cosine", "l2")
    }
    cosine, squared = (float(each["anchor_distance"]) for each in distances.values())
    assert squared == pytest.approx(2 * cosine, rel=1e-4)
    assert squared > 0
    summed = build(COOP, anchor="l2", reduction="sum")
    found = float(summed(batch(summed), 1).stats["anchor_distance"])
    assert found == pytest.approx(3 * squared, rel=1e-4)
    relative = build(COOP, anchor="cosine", reduction="relative", start=1)
    assert float(relative(batch(relative), 1).stats["anchor_distance"]) == pytest.approx(1)


def test_a_linear_head_takes_the_same_step_in_both_spaces() -> None:
    found = []
    for space in ("classifier", "parameters"):
        learner = build({"name": "ft", "train": "head", "smoothing": 0.1}, space=space,
                        reduction="sum", anchor_weight=0.1)  # fmt: skip
        assert isinstance(learner, RowLearner) == (space == "classifier")
        step = learner(batch(learner), 1)
        found.append((step.terms, gradients(learner, total(step))))
    (terms, slopes), (others, other_slopes) = found
    assert terms.keys() == others.keys() == {"cross_entropy", "path", "anchor"}
    for name, value in terms.items():
        torch.testing.assert_close(value, others[name], **CLOSE)
    for name, value in slopes.items():
        torch.testing.assert_close(value, other_slopes[name], **CLOSE)


def test_what_is_left_open_is_filled_in_by_space_and_preset() -> None:
    def of(host: dict[str, Any], **options: Any) -> Any:
        return build(host, **options).settings

    prompts = of(COOP)
    assert (prompts.space, prompts.anchor, prompts.reduction) == ("classifier", "cosine", "mean")
    assert (prompts.anchor_weight, prompts.path_weight, prompts.start) == (8, 0.5, 0.3)
    assert (prompts.points, prompts.grid, prompts.decay_towards) == (5, "midpoints", "anchor")
    for whole in (of({"name": "flyp"}), of({"name": "ft", "train": "head"})):
        assert (whole.anchor, whole.reduction, whole.anchor_weight) == ("l2", "relative", 1)
    assert of({"name": "promptkd"}).space == "parameters"
    assert of(COOP, space="parameters").anchor_weight == 1
    released = of(COOP, preset="released-prompt", anchor_weight=10, start=0.5)
    assert (released.anchor_weight, released.start) == (10, 0.5)
    assert (released.path_weight, released.grid) == (1, "released")
    assert of({"name": "mma"}, preset="released-mma").anchor_weight == 0


@pytest.mark.parametrize("space", ["classifier", "parameters"])
def test_prompts_start_at_the_words_and_at_the_tuned_contexts(space: str) -> None:
    first = build(COOP, space=space, start=0)
    words = parse_method(COOP).build(zoo.random_clip(), CONTEXT)
    assert torch.equal(contexts(first.student.clip).contexts,
                       contexts(words.student.clip).contexts)  # fmt: skip
    last = build(COOP, space=space, start=1)
    assert torch.equal(contexts(last.student.clip).contexts, contexts(tuned(COOP).clip).contexts)


@pytest.mark.parametrize(
    ("host", "options", "said"),
    [
        ({"name": "flyp"}, {"space": "classifier"}, "flyp has no class rows"),
        ({"name": "flyp"}, {"preset": "released-prompt"}, "by the preset released-prompt"),
        ({"name": "flyp"}, {"anchor": "cosine"}, "the space is 'parameters'; use 'l2' or"),
        (COOP, {"anchor": "fisher"}, "set method.space to 'parameters'"),
        ({"name": "promptkd"}, {"space": "classifier"}, "class rows of the host promptkd do not"),
    ],
)
def test_options_that_do_not_fit_the_host_are_refused(
    host: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(TaskError, match=said):
        build(host, **options)


def test_images_are_embedded_once_and_texts_once_whatever_the_number_of_places() -> None:
    learner: MergeTuneLearner = build(COOP, points=7)
    counts = {"visual": 0, "transformer": 0}
    for name in counts:

        def count(*_: Any, name: str = name) -> None:
            counts[name] += 1

        learner.student.clip.get_submodule(name).register_forward_hook(count)
    now = batch(learner)
    learner(now, 1)
    assert counts == {"visual": 1, "transformer": 1}
