"""Errors: one family, messages that help, and survival of a trip between processes."""

import pickle

import pytest

from perdure import errors


@pytest.mark.parametrize(
    "name",
    ["Recipe", "Data", "Task", "Weights", "Surgery", "Run", "Diverged", "Dependency"],
)
def test_every_error_is_a_perdure_error(name):
    assert issubclass(getattr(errors, f"{name}Error"), errors.PerdureError)


def test_diverged_names_step_and_every_term():
    error = errors.DivergedError(12, {"contrastive": float("nan"), "feature": 1.5})
    message = str(error)
    assert "step 12" in message
    assert "contrastive = nan" in message
    assert "feature = 1.5" in message
    assert "optim.lr" in message
    assert (error.step, error.terms["feature"]) == (12, 1.5)


def test_diverged_survives_pickling():
    copy = pickle.loads(pickle.dumps(errors.DivergedError(3, {"ce": float("inf")})))
    assert str(copy) == str(errors.DivergedError(3, {"ce": float("inf")}))


@pytest.mark.parametrize(
    ("name", "choices", "expected"),
    [
        ("tracr", ["ft", "tracer", "carot"], "did you mean 'tracer'?"),
        ("vit-b-16", ["ViT-B-16", "RN50"], "did you mean 'ViT-B-16'?"),
        ("completely else", ["ft", "tracer"], ""),
        ("x", [], ""),
    ],
)
def test_nearest(name, choices, expected):
    assert errors.nearest(name, choices) == expected
