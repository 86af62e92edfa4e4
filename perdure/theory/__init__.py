"""TRACER's linear theory as functions: NumPy in float64, no torch.

What contrastive fine-tuning replaces and what it leaves, where each regulariser ends, and how a
moving teacher trades the bias that remains for the gap that keeps pulling.
"""

from ..kernels import beta_shares, kernel_mass, kernel_shares
from .advice import Advice, Operation, advise, operate
from .horizon import (
    Bounds,
    error_bounds,
    mass_centre,
    path_gap,
    persistence_bound,
    start_mass,
)
from .linear import (
    contrastive_target,
    linearised_loss,
    minimum_norm_solution,
    regularised_gradient,
    regularised_loss,
    regularised_solution,
    task_projector,
)
from .phase import BETAS, DECAYS, Horizon, Phase, Teacher, horizon, kept_of_start, line_up, phase
from .published import Comparison, Plateau, compare_published, plateau, spearman
from .solutions import descent_limit, fine_tune, l2_sp, self_distill, weight_decay, wise_ft
from .teachers import (
    Errors,
    Recursion,
    ema_kernel,
    ema_shares,
    gradient_recursion,
    round_errors,
    step_errors,
    teacher_path,
    teacher_recursion,
    wma_shares,
)

__all__ = [
    "BETAS",
    "DECAYS",
    "Advice",
    "Bounds",
    "Comparison",
    "Errors",
    "Horizon",
    "Operation",
    "Phase",
    "Plateau",
    "Recursion",
    "Teacher",
    "advise",
    "beta_shares",
    "compare_published",
    "contrastive_target",
    "descent_limit",
    "ema_kernel",
    "ema_shares",
    "error_bounds",
    "fine_tune",
    "gradient_recursion",
    "horizon",
    "kept_of_start",
    "kernel_mass",
    "kernel_shares",
    "l2_sp",
    "line_up",
    "linearised_loss",
    "mass_centre",
    "minimum_norm_solution",
    "operate",
    "path_gap",
    "persistence_bound",
    "phase",
    "plateau",
    "regularised_gradient",
    "regularised_loss",
    "regularised_solution",
    "round_errors",
    "self_distill",
    "spearman",
    "start_mass",
    "step_errors",
    "task_projector",
    "teacher_path",
    "teacher_recursion",
    "weight_decay",
    "wise_ft",
    "wma_shares",
]
