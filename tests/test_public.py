"""The public surface: what `perdure.__all__` promises, no more and no less."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import perdure
from perdure import errors

ROOT = Path(__file__).parent.parent

PROMISED = {
    "METHODS", "SUITES", "Batch", "Context", "DataError", "DependencyError", "DivergedError",
    "Learner", "Method", "Pairs", "PerdureError", "Predictor", "Recipe", "RecipeError", "Run",
    "RunError", "Step", "SurgeryError", "TaskError", "WeightsError", "__version__", "diagnose",
    "evaluate", "load_recipe", "losses", "merge", "metrics", "register", "report",
    "select_alpha", "train", "weights",
}  # fmt: skip


def kind(name: str) -> int:
    """Constants, then classes, then the rest: the order of isort and ruff."""
    return 0 if name.isupper() else 1 if name[0].isupper() else 2


def own_docstring(value: object) -> str:
    return (inspect.getdoc(value) if getattr(value, "__doc__", None) else None) or ""


def test_all_is_what_was_promised_and_sorted():
    assert set(perdure.__all__) == PROMISED
    assert perdure.__all__ == sorted(perdure.__all__, key=lambda name: (kind(name), name))


@pytest.mark.parametrize("name", perdure.__all__)
def test_names_are_importable_and_documented(name):
    value = getattr(perdure, name)
    assert value is getattr(perdure, name)
    if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
        assert len(own_docstring(value)) > 20, f"{name} has no docstring"


@pytest.mark.parametrize("name", ["losses", "metrics", "weights"])
def test_public_modules_document_every_public_name(name):
    module = importlib.import_module(f"perdure.{name}")
    for attribute, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__
        if (
            own
            and not attribute.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
        ):
            assert own_docstring(value), f"perdure.{name}.{attribute} has no docstring"


def test_every_error_is_public():
    found = {value.__name__ for value in vars(errors).values() if inspect.isclass(value)}
    assert {name for name in found if name.endswith("Error")} <= PROMISED


def test_directory_shows_the_public_names_only():
    assert dir(perdure) == sorted(perdure.__all__)


def test_unknown_names_fail_as_usual():
    with pytest.raises(AttributeError, match="no attribute 'tracer'"):
        _ = perdure.tracer


def test_version_is_that_of_the_package_data():
    assert perdure.__version__ == "0.1.0"
    assert (ROOT / "perdure" / "py.typed").is_file()


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    code = "import sys, perdure; perdure.METHODS, perdure.SUITES; print('torch' in sys.modules)"
    assert run(code).strip() == "False"


def test_star_import_brings_exactly_the_public_names():
    code = "names = {}; exec('from perdure import *', names); print(*sorted(names))"
    assert set(run(code).split()) - {"__builtins__"} == PROMISED
