"""Spans, updates, similarities and answers: against closed forms and their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure import metrics
from perdure.comparison import paired_shares, wilson_interval
from perdure.diagnosis import drift
from perdure.diagnosis.layers import Layer, feed, find_layers, groups_of, weights_of
from perdure.diagnosis.pairs import bring_together, find_spans, in_passes, moments_of, prompts_of
from perdure.diagnosis.similarity import (
    compare,
    image_features,
    linear_cka,
    mean_cosine,
    text_features,
)
from perdure.diagnosis.span import Moments, find_span, split_update
from perdure.diagnosis.update import by_group, effective_rank, measure, stable_rank
from perdure.errors import DataError
from perdure.predictor import Predictor
from perdure.surgery.slots import Slots
from perdure.zoo import random_clip

NAMES, TEMPLATES = ("cat", "old red bus", "tree"), ("a photo of a {}", "{}")


def moments(rows: Tensor) -> Moments:
    found = Moments(rows.shape[1])
    found.add(rows)
    return found


@pytest.fixture
def clip() -> Predictor:
    return random_clip(0)


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def test_moments_do_not_depend_on_how_rows_come() -> None:
    rows = torch.randn(50, 6)
    parts = Moments(6)
    for part in rows.split(7):
        parts.add(part)
    assert parts.rows == 50
    assert torch.allclose(parts.total, rows.double().T @ rows.double())
    matrix = torch.randn(4, 6)
    assert math.isclose(parts.length(matrix), float((rows @ matrix.T).square().sum()), rel_tol=1e-5)


@given(st.integers(1, 5), st.integers(0, 10))
def test_an_update_in_the_span_of_inputs_is_inside(rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(20, rank, generator=generator) @ torch.randn(rank, 8, generator=generator)
    span = find_span(moments(rows), energy=1)
    assert span.rank == rank
    assert (span.width, span.rows, span.random) == (8, 20, rank / 8)
    inside = torch.randn(5, 20, generator=generator) @ rows
    assert split_update(inside, span).share == pytest.approx(1, abs=1e-9)
    projector = span.basis @ span.basis.T
    outside = torch.randn(5, 8, generator=generator) @ (torch.eye(8) - projector)
    assert split_update(outside, span).share == pytest.approx(0, abs=1e-9)
    both = split_update(inside + outside, span)
    assert both.inside == pytest.approx(float(inside.square().sum()), rel=1e-4)
    assert both.outside == pytest.approx(float(outside.square().sum()), rel=1e-4)
    assert span.occupied(moments(rows)) == pytest.approx(1, abs=1e-6)
    assert split_update(torch.zeros(5, 8), span).share is None


def test_energy_chooses_the_fewest_directions() -> None:
    rows = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]))  # energies 9, 4, 1 of 14
    assert [find_span(moments(rows), e).rank for e in (0.6, 0.7, 13 / 14 - 1e-9, 0.95, 1)] == [
        1, 2, 2, 3, 3,
    ]  # fmt: skip
    with pytest.raises(DataError, match="must be above 0"):
        find_span(moments(rows), 0)
    with pytest.raises(DataError, match="are zero"):
        find_span(Moments(4))


def test_the_inputs_that_are_heard_are_those_of_the_layers(clip: Predictor) -> None:
    """W x of what was heard must be what the layers return."""
    heard: dict[str, list[Tensor]] = {}
    layers = find_layers(clip)
    images, prompts = pictures(3), prompts_of(clip, NAMES, TEMPLATES, 6)
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    feed(
        clip, layers, lambda name, rows: heard.setdefault(name, []).append(rows), [images], prompts
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip.state_dict().items())
    tables = {"token_embedding.weight", "positional_embedding", "visual.positional_embedding"}
    assert {layer.name for layer in layers} - heard.keys() == tables
    weights = weights_of(clip)
    found = {
        layer.name: torch.cat(heard[layer.name]) @ layer.matrix(weights[layer.name]).T
        for layer in layers
        if layer.name in heard
    }
    answers: dict[str, Tensor] = {}
    clip.clip.visual.conv1.register_forward_hook(
        lambda _m, _a, out: answers.update({"visual.conv1.weight": out.flatten(2).transpose(1, 2)})
    )
    block = clip.clip.visual.transformer.resblocks[1]
    block.attn.register_forward_hook(
        lambda _m, _a, out: answers.update(
            {"visual.transformer.resblocks.1.attn.out_proj.weight": out[0]}
        )
    )
    block.mlp.c_proj.register_forward_hook(
        lambda m, _a, out: answers.update(
            {"visual.transformer.resblocks.1.mlp.c_proj.weight": out - m.bias}
        )
    )
    with torch.no_grad():
        answers["visual.proj"] = clip.clip.encode_image(images)
    for name, answer in answers.items():
        assert torch.allclose(found[name], answer.reshape(found[name].shape), atol=1e-5), name
    in_projection = "visual.transformer.resblocks.1.attn.in_proj_weight"
    assert found[in_projection].shape == (3 * 26, 96)
    # Texts count to their ends and not to the end of the context.
    lengths = clip.clip.encode_text(prompts).shape[0]
    assert found["text_projection"].shape[0] == lengths
    tokens = int((prompts != 0).sum())
    assert len(found["transformer.resblocks.0.mlp.c_fc.weight"]) == tokens


def test_sgd_without_decay_moves_every_layer_inside_its_span(clip: Predictor) -> None:
    """One step on one image and one text; with decay, or off these inputs, it does not hold."""
    image, prompts = pictures(1), prompts_of(clip, NAMES, TEMPLATES, 1)
    layers = find_layers(clip)
    spans = find_spans(clip, layers, lambda: [image], prompts, energy=1)
    moved = clip.copy()
    tokens = moved.trim(prompts)
    loss = (moved.encode_image(image) * moved.encode_text(tokens)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in moved.clip.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    before, after = weights_of(clip), weights_of(moved)
    for layer in layers:
        if layer.name not in spans:
            continue
        found = measure(layer, before[layer.name], after[layer.name], spans[layer.name])
        assert spans[layer.name].random < 1
        assert found.inside == pytest.approx(1, abs=1e-6), layer.name
        decayed = 0.9 * after[layer.name].detach()
        other = measure(layer, before[layer.name], decayed, spans[layer.name])
        assert other.inside is not None
        assert other.inside < 0.99, layer.name


def test_a_head_is_a_layer_whose_inputs_are_embeddings(clip: Predictor) -> None:
    clip.set_head(NAMES, TEMPLATES)
    layer = find_layers(clip)[-1]
    assert layer == Layer("head.weight", "head", False)
    found = moments_of(clip, [layer], lambda: [pictures(4)])["head.weight"]
    rows = clip.encode_image(pictures(4)).double()
    assert torch.allclose(found.total, rows.T @ rows, atol=1e-5)


def test_a_resnet_is_heard_but_for_its_pool() -> None:
    """Torch applies the layers of CLIP's attention pool without calling them."""
    shape = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32}
    resnet = random_clip(0, vision_cfg=shape)
    images = [torch.randn(2, 3, 32, 32)]
    layers = find_layers(resnet)
    spans = find_spans(resnet, layers, lambda: images)
    silent = {one.name for one in layers if one.name.startswith("visual.")} - spans.keys()
    assert silent
    assert all(name.startswith("visual.attnpool.") for name in silent)
    assert spans["visual.layer2.0.conv2.weight"].width == 16 * 9
    found = image_features(resnet, images)
    assert [rows.shape[1] for rows in found.values()] == [32, 64, 128, 256, 32]


def test_layers_are_named_by_place_and_divided_by_memory(clip: Predictor) -> None:
    groups = list(dict.fromkeys(groups_of(clip).values()))
    assert groups == [
        "image input", "image block 0", "image block 1", "image output",
        "text input", "text block 0", "text block 1", "text output", "scale",
    ]  # fmt: skip
    layers = find_layers(clip)
    parts = list(in_passes(clip, layers, budget=200_000))
    assert len(parts) > 2
    assert [layer for part in parts for layer in part] == list(layers)
    whole = find_spans(clip, layers, lambda: [pictures(2)])
    some = find_spans(clip, layers, lambda: [pictures(2)], budget=200_000)
    assert whole.keys() == some.keys()
    assert all(whole[name].rank == some[name].rank for name in whole)


def test_updates_of_known_rank() -> None:
    layer = Layer("w", "g", transposed=True)
    old = torch.randn(6, 4)
    values = torch.tensor([4.0, 2.0])
    delta = torch.eye(6)[:, :2] * values @ torch.eye(4)[:2]
    rows = torch.randn(30, 6)
    found = measure(layer, old, old + delta, inputs=moments(rows), shifted=moments(2 * rows), top=3)
    assert found.shape == (4, 6)
    assert found.norm == pytest.approx(20**0.5, rel=1e-6)
    assert found.relative == pytest.approx(20**0.5 / float(old.norm()), rel=1e-6)
    assert found.singular == pytest.approx((4, 2, 0), abs=1e-6)
    assert found.stable_rank == pytest.approx(20 / 16, rel=1e-5)
    entropy = -sum(share * math.log(share) for share in (4 / 6, 2 / 6))
    assert found.effective_rank == pytest.approx(math.exp(entropy), rel=1e-4)
    expected = (rows @ delta).norm() / (rows @ old).norm()
    assert found.output == pytest.approx(float(expected), rel=1e-5)
    assert found.output_shifted == pytest.approx(found.output, rel=1e-5)
    assert found.rank is found.inside is found.shifted_inside is None
    same = measure(layer, old, old)
    assert (same.norm, same.stable_rank, same.effective_rank) == (0.0, None, None)
    even = torch.ones(7).double()
    assert stable_rank(even) == pytest.approx(7)
    assert effective_rank(even) == pytest.approx(7)


def test_groups_add_squares(clip: Predictor) -> None:
    layers, groups = find_layers(clip), groups_of(clip)
    spans = find_spans(clip, layers, lambda: [pictures(2)], prompts_of(clip, NAMES, TEMPLATES, 6))
    moved = random_clip(1)
    before, after = weights_of(clip), weights_of(moved)
    found = {one.group: one for one in by_group(layers, groups, before, after, spans)}
    single = [
        measure(one, before[one.name], after[one.name], spans.get(one.name)) for one in layers
    ]
    own = [one for one in single if one.group == "image block 0"]
    assert found["image block 0"].layers == len(own) == 4
    inside = sum(one.inside * one.norm**2 for one in own if one.inside is not None)
    assert found["image block 0"].inside == pytest.approx(inside / sum(o.norm**2 for o in own))
    assert found["scale"].inside is None
    assert found["scale"].norm == 0
    distance = sum(float((after[n] - before[n]).detach().square().sum()) for n in groups)
    assert sum(one.norm**2 for one in found.values()) == pytest.approx(distance, rel=1e-5)


def definition_of_cka(x: Tensor, y: Tensor) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with linear kernels, as defined."""
    n = len(x)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    k, m = (centre @ (side.double() @ side.double().T) @ centre for side in (x, y))
    return float(torch.trace(k @ m) / torch.sqrt(torch.trace(k @ k) * torch.trace(m @ m)))


@settings(max_examples=20)
@given(
    n=st.integers(2, 30), p=st.integers(1, 12), q=st.integers(1, 12), seed=st.integers(0, 99),
    scale=st.floats(1e-3, 1e3),
)  # fmt: skip
def test_cka_is_its_definition_and_ignores_rotation_and_scale(
    n: int, p: int, q: int, seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=generator).double() + 3
    y = torch.randn(n, q, generator=generator).double()
    found = linear_cka(x, y)
    assert found == pytest.approx(definition_of_cka(x, y), abs=1e-9)
    turn = torch.linalg.qr(torch.randn(p, p, generator=generator).double())[0]
    assert linear_cka(scale * x @ turn + 5, y) == pytest.approx(found, abs=1e-6)
    assert linear_cka(x, x @ turn) == pytest.approx(1, abs=1e-9)
    assert 0 <= found <= 1 + 1e-9


def test_similarity_where_it_does_not_exist() -> None:
    assert linear_cka(torch.ones(4, 3), torch.randn(4, 3)) is None
    assert mean_cosine(torch.randn(4, 3), torch.randn(4, 2)) is None
    x = torch.randn(4, 3)
    assert mean_cosine(x, 2 * x) == pytest.approx(1)
    assert mean_cosine(x, -x) == pytest.approx(-1)
    with pytest.raises(DataError, match="n >= 2"):
        linear_cka(torch.randn(1, 3), torch.randn(1, 3))


def test_features_of_every_block_and_their_similarity(clip: Predictor) -> None:
    prompts = prompts_of(clip, NAMES, TEMPLATES, 6)
    before = image_features(clip, [pictures(3), pictures(2)]) | text_features(clip, prompts)
    assert list(before) == [
        "image block 0", "image block 1", "image embedding",
        "text block 0", "text block 1", "text embedding",
    ]  # fmt: skip
    assert before["image block 1"].shape == (5, 32)
    assert torch.allclose(before["image embedding"][:3], clip.encode_image(pictures(3)), atol=1e-6)
    # The last block's token is what the rest of the tower embeds.
    last = clip.clip.ln_final(before["text block 1"]) @ clip.clip.text_projection
    unit = torch.nn.functional.normalize(last, dim=1)
    assert torch.allclose(unit, before["text embedding"], atol=1e-5)
    assert all(one.cka == pytest.approx(1) and one.n in (5, 6) for one in compare(before, before))
    moved = random_clip(1)
    others = compare(before, image_features(moved, [pictures(5)]))
    assert len(others) == 3
    assert all(one.cosine is not None and one.cosine < 0.9 for one in others)


def test_what_cannot_be_compared_is_said(clip: Predictor) -> None:
    tuned = clip.copy()
    tuned.attach(Slots(count=2))
    pair = bring_together(clip, tuned)
    assert not pair.text_applies
    assert (pair.groups, pair.layers) == ({}, ())
    assert "'slots' added cannot be folded" in pair.limits[0]
    headed = clip.copy()
    headed.set_head(NAMES, TEMPLATES)
    both = bring_together(clip, headed)
    assert both.limits == ()
    assert both.layers[-1].name == "head.weight"
    assert clip.head is None
    assert torch.equal(weights_of(both.start)["head.weight"], weights_of(headed)["head.weight"])


def test_intervals_are_those_of_the_papers() -> None:
    # Newcombe 1998, Statistics in Medicine 17: 857-872 for one share, 2635-2650 for two.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    assert paired_shares(36, 2, 12, 0) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(3, 2)


def logits_of(predictions: list[int], sure: list[float], classes: int = 3) -> np.ndarray:
    found = np.zeros((len(predictions), classes), dtype=np.float32)
    found[np.arange(len(predictions)), predictions] = sure
    return found


def test_flips_and_classes_are_counted() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    before = logits_of([0, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1])
    after = logits_of([1, 0, 1, 1, 1, 2], [2, 1, 4, 1, 3, 5])
    found = drift.flips(before, after, labels)
    assert found.lost.tolist() == [2, 0]
    assert found.gained.tolist() == [5, 4]
    assert found.interval(found.lost) == wilson_interval(2, 6)
    classes = drift.forgotten(
        [before.argmax(1)], [after.argmax(1)], [labels], ("cat", "bus", "tree")
    )
    first = classes[0]
    assert (first.name, first.n, first.taken_for, first.taken) == ("cat", 3, "bus", 2)
    assert (first.before, first.after) == pytest.approx((1, 1 / 3))
    assert first.change == paired_shares(1, 2, 0, 0)
    assert [one.name for one in classes] == ["cat", "bus", "tree"]
    assert drift.worst(classes, 5) == []  # three images are too few to be named
    many = drift.forgotten([before.argmax(1)] * 2, [after.argmax(1)] * 2, [labels] * 2, "abc")
    assert [one.name for one in drift.worst(many, 5)] == ["a"]


def test_calibration_before_and_after() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 400)
    before = generator.normal(size=(400, 4)).astype(np.float32)
    before[np.arange(400), labels] += 1
    after = 3 * before
    found = drift.change(before, after, labels)
    assert found.n == 400
    assert found.accuracy == (0.0, 0.0, 0.0)
    assert found.before.ece == metrics.ece(before, labels)
    assert found.after.temperature == pytest.approx(3 * found.before.temperature, rel=1e-4)
    assert found.confidence.low > 0
    assert found.after.confidence - found.before.confidence == pytest.approx(found.confidence.value)
    assert drift.calibration(logits_of([0, 1], [1, 1]), np.array([0, 1])).temperature is None
