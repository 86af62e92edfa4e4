"""What every method owes the loop, the run directory and the reader, whatever it computes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from perdure import zoo
from perdure.batch import Batch, Step
from perdure.errors import SurgeryError
from perdure.learner import Learner
from perdure.method import METHODS, Context, method_class, parse_method
from perdure.predictor import Predictor
from perdure.recipe import load_recipe
from tests.regions_seen import as_seen

CLASSES = ("taco", "fire engine", "tiger")
TEMPLATES = ("a photo of a {}", "an image of the {}")
STEPS = 6
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}
TOWERS: dict[str, dict[str, Any]] = {"vit": {}, "resnet": {"vision_cfg": RESNET}}

OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "ft": ({"train": "head", "head_decay": 1e-3}, {"smoothing": 0.1}),
    "flyp": ({"smoothing": 0.1}, {"contrastive": "mpm_nce", "margin": 0.05, "smoothing": 0.02}),
    "lora": (
        {"alpha": 0.5, "targets": ["in_proj", "mlp_out"], "contrastive": "mpm_nce"},
        {"teacher": {"teacher_every": 2, "class_weight": 1}},
    ),
    "carot": ({"every": 1}, {"distill_weight": 0, "cross_norm_weight": 0}),
    "tracer": (
        {"teacher": "ema", "serve": "teacher", "stats": True},
        {"teacher": "static", "schedule": "cosine", "cross_norm_weight": 0.05},
        {"teacher": "uniform", "teacher_every": 4, "class_weight": 1, "orthogonality_weight": 0.1},
        {
            "teacher_every": 4,
            "released": True,
            "interactive_weight": 0,
            "teacher_precision": "bf16",
        },
        {"strength": 0},
        {"contrastive": "mpm_nce", "margin": 0.05},
    ),
    "mma": (
        {"towers": ["text"], "blocks": [1], "rank": 4, "template": "a {}"},
        {"eta": 0.1, "scale_gradients": False},
    ),
    "promptkd": (
        {"teacher": "perdure-tiny", "depth": 2, "temperature": 2, "kd_weight": 200},
        {"prompts": 0},
    ),
    "maskprompts": ({"depth": 1, "contrastive": "mpm_nce", "margin": 0.05},),
    "coop": (
        {"words": None, "contexts": 3, "position": "middle", "stop": False},
        {"class_specific": True, "position": "front"},
    ),
    "kgcoop": ({"anchor_weight": 0}, {"templates": ["a {}"], "words": None, "contexts": 2}),
    "radapter": (
        {"rank_image": 4, "rank_text": 2, "bias": True, "drop_mode": "token", "average_every": 4},
        {"drop": 0.5, "drop_mode": "sample", "momentum": 0, "gate": None, "margin": 0},
        {"contrastive": "info_nce", "teacher": {"teacher": "ema", "class_weight": 1}},
    ),
}
"""Settings, besides the defaults, under which a method takes other paths."""

HOSTS = [name for name in METHODS if name != "mergetune"]
TABLES = [{"name": name, **options} for name in HOSTS for options in ({}, *OPTIONS.get(name, ()))]
TABLES += [{"name": "mergetune", "points": 2, "host": {"name": name}} for name in HOSTS]
TABLES += [
    {"name": "mergetune", "host": {"name": "ft"}, "grid": "stratified", "log_points": True},
    {"name": "mergetune", "host": {"name": "flyp"}, "anchor": "fisher", "fisher_steps": 2},
    {"name": "mergetune", "host": {"name": "ft"}, "path_weight": 0, "reduction": "mean"},
]


def label(value: Any) -> str:
    if isinstance(value, dict):
        return "-".join(str(part) for part in value.values())
    return str(value)


def contract(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test for every method and setting on both kinds of image tower.

    Of those that are continued by another method one on a ResNet is enough, and takes time. Mask
    prompts have no place there.
    """
    cases = [
        (table, tower)
        for tower in TOWERS
        for table in TABLES
        if tower == "vit"
        or (table.get("host", {"name": "ft"}) == {"name": "ft"} and table["name"] != "maskprompts")
    ]
    return pytest.mark.parametrize(("table", "tower"), cases, ids=label)(test)


def build(table: dict[str, Any], tower: str) -> Learner:
    def zeroshot() -> Predictor:
        return zoo.random_clip(**TOWERS[tower])

    context = Context(
        STEPS, CLASSES, TEMPLATES, zeroshot, whole=lambda: (*CLASSES, "rose"), masks=True
    )
    method = parse_method(table)
    if tower == "resnet":
        method = on_resnet(method)
    host = getattr(method, "host", None)
    start = zeroshot() if host is None else tuned(host, context)
    return method.build(start, context).train()


def on_resnet(method: Any) -> Any:
    """Leave an image tower alone that has no place for what the method adds."""
    if hasattr(method, "host"):
        return dataclasses.replace(method, host=on_resnet(method.host))
    if method.name == "promptkd":  # it has no tokens beside which prompts could stand
        return dataclasses.replace(method, prompts=0)
    adds = method.name in ("radapter", "lora", "mma")
    return dataclasses.replace(method, towers=("text",)) if adds else method


def tuned(host: Any, context: Context) -> Predictor:
    """Return what a host could have made of the model."""
    learner = host.build(context.zeroshot(), context)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=random)
    learner.restart()
    exported: Predictor = learner.export()
    return exported


def batch(learner: Learner, step: int) -> Batch:
    student = learner.student
    random = torch.Generator().manual_seed(step)
    labels = torch.randint(len(CLASSES), (5,), generator=random)
    texts = [TEMPLATES[row % 2].format(CLASSES[label]) for row, label in enumerate(labels)]
    size = student.preprocess.size
    images = as_seen(torch.randn(5, 3, size, size, generator=random), student)
    return Batch(images, student.trim(student.tokenizer(texts)), labels)


def adamw(learner: Learner) -> torch.optim.Optimizer:
    live = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(live, lr=1e-3, weight_decay=0.1)


def advance(learner: Learner, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last + 1):
        torch.manual_seed(step)
        total(learner(batch(learner, step), step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step(step)


def total(step: Step) -> Tensor:
    return torch.stack(list(step.terms.values())).sum()


def values(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def logits(predictor: Predictor) -> Tensor:
    size = predictor.preprocess.size
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    return predictor.eval().logits_fn(CLASSES, TEMPLATES)(as_seen(images, predictor))


@contract
def test_every_term_is_a_finite_scalar_and_stats_are_not_part_of_the_loss(
    table: dict[str, Any], tower: str
) -> None:
    learner = build(table, tower)
    optimizer = adamw(learner)
    columns: set[str] | None = None
    for step in (1, 2):
        found = learner(batch(learner, step), step)
        assert found.terms
        assert columns in (None, set(found.terms)), "the log would change its columns"
        columns = set(found.terms)
        for value in (*found.terms.values(), *found.stats.values()):
            assert value.shape == ()
            assert torch.isfinite(value)
            assert value.dtype == torch.float32
        assert not any(value.requires_grad for value in found.stats.values())
        assert total(found).requires_grad
        advance(learner, optimizer, step, step)


@contract
def test_only_what_requires_gradients_moves_and_all_of_it_does(
    table: dict[str, Any], tower: str
) -> None:
    learner = build(table, tower)
    before = values(learner.student)
    trained = {name for name, p in learner.student.named_parameters() if p.requires_grad}
    frozen = {name for name, p in learner.student.named_parameters() if not p.requires_grad}
    optimizer = adamw(learner)
    assert trained
    advance(learner, optimizer, 1, 3)
    moved = changed(before, values(learner.student))
    assert trained <= moved
    assert not moved & frozen
    if not any(name.startswith("clip.visual") for name in trained):
        assert not {name for name in moved if name.startswith("clip.visual")}


@contract
def test_features_from_before_training_stand_for_images_where_a_learner_says_so(
    table: dict[str, Any], tower: str
) -> None:
    learner = build(table, tower)
    moving = [name for name, p in learner.student.named_parameters() if p.requires_grad]
    if not learner.fixed_features:
        # Whoever could take them should say so; contrastive methods with a frozen tower need not.
        kind = table.get("host", table)["name"]
        assert any(name.startswith("clip.visual") for name in moving) or kind in (
            "promptkd", "lora", "radapter",
        )  # fmt: skip
        return
    assert not any(name.startswith("clip.visual") for name in moving)
    optimizer = adamw(learner)
    advance(learner, optimizer, 1, 1)
    plain = batch(learner, 2)
    with torch.no_grad():
        features = learner.student.encode_image(plain.images)
    cached = plain._replace(images=plain.images[:, :, :0, :0], features=features)
    gradients = []
    for each in (plain, cached):
        torch.manual_seed(2)
        optimizer.zero_grad()
        found = learner(each, 2)
        total(found).backward()
        gradients.append({
            name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None
        })  # fmt: skip
    assert changed(*gradients) == set()


@contract
def test_no_weight_of_the_base_model_is_renamed(table: dict[str, Any], tower: str) -> None:
    base = values(zoo.random_clip(**TOWERS[tower]))
    learner = build(table, tower)
    for predictor in (learner.student, learner.export()):
        state = predictor.state_dict()
        assert base.keys() <= state.keys()
        assert all(state[name].shape == value.shape for name, value in base.items())


@contract
def test_the_state_dict_survives_a_file_and_an_interrupted_run_ends_bitwise_equal(
    table: dict[str, Any], tower: str, tmp_path: Path
) -> None:
    whole = build(table, tower)
    optimizer = adamw(whole)
    advance(whole, optimizer, 1, 3)
    save_file(whole.state_dict(), tmp_path / "learner.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    advance(whole, optimizer, 4, STEPS)

    resumed = build(table, tower)
    resumed.load_state_dict(load_file(tmp_path / "learner.safetensors"))
    again = adamw(resumed)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    advance(resumed, again, 4, STEPS)
    assert changed(values(whole), values(resumed)) == set()
    assert changed(values(whole.export()), values(resumed.export())) == set()


@contract
def test_the_export_is_independent_of_the_learner(table: dict[str, Any], tower: str) -> None:
    learner = build(table, tower)
    optimizer = adamw(learner)
    advance(learner, optimizer, 1, 2)
    exported = learner.export()
    before = values(exported)
    assert not exported.training
    assert learner.training
    advance(learner, optimizer, 3, 4)
    assert changed(before, values(exported)) == set()
    state = values(learner)
    with torch.no_grad():
        for tensor in (*exported.parameters(), *exported.buffers()):
            tensor.zero_()
    assert changed(state, values(learner)) == set()


@contract
def test_what_is_saved_scores_like_what_was_trained(
    table: dict[str, Any], tower: str, tmp_path: Path
) -> None:
    learner = build(table, tower)
    advance(learner, adamw(learner), 1, 2)
    exported = learner.export()
    exported.save(tmp_path / "predictor")
    folded = exported.fold().requires_grad_(False)
    # Masked attention takes another kernel where weights could be trained, also without gradients.
    expected = logits(exported.requires_grad_(False))
    loaded = Predictor.load(tmp_path / "predictor").requires_grad_(False)
    assert torch.equal(logits(loaded), expected)
    if folded.surgeries:  # what cannot be folded stays in perdure's own form
        with pytest.raises(SurgeryError, match="cannot be folded"):
            folded.export_open_clip(tmp_path / "model")
        assert not (tmp_path / "model").exists()
        torch.testing.assert_close(logits(folded), expected, rtol=1e-5, atol=1e-4)
        return
    folded.export_open_clip(tmp_path / "model")
    plain = zoo.load(str(tmp_path / "model")).requires_grad_(False)
    assert changed(values(plain.clip), values(folded.clip)) == set()
    if exported.head is None:
        assert torch.equal(logits(plain), logits(folded))
    torch.testing.assert_close(logits(folded), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_one_name_a_paper_a_recipe_and_words_for_every_option(name: str) -> None:
    cls = method_class(name)
    assert cls.name == name
    assert cls.__module__ == f"perdure.methods.{name}"
    assert cls.paper.startswith("https://")
    assert "Source:" in (cls.__doc__ or "")
    assert METHODS[name].summary
    recipe = load_recipe(f"emojishift/{name}" + "-ft" * (name == "mergetune"))
    assert recipe.method.name == name
    parts = [part for part in cls.__mro__ if dataclasses.is_dataclass(part)]
    source = "".join(map(inspect.getsource, parts))  # fields may come from shared parts
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        after = source.split(f"    {field.name}: ", 1)[1].split("\n", 1)[1]
        assert after.lstrip().startswith('"""'), f"{name}.{field.name} is not explained"
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.method.name = "other"  # type: ignore[misc]
