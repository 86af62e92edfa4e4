"""Every kind of merge on runs: against its formula, its memory, its base, its images."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from perdure import mixing, task_vectors
from perdure.errors import DataError, RunError, WeightsError
from perdure.merges import members as on_disk
from perdure.merges.evidence import Task, choose
from perdure.merges.importance import fisher, grams, renew_statistics
from perdure.merges.kinds import MERGERS, make
from perdure.merges.members import opened, prepare
from perdure.merging import merge
from perdure.predictor import Predictor
from perdure.recipe import DataSpec
from perdure.subjects import find
from perdure.surgery.slots import Slots
from perdure.weights import Weights
from perdure.zoo import random_clip

NAMES = ("taco", "banana", "tiger")
TEMPLATES = ("a photo of a {}",)
Runs = list[str]


def save(path: Path, predictor: Predictor, seed: int, **model: Any) -> str:
    """Write what a training run leaves."""
    predictor.save(path / "predictor")
    recipe = {
        "model": {"name": "perdure-tiny", **model},
        "data": {"name": "emojishift", "shots": 1},
        "method": {"name": "ft"},
        "optim": {"lr": 0.1, "steps": 1, "batch_size": 8},
        "seed": seed,
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return str(path)


def base_model(tmp_path: Path) -> str:
    """Write an untouched model as a run, as `perdure eval MODEL --out` does."""
    random_clip(0).save(tmp_path / "base" / "predictor")
    document = {"kind": "zero-shot", "inputs": [{"subject": "perdure-tiny"}]}
    (tmp_path / "base" / "merge.yaml").write_text(yaml.safe_dump(document))
    return str(tmp_path / "base")


def tuned(seed: int) -> Predictor:
    """Return the base model a small step away."""
    moved, other = random_clip(0), random_clip(seed)
    with torch.no_grad():
        for parameter, way in zip(moved.parameters(), other.parameters(), strict=True):
            parameter.add_(0.1 * way)
    return moved


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return [
        base_model(tmp_path),
        *(save(tmp_path / f"run-{seed}", tuned(seed), seed) for seed in (1, 2)),
    ]


def weights_of(run: str) -> Weights:
    return Predictor.load(Path(run) / "predictor").state_dict()


def merged(kind: str, runs: Sequence[str], out: Path, **options: Any) -> Weights:
    made = merge(kind, runs, out, **options)
    return weights_of(str(made.path))


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected.to(found.dtype), rtol=1e-5, atol=1e-6)


FORMULAS: dict[str, tuple[dict[str, Any], Any]] = {
    "task-arithmetic": (
        {"weights": (0.7, 0.3), "scale": 0.5},
        lambda b, v: b + 0.5 * (0.7 * v[0] + 0.3 * v[1]),
    ),
    "ties": (
        {"density": 0.3, "weights": (1.0, 2.0), "majority": "frequency"},
        lambda b, v: b + task_vectors.ties(v, (1.0, 2.0), 0.3, "frequency"),
    ),
    "model-stock": ({}, lambda b, v: b + task_vectors.model_stock(v)),
}


@pytest.mark.parametrize("kind", FORMULAS)
def test_task_vectors_are_merged_tensor_by_tensor(kind: str, runs: Runs, tmp_path: Path) -> None:
    options, formula = FORMULAS[kind]
    found = merged(kind, runs, tmp_path / "out", **options)
    base, *others = map(weights_of, runs)
    for name, start in base.items():
        expected = formula(start, [other[name] - start for other in others])
        assert close(found[name], expected), name


def test_whole_model_trimming_takes_the_largest_of_all_tensors(runs: Runs, tmp_path: Path) -> None:
    base, *others = map(weights_of, runs)
    frozen = "clip.token_embedding.weight"
    for run, other in zip(runs[1:], others, strict=True):
        model = Predictor.load(Path(run) / "predictor")
        model.load_state_dict({**other, frozen: base[frozen]})
        model.save(Path(run) / "predictor")
    others = [weights_of(run) for run in runs[1:]]
    options = {"density": 0.1, "scope": "whole_model"}
    found = merged("ties", runs, tmp_path / "out", **options)
    # Biases that start at zero were not moved either, so they do not count.
    moved = [name for name in base if any(not one[name].equal(base[name]) for one in others)]
    assert frozen not in moved
    flat = [torch.cat([(o[n] - base[n]).flatten() for n in moved]) for o in others]
    kept = [task_vectors.trim(vector, 0.1) for vector in flat]
    expected = task_vectors.agree(kept, (1.0, 1.0), task_vectors.elect(kept))
    got = torch.cat([(found[name] - base[name]).flatten() for name in moved])
    assert close(got, expected)
    assert torch.equal(found[frozen], base[frozen])
    document = yaml.safe_load((tmp_path / "out" / "merge.yaml").read_text())
    assert document["scope"] == "whole_model"
    per_tensor = merged("ties", runs, tmp_path / "other", density=0.1)
    assert not all(torch.equal(per_tensor[name], found[name]) for name in moved)


@pytest.mark.parametrize("majority", ["none", "total"])
def test_dropping_depends_on_the_seed_alone(runs: Runs, tmp_path: Path, majority: str) -> None:
    options = {"density": 0.5, "majority": majority}
    first = merged("dare", runs, tmp_path / "a", **options)
    again = merged("dare", runs, tmp_path / "b", **options)
    other = merged("dare", runs, tmp_path / "c", seed=1, **options)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    base, one, two = map(weights_of, runs)
    name = "clip.visual.proj"
    change = first[name] - base[name]
    both = 2 * (one[name] - base[name]), 2 * (two[name] - base[name])
    options_of_an_entry = [torch.zeros_like(change), *both]
    options_of_an_entry += [sum(both), (both[0] + both[1]) / 2]  # type: ignore[list-item]
    near = torch.stack([torch.isclose(change, each, atol=1e-5) for each in options_of_an_entry])
    assert near.any(dim=0).all()
    assert (~near[0]).any()
    whole = merged("dare", runs[:2], tmp_path / "d", density=1.0, scale=0.25)
    assert all(close(whole[n], base[n] + 0.25 * (one[n] - base[n])) for n in base)


def with_contexts(seed: int) -> Predictor:
    """Return the base model with contexts that were trained."""
    model = random_clip(0)
    model.attach(Slots(count=2))
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.added().values():
            value.add_(torch.randn(value.shape, generator=drawn))
    return model


def test_learned_contexts_are_merged_from_their_own_start(tmp_path: Path) -> None:
    base = base_model(tmp_path)
    runs = [save(tmp_path / f"coop-{seed}", with_contexts(seed), seed) for seed in (1, 2)]
    (name,) = with_contexts(1).added()
    start = with_contexts(1).fold(0.0).state_dict()[name]
    ends = [weights_of(run)[name] for run in runs]
    vectors = [end - start for end in ends]
    assert all(float(vector.abs().max()) > 0.1 for vector in vectors)
    ties = merged("ties", [base, *runs], tmp_path / "ties", density=0.3)
    assert close(ties[name], start + task_vectors.ties(vectors, (1.0, 1.0), 0.3))
    whole = {"density": 0.3, "scope": "whole_model"}
    assert close(merged("ties", [base, *runs], tmp_path / "whole", **whole)[name], ties[name])
    half = merged("wise-ft", [base, runs[0]], tmp_path / "half", alpha=0.5)
    assert close(half[name], (start + ends[0]) / 2)
    soup = merged("soup", runs, tmp_path / "soup")
    assert close(soup[name], (ends[0] + ends[1]) / 2)
    dare = merged("dare", [base, runs[0]], tmp_path / "dare", density=0.5)
    change = dare[name] - start
    stayed = torch.isclose(change, 2 * vectors[0], atol=1e-5)
    assert (stayed | (change == 0)).all()
    assert 0 < int(stayed.sum()) < stayed.numel()
    untouched = random_clip(0).state_dict()
    for found in (ties, half, soup, dare):
        assert all(close(found[key], value) for key, value in untouched.items() if key in found)
    # A model of its own again: it is loaded with its contexts and scores.
    again = find(str(tmp_path / "ties")).predictor()
    assert len(again.surgeries) == 1
    assert torch.isfinite(again.classifier(NAMES, TEMPLATES)).all()


def test_the_arc_is_taken_tensor_by_tensor(runs: Runs, tmp_path: Path) -> None:
    found = merged("slerp", runs[1:], tmp_path / "out", alpha=0.3)
    one, two = map(weights_of, runs[1:])
    assert all(close(found[name], mixing.slerp(one[name], two[name], 0.3)) for name in one)


class Watch:
    """Counts the bytes of tensors that were read and still live."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def read(self, stored: on_disk.Stored, name: str) -> Tensor:
        tensor: Tensor = stored.file.get_tensor(name)
        size = tensor.nbytes
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(tensor, self._gone, size)
        return tensor

    def _gone(self, size: int) -> None:
        self.now -= size


ONE_BY_ONE = ("wise-ft", "soup", "task-arithmetic")


@pytest.mark.parametrize("kind", [*ONE_BY_ONE, "ties", "dare", "slerp", "model-stock"])
def test_no_two_models_meet_in_memory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = {"vision_cfg": {"layers": 24}}
    runs = [
        save(tmp_path / str(seed), random_clip(seed, **deep), seed, init=str(tmp_path / "0"))
        for seed in range(3)
    ]
    watch = Watch()
    monkeypatch.setattr(on_disk.Stored, "read", lambda self, name: watch.read(self, name))
    loads: list[Path] = []
    monkeypatch.setattr(Predictor, "load", classmethod(lambda cls, path: loads.append(path)))
    given = runs[:2] if kind in ("wise-ft", "slerp") else runs
    options = {"alpha": 0.5} if kind in ("wise-ft", "slerp") else {}
    merge(kind, given, tmp_path / "out", **options)
    sizes = [tensor.nbytes for tensor in random_clip(0, **deep).state_dict().values()]
    # The base and one member at a time, or one tensor of each member.
    allowed = 2 if kind in ONE_BY_ONE else len(given)
    assert 0 < watch.peak <= allowed * max(sizes)
    assert watch.peak < sum(sizes) / 2
    assert watch.now == 0
    assert loads == []


def test_members_that_are_no_plain_models_are_written_one_by_one(tmp_path: Path) -> None:
    headed = random_clip(1)
    headed.set_head(NAMES, TEMPLATES)
    run = save(tmp_path / "headed", headed, 0)
    without = save(tmp_path / "without", random_clip(2), 1)
    prepared = prepare([find(run), find(without)], make("soup", {}), tmp_path / "work")
    assert prepared[0].directory == tmp_path / "headed" / "predictor"
    assert prepared[1].directory == tmp_path / "work" / "1"
    assert prepared[1].classes() == NAMES
    found = merged("soup", [run, without], tmp_path / "out")
    other = random_clip(2)
    other.set_head(NAMES, TEMPLATES)
    expected = (headed.state_dict()["head.weight"] + other.state_dict()["head.weight"]) / 2
    assert close(found["head.weight"], expected)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "env.json", "merge.yaml", "model", "predictor", "status.json",
    ]  # fmt: skip


def test_models_of_different_bases_are_refused(runs: Runs, tmp_path: Path) -> None:
    random_clip(5).export_open_clip(tmp_path / "other")
    stranger = save(tmp_path / "stranger", tuned(3), 3, name=f"local-dir:{tmp_path / 'other'}")
    for kind in ("soup", "task-arithmetic"):
        with pytest.raises(RunError, match=r"descend from different models: .*perdure-tiny"):
            merge(kind, [*runs, stranger], tmp_path / "out")
    random_clip(5).export_open_clip(tmp_path / "copy")
    same = save(tmp_path / "same", tuned(3), 3, name=f"local-dir:{tmp_path / 'copy'}")
    merge("soup", [stranger, same], tmp_path / "out")


def test_a_base_that_does_not_come_first_is_noticed(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Put the base first: perdure merge ties perdure-tiny"):
        merge("ties", runs[1:], tmp_path / "out")
    later = save(tmp_path / "later", tuned(3), 0, init=runs[1])
    merge("ties", [runs[1], later], tmp_path / "out")


def test_options_are_checked_before_anything_is_written(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for kind, options, words in (
        ("ties", {"alpha": 0.5}, "alpha is an option of wise-ft, slerp; ties has these: density"),
        ("soup", {"colour": 1}, "colour is no option of any kind"),
        ("tise", {}, "did you mean 'ties'"),
        ("model-stock", {}, "two or more models"),
        ("slerp", {"alpha": 0.5}, "two inputs"),
    ):
        given = runs[:2] if kind == "model-stock" else runs
        with pytest.raises(RunError, match=words):
            merge(kind, given, out, **options)
    for kind, options, words in (
        ("ties", {"density": 1.5}, "density is 1.5; it must lie in"),
        ("dare", {"density": 0.0}, "density is 0"),
        ("ties", {"scope": "layer"}, "scope is 'layer'; allowed: per_tensor, whole_model"),
        ("ties", {"weights": (1.0,)}, "do not fit 2 tuned models"),
        ("fisher", {"examples": 0}, "examples is 0"),
        ("soup", {"shares": (1.0, 1.0, 1.0), "greedy": True}, "leave one out"),
        ("ties", {"scale": float("nan")}, "scale is nan; it must be a finite number"),
        ("dare", {"weights": (1.0, float("inf"))}, "weights is inf; it must be a finite"),
        ("fisher", {"floor": float("inf")}, "floor is inf"),
        ("soup", {"batch_norm": 0}, "batch_norm is 0 images"),
    ):
        with pytest.raises(WeightsError, match=words):
            merge(kind, runs, out, **options)
    with pytest.raises(DataError, match="none of the inputs is a training run"):
        merge("fisher", [runs[0], runs[0]], out)
    assert not out.exists()


def test_every_kind_records_what_it_was_given() -> None:
    for kind, cls in MERGERS.items():
        given = {"alpha": 0.5} if kind in ("wise-ft", "slerp") else {}
        assert make(kind, given).kind == kind == cls.kind  # type: ignore[attr-defined]


def test_fisher_information_of_a_head_has_a_closed_form() -> None:
    model = random_clip(0)
    model.set_head(NAMES, TEMPLATES)
    images = torch.randn(5, 3, 40, 40)
    found = fisher(model, [images[:2], images[2:]], NAMES, TEMPLATES, exact=True)
    with torch.no_grad():
        features = model.encode_image(images)
        p = model.head_logits(features).softmax(dim=-1)
    # E_y (delta_yc - p_c)^2 = p_c (1 - p_c), times the squared features, mean over images.
    expected = (p * (1 - p)).T @ features.square() / 5
    assert close(found["head.weight"], expected)
    assert close(found["head.bias"], (p * (1 - p)).mean(0))
    assert float(found["clip.visual.proj"].max()) > 0
    assert not found["clip.text_projection"].any()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_drawn_labels_give_the_expectation_and_no_batch_is_summed() -> None:
    model = random_clip(0)
    image = torch.randn(1, 3, 40, 40)
    exact = fisher(model, [image], NAMES, TEMPLATES, exact=True)["clip.text_projection"]
    drawn = fisher(model, [image] * 60, NAMES, TEMPLATES)["clip.text_projection"]
    assert float((drawn - exact).norm() / exact.norm()) < 0.4
    together = fisher(model, [image.expand(4, -1, -1, -1)], NAMES, TEMPLATES, exact=True)
    assert close(together["clip.text_projection"], exact)
    with pytest.raises(WeightsError, match="no image"):
        fisher(model, [], NAMES, TEMPLATES)


def test_gram_matrices_are_those_of_the_layers_inputs() -> None:
    model = random_clip(0)
    images = torch.randn(6, 3, 40, 40)
    tokens = model.prompts(NAMES, TEMPLATES).flatten(0, 1)
    found = grams(model, [images[:4], images[4:]], tokens)
    block: Any = model.clip.visual.transformer.resblocks[0]
    kept: dict[str, Tensor] = {}
    hooks = [
        block.mlp.c_proj.register_forward_hook(lambda _, x, __: kept.update(mlp=x[0])),
        block.ln_1.register_forward_hook(lambda _, __, y: kept.update(attention=y)),
        block.attn.register_forward_hook(lambda _, __, y: kept.update(out=y[0])),
    ]
    with torch.no_grad():
        model.encode_image(images)
    for hook in hooks:
        hook.remove()
    prefix = "clip.visual.transformer.resblocks.0"
    for name, rows in (("mlp.c_proj.weight", "mlp"), ("attn.in_proj_weight", "attention")):
        flat = kept[rows].flatten(0, -2)
        assert close(found[f"{prefix}.{name}"], flat.T @ flat / len(flat))
    # The last map of attention is never called: its inputs must explain its outputs.
    weight, bias = block.attn.out_proj.weight.detach(), block.attn.out_proj.bias.detach()
    outputs = kept["out"].flatten(0, -2) - bias
    gram = found[f"{prefix}.attn.out_proj.weight"]
    expected = outputs.T @ outputs / len(outputs)
    assert torch.allclose(weight @ gram @ weight.T, expected, rtol=1e-3, atol=1e-5)
    assert any(name.startswith("clip.transformer") for name in found)


def test_statistics_of_batch_normalisation_are_measured_anew() -> None:
    model = random_clip(0, vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    layer: Any = model.clip.visual.bn1
    layer.running_mean.fill_(9.0)
    images = torch.randn(8, 3, 64, 64)
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    momentum = layer.momentum
    assert renew_statistics(model, [images[:4], images[4:]]) > 1
    hook.remove()
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in seen]).mean(0)
    variance = torch.stack([batch.var((0, 2, 3)) for batch in seen]).mean(0)
    assert close(layer.running_mean, mean)
    assert close(layer.running_var, variance)
    assert layer.momentum == momentum
    assert not model.training
    assert not any(module.training for module in model.modules())
    assert renew_statistics(random_clip(0), [images]) == 0


def test_running_statistics_are_averaged_and_never_moved_by_task_vectors(tmp_path: Path) -> None:
    config = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
    models = [random_clip(seed, vision_cfg=config) for seed in range(3)]
    for number, model in enumerate(models):
        model.clip.visual.bn1.running_var.fill_(1.0 + number)
    runs = [save(tmp_path / f"r{n}", model, n) for n, model in enumerate(models)]
    (tmp_path / "r0" / "recipe.yaml").unlink()
    document = {"kind": "zero-shot", "inputs": [{"subject": "perdure-tiny"}]}
    (tmp_path / "r0" / "merge.yaml").write_text(yaml.safe_dump(document))
    found = merged("task-arithmetic", runs, tmp_path / "out", scale=-3.0)
    assert close(found["clip.visual.bn1.running_var"], torch.full((4,), 2.5))
    renewed = merged("soup", runs[1:], tmp_path / "renewed", batch_norm=4)
    assert not close(renewed["clip.visual.bn1.running_var"], torch.full((4,), 2.5))
    document = yaml.safe_load((tmp_path / "renewed" / "merge.yaml").read_text())
    assert document["batch_norm"]["images"] == 4
    assert document["task"] == {"data": "emojishift", "split": "train"}


@pytest.mark.parametrize("kind", ["fisher", "regmean"])
def test_merges_with_evidence_follow_their_formula(kind: str, runs: Runs, tmp_path: Path) -> None:
    reports: list[tuple[str, float]] = []
    found = merged(
        kind, runs[1:], tmp_path / "out", examples=3, progress=lambda *told: reports.append(told)
    )
    task = Task.of([find(run) for run in runs[1:]], None)
    models = [Predictor.load(Path(run) / "predictor") for run in runs[1:]]
    known = []
    for model in models:
        batches, _ = task.batches(model, 3)
        names = task.open("train").classes
        if kind == "fisher":
            known.append(fisher(model, batches, names, task.templates))
        else:
            tokens = model.prompts(names, task.templates).flatten(0, 1)
            known.append(grams(model, batches, tokens))
    weights = [model.state_dict() for model in models]
    for name, value in found.items():
        tensors = [each[name] for each in weights]
        expected = sum(tensors) / 2
        if kind == "fisher":
            expected = mixing.fisher(tensors, [each[name] for each in known], (1.0, 1.0))
        elif name in known[0]:
            expected = mixing.regmean(tensors, [each[name] for each in known])
        assert torch.allclose(value, expected, rtol=1e-3, atol=1e-5), name  # type: ignore[arg-type]
    for phase in ("reading", "measuring", "merging"):
        assert sum(share for name, share in reports if name == phase) == pytest.approx(1.0)


def test_a_greedy_soup_adds_while_accuracy_does_not_fall(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [*runs[1:], save(tmp_path / "run-3", tuned(3), 3)]
    task = Task(DataSpec(name="emojishift"), TEMPLATES, 0)
    score = {(0,): 0.5, (1,): 0.7, (2,): 0.6, (1, 2): 0.7, (0, 1, 2): 0.69}
    tried: list[tuple[int, ...]] = []

    def filled(model: Any, used: Sequence[Any], merger: Any) -> None:
        tried.append(tuple(numbers[id(one)] for one in used))

    files = [Path(run) / "predictor" / "predictor.safetensors" for run in runs]
    with opened(files) as tensors:
        numbers = {id(one): number for number, one in enumerate(tensors)}
        evidence = "perdure.merges.evidence"
        monkeypatch.setattr(f"{evidence}.fill", filled)
        monkeypatch.setattr(
            f"{evidence}.predict", lambda *_: type("O", (), dict.fromkeys(("logits", "labels")))
        )
        monkeypatch.setattr(f"{evidence}.top1", lambda *_: score[tried[-1]])
        found = choose(random_clip(0), tensors, task)
    assert tried == [(0,), (1,), (2,), (1, 2), (0, 1, 2)]
    assert found.shares == (0.0, 1.0, 1.0)
    assert found.accuracies == (0.5, 0.7, 0.6)
    assert found.accuracy == 0.7


def test_a_greedy_soup_is_the_mean_of_its_members(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener = Task.open
    monkeypatch.setattr(Task, "open", lambda self, split, limit=None: opener(self, split, 60))
    found = merged("soup", runs[1:], tmp_path / "out", greedy=True)
    document = yaml.safe_load((tmp_path / "out" / "merge.yaml").read_text())
    told = document["greedy"]
    assert told["split"] == "val"
    assert told["n"] == 60
    assert told["accuracy"] >= max(told["accuracies"])
    assert sum(document["shares"]) == pytest.approx(1.0)
    members = [weights_of(run) for run in runs[1:]]
    for name, value in found.items():
        parts = [share * one[name] for share, one in zip(document["shares"], members, strict=True)]
        assert close(value, sum(parts))  # type: ignore[arg-type]
