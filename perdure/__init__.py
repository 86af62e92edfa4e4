"""perdure: fine-tune vision-language models and keep what they knew.

Names load when they are first used, so `import perdure` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    DataError,
    DependencyError,
    DivergedError,
    PerdureError,
    RecipeError,
    RunError,
    SurgeryError,
    TaskError,
    WeightsError,
)

if TYPE_CHECKING:
    from . import losses, metrics, weights
    from .alpha.select import select_alpha
    from .batch import Batch, Pairs, Step
    from .data.suites import SUITES
    from .diagnosis.diagnose import diagnose
    from .evaluation import evaluate
    from .merging import merge
    from .method import METHODS, Context, Learner, Method, register
    from .predictor import Predictor
    from .recipe import Recipe, load_recipe
    from .reporting import report
    from .run import Run
    from .training import train

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "SUITES",
    "Batch",
    "Context",
    "DataError",
    "DependencyError",
    "DivergedError",
    "Learner",
    "Method",
    "Pairs",
    "PerdureError",
    "Predictor",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "Step",
    "SurgeryError",
    "TaskError",
    "WeightsError",
    "__version__",
    "diagnose",
    "evaluate",
    "load_recipe",
    "losses",
    "merge",
    "metrics",
    "register",
    "report",
    "select_alpha",
    "train",
    "weights",
]

_MODULES = ("losses", "metrics", "weights")

_HOME = {
    "METHODS": "method",
    "SUITES": "data.suites",
    "Batch": "batch",
    "Context": "method",
    "Learner": "method",
    "Method": "method",
    "Pairs": "batch",
    "Predictor": "predictor",
    "Recipe": "recipe",
    "Run": "run",
    "Step": "batch",
    "diagnose": "diagnosis.diagnose",
    "evaluate": "evaluation",
    "load_recipe": "recipe",
    "merge": "merging",
    "register": "method",
    "report": "reporting",
    "select_alpha": "alpha.select",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value  # the next access skips this function
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
