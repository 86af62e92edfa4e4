"""Merging: ends, closed forms, the published definition, heads, and run directories."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from perdure.errors import RunError, WeightsError
from perdure.interpolation import soup, wise_ft
from perdure.merging import merge
from perdure.predictor import Predictor
from perdure.weights import lerp
from perdure.zoo import random_clip

GOLDEN = Path(__file__).parents[1] / "golden" / "tracer_eval.npz"
NAMES = ("taco", "banana", "tiger")
TEMPLATES = ("a photo of a {}", "a {}")


def with_head(predictor: Predictor) -> Predictor:
    predictor.set_head(NAMES, TEMPLATES)
    return predictor


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_wise_ft_interpolates_every_tensor(alpha: float) -> None:
    start, tuned = random_clip(0), random_clip(1)
    merged = wise_ft(start, tuned, alpha).state_dict()
    for name, value in start.state_dict().items():
        assert close(merged[name], (1 - alpha) * value + alpha * tuned.state_dict()[name])


@pytest.mark.parametrize(("alpha", "end"), [(0.0, 0), (1.0, 1)])
def test_ends_are_exact_and_independent(alpha: float, end: int) -> None:
    ends = (random_clip(0), random_clip(1))
    merged = wise_ft(*ends, alpha)
    kept = {name: value.clone() for name, value in ends[end].state_dict().items()}
    assert all(torch.equal(merged.state_dict()[name], value) for name, value in kept.items())
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.add_(1)
    assert all(torch.equal(ends[end].state_dict()[name], value) for name, value in kept.items())


def test_zero_shot_end_gets_its_head_from_its_own_class_features() -> None:
    start, tuned = random_clip(0), with_head(random_clip(1))
    merged = wise_ft(start, tuned, 0.5)
    assert start.head is None
    assert merged.classes == NAMES
    assert merged.templates == TEMPLATES
    expected = with_head(random_clip(0)).state_dict()["head.weight"]
    expected = 0.5 * expected + 0.5 * tuned.state_dict()["head.weight"]
    assert close(merged.state_dict()["head.weight"], expected)


def test_zero_shot_end_with_its_new_head_scores_as_before() -> None:
    start = random_clip(0)
    images = torch.rand(4, 3, 40, 40)
    before = start.logits_fn(NAMES, TEMPLATES)(images)
    merged = wise_ft(start, with_head(random_clip(1)), 0.0)
    assert torch.allclose(merged.logits_fn(NAMES, TEMPLATES)(images), before, atol=1e-4)


def test_interpolation_equals_the_published_numbers() -> None:
    golden = np.load(GOLDEN)
    ends = [{"w": torch.from_numpy(golden[f"wise__theta{end}_w"])} for end in (0, 1)]
    merged = lerp(ends[0], ends[1], float(golden["wise__alpha"]))["w"]
    assert np.allclose(merged, golden["wise__merged_w"], rtol=0, atol=1e-15)


def test_tensors_of_one_end_only_are_an_error_where_the_published_code_copies_them() -> None:
    golden = np.load(GOLDEN)
    assert golden["wise__merged_only0"].tolist() == [1, 1]
    shared = torch.zeros(2)
    with pytest.raises(WeightsError, match="only in the first: only0"):
        lerp({"w": shared, "only0": torch.ones(2)}, {"w": shared}, 0.3)
    with pytest.raises(WeightsError, match="differ in shape: w"):
        lerp({"w": shared}, {"w": torch.ones(3)}, 0.3)


def test_soup_is_the_weighted_mean_and_shares_are_ratios() -> None:
    members = [random_clip(seed) for seed in range(3)]
    merged = soup(members, [1, 2, 5]).state_dict()
    again = soup(members, [0.125, 0.25, 0.625]).state_dict()
    for name in merged:
        values = [member.state_dict()[name] for member in members]
        assert close(merged[name], (values[0] + 2 * values[1] + 5 * values[2]) / 8)
        assert close(merged[name], again[name])


def test_soup_of_equal_members_is_the_member() -> None:
    merged = soup([random_clip(0)] * 4).state_dict()
    assert all(close(merged[name], value) for name, value in random_clip(0).state_dict().items())


def test_a_share_of_zero_leaves_a_member_out() -> None:
    merged = soup([random_clip(0), random_clip(1)], [0, 1]).state_dict()
    assert all(
        torch.equal(merged[name], value) for name, value in random_clip(1).state_dict().items()
    )


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(WeightsError, match="differ in shape"):
        wise_ft(random_clip(0), random_clip(0, embed_dim=16), 0.5)
    deeper = random_clip(0, vision_cfg={"layers": 3})
    with pytest.raises(WeightsError, match="different names"):
        soup([random_clip(0), deeper])
    other = random_clip(1)
    other.set_head(("taco", "banana", "lion"), TEMPLATES)
    with pytest.raises(WeightsError, match="'tiger' and 'lion'"):
        soup([with_head(random_clip(0)), other])
    with pytest.raises(WeightsError, match=r"alpha is 1\.5"):
        wise_ft(random_clip(0), random_clip(1), 1.5)
    with pytest.raises(WeightsError, match="shares"):
        soup([random_clip(0)], [-1])


def saved_run(path: Path, predictor: Predictor, seed: int) -> Path:
    predictor.save(path / "predictor")
    recipe = {"model": {"name": "perdure-tiny"}, "method": {"name": "ft"}, "seed": seed}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return path


def test_merge_writes_a_run_that_names_its_inputs(tmp_path: Path) -> None:
    runs = [saved_run(tmp_path / f"seed-{n}", with_head(random_clip(n)), n) for n in range(2)]
    out = merge("wise-ft", runs, tmp_path / "merged", alpha=0.25).path
    document = yaml.safe_load((out / "merge.yaml").read_text())
    assert document["kind"] == "wise-ft"
    assert document["alpha"] == 0.25
    assert [entry["recipe"]["seed"] for entry in document["inputs"]] == [0, 1]
    assert all(len(entry["sha256"]) == 64 for entry in document["inputs"])
    expected = wise_ft(with_head(random_clip(0)), with_head(random_clip(1)), 0.25).state_dict()
    loaded = Predictor.load(out / "predictor").state_dict()
    assert all(close(loaded[name], value) for name, value in expected.items())
    assert (out / "model" / "open_clip_config.json").is_file()
    again = merge("soup", [out, runs[0]], tmp_path / "soup").path
    nested = yaml.safe_load((again / "merge.yaml").read_text())["inputs"][0]
    assert nested["merge"]["alpha"] == 0.25


def test_merge_refuses_before_it_writes(tmp_path: Path) -> None:
    runs = [saved_run(tmp_path / f"seed-{n}", random_clip(n), n) for n in range(2)]
    out = tmp_path / "merged"
    with pytest.raises(RunError, match="two inputs"):
        merge("wise-ft", runs[:1], out, alpha=0.5)
    with pytest.raises(WeightsError, match="alpha is None"):
        merge("wise-ft", runs, out)
    with pytest.raises(RunError, match="alpha is an option of wise-ft"):
        merge("soup", runs, out, alpha=0.5)
    with pytest.raises(RunError, match="does not exist; did you mean"):
        merge("soup", [runs[0], tmp_path / "sede-1"], out)
    with pytest.raises(RunError, match="exists already"):
        merge("soup", runs, runs[0])
    with pytest.raises(RunError, match="several runs"):
        merge("soup", [tmp_path], out)
    other = saved_run(tmp_path / "other", random_clip(0, embed_dim=16), 0)
    with pytest.raises(WeightsError, match="differ in shape"):
        merge("soup", [runs[0], other], out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "seed-0", "seed-1"]
