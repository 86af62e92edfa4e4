"""Multi-positive losses: golden values and gradients, degenerate batches, sharing, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from perdure import losses
from perdure.batch import Pairs

Golden = Callable[[str], dict[str, np.ndarray]]

SOFT = [
    *(f"distinct_m{margin}_ls{soft}" for margin in ("00", "05", "10") for soft in ("00", "02")),
    *(f"dup_m{margin}_ls{soft}" for margin in ("00", "05", "10") for soft in ("00", "02", "05")),
    *(f"dup_m05_ls02_scale{scale}" for scale in (1, 10, 14)),
    "dup_negative_margin",
    *(f"retrieval_m{margin}_ls{soft}" for margin in ("00", "05") for soft in ("00", "05")),
]
LABELS = torch.tensor([0, 1, 0, 2, 1, 0])


def case(golden: Golden, name: str) -> dict[str, Any]:
    data = golden("r_adapter_loss")
    return {key.split("/")[1]: data[key] for key in data if key.startswith(f"{name}/")}


def pairs_of(data: dict[str, Any], dtype: torch.dtype = torch.float64) -> Pairs:
    rows = [torch.tensor(data[f"{side}_features"], dtype=dtype) for side in ("image", "text")]
    scale = torch.tensor(float(data["logit_scale"]), dtype=dtype)
    return Pairs(rows[0].requires_grad_(), rows[1].requires_grad_(), scale)


def mpm(data: dict[str, Any], pairs: Pairs) -> Tensor:
    margin, smoothing = float(data["margin"]), float(data["label_smoothing"])
    return losses.mpm_nce(pairs, torch.tensor(data["labels"]), margin, smoothing)


def random_pairs(rows: int = 6, scale: float = 20.0) -> Pairs:
    image, text = (normalize(torch.randn(rows, 8), dim=1).requires_grad_() for _ in range(2))
    return Pairs(image, text, torch.tensor(scale, requires_grad=True))


def assert_official(loss: Tensor, pairs: Pairs, data: dict[str, Any]) -> None:
    # The source builds targets and margins in float32.
    np.testing.assert_allclose(loss.detach().numpy(), data["loss"], rtol=4e-8)
    grads = torch.autograd.grad(loss, (pairs.image, pairs.text))
    for grad, side in zip(grads, ("image", "text"), strict=True):
        np.testing.assert_allclose(grad.numpy(), data[f"grad_{side}"], rtol=0, atol=3e-7)


@pytest.mark.parametrize("name", SOFT)
def test_golden_values_and_gradients(golden: Golden, name: str) -> None:
    data = case(golden, name)
    pairs = pairs_of(data)
    loss = mpm(data, pairs)
    np.testing.assert_allclose(loss.detach().numpy(), data["derived_loss_float64"], rtol=1e-12)
    assert_official(loss, pairs, data)
    single = mpm(data, pairs_of(data, torch.float32))
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.detach().numpy(), data["derived_loss_float64"], rtol=1e-6)


def test_every_golden_case_is_compared(golden: Golden) -> None:
    others = {"plain_multipos_dup", "infonce_ls00", "infonce_ls10", "degenerate_allsame_ls00"}
    others |= {"degenerate_allsame_ls02", "underflow", "distributed_ws2"}
    assert {key.split("/")[0] for key in golden("r_adapter_loss")} == {*SOFT} | others


@pytest.mark.parametrize("name", SOFT)
def test_the_gradient_is_that_of_the_closed_form(golden: Golden, name: str) -> None:
    data = case(golden, name)
    pairs = pairs_of(data)
    grads = torch.autograd.grad(mpm(data, pairs), (pairs.image, pairs.text))
    image, text, scale = pairs.image.detach(), pairs.text.detach(), pairs.scale
    labels, target = torch.tensor(data["labels"]), torch.tensor(data["derived_soft_targets"])
    negative = (labels[:, None] != labels).double()
    logits = scale * (image @ text.T + float(data["margin"]) * negative)
    rows = (logits.softmax(1) - target) / len(labels)
    columns = (logits.T.softmax(1) - target) / len(labels)
    expected = [scale / 2 * (rows @ text + columns.T @ text)]
    expected += [scale / 2 * (rows.T @ image + columns @ image)]
    for grad, value in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, value, rtol=1e-11, atol=1e-12)


def test_the_plain_branch_of_the_source_has_neither_margin_nor_smoothing(golden: Golden) -> None:
    data = case(golden, "plain_multipos_dup")
    assert data["margin"] != 0
    pairs = pairs_of(data)
    assert_official(losses.mpm_nce(pairs, torch.tensor(data["labels"])), pairs, data)


@pytest.mark.parametrize("name", ["infonce_ls00", "infonce_ls10"])
def test_without_labels_smoothing_covers_all_candidates(golden: Golden, name: str) -> None:
    data = case(golden, name)
    pairs = pairs_of(data)
    assert_official(losses.info_nce(pairs, float(data["label_smoothing"])), pairs, data)


@pytest.mark.parametrize("name", ["degenerate_allsame_ls00", "degenerate_allsame_ls02"])
def test_without_negatives_there_is_nothing_to_smooth_over(golden: Golden, name: str) -> None:
    data = case(golden, name)
    assert np.isnan(data["official_loss"]) or name.endswith("00")
    pairs = pairs_of(data)
    loss = mpm(data, pairs)
    expected = data["stable_loss_ls_to_positives"]
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-12)
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(loss, pairs[:2]))


def test_vanishing_probabilities_stay_finite(golden: Golden) -> None:
    data = case(golden, "underflow")
    for dtype, rtol in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        pairs = pairs_of(data, dtype)
        loss = mpm(data, pairs)
        np.testing.assert_allclose(loss.detach().numpy(), data["stable_loss"], rtol=rtol)
        assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(loss, pairs[:2]))


def test_one_row_is_its_own_only_positive() -> None:
    pairs = random_pairs(rows=1)
    assert losses.mpm_nce(pairs, torch.zeros(1), 0.05, 0.02) == 0.0


@pytest.mark.parametrize("rows", [1, 2, 13, 64, 100, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distinct_labels_give_info_nce_to_the_bit(rows: int, dtype: torch.dtype) -> None:
    values = (tensor.detach().to(dtype) for tensor in random_pairs(rows))
    pairs = Pairs(*(tensor.requires_grad_() for tensor in values))
    many, one = losses.mpm_nce(pairs, torch.randperm(rows)), losses.info_nce(pairs)
    assert torch.equal(many, one)
    assert all(map(torch.equal, torch.autograd.grad(many, pairs), torch.autograd.grad(one, pairs)))


def test_the_margin_moves_with_the_scale() -> None:
    pairs = random_pairs()
    losses.mpm_nce(pairs, LABELS, margin=0.1).backward()
    assert pairs.scale.grad is not None
    found, step = pairs.scale.grad.double(), 1e-4
    wide = Pairs(*(tensor.detach().double() for tensor in pairs))
    ends = [
        losses.mpm_nce(wide._replace(scale=wide.scale + way * step), LABELS, margin=0.1)
        for way in (1, -1)
    ]
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-6)


def test_sharing_the_scores_changes_nothing_and_saves_the_product() -> None:
    student, teacher = random_pairs(), random_pairs()
    shared = losses.Comparison(student, teacher)
    losses.relational_kl(student, teacher, shared)
    logits = shared.student_logits
    for margin in (0.0, 0.05):
        alone = losses.mpm_nce(student, LABELS, margin, 0.02)
        together = losses.mpm_nce(student, LABELS, margin, 0.02, shared)
        assert torch.equal(alone, together)
        own, common = (torch.autograd.grad(loss, student, retain_graph=True)
                       for loss in (alone, together))  # fmt: skip
        assert all(map(torch.equal, own, common))
    assert shared.student_logits is logits
    with pytest.raises(ValueError, match="built from other pairs"):
        losses.mpm_nce(random_pairs(), LABELS, shared=shared)


def test_half_precision_and_autocast_do_not_lower_the_precision() -> None:
    pairs, bias = random_pairs(), torch.tensor(-3.0)
    half = Pairs(*(tensor.detach().bfloat16() for tensor in pairs))
    wide = Pairs(*(tensor.float() for tensor in half))
    assert torch.equal(
        losses.mpm_nce(half, LABELS, 0.05, 0.02), losses.mpm_nce(wide, LABELS, 0.05, 0.02)
    )
    expected = [
        losses.mpm_nce(pairs, LABELS, 0.05, 0.02),
        losses.mpm_sigmoid(pairs, LABELS, bias, 0.05, 0.02),
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [
            losses.mpm_nce(pairs, LABELS, 0.05, 0.02),
            losses.mpm_sigmoid(pairs, LABELS, bias, 0.05, 0.02),
        ]
    assert all(map(torch.equal, expected, found))


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_the_sigmoid_form_asks_every_pair_on_its_own(margin: float) -> None:
    pairs, bias = random_pairs(), torch.tensor(-10.0)
    loss = losses.mpm_sigmoid(pairs, LABELS, bias, margin)
    total = torch.zeros(())
    for i in range(6):
        for j in range(6):
            same = bool(LABELS[i] == LABELS[j])
            cosine = pairs.image[i] @ pairs.text[j] + (0.0 if same else margin)
            total = total - logsigmoid((1 if same else -1) * (pairs.scale * cosine + bias))
    torch.testing.assert_close(loss, total / 6)


def test_smoothing_of_the_sigmoid_form_keeps_the_sum_of_targets() -> None:
    # The gradient by the bias is the mean over rows of (probability - target), summed.
    pairs = random_pairs()
    bias = torch.tensor(-2.0, requires_grad=True)
    grads = [
        torch.autograd.grad(losses.mpm_sigmoid(pairs, LABELS, bias, 0.05, soft), bias)[0]
        for soft in (0.0, 0.3)
    ]
    torch.testing.assert_close(grads[0], grads[1])
    soft, hard = (losses.mpm_sigmoid(pairs, LABELS, bias, 0.05, eps) for eps in (0.3, 0.0))
    assert not torch.equal(soft, hard)
    alike = torch.zeros(6)
    assert torch.equal(
        losses.mpm_sigmoid(pairs, alike, bias, 0.05, 0.3), losses.mpm_sigmoid(pairs, alike, bias)
    )


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match="smoothing is"):
        losses.mpm_nce(random_pairs(), LABELS, smoothing=smoothing)


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels have shape \(5,\), but there are 6 pairs"):
        losses.mpm_nce(random_pairs(), LABELS[:5])


WORKER = """
import sys
import numpy as np, torch
import torch.distributed as dist
from perdure import collective, losses
from perdure.batch import Pairs

rank, store, file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
data = np.load(file)
mine = slice(0, 3) if rank == 0 else slice(3, 6)
whole = {key: torch.tensor(data[f"dup_m05_ls02/{key}"]) for key in (
    "image_features", "text_features", "labels", "logit_scale")}
image = whole["image_features"][mine].clone().requires_grad_()
text = whole["text_features"][mine].clone().requires_grad_()
pairs = collective.gather_pairs(Pairs(image, text, whole["logit_scale"]))
labels = collective.gather_labels(whole["labels"][mine])
loss = losses.mpm_nce(pairs, labels, 0.05, 0.02)
loss.backward()
dist.destroy_process_group()
np.testing.assert_allclose(loss.item(), data[f"distributed_ws2/rank{rank}_loss"], rtol=4e-8)
for grad, side in ((image.grad, "image"), (text.grad, "text")):
    golden = data[f"distributed_ws2/rank{rank}_grad_{side}"]
    np.testing.assert_allclose(grad.numpy(), golden, rtol=0, atol=6e-7)
    once = data[f"dup_m05_ls02/grad_{side}"][mine]
    np.testing.assert_allclose(grad.numpy(), 2 * once, rtol=0, atol=6e-7)
print("equal")
"""


@pytest.mark.slow
def test_two_processes_have_the_golden_loss_and_gradients(tmp_path: Path) -> None:
    file = Path(__file__).parent.parent / "golden" / "r_adapter_loss.npz"
    command = [sys.executable, "-c", WORKER]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
        assert out.strip().endswith("equal")
