"""Self-distillation from a teacher that moves: what each round does, as matrices and as numbers.

Round t fits ||W X_I - Y||^2 / 2 + s / 2 ||W X_I - W_teacher X_I||^2 to convergence, then moves the
teacher by its share omega_t towards the student. Errors are distances from W* within the task
subspace, relative to that of W0; outside of it neither student nor teacher ever moves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DataError
from ..kernels import beta_shares
from .arrays import Floats, matrix, number, vector
from .linear import minimum_norm_solution, task_projector
from .solutions import task


class Errors(NamedTuple):
    """What every round leaves, relative to the error of the start; each (T,)."""

    student_error: Floats
    """Bias: distance of the student from the task's solution"""
    teacher_error: Floats
    """The same of the teacher, after its move"""
    gap: Floats
    """Distance of student and teacher, after its move: what distillation can still pull at"""


class Recursion(NamedTuple):
    """Weights after the last round, (p, d), and what every round left, as in `Errors`."""

    student: Floats
    teacher: Floats
    student_error: Floats
    teacher_error: Floats
    gap: Floats


def teacher_recursion(
    Y: ArrayLike, X_I: ArrayLike, W0: ArrayLike, strength: float, shares: ArrayLike
) -> Recursion:
    """Carry out self-distillation with a moving teacher, each round solved to convergence.

    W_t = W_{t-1} (I - P) + [s / (1 + s)] W_teacher P + [1 / (1 + s)] W*.

    Args:
        Y: Targets, (p, n).
        X_I: Image features, (d, n).
        W0: Pre-trained weights, where student and teacher start, (p, d).
        strength: s >= 0 of distillation.
        shares: omega_t in [0, 1] of the student in the teacher's move of round t = 1 to T, (T,):
            of `wma_shares`, `ema_shares`, or zeros for a teacher that stays.

    Returns:
        Student and teacher after round T; errors and gap of every round.

    Raises:
        DataError: If the shapes do not fit, a share is out of range, or W0 solves the task.
        ValueError: If `strength` is negative.

    Source: TRACER (arXiv 2605.29380), proposition C.7.
    """
    Y, X_I, W0 = task(Y, X_I, W0)
    strength, omega = number("strength", strength), vector("shares", shares, 0.0, 1.0)
    P, solution = task_projector(X_I), minimum_norm_solution(Y, X_I)
    student = teacher = W0
    trace = _Trace(W0, solution, P)
    for share in omega:
        inside = (strength * teacher @ P + solution) / (1.0 + strength)
        student = student - student @ P + inside
        teacher = teacher + share * (student - teacher)
        trace.note(student, teacher)
    return Recursion(student, teacher, *trace.errors())


def gradient_recursion(
    Y: ArrayLike,
    X_I: ArrayLike,
    W0: ArrayLike,
    strength: float,
    shares: ArrayLike,
    rate: float,
) -> Recursion:
    """As `teacher_recursion`, but with one gradient step per round: closer to practice.

    Args:
        Y: Targets, (p, n).
        X_I: Image features, (d, n).
        W0: Pre-trained weights, where student and teacher start, (p, d).
        strength: s >= 0 of distillation.
        shares: omega_t in [0, 1] of the teacher's move after step t = 1 to T, (T,).
        rate: Step of gradient descent, >= 0; stable below 2 / ((1 + s) sigma_1^2).

    Returns:
        Student and teacher after step T; errors and gap of every step.

    Raises:
        DataError: If the shapes do not fit, a share is out of range, or W0 solves the task.
        ValueError: If `strength` or `rate` is negative.

    Source: derived.
    """
    Y, X_I, W0 = task(Y, X_I, W0)
    strength, omega = number("strength", strength), vector("shares", shares, 0.0, 1.0)
    rate = number("rate", rate)
    student = teacher = W0
    trace = _Trace(W0, minimum_norm_solution(Y, X_I), task_projector(X_I))
    for share in omega:
        fit, pull = student @ X_I - Y, (student - teacher) @ X_I
        student = student - rate * (fit + strength * pull) @ X_I.T
        teacher = teacher + share * (student - teacher)
        trace.note(student, teacher)
    return Recursion(student, teacher, *trace.errors())


def round_errors(strength: float, shares: ArrayLike) -> Errors:
    """Return the errors of `teacher_recursion` without any matrix: they do not depend on the task.

    The teacher's error is E_t = (1 - omega_t / (1 + s)) E_{t-1}, the student's s / (1 + s) E_{t-1},
    the gap (1 - omega_t) / (1 + s) E_{t-1}. Hence strength times gap is 1 - omega_t times the bias:
    **the gap that keeps pulling and the bias that remains are one number**; at a finite horizon the
    one is not to be had without the other. All of them go to zero if the shares sum to infinity,
    those of an EMA included; a WMA is only slower, on the scale of its horizon.

    Args:
        strength: s >= 0 of distillation.
        shares: omega_t in [0, 1], (T,).

    Raises:
        DataError: If a share is out of range.
        ValueError: If `strength` is negative.

    Source: TRACER (arXiv 2605.29380), theorem C.8; gap and remark are derived.
    """
    strength, omega = number("strength", strength), vector("shares", shares, 0.0, 1.0)
    teacher: Floats = np.cumprod(1.0 - omega / (1.0 + strength)).astype(np.float64)
    before = np.append(1.0, teacher[:-1])
    kept = 1.0 / (1.0 + strength)
    return Errors(strength * kept * before, teacher, (1.0 - omega) * kept * before)


def step_errors(curvature: float, rate: float, strength: float, shares: ArrayLike) -> Errors:
    """Return the errors of `gradient_recursion` in one direction of the task subspace.

    e <- (1 - r c (1 + s)) e + r c s e_teacher, then e_teacher <- (1 - omega) e_teacher + omega e.

    Args:
        curvature: c = sigma_k^2 > 0 of the direction.
        rate: r >= 0; only rate times curvature matters.
        strength: s >= 0 of distillation.
        shares: omega_t in [0, 1], (T,).

    Returns:
        Absolute values: a rate above 1 / (c (1 + s)) makes the student overshoot.

    Raises:
        DataError: If a share is out of range.
        ValueError: If a number is out of range.

    Source: derived.
    """
    strength, omega = number("strength", strength), vector("shares", shares, 0.0, 1.0)
    move = number("rate", rate) * number("curvature", curvature)
    student = teacher = 1.0
    rows = np.empty((3, len(omega)))
    for t, share in enumerate(omega):
        student += move * (strength * (teacher - student) - student)
        teacher += share * (student - teacher)
        rows[:, t] = abs(student), abs(teacher), abs(student - teacher)
    return Errors(*rows)


def wma_shares(beta: float, steps: int, every: int = 1, released: bool = False) -> Floats:
    """Return the shares of TRACER's teacher, one per update that happens.

    Args:
        beta: Of the kernel, > 0.
        steps: Optimiser steps of the run.
        every: Steps between updates.
        released: As the authors' code: updates after steps 1, 1 + `every`, ..., and the last one;
            kernel time counts updates, so with `every` > 1 the kernel's right half is never used
            and every value of `every` is silently another kernel.

    Returns:
        omega_1 to omega_U for U updates; without `released` U = ceil(steps / every).

    Raises:
        ValueError: If an argument is out of range.

    Source: TRACER (arXiv 2605.29380), definition 3.3; `released`: the authors' code.
    """
    shares = beta_shares(beta, steps, every, released)
    regular, rest = divmod(steps - 1, every)
    return shares[: regular + 1 + (rest > 0)] if released else shares


def ema_shares(decay: float, rounds: int) -> Floats:
    """Return the shares of an exponential moving average: 1 - decay in every round.

    Raises:
        ValueError: If `decay` is not in [0, 1] or there is no round.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; it must be at least 1.")
    return np.full(rounds, 1.0 - number("decay", decay, high=1.0))


def ema_kernel(decay: float, rounds: int) -> Floats:
    """Return the kernel whose `kernel_shares` are an EMA's: alpha_t = (1 - d) d^-t, alpha_0 = 1.

    Args:
        decay: d in (0, 1].
        rounds: T >= 1; d^-T must be a float, so d = 0.9 allows 6,700 rounds.

    Returns:
        alpha_0 to alpha_T, (T + 1,).

    Raises:
        ValueError: If an argument is out of range.

    Source: TRACER (arXiv 2605.29380), section 3 (EMA as a weighted average).
    """
    weights = ema_shares(decay, rounds)
    if decay <= 0 or -rounds * np.log(decay) > 700:
        raise ValueError(
            f"decay {decay} over {rounds} rounds does not fit into floats; take fewer rounds, or "
            "use ema_shares, which needs no kernel."
        )
    return np.append(1.0, weights * np.float64(decay) ** -np.arange(1.0, rounds + 1))


def teacher_path(path: ArrayLike, shares: ArrayLike) -> Floats:
    """Return where the teacher is after every round, for any path of the student.

    Args:
        path: Student after round 0 to T, rows, (T + 1, d); the first is the start of both.
        shares: omega_t in [0, 1], (T,).

    Returns:
        Teacher after round 0 to T, (T + 1, d).

    Raises:
        DataError: If the shapes do not fit or a share is out of range.

    Source: TRACER (arXiv 2605.29380), definition 3.3.
    """
    omega = vector("shares", shares, 0.0, 1.0)
    students = matrix("path", path, rows=len(omega) + 1)
    teachers: Floats = students.copy()
    for t, share in enumerate(omega, start=1):
        teachers[t] = teachers[t - 1] + share * (students[t] - teachers[t - 1])
    return teachers


class _Trace:
    """Notes errors within the task subspace, relative to that of the start."""

    def __init__(self, W0: Floats, solution: Floats, P: Floats) -> None:
        self.solution, self.P = solution, P
        self.start = float(np.linalg.norm(W0 @ P - solution))
        if self.start <= 1e-12 * np.linalg.norm(W0):
            raise DataError("W0 solves the task already; errors relative to its own are undefined.")
        self.rows: list[tuple[float, float, float]] = []

    def note(self, student: Floats, teacher: Floats) -> None:
        inside, mean = student @ self.P, teacher @ self.P
        parts = (inside - self.solution, mean - self.solution, inside - mean)
        a, b, c = (float(np.linalg.norm(part)) / self.start for part in parts)
        self.rows.append((a, b, c))

    def errors(self) -> Errors:
        return Errors(*np.array(self.rows).T)
