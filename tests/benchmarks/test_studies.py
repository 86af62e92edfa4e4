"""The studies of repair, base-to-novel and the combined recipe: their runs exist, pages add up."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import base_to_novel, best, repair, tasks
from benchmarks.base_to_novel import DIVISIONS, GRIDS, INHERITS, ROWS
from benchmarks.base_to_novel_page import PAIRS, PARTS, TITLES, page
from benchmarks.experiments import CHECKPOINTS, Job
from perdure import load_recipe
from perdure.data.suites import suite
from perdure.merges.kinds import MERGERS


def recipe_of(job: Job):
    return load_recipe(f"emojishift/{job.recipe}", job.settings)


def test_every_run_of_the_repair_study_starts_from_its_host():
    for checkpoint, hosts in repair.HOSTS.items():
        for host in hosts:
            outs = {job.out for job in repair.host_jobs(checkpoint, host)}
            for variant in repair.VARIANTS:
                for job in repair.repair_jobs(checkpoint, host, variant):
                    recipe = recipe_of(job)
                    assert recipe.model.init in outs
                    assert recipe.model.name == CHECKPOINTS[checkpoint]
                    assert recipe.method.host.name == host.name
                    assert recipe.optim.lr == pytest.approx(repair.SHARE * host.rate)
    continued = recipe_of(repair.repair_jobs("seed-0", repair.Host("flyp"), "-continued")[0])
    assert (continued.method.anchor_weight, continued.method.path_weight) == (0, 0)


def test_the_combined_recipe_runs_on_both_checkpoints_at_its_own_rate():
    jobs = [job for checkpoint in CHECKPOINTS for job in best.best_jobs(checkpoint)]
    assert len({job.out for job in jobs}) == len(jobs) == 6
    assert {recipe_of(job).model.name for job in jobs} == set(CHECKPOINTS.values())


def chosen() -> dict[str, tuple[str, ...]]:
    return {name: values[0] for name, values in GRIDS.items()}


def test_every_row_of_base_to_novel_is_a_recipe_or_a_merge_and_learns_base_classes_only():
    for name, row in ROWS.items():
        if row.options is not None:
            assert row.recipe in MERGERS
            continue
        for number, division in DIVISIONS.items():
            for job in base_to_novel.jobs_of(name, number, (0, 1), chosen()):
                recipe = recipe_of(job)
                assert recipe.data.classes == division.classes
                assert recipe.validate.splits == ()
                if row.init is not None:
                    assert recipe.method.host.name == ROWS[row.init].recipe


def test_choices_of_base_to_novel_look_at_no_test_image_and_no_held_out_class():
    for name in GRIDS:
        jobs = base_to_novel.choice_jobs(name, chosen())
        assert len({job.out for job in jobs}) == len(GRIDS[name])
        for job in jobs:
            assert {split.split for split in suite(job.suite).splits} == {"val", "val_shift"}
            assert "novel" not in {split.classes for split in suite(job.suite).splits}
            recipe_of(job)
    assert set(INHERITS) <= set(ROWS)
    assert {name for pair in PAIRS for name in pair} <= set(TITLES) | set(PARTS)


def record(base: float, novel: float):
    """Return what a run of 200 images per set with these accuracies left."""
    right = {}
    for half, share in (("base", base), ("novel", novel)):
        for suffix in ("", "_rendition"):
            right[half + suffix] = np.arange(200) < round(200 * share)
    roles = {"base": "base", "novel": "novel"}
    roles |= {"base_rendition": "base_ood", "novel_rendition": "novel_ood"}
    splits = {
        name: {"role": role, "task": "classify", "n": 200, "ece": 0.1, "nll": 1.0,
               "accuracy": float(right[name].mean())}
        for name, role in roles.items()
    }  # fmt: skip
    return SimpleNamespace(splits=splits, correct=lambda: right)


def test_the_page_of_base_to_novel_tells_means_and_differences():
    found = {
        "zero-shot": {number: [record(0.7, 0.7)] for number in DIVISIONS},
        "coop": {number: [record(0.9, 0.5), record(0.9, 0.5)] for number in DIVISIONS},
        "kgcoop": {number: [] for number in DIVISIONS},
    }
    tried = [{"values": ["optim.lr=0.02"], "base": 0.8, "novel": 0.6, "harmonic": 0.69}]
    text = page(found, {"coop": {"chosen": ["optim.lr=0.02"], "by": "base", "tried": tried}})
    line = next(one for one in text.splitlines() if one.startswith("| CoOp | 90.0"))
    assert [part.strip()[:4] for part in line.split("|")[2:5]] == ["90.0", "50.0", "64.3"]
    difference = next(one for one in text.splitlines() if one.startswith("| CoOp | zero-shot"))
    cells = [part.strip().split(" ")[0] for part in difference.split("|")[3:6]]
    assert cells == ["+20.0", "-20.0", "-5.7"]
    assert "KgCoOp |" not in text.split("## Results")[1].split("Differences")[0]
    assert "optim.lr=0.02: 80.0 / 60.0" in text


def test_the_study_of_other_tasks_takes_the_runs_of_results_and_repair():
    outs = [job.out for model in tasks.MODELS for job in model.jobs()]
    assert len(set(outs)) == len(outs) == 3 * len(tasks.MODELS)
    hosts = {job.out for model in tasks.MODELS if not model.repaired for job in model.jobs()}
    for model in tasks.MODELS:
        for job in model.jobs():
            recipe = recipe_of(job)
            assert recipe.model.init in (hosts if model.repaired else {None})
    for name in tasks.SUITES:
        assert {split.task for split in suite(name).splits} <= {"retrieve", "segment", "answer"}


def test_rows_of_other_tasks_average_seeds_and_pair_answers():
    def scored(right: int):
        entry = {
            "task": "answer",
            "metric": "accuracy",
            "role": "target",
            "n": 10,
            "accuracy": right / 10,
        }
        stored = {
            "which/label": np.ones(10, dtype=np.int64),
            "which/prediction": (np.arange(10) < right).astype(np.int64),
        }
        return SimpleNamespace(splits={"which": entry}, outcomes=lambda: stored)

    before, after = scored(8), [scored(5), scored(7)]
    assert tasks.row("FT", [one.splits for one in after])[1].startswith("60.0")
    assert tasks.change(after, before).startswith("-20.0 [")


def test_changes_of_segmentation_are_those_of_miou_not_of_masks():
    def scored(*hits: int):
        # Image, class, and pixels that were hit, of the truth and of the prediction.
        rows = [[image, image % 2, hit, 10, hit] for image, hit in enumerate(hits)]
        stored = {"id/pixels": np.array(rows, dtype=np.int32)}
        entry = {"task": "segment", "metric": "miou", "role": "id", "n": len(hits)}
        about = {"path": "run", "suite": "emojishift-segmentation"}
        return SimpleNamespace(splits={"id": entry}, outcomes=lambda: stored, **about)

    assert tasks.change([scored(5, 5, 5, 5)], scored(5, 5, 5, 5)) == "+0.0 [+0.0, +0.0]"
    assert tasks.change([scored(5, 9, 5, 9), scored(5, 7, 5, 7)], scored(5, 5, 5, 5)).startswith(
        "+15.0 ["
    )
