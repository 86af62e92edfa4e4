"""TRACER's linear theory: golden numbers, where gradient descent ends, and properties."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import theory
from perdure.errors import DataError

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "tracer_theory.npz")
PROBLEMS = ("under", "full", "lowrank")
TEACHERS = {
    **{f"beta{beta}": theory.wma_shares(beta, 50) for beta in (0.2, 0.5, 1.0, 1.5)},
    "ema0.9": theory.ema_shares(0.9, 50),
    "ema0.5": theory.ema_shares(0.5, 50),
    "static": np.zeros(50),
}


def golden(name: str, *parts: str) -> tuple[np.ndarray, ...]:
    return tuple(GOLDEN[f"{name}__{part}"] for part in parts)


def agree(found: object, expected: object) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
def test_closed_forms_are_golden(name):
    X_I, X_T, W0, W_T, strength = golden(name, "X_I", "X_T", "W0", "W_T0", "lam")
    Y = theory.contrastive_target(W_T, X_T)
    agree(Y, GOLDEN[f"{name}__Y_FT"])
    P = theory.task_projector(X_I)
    agree(P, GOLDEN[f"{name}__P_I"])
    agree(theory.minimum_norm_solution(Y, X_I), GOLDEN[f"{name}__W_star"])
    agree(theory.fine_tune(Y, X_I, W0), GOLDEN[f"{name}__W_FT"])
    agree(theory.l2_sp(Y, X_I, W0, float(strength)), GOLDEN[f"{name}__W_L2"])
    agree(theory.self_distill(Y, X_I, W0, float(strength)), GOLDEN[f"{name}__W_SD"])
    agree(theory.linearised_loss(W0, W_T, X_I, X_T), GOLDEN[f"{name}__L_CL_at_W0"])


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_recursion_with_exact_rounds_is_golden(name, kind):
    X_I, W0, Y, strength = golden(name, "X_I", "W0", "Y_FT", "lam")
    case = f"{name}__sdwma_{kind}__"
    shares = TEACHERS[kind]
    agree(shares, GOLDEN[case + "omega"][1:])
    found = theory.teacher_recursion(Y, X_I, W0, float(strength), shares)
    for ours, theirs in {
        "student_error": "student_err", "teacher_error": "teacher_err", "gap": "gap",
        "student": "W_student_T", "teacher": "W_teacher_T",
    }.items():  # fmt: skip
        agree(getattr(found, ours), GOLDEN[case + theirs])
    errors = theory.round_errors(float(strength), shares)
    agree(errors.student_error, found.student_error)
    agree(errors.teacher_error, found.teacher_error)
    agree(errors.gap, found.gap)
    # What lies outside the task is as before, in every round.
    outside = np.eye(len(X_I)) - theory.task_projector(X_I)
    agree(found.student @ outside, W0 @ outside)
    agree(found.teacher @ outside, W0 @ outside)


@pytest.mark.parametrize("kind", ["beta0.5", "ema0.9", "static"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_recursion_of_single_steps_is_golden(name, kind):
    X_I, W0, Y, strength = golden(name, "X_I", "W0", "Y_FT", "lam")
    case = f"{name}__gdstep_{kind}__"
    found = theory.gradient_recursion(
        Y, X_I, W0, float(strength), TEACHERS[kind], float(GOLDEN[case + "lr"])
    )
    agree(found.student, GOLDEN[case + "W_student_T"])
    agree(found.teacher, GOLDEN[case + "W_teacher_T"])
    start = np.linalg.norm(W0 @ theory.task_projector(X_I) - GOLDEN[f"{name}__W_star"])
    agree(found.student_error * start, GOLDEN[case + "student_err"])  # there not relative
    agree(found.gap * start, GOLDEN[case + "gap"])


def test_the_loss_before_the_surrogate_is_golden():
    X_I, X_T, W0, W_T = golden("under", "X_I", "X_T", "W0", "W_T0")
    weight = float(GOLDEN["mmcl_rho__rho"])
    agree(theory.regularised_loss(W0, W_T, X_I, X_T, weight), GOLDEN["mmcl_rho__L_at_W0"])
    agree(theory.regularised_gradient(W0, W_T, X_I, X_T, weight), GOLDEN["mmcl_rho__grad_at_W0"])
    minimum = theory.regularised_solution(W_T, X_I, X_T, weight)
    agree(minimum, GOLDEN["mmcl_rho__W_min"])
    agree(theory.regularised_gradient(minimum, W_T, X_I, X_T, weight), 0.0)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_loss_is_the_sum_over_pairs_and_a_trace(name):
    X_I, X_T, W0, W_T = golden(name, "X_I", "X_T", "W0", "W_T0")
    scores = (W0 @ X_I).T @ (W_T @ X_T)
    count = len(scores)
    pairs = scores.sum() - np.trace(scores) - (count - 1) * np.trace(scores)
    found = theory.linearised_loss(W0, W_T, X_I, X_T)
    assert found == pytest.approx(pairs, rel=1e-10)
    trace = -np.trace(theory.contrastive_target(W_T, X_T).T @ W0 @ X_I)
    assert found == pytest.approx(trace, rel=1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("kind", ["ft", "l2_sp", "weight_decay", "self_distill"])
def test_gradient_descent_reaches_every_closed_form(name, kind):
    X_I, W0, Y = golden(name, "X_I", "W0", "Y_FT")
    strength = 0.0 if kind == "ft" else 0.9
    C, pull, end = X_I @ X_I.T, Y @ X_I.T, theory.fine_tune(Y, X_I, W0)
    if kind == "l2_sp":
        C, pull = C + strength * np.eye(len(C)), pull + strength * W0
        end = theory.l2_sp(Y, X_I, W0, strength)
    elif kind == "weight_decay":
        C, end = C + strength * np.eye(len(C)), theory.weight_decay(Y, X_I, strength)
    elif kind == "self_distill":
        C, pull = (1 + strength) * C, pull + strength * W0 @ X_I @ X_I.T
        end = theory.self_distill(Y, X_I, W0, strength)
    rate, W = 1 / np.linalg.eigvalsh(C).max(), W0.copy()
    for _ in range(20_000):
        W -= rate * (W @ C - pull)
    assert np.linalg.norm(W - end) <= 1e-9 * np.linalg.norm(end)
    outside = np.eye(len(X_I)) - theory.task_projector(X_I)
    kept = np.linalg.norm((end - W0) @ outside)
    # L2-SP keeps what lies outside as well; decay towards zero alone forgets it.
    if name != "full":
        assert (kept > 0.1) if kind == "weight_decay" else (kept < 1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
def test_strengths_and_shares_interpolate_between_start_and_fine_tuning(name):
    X_I, W0, Y = golden(name, "X_I", "W0", "Y_FT")
    tuned = theory.fine_tune(Y, X_I, W0)
    agree(theory.self_distill(Y, X_I, W0, 0.0), tuned)
    agree(theory.wise_ft(Y, X_I, W0, 1.0), tuned)
    agree(theory.wise_ft(Y, X_I, W0, 0.0), W0)
    # Static self-distillation is WiSE-FT of a share 1 / (1 + strength).
    agree(theory.self_distill(Y, X_I, W0, 3.0), theory.wise_ft(Y, X_I, W0, 0.25))
    np.testing.assert_allclose(theory.l2_sp(Y, X_I, W0, 1e9), W0, atol=1e-5)
    np.testing.assert_allclose(theory.l2_sp(Y, X_I, W0, 1e-9), tuned, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "error"),
    [("ema0.9", 0.06698), ("beta0.2", 0.3417), ("beta0.5", 0.2534), ("beta1.0", 0.1422),
     ("beta1.5", 0.0778)],
)  # fmt: skip
def test_what_is_left_after_fifty_rounds(kind, error):
    errors = theory.round_errors(0.9, TEACHERS[kind])
    assert errors.teacher_error[-1] == pytest.approx(error, abs=5e-5)
    bounds = theory.error_bounds(0.9, TEACHERS[kind])
    assert bounds.lower <= errors.teacher_error[-1] <= bounds.upper


def test_a_finite_run_keeps_a_gap_on_paths_that_never_turn_back():
    shares = theory.wma_shares(0.5, 20)
    rising = np.linspace(0.0, 1.0, 21) ** 2
    gap = theory.path_gap(rising, shares)
    assert gap >= theory.persistence_bound(rising, shares) > 0
    path = np.outer(rising, [3.0, 4.0])
    teacher = theory.teacher_path(path, shares)
    assert np.linalg.norm(path[-1] - teacher[-1]) == pytest.approx(5.0 * gap)
    # A path that comes back can end where its teacher is, however far apart its ends are.
    back = np.append(rising[:-1], 0.0)
    mass = theory.kernel_mass(shares)
    back[-1] = mass[:-1] @ back[:-1] / mass[:-1].sum()
    assert theory.path_gap(back, shares) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(DataError, match="turns back"):
        theory.persistence_bound(back, shares)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 0.99), st.integers(2, 60))
def test_an_ema_is_a_weighted_average_with_a_growing_kernel(decay, rounds):
    shares = theory.ema_shares(decay, rounds)
    np.testing.assert_allclose(
        theory.kernel_mass(theory.kernel_shares(theory.ema_kernel(decay, rounds)))[1:]
        / theory.kernel_mass(theory.kernel_shares(theory.ema_kernel(decay, rounds)))[-1],
        theory.kernel_mass(shares)[1:] / theory.kernel_mass(shares)[-1],
        rtol=1e-7,
    )
    assert theory.start_mass(shares) == pytest.approx(decay**rounds)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 3.0), st.integers(1, 80))
def test_masses_sum_to_one_and_lie_symmetric(beta, steps):
    mass = theory.kernel_mass(theory.wma_shares(beta, steps))
    assert mass.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(mass, mass[::-1], rtol=1e-7)
    assert theory.mass_centre(theory.wma_shares(beta, steps)) == pytest.approx(0.5)


def test_beta_one_is_the_plain_mean_and_less_beta_holds_more_of_the_start():
    np.testing.assert_allclose(theory.wma_shares(1.0, 9), 1 / np.arange(2.0, 11.0))
    held = [theory.start_mass(theory.wma_shares(beta, 100)) for beta in (0.2, 0.5, 1.0, 1.5)]
    assert held == sorted(held, reverse=True)


def test_an_ema_forgets_the_start_while_a_weighted_average_persists():
    long = 2000
    ema = theory.round_errors(0.9, theory.ema_shares(0.9, long))
    wma = theory.round_errors(0.9, theory.wma_shares(0.5, long))
    assert ema.gap[-1] < 1e-20
    assert wma.gap[-1] > 0.01


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 8))
def test_the_projector_is_one_and_keeps_the_features(seed, width, count):
    X_I = np.random.default_rng(seed).normal(size=(width, count))
    P = theory.task_projector(X_I)
    np.testing.assert_allclose(P @ P, P, atol=1e-9)
    np.testing.assert_allclose(P, P.T, atol=1e-12)
    np.testing.assert_allclose(P @ X_I, X_I, atol=1e-8)
    assert np.trace(P) == pytest.approx(min(width, count))


def test_rarer_updates_keep_the_kernel_and_the_released_time_does_not():
    every, released = theory.wma_shares(0.5, 100, 10), theory.wma_shares(0.5, 100, 10, True)
    assert theory.mass_centre(every) == pytest.approx(0.5, abs=0.03)
    assert len(released) == 11  # after steps 1, 11, ..., 91 and the last one
    # The right half of the kernel is never used, so early updates weigh more.
    assert theory.mass_centre(released) < 0.4


def test_advice_leaves_the_wanted_bias_and_says_what_it_takes():
    advice = theory.advise(200)
    assert advice.reached
    assert advice.choice.bias == pytest.approx(advice.target, rel=0.2)
    assert advice.choice.bias == pytest.approx(theory.operate(advice.choice.beta, 0.9, 200).bias)
    with pytest.raises(ValueError, match="between 0 and 1"):
        theory.advise(200, bias=2.0)


def test_published_orders_are_compared_by_ranks():
    assert theory.spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert theory.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert theory.spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1.0)
    for one in theory.compare_published():
        assert -1 <= one.rho <= 1
        assert len(one.differences) <= one.pairs


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda X, W, Y: theory.fine_tune(Y, X, W[:, 1:]), "W0"),
        (lambda X, W, Y: theory.l2_sp(Y[:, 1:], X, W, 1.0), "Y"),
        (lambda X, W, Y: theory.teacher_recursion(Y, X, W, 1.0, [0.5, 1.5]), "shares"),
    ],
)
def test_what_does_not_fit_is_said_by_name(call, said):
    X_I, W0, Y = golden("under", "X_I", "W0", "Y_FT")
    with pytest.raises(DataError, match=said):
        call(X_I, W0, Y)


def test_the_theory_needs_no_torch():
    code = "import sys, perdure.theory; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
