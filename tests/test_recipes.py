"""Every shipped recipe loads, says what it is for, survives being dumped, and takes a step."""

import dataclasses
import math
import re

import pytest
import torch

from perdure import optim
from perdure.batch import Batch
from perdure.data.datasets import templates_for
from perdure.documents import RECIPES, list_recipes
from perdure.loop import steps
from perdure.method import METHODS, Context
from perdure.opening import find_templates
from perdure.recipe import dump_recipe, load_recipe
from perdure.runtime import Runtime
from perdure.weights import trainable
from perdure.zoo import random_clip
from tests.regions_seen import as_seen

NAMES = [name for name, _ in list_recipes()]
KINDS = ("tracer", "carot", "flyp", "l2sp", "ft", "lp", "lp-ft")
TOWERS = ("tracer-released", "tracer-vit-l14", "tracer-rn50", "tracer-rn50-released")
PUBLISHED = [
    *(f"imagenet/{name}" for name in (*KINDS, *TOWERS)),
    *(f"wilds/iwildcam-{name}" for name in KINDS),
    *(f"imagenet/radapter{kind}" for kind in ("", "-released", "-16-shot", "-16-shot-released")),
    *("base-to-novel/radapter", "base-to-novel/radapter-released"),
    *("base-to-novel/coop", "base-to-novel/kgcoop"),
    *("base-to-novel/mma", "base-to-novel/promptkd"),
    *(f"base-to-novel/mergetune-{host}" for host in ("coop", "kgcoop", "mma")),
    *(f"base-to-novel/mergetune-{host}-released" for host in ("coop", "kgcoop", "mma", "promptkd")),
    *("coco/radapter", "coco/radapter-released", "flickr30k/radapter"),
    *("base-to-novel/lora", "coco/lora", "flickr30k/lora", "ovseg/radapter"),
]
EXAMPLES = {
    "imagenet": 1_281_167, "iwildcam": 129_809, "coco": 566_435, "flickr30k": 145_000,
    "oxford_pets": 2_944,
}  # fmt: skip
NUMBER_OF_CLASSES = {"imagenet": 1000, "oxford_pets": 19}
"""Those trained on where a recipe takes a few images of each."""

CLASSES = ("taco", "fire engine", "tiger")
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}
ROWS = 5


def header(name):
    """Return the comment that a recipe file starts with, as one line."""
    lines = (RECIPES / f"{name}.yaml").read_text().split("\n\nmodel:")[0].splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def tiny(recipe):
    """Return a small model with the kind of image tower that the recipe names."""
    return random_clip(vision_cfg=RESNET) if recipe.model.name.startswith("RN") else random_clip()


def learner_of(name, recipe, total):
    """Build the method as training does, on a tiny tower, and after the run it starts from."""
    student = tiny(recipe)
    templates = find_templates(recipe.data)
    if recipe.model.init is not None:
        before = f"{name.rpartition('/')[0]}/{recipe.model.init.name}"
        assert before in NAMES, f"{name} starts from {recipe.model.init}, which no recipe makes"
        first = learner_of(before, load_recipe(before), total)
        with torch.no_grad():  # as if it had been trained
            for number, value in enumerate(trainable(first).values()):
                value += 0.01 * torch.randn(value.shape, generator=seeded(number))
        first.restart()
        student = first.export()
    masks = recipe.data.name in ("regions", "emojishift-regions")
    context = Context(total, CLASSES, templates, lambda: tiny(recipe), masks=masks)
    return without_drop(recipe.method).build(student, context).train()


def without_drop(method):
    """Return a method, and its host, without dropping: few steps may all leave out an adapter.

    A teacher that is a run of its own becomes the bundled model.
    """
    if hasattr(method, "host"):
        method = dataclasses.replace(method, host=without_drop(method.host))
    if isinstance(getattr(method, "teacher", None), str) and method.name == "promptkd":
        method = dataclasses.replace(method, teacher="perdure-tiny")
    return dataclasses.replace(method, drop=0.0) if getattr(method, "drop", 0) else method


def seeded(number):
    return torch.Generator().manual_seed(number)


def batches(student, templates):
    size = student.preprocess.size
    for step in (1, 2):
        random = torch.Generator().manual_seed(step)
        labels = torch.randint(len(CLASSES), (ROWS,), generator=random)
        texts = [templates[-1].replace("{}", CLASSES[label]) for label in labels]
        images = as_seen(torch.randn(ROWS, 3, size, size, generator=random), student)
        yield Batch(images, student.trim(student.tokenizer(texts)), labels)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipe_loads_and_dumps_to_itself(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert load_recipe(str(RECIPES / f"{name}.yaml")) == recipe


@pytest.mark.parametrize(("name", "header"), list_recipes())
def test_shipped_recipe_says_what_it_is(name, header):
    assert 10 < len(header) <= 100, header
    assert (RECIPES / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipe_takes_a_step_on_a_tiny_tower(name):
    recipe = load_recipe(name)
    spec = recipe.optim
    total = 20
    learner = learner_of(name, recipe, total)
    trained = {key: p.detach().clone() for key, p in learner.named_parameters() if p.requires_grad}
    optimizer, _ = optim.make(learner, spec, total)
    # The warm-up of a published run is longer than this one.
    schedule = optim.warmup_cosine(total, 1)
    precision = "fp32" if recipe.run.precision == "fp16" else recipe.run.precision  # needs a GPU
    runtime = Runtime("cpu", precision, threads=1)
    found = batches(learner.student, find_templates(recipe.data))
    ticks = list(steps(learner, found, optimizer, schedule, runtime, clip_norm=spec.clip_norm))
    assert [tick.step for tick in ticks] == [1, 2]
    assert all(math.isfinite(tick.loss) and tick.grad_norm > 0 for tick in ticks)
    now = dict(learner.named_parameters())
    assert not any(torch.equal(value, now[key]) for key, value in trained.items())
    predictor = learner.export().eval()
    size = predictor.preprocess.size
    with torch.no_grad():
        logits = predictor.logits_fn(CLASSES, find_templates(recipe.data))(
            torch.zeros(1, 3, size, size)
        )
    assert torch.isfinite(logits).all()


def test_every_method_has_an_embedded_recipe_of_its_name():
    for name in METHODS:
        own = f"emojishift/{name}-ft" if name == "mergetune" else f"emojishift/{name}"
        assert load_recipe(own).method.name == name


def test_no_recipe_chooses_on_data_that_results_are_reported_on():
    for name in NAMES:
        assert set(load_recipe(name).validate.splits) <= {"val", "val_shift"}, name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_names_source_result_cost_and_its_weights(name):
    recipe, said = load_recipe(name), header(name)
    assert recipe.model.weights, "a base whose model has another name loses its weights"
    assert "Source" in said
    assert "arXiv" in said or "public code" in said
    assert re.search(r"Published.* cost|Cost: ", said)
    assert re.search(r"Published[,:]", said)
    assert "Not run by perdure's authors" in said
    assert f"perdure train {name} --out runs/" in said
    stated = re.search(r"([\d,]+) steps", said)
    if stated:
        spec = recipe.optim
        data = recipe.data
        few = data.shots and data.shots * NUMBER_OF_CLASSES[data.name]
        per_epoch = -(-(few or EXAMPLES[data.name]) // spec.batch_size)
        assert spec.total_steps(per_epoch) == int(stated[1].replace(",", ""))


def test_values_of_tracer_as_published():
    """Section 4 of the published settings, by tower; features summed over D."""
    found = {name: load_recipe(f"imagenet/tracer{name}") for name in ("", "-vit-l14", "-rn50")}
    for recipe in found.values():
        method, spec = recipe.method, recipe.optim
        weights = (method.strength, method.feature_weight, method.cross_norm_weight)
        assert weights == (0.9, 3.906, 0.05)
        assert (spec.lr, spec.weight_decay, spec.epochs, spec.warmup_steps) == (1e-5, 0.1, 10, 500)
        assert spec.clip_norm is None
    assert [recipe.optim.batch_size for recipe in found.values()] == [512, 224, 512]
    script = load_recipe("imagenet/tracer-rn50-released")
    assert (script.optim.lr, script.optim.weight_decay) == (9e-6, 0.02)
    assert script.method.feature_weight == pytest.approx(200 / 1024, abs=1e-4)
    wild = load_recipe("wilds/iwildcam-tracer")
    assert wild.method.feature_weight == pytest.approx(5000 / 512, abs=1e-3)
    assert (wild.method.relational_weight, wild.method.orthogonality_weight) == (0, 0.05)


def test_named_prompts_are_those_of_openai_and_six_more():
    plain, more = templates_for("openai-80"), templates_for("tracer-86")
    assert (len(set(plain)), len(set(more))) == (80, 86)
    assert more[:80] == plain
    assert plain[0] == "a bad photo of a {}."
    assert more[-1] == "a photo containing a faint {}."
    assert all(text.count("{}") == 1 for text in more)


def test_values_of_r_adapter_as_published():
    """By task; `-released` is what the commands of the public code really did."""
    kinds = ("imagenet/radapter", "imagenet/radapter-16-shot", "coco/radapter",
             "base-to-novel/radapter")  # fmt: skip
    found = {name: load_recipe(name) for name in kinds}
    rows = [
        (r.method.rank_image, r.method.momentum, r.method.margin, r.method.smoothing,
         r.method.alpha, r.optim.batch_size, r.optim.epochs, r.optim.warmup_steps,
         r.optim.clip_norm) for r in found.values()
    ]  # fmt: skip
    assert rows == [
        (None, 0.999, 0.05, 0.02, 0.5, 512, 10, 500, 1.0),
        (4, 0.999, 0.05, 0.02, 0.5, 256, 50, 0, 1.0),
        (None, 0.999, 0.05, 0.0, 0.8, 512, 10, 500, None),
        (4, 0.9, 0.1, 0.0, 0.5, 32, 101, 500, 1.0),
    ]
    for name, recipe in found.items():
        assert (recipe.optim.lr, recipe.optim.weight_decay) == (5e-4, 0.0)
        assert (recipe.method.drop, recipe.method.drop_mode) == (0.2, "module")
        assert recipe.method.contrastive == "mpm_nce"
        released = load_recipe(f"{name}-released").method
        assert (released.rank_image, released.rank_text) == (None, None)
        assert (released.drop_mode, released.alpha) == ("token", 0.5)
    released = load_recipe("coco/radapter-released")
    assert (released.method.margin, released.optim.schedule) == (0.0, "constant")
