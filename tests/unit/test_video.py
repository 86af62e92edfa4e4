"""Clips: what the mean of frames keeps and what it loses, on generated ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from perdure.errors import SurgeryError, TaskError
from perdure.surgery.residual import Residual
from perdure.video import Temporal, VideoEncoder
from perdure.zoo import load, random_clip

FRAMES = 6


def clips(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return clips (N, T, 3, 40, 40) of a bar or a block that moves; its shape and direction."""
    generator = torch.Generator().manual_seed(seed)
    shape, direction = torch.randint(0, 2, (2, count), generator=generator)
    start = torch.randint(2, 8, (count,), generator=generator)
    row = torch.randint(4, 24, (count,), generator=generator)
    found = torch.zeros(count, FRAMES, 3, 40, 40)
    for index in range(count):
        high, wide = ((14, 2), (6, 6))[int(shape[index])]
        for time in range(FRAMES):
            place = time if direction[index] else FRAMES - 1 - time
            left, top = int(start[index]) + 4 * place, int(row[index])
            found[index, time, :, top : top + high, left : left + wide] = 1.0
    return found, shape, direction


def accuracy_of_a_line(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Fit a linear classifier by ridge regression and return its accuracy on the test clips."""
    (x, y), (other, answers) = train, test
    middle = x.mean(dim=0)
    x, other = (x - middle).double(), (other - middle).double()
    ridge = x.T @ x + 1e-6 * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(ridge, x.T @ (2.0 * y.double() - 1))
    bias = (2.0 * y.double() - 1).mean()
    return float(((other @ weight + bias > 0) == answers.bool()).double().mean())


def test_a_clip_of_one_picture_is_the_picture() -> None:
    predictor, images = random_clip(0), torch.rand(3, 3, 40, 40)
    still = images[:, None].expand(-1, FRAMES, -1, -1, -1)
    expected = predictor.encode_image(images)
    for temporal in (None, 3):
        encoder = VideoEncoder(predictor, FRAMES, temporal)
        assert torch.allclose(encoder(still), expected, atol=1e-6)


def test_the_mean_does_not_see_the_order() -> None:
    encoder = VideoEncoder(random_clip(0), FRAMES)
    found, _, _ = clips(4, seed=0)
    order = torch.randperm(FRAMES)
    assert torch.allclose(encoder(found), encoder(found[:, order]), atol=1e-6)
    features = encoder.encode_frames(found)
    expected = functional.normalize(features.mean(dim=1), dim=-1)
    assert torch.allclose(encoder(found), expected)
    assert torch.allclose(
        features[2, 3], encoder.predictor.encode_image(found[2, 3:4])[0], atol=1e-6
    )


def test_alpha_dials_the_temporal_part() -> None:
    encoder = VideoEncoder(random_clip(0), FRAMES, temporal=3)
    assert encoder.temporal is not None
    found, _, _ = clips(4, seed=0)
    mean = VideoEncoder(encoder.predictor, FRAMES)(found)
    assert torch.equal(encoder(found), mean)  # it starts as nothing
    with torch.no_grad():
        encoder.temporal.weight.normal_()
    assert not torch.allclose(encoder(found), encoder(found.flip(1)), atol=1e-3)
    encoder.set_alpha(0.0)
    assert torch.equal(encoder(found), mean)
    x = torch.randn(2, FRAMES, 32)
    layer = encoder.temporal
    half, whole = ((setattr(layer, "alpha", a), layer(x) - x)[1] for a in (0.5, 1.0))
    assert torch.allclose(2 * half, whole, atol=1e-6)


def test_direction_needs_time_and_shape_does_not() -> None:
    encoder = VideoEncoder(load("perdure-tiny"), FRAMES, temporal=3)
    assert encoder.temporal is not None
    train, test = clips(160, seed=1), clips(160, seed=2)
    with torch.no_grad():
        features = [encoder.encode_frames(part[0]) for part in (train, test)]
        plain = [functional.normalize(part.mean(dim=1), dim=-1) for part in features]

    def score(pooled: list[Tensor], label: int) -> float:
        return accuracy_of_a_line((pooled[0], train[label]), (pooled[1], test[label]))

    assert score(plain, 1) > 0.9
    assert score(plain, 2) < 0.7
    head = torch.nn.Linear(features[0].shape[2], 2)
    optimizer = torch.optim.Adam([*encoder.temporal.parameters(), *head.parameters()], lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        rows = encoder.pool(features[0])
        functional.cross_entropy(10 * head(rows), train[2]).backward()
        optimizer.step()
    with torch.no_grad():
        pooled = [encoder.pool(part) for part in features]
    assert score(pooled, 2) > 0.9
    assert score(pooled, 1) > 0.9
    assert all(parameter.grad is None for parameter in encoder.predictor.parameters())


def test_clips_are_scored_against_class_names() -> None:
    predictor = random_clip(0)
    found, _, _ = clips(2, seed=0)
    names, templates = ("bar", "block"), ("a {}", "the {}")
    still = found[:, :1].expand(-1, FRAMES, -1, -1, -1)
    scored = VideoEncoder(predictor, FRAMES).logits_fn(names, templates)(still)
    assert torch.allclose(scored, predictor.logits_fn(names, templates)(found[:, 0]), atol=1e-4)


def test_refusals() -> None:
    predictor = random_clip(0)
    with pytest.raises(TaskError, match=r"expected \(B, 6, 3, H, W\)"):
        VideoEncoder(predictor, FRAMES)(torch.zeros(1, 5, 3, 40, 40))
    with pytest.raises(SurgeryError, match="odd"):
        VideoEncoder(predictor, FRAMES, temporal=4)
    with pytest.raises(SurgeryError, match="no strength"):
        VideoEncoder(predictor, FRAMES).set_alpha(0.5)
    with pytest.raises(SurgeryError, match="shows nothing"):
        VideoEncoder(predictor, 0)
    with pytest.raises(SurgeryError, match=r"alpha is 1\.5"):
        Temporal(8, 3, alpha=1.5)
    predictor.attach(Residual())
    with pytest.raises(SurgeryError, match="fold"):
        VideoEncoder(predictor, FRAMES)
