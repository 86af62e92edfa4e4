"""Statistics of teacher and student: golden numbers, closed forms, no wait for the device."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from perdure.batch import Pairs
from perdure.contrastive import Comparison
from perdure.losses import relational_kl
from perdure.statistics import teacher_stats

Golden = Callable[[str], dict[str, np.ndarray]]

NAMES = {
    "teacher_avg_entropy": "teacher_entropy",
    "teacher_avg_confidence": "teacher_confidence",
    "teacher_student_agreement": "teacher_agreement",
    "teacher_student_kl": "teacher_divergence",
    "teacher_accuracy": "teacher_accuracy",
    "student_accuracy": "student_accuracy",
    "teacher_student_accuracy_diff": "accuracy_gap",
    "teacher_gt_prob": "teacher_probability",
    "student_gt_prob": "student_probability",
    "teacher_student_top5_alignment": "teacher_overlap",
    "teacher_effective_temperature": "teacher_temperature",
}
SUFFIXES = {"_combined": "", "_img": "_image", "_text": "_text"}
CASES = [
    "N8_D16_f64", "N8_D64_f64", "N32_D16_f64", "N32_D64_f64", "N8_D16_f32", "N8_D64_f32",
    "N32_D16_f32", "N32_D64_f32", "same_teacher", "scale100", "independent",
]  # fmt: skip


def comparison(arrays: dict[str, np.ndarray], case: str) -> Comparison:
    student, teacher = (
        Pairs(*(torch.from_numpy(arrays[f"{case}__{part}_{who}"]) for part in ("img", "txt")),
              torch.as_tensor(arrays[f"{case}__scale_{who}"]))
        for who in "st"
    )  # fmt: skip
    return Comparison(student, teacher)


@pytest.mark.parametrize("case", CASES)
def test_golden_statistics(golden: Golden, case: str) -> None:
    arrays = golden("tracer_losses")
    found = teacher_stats(comparison(arrays, case), floor=1e-8)
    tolerance = 2e-5 if case.endswith("f32") else 2e-8
    met = 0
    names = arrays[f"{case}__stat_names"]
    for name, value in zip(names, arrays[f"{case}__stat_values"], strict=True):
        stem, suffix = next((str(name).removesuffix(s), s) for s in SUFFIXES if name.endswith(s))
        if stem == "teacher_prediction_diversity":
            assert value == pytest.approx(1.0, abs=1e-5)  # whatever the batch, so not reported
            continue
        ours = float(found[NAMES[stem] + SUFFIXES[suffix]])
        assert ours == pytest.approx(float(value), rel=tolerance, abs=tolerance), name
        met += 1
    assert met == 31


def random_comparison(size: int, dtype: torch.dtype = torch.float32) -> Comparison:
    rows = functional.normalize(torch.randn(4, size, 16, dtype=dtype), dim=-1)
    scale = torch.tensor(20.0, dtype=dtype)
    return Comparison(Pairs(rows[0], rows[1], scale), Pairs(rows[2], rows[3], scale))


def test_without_a_floor_the_divergence_is_the_one_that_is_distilled() -> None:
    both = random_comparison(12, torch.float64)
    assert both.teacher is not None
    exact = relational_kl(both.student, both.teacher, both)
    assert float(teacher_stats(both)["teacher_divergence"]) == pytest.approx(
        float(exact), abs=1e-12
    )


@pytest.mark.parametrize("size", [2, 4, 5, 33])
def test_equal_models_agree_whatever_the_size(size: int) -> None:
    both = random_comparison(size)
    same = Comparison(both.student, both.student)
    stats = teacher_stats(same)
    assert {float(stats[f"teacher_{name}_image"]) for name in ("agreement", "overlap")} == {1.0}
    assert float(stats["teacher_divergence"]) == pytest.approx(0.0, abs=1e-6)
    assert float(stats["accuracy_gap"]) == 0.0
    assert all(math.isfinite(float(value)) for value in stats.values())


def test_matched_pairs_far_from_all_others_are_certain() -> None:
    eye = torch.eye(6)
    pairs = Pairs(eye, eye, torch.tensor(50.0))
    stats = teacher_stats(Comparison(pairs, pairs))
    for name in ("teacher_accuracy", "student_accuracy", "teacher_confidence"):
        assert float(stats[name]) == pytest.approx(1.0)
    uniform = Pairs(eye, eye, torch.tensor(1e-6))
    stats = teacher_stats(Comparison(pairs, uniform))
    assert float(stats["teacher_entropy"]) == pytest.approx(math.log(6), rel=1e-5)
    assert float(stats["teacher_temperature_image"]) == pytest.approx(1.0, rel=1e-5)


def test_nothing_is_read_from_the_device_and_no_gradient_flows() -> None:
    class Waits(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            Waits.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    both = random_comparison(8)
    both.student.image.requires_grad_()
    with Waits():
        stats = teacher_stats(both)
    assert Waits.count == 0
    assert not any(value.requires_grad for value in stats.values())
