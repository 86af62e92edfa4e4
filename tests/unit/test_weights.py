"""Weights: arithmetic, averages against the golden numbers, snapshots."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from perdure import weights
from perdure.errors import WeightsError

WMA_CASES = [
    (total, beta) for total in (1, 5, 20, 100, 1000) for beta in (0.2, 0.5, 0.7, 0.9, 1.0, 1.5)
]
WMA_SEQUENCES = [
    (1, 0, 0.5), (5, 0, 0.5), (20, 0, 0.5), (20, 0, 0.2), (20, 0, 1.0), (20, 0, 1.5), (20, 1, 0.5),
    (20, 5, 0.5), (100, 0, 0.5), (100, 7, 0.5), (100, 50, 0.5), (100, 0, 1.0),
]  # fmt: skip
EMA_SEQUENCES = [(5, 1), (20, 1), (20, 5), (100, 1), (100, 7), (100, 0)]


class Counter(TorchDispatchMode):
    """Counts the operators that really run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def toy():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def parameters(module):
    return dict(module.named_parameters())


def tensors(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def test_trainable_leaves_out_frozen_and_shared():
    module = toy()
    module.tied = module[0]
    module[2].bias.requires_grad_(False)
    found = weights.trainable(module)
    assert list(found) == ["0.weight", "0.bias", "2.weight"]
    assert found["0.bias"] is module[0].bias


def test_lerp_is_differentiable_in_both_ends():
    a, b = ({"w": torch.full((2,), v, requires_grad=True)} for v in (1.0, 5.0))
    weights.lerp(a, b, 0.25)["w"].sum().backward()
    assert torch.equal(a["w"].grad, torch.full((2,), 0.75))
    assert torch.equal(b["w"].grad, torch.full((2,), 0.25))


def test_lerp_takes_integers_from_the_nearer_end():
    a, b = tensors(count=3), tensors(count=8)
    assert weights.lerp(a, b, 0.4)["count"] == 3
    assert weights.lerp(a, b, 0.6)["count"] == 8


def test_lerp_matches_golden_merge(golden):
    data = golden("tracer_eval")
    a, b = ({"w": torch.from_numpy(data[f"wise__theta{end}_w"])} for end in (0, 1))
    merged = weights.lerp(a, b, float(data["wise__alpha"]))["w"]
    np.testing.assert_allclose(merged, data["wise__merged_w"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "call", [lambda a, b: weights.lerp(a, b, 0.5), lambda a, b: weights.mean([a, b])]
)
def test_mismatch_names_the_first_three(call):
    a = tensors(a=1.0, b=1.0, c=1.0, d=1.0)
    with pytest.raises(WeightsError, match=r"only in the first: a, b, c and 1 more"):
        call(a, {})
    with pytest.raises(WeightsError, match=r"differ in shape: a \(\) and \(1,\)"):
        call(tensors(a=1.0), tensors(a=[1.0]))


def test_mean_weights_by_share_and_keeps_the_type():
    members = [{"w": torch.tensor([v], dtype=torch.bfloat16), "n": torch.tensor(i)}
               for i, v in enumerate((0.0, 1.0, 4.0))]  # fmt: skip
    soup = weights.mean(members, [1, 2, 1])
    assert soup["w"].dtype == torch.bfloat16
    assert soup["w"] == 1.5
    assert soup["n"] == 1


@pytest.mark.parametrize("shares", [[1.0], [-1.0, 2.0], [0.0, 0.0], [float("inf"), 1.0]])
def test_mean_rejects_bad_shares(shares):
    with pytest.raises(WeightsError, match="do not fit 2 members"):
        weights.mean([tensors(a=1.0)] * 2, shares)


def test_mean_of_nothing():
    with pytest.raises(WeightsError, match="at least one member"):
        weights.mean([])


def test_distance_and_its_gradient():
    a = {"v": torch.tensor([1.0, 2.0], requires_grad=True), "w": torch.zeros(2)}
    b = {"v": torch.zeros(2), "w": torch.ones(2)}
    total = weights.distance(a, b, "sum")
    assert total == 7.0
    assert weights.distance(a, b, "mean") == 1.75
    total.backward()
    assert torch.equal(a["v"].grad, torch.tensor([2.0, 4.0]))


def test_distance_of_nothing():
    with pytest.raises(WeightsError, match="at least one tensor"):
        weights.distance({}, {}, "sum")


def test_run_at_leaves_the_module_and_reaches_the_weights():
    module = toy()
    before = copy.deepcopy(module.state_dict())
    other = {
        name: torch.randn_like(p, requires_grad=True) for name, p in parameters(module).items()
    }
    x = torch.randn(5, 4)
    out = weights.run_at(module, other, x)
    out.square().sum().backward()
    assert all(tensor.grad is not None for tensor in other.values())
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    module.load_state_dict(other)
    assert torch.equal(module(x), out)


def test_run_at_names_unknown_tensors():
    with pytest.raises(WeightsError, match=r"no tensor named 0\.wieght"):
        weights.run_at(toy(), {"0.wieght": torch.zeros(1)}, torch.zeros(1, 4))


@pytest.mark.parametrize(("total", "beta"), WMA_CASES)
def test_beta_wma_matches_golden_shares(golden, total, beta):
    data = golden("tracer_teachers")
    case = f"wma_T{total}_b{beta}"
    for released in (False, True):
        mix = weights.beta_wma(beta, total, released=released)
        shares = np.array([1.0] + [mix(k) for k in range(1, total + 1)])
        np.testing.assert_allclose(shares, data[f"{case}__omega"], rtol=1e-12)
        relative = shares[1:] / (1.0 - shares[1:])
        np.testing.assert_allclose(relative, data[f"{case}__relative_weight"][1:], rtol=1e-11)
        kept = np.append(np.cumprod(1.0 - shares[:0:-1])[::-1], 1.0)
        np.testing.assert_allclose(shares * kept, data[f"{case}__mass_final"], rtol=1e-11)


def replay(student, shares):
    """Average the rows of a path; `shares` maps optimiser step, from 1, to the new rows' share."""
    snapshot = weights.Snapshot({"w": torch.from_numpy(student[0])})
    path, updated = [student[0].copy()], []
    for step in range(1, len(student)):
        updated.append(step in shares)
        if step in shares:
            snapshot.mix_({"w": torch.from_numpy(student[step])}, shares[step])
        path.append(snapshot.values()["w"].numpy().copy())
    return np.array(path), np.array(updated)


@pytest.mark.parametrize(("total", "every", "beta"), WMA_SEQUENCES)
def test_wma_sequences(golden, total, every, beta):
    data = golden("tracer_teachers")
    case = f"seq_wma_T{total}_freq{every}_b{beta}"
    mix = weights.beta_wma(beta, total, every=max(every, 1), released=True)
    # The source updates after its steps 0, f, 2f, ... (ours 1, f + 1, ...) and after the last.
    due = [t + 1 for t in range(total) if t % max(every, 1) == 0 or t == total - 1]
    shares = {step: mix(k) for k, step in enumerate(due, 1)}
    teacher, updated = replay(data[f"{case}__student"], shares)
    np.testing.assert_array_equal(updated, data[f"{case}__updated"])
    np.testing.assert_allclose(teacher, data[f"{case}__teacher"], rtol=1e-12, atol=1e-12)
    scale, _ = replay(2.0 + 0.01 * np.arange(total + 1)[:, None], shares)
    np.testing.assert_allclose(scale[-1, 0], data[f"{case}__logit_scale_final"], rtol=1e-12)


@pytest.mark.parametrize(("total", "every"), EMA_SEQUENCES)
def test_ema_sequences(golden, total, every):
    data = golden("tracer_teachers")
    case = f"seq_ema_T{total}_freq{every}"
    every = every or 500
    mix = weights.warmup_ema(0.05, 0.9, 0.2 * total, every)
    shares = {t + 1: mix(k) for k, t in enumerate(range(0, total, every), 1)}
    teacher, updated = replay(data[f"{case}__student"], shares)
    np.testing.assert_array_equal(updated, data[f"{case}__updated"])
    np.testing.assert_allclose(teacher, data[f"{case}__teacher"], rtol=1e-12, atol=1e-12)
    scale, _ = replay(2.0 + 0.01 * np.arange(total + 1)[:, None], shares)
    np.testing.assert_allclose(scale[-1, 0], data[f"{case}__logit_scale_final"], rtol=1e-12)


@pytest.mark.parametrize("total", [5, 20, 100, 1000, 25030])
def test_warmup_ema_matches_golden_momentum(golden, total):
    data = golden("tracer_teachers")
    mix = weights.warmup_ema(0.05, 0.9, 0.2 * total)
    found = [1.0 - mix(int(step) + 1) for step in data[f"ema_momentum_T{total}__step"]]
    np.testing.assert_allclose(found, data[f"ema_momentum_T{total}__m"], rtol=1e-12)


def test_warmup_ema_without_warmup_is_ema():
    assert weights.warmup_ema(0.05, 0.9, 0)(1) == weights.ema(0.9)(1)


def test_kernel_time_is_the_optimiser_step():
    # Sparse updates keep the kernel: at the last update time is the same as with every step.
    dense, sparse = weights.beta_wma(0.5, 100), weights.beta_wma(0.5, 100, every=30)
    ends = (100.5 / 101) ** -0.5 * (0.5 / 101) ** -0.5
    times = [(step + 0.5) / 101 for step in (0, 30, 60, 90, 100)]
    mass = sum((x * (1 - x)) ** -0.5 for x in times)
    assert sparse(4) == pytest.approx(ends / mass, rel=1e-12)
    assert dense(1) != sparse(1)
    released = weights.beta_wma(0.5, 100, every=30, released=True)
    assert released(1) == dense(1)


def test_beta_wma_refuses_updates_beyond_the_horizon():
    mix = weights.beta_wma(0.5, 10, every=4)
    assert mix(3) > 0
    for k in (0, 4):
        with pytest.raises(ValueError, match="outside this average of 1 to 3 updates"):
            mix(k)


def test_beta_wma_stays_finite_for_extreme_kernels():
    for beta in (0.01, 500.0):
        mix = weights.beta_wma(beta, 1000)
        assert all(0.0 <= mix(k) <= 1.0 for k in range(1, 1001))


@pytest.mark.parametrize(
    "call",
    [
        lambda: weights.ema(1.5),
        lambda: weights.warmup_ema(-0.1, 0.9, 5),
        lambda: weights.warmup_ema(0.1, 0.9, 5, every=0),
        lambda: weights.beta_wma(0.0, 10),
        lambda: weights.beta_wma(0.5, 0),
    ],
)
def test_averages_reject_values_out_of_range(call):
    with pytest.raises(ValueError, match=r"it must (lie in|be greater than)"):
        call()


def test_snapshot_holds_wide_copies_with_names_that_fit_state_dicts():
    module = toy().to(torch.bfloat16)
    snapshot = weights.Snapshot(weights.trainable(module))
    assert list(snapshot.state_dict()) == ["0/weight", "0/bias", "2/weight", "2/bias"]
    values = snapshot.values()
    assert list(values) == list(parameters(module))
    assert all(v.dtype == torch.float32 and not v.requires_grad for v in values.values())
    assert not list(snapshot.parameters())
    expected = module[0].weight.float().clone()
    with torch.no_grad():
        module[0].weight.add_(1)
    assert torch.equal(values["0.weight"], expected)


def test_snapshot_round_trip_and_deep_copy():
    module = toy()
    first = weights.Snapshot(parameters(module))
    second = weights.Snapshot({n: torch.zeros_like(p) for n, p in parameters(module).items()})
    second.load_state_dict(first.state_dict())
    clone = copy.deepcopy(first)
    clone.mix_({n: p + 1 for n, p in parameters(module).items()}, 1.0)
    for name, p in parameters(module).items():
        assert torch.equal(second.values()[name], p)
        assert torch.equal(first.values()[name], p)
        assert torch.allclose(clone.values()[name], p + 1)


def test_snapshot_follows_its_module():
    holder = nn.Module()
    holder.teacher = weights.Snapshot(parameters(toy()))
    assert all(v.is_meta for v in holder.to("meta").teacher.values().values())


def test_snapshot_refuses_integers_and_other_weights():
    with pytest.raises(WeightsError, match=r"floating-point weights only"):
        weights.Snapshot(tensors(count=3))
    with pytest.raises(WeightsError, match=r"only in the second: v"):
        weights.Snapshot(tensors(w=1.0)).mix_(tensors(v=1.0), 0.5)


def test_mix_is_one_operator_without_copies():
    live = {f"w{i}": torch.randn(8, requires_grad=True) for i in range(60)}
    snapshot = weights.Snapshot(live)
    storage = [v.data_ptr() for v in snapshot.values().values()]
    with Counter() as counter:
        snapshot.mix_(live, 0.3)
    assert counter.names == ["aten._foreach_lerp_.Scalar"]
    assert storage == [v.data_ptr() for v in snapshot.values().values()]


def test_mix_takes_half_precision_weights():
    snapshot = weights.Snapshot(tensors(w=[1.0, 2.0]))
    snapshot.mix_({"w": torch.tensor([3.0, 2.0], dtype=torch.float16)}, 0.5)
    assert torch.equal(snapshot.values()["w"], torch.tensor([2.0, 2.0]))
