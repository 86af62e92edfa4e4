"""Losses against golden values and gradients, and what they must not do: copy, sync, recompute."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from perdure import losses
from perdure.batch import Pairs

CASES = [
    *(f"N{n}_D{d}_{kind}" for n in (4, 8, 32) for d in (16, 64) for kind in ("f32", "f64")),
    "same_teacher",
    "scale100",
    "independent",
]
SHARED_TERMS = (losses.relational_kl, losses.interactive_nce, losses.cross_kl, losses.logit_distill)


class Operators(TorchDispatchMode):
    """Counts the operators that really run, by name."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def load(data, case):
    """Return (student, teacher) of a golden case; the student requires gradients."""
    student = Pairs(*(torch.tensor(data[f"{case}__{q}"]) for q in ("img_s", "txt_s", "scale_s")))
    teacher = Pairs(*(torch.tensor(data[f"{case}__{q}"]) for q in ("img_t", "txt_t", "scale_t")))
    return Pairs(*(tensor.requires_grad_() for tensor in student)), teacher


def random_pairs(rows=6, width=8, scale=20.0, dtype=torch.float32):
    image, text = (normalize(torch.randn(rows, width, dtype=dtype), dim=1) for _ in range(2))
    return Pairs(image, text, torch.tensor(scale, dtype=dtype))


def learnable(pairs):
    return Pairs(*(tensor.clone().requires_grad_() for tensor in pairs))


def compute(student, teacher):
    """Return every golden quantity that perdure has, by its golden name."""
    width = student.image.shape[1]
    # The source normalises again inside these three; values are equal, radial gradients are not.
    again = Pairs(normalize(student.image, dim=1), normalize(student.text, dim=1), student.scale)
    found = {
        "mmcl": losses.info_nce(student),
        "mmcl_ls0.1": losses.info_nce(student, smoothing=0.1),
        "basic_sd_T1": losses.logit_distill(student, teacher),
        "basic_sd_T2": losses.logit_distill(student, teacher, temperature=2.0),
        "fd": losses.feature_distill(again, teacher) / width,
        "crd": losses.relational_kl(student, teacher),
        "icl": losses.interactive_nce(again, teacher),
        "cross_kd": losses.cross_kl(again, teacher),
    }
    found["temp_distil_T1"] = found["crd"]
    found["total_tracer"] = 2000 * found["fd"] + found["crd"] + found["icl"] + found["cross_kd"]
    found["objective"] = found["mmcl"] + 0.9 * found["total_tracer"]
    return found


def assert_golden(found, expected):
    found = found.detach().numpy()
    assert found.dtype == expected.dtype
    single = expected.dtype == np.float32
    rtol, atol = (4e-7, 1.2e-7) if single else (1e-12, 1e-12)
    # A gradient is a sum of terms of its largest entry's size.
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol * scale)


@pytest.mark.parametrize("case", CASES)
def test_golden_values_and_gradients(golden, case):
    data = golden("tracer_losses")
    student, teacher = load(data, case)
    computed, compared = compute(student, teacher), 0
    for name, value in computed.items():
        assert_golden(value, data[f"{case}__{name}"])
        grads = torch.autograd.grad(value, student, retain_graph=True, allow_unused=True)
        for grad, tensor, which in zip(grads, student, ("img", "txt", "scale"), strict=True):
            key = f"{case}__{name}_grad_{which}"
            if key in data:
                assert_golden(torch.zeros_like(tensor) if grad is None else grad, data[key])
                compared += 1
    gradients = [key for key in data if key.startswith(f"{case}__") and "_grad_" in key]
    known = [key for key in gradients if key.split("__")[1].split("_grad_")[0] in computed]
    assert compared == len(known)
    assert len(known) >= len(gradients) - 6  # only the masked terms are left out


@pytest.mark.parametrize("case", ["N8_D16_f64", "independent"])
def test_golden_logits(golden, case):
    data = golden("tracer_losses")
    logits = losses.similarity(load(data, case)[0])
    assert_golden(logits, data[f"{case}__logits_img"])
    assert_golden(logits.T, data[f"{case}__logits_txt"])


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_golden_weight_regularisers(golden, kind):
    data = golden("tracer_weight_regs")
    vit, rn50 = f"vit_{kind}", f"rn_{kind}"

    def leaf(key):
        return torch.tensor(data[key], requires_grad=True)

    visual, text = leaf(f"{vit}__visual_weight"), leaf(f"{vit}__text_projection")
    norm = losses.cross_norm(visual, text)
    assert_golden(norm, data[f"{vit}__cross_fnorm"])
    for grad, tower in zip(
        torch.autograd.grad(norm, (visual, text)), ("visual", "text"), strict=True
    ):
        assert_golden(grad, data[f"{vit}__cross_fnorm_grad_{tower}"])
    orthogonality = losses.orthogonality(visual)
    assert_golden(orthogonality, data[f"{vit}__orth"])
    (grad,) = torch.autograd.grad(orthogonality, visual)
    assert_golden(grad, data[f"{vit}__orth_grad_visual"])
    # An attention-pooled tower stores (D, width).
    visual, text = leaf(f"{rn50}__visual_weight"), leaf(f"{rn50}__text_projection")
    norm = losses.cross_norm(visual.T, text)
    assert_golden(norm, data[f"{rn50}__cross_fnorm"])
    (grad,) = torch.autograd.grad(norm, visual)
    assert_golden(grad, data[f"{rn50}__cross_fnorm_grad_visual"])


def test_shared_matrices_change_nothing():
    student, teacher = learnable(random_pairs()), random_pairs(scale=25.0)
    shared = losses.Comparison(student, teacher)
    for loss in SHARED_TERMS:
        alone, together = loss(student, teacher), loss(student, teacher, shared=shared)
        assert torch.equal(alone, together)
        assert all(
            map(torch.equal, torch.autograd.grad(alone, student),
                torch.autograd.grad(together, student, retain_graph=True))
        )  # fmt: skip
    assert torch.equal(losses.info_nce(student), losses.info_nce(student, shared=shared))


def test_all_terms_take_four_products_and_no_synchronisation():
    student, teacher = learnable(random_pairs()), random_pairs(scale=25.0)
    with Operators() as operators:
        shared = losses.Comparison(student, teacher)
        total = losses.info_nce(student, shared=shared) + losses.feature_distill(student, teacher)
        for loss in SHARED_TERMS[:3]:
            total = total + loss(student, teacher, shared=shared)
        total.backward()
    # Forward: student, teacher and two crossed products. Backward: two for the student's, one for
    # each crossed product, whose other side is constant.
    assert operators.count["mm"] == 4 + 2 + 2
    assert operators.count["_log_softmax"] == 6
    assert operators.count["_local_scalar_dense"] == 0


def test_unused_matrices_are_not_computed():
    student, teacher = random_pairs(), random_pairs()
    with Operators() as operators:
        losses.info_nce(student, shared=losses.Comparison(student, teacher))
    assert operators.count["mm"] == 1


def test_shared_of_other_pairs_is_refused():
    student, teacher = random_pairs(), random_pairs()
    shared = losses.Comparison(student, teacher)
    with pytest.raises(ValueError, match="built from other pairs"):
        losses.cross_kl(teacher, student, shared=shared)
    with pytest.raises(ValueError, match="built from other pairs"):
        losses.info_nce(random_pairs(), shared=shared)
    with pytest.raises(ValueError, match="without a teacher"):
        _ = losses.Comparison(student).teacher_log


@pytest.mark.parametrize("loss", [losses.feature_distill, *SHARED_TERMS])
def test_no_gradient_reaches_the_teacher(loss):
    student, teacher = learnable(random_pairs()), learnable(random_pairs())
    loss(student, teacher).backward()
    assert student.image.grad is not None
    assert all(tensor.grad is None for tensor in teacher)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_give_single_precision_losses(dtype):
    student = Pairs(*(tensor.to(dtype) for tensor in random_pairs()))
    teacher = Pairs(*(tensor.to(dtype) for tensor in random_pairs()))
    wide = [Pairs(*(tensor.float() for tensor in pairs)) for pairs in (student, teacher)]
    for loss in (losses.feature_distill, *SHARED_TERMS):
        assert loss(student, teacher).dtype == torch.float32
        assert torch.equal(loss(student, teacher), loss(*wide))
    assert losses.similarity(student).dtype == torch.float32
    logits = torch.randn(3, 4).to(dtype)
    assert losses.class_kl(logits, logits.flip(0)).dtype == torch.float32


def test_autocast_does_not_lower_the_precision():
    student, teacher = random_pairs(), random_pairs()
    weight = torch.randn(6, 4)

    def everything():
        yield from (loss(student, teacher) for loss in (losses.feature_distill, *SHARED_TERMS))
        yield losses.info_nce(student, smoothing=0.1)
        yield losses.class_kl(student.image, teacher.image)
        yield losses.cross_norm(weight, weight)
        yield losses.orthogonality(weight)

    exact = list(everything())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, exact, everything()))


def test_logit_distill_survives_vanishing_probabilities():
    student, teacher = learnable(random_pairs(scale=1e4)), random_pairs(scale=1e4)
    loss = losses.logit_distill(student, teacher)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(tensor.grad).all() for tensor in student)


def test_class_kl():
    teacher, student = (
        torch.log(torch.tensor([[0.5, 0.5]])),
        torch.log(torch.tensor([[0.25, 0.75]])),
    )
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert losses.class_kl(student, teacher).item() == pytest.approx(expected, rel=1e-6)
    twice = losses.class_kl(student.repeat(2, 1), teacher.repeat(2, 1))
    assert twice.item() == pytest.approx(expected, rel=1e-6)
    assert losses.class_kl(student, student) == 0.0


def test_orthogonal_projection_has_no_penalty_and_a_finite_gradient():
    weight = torch.eye(5, 3).requires_grad_()
    loss = losses.orthogonality(weight)
    loss.backward()
    assert loss == 0.0
    assert torch.equal(weight.grad, torch.zeros(5, 3))
