"""Cached views: the same run as one that embeds the same views again, and everything says so."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from perdure import cached_views, training
from perdure.cached_views import view_batches
from perdure.classifying import ClassifierLearner
from perdure.data.datasets import open_dataset
from perdure.data.loading import Loader
from perdure.data.sampling import batch_indices
from perdure.errors import DataError, RecipeError, TaskError
from perdure.evaluation import evaluate
from perdure.guard import Guard, Look
from perdure.merging import merge
from perdure.predictor import Predictor
from perdure.preflight import preflight
from perdure.recipe import differences, dump_recipe, parse_recipe
from perdure.records import read
from perdure.reporting import report
from perdure.run import Run
from perdure.subjects import find
from perdure.training import train
from perdure.zoo import load, random_clip

COOP = {"name": "coop", "words": None, "contexts": 2}
HEAD = {"name": "ft", "train": "head"}
N, BATCH, STEPS = 80, 32, 8


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    random_clip().save(path / "tiny")
    return path / "tiny"


@pytest.fixture
def make(clip):
    """Return a maker of recipes: 80 images, batches of 32, so 3 steps per epoch and 3 epochs."""

    def recipe(method=COOP, views=2, steps=STEPS, init=None, guard=None, **run):
        return parse_recipe({
            "model": {"name": str(clip), "init": init},
            "data": {"name": "emojishift", "shots": 1, "augment": "flip-shift", "views": views},
            "method": method,
            "optim": {"lr": 0.02, "optimizer": "sgd", "batch_size": BATCH, "steps": steps},
            "run": {"save_every": 2, "log_every": 1, "device": "cpu", "threads": 1, **run},
            **({} if guard is None else {"guard": guard}),
        })  # fmt: skip

    return recipe


@pytest.fixture
def embedded_images(monkeypatch):
    """Count the images that go through an image tower."""
    seen = []
    plain = Predictor.encode_image

    def counting(self, images):
        seen.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(Predictor, "encode_image", counting)
    return seen


def weights(run):
    return load_file(run.path / "predictor" / "predictor.safetensors")


def losses(run):
    return [row["loss"] for row in run.log_rows() if "loss" in row]


def loader(clip, **options):
    data = open_dataset("emojishift", "train", shots=1, seed=0)
    options = {"batch_size": BATCH, "seed": 3, "augment": "flip-shift", **options}
    model = random_clip()
    return Loader(data, model.preprocess, model.tokenizer, ("a {}", "my {}"), **options)


def pixels(source, epoch):
    """Return the images of an epoch by their index."""
    found = {}
    for step in range(3 * epoch + 1, 3 * epoch + 4):
        (batch,) = source.batches(step - 1, step)
        for index, image in zip(batch_indices(N, BATCH, step, 3), batch.images, strict=True):
            found[int(index)] = image
    return found


def test_views_come_again_after_their_number_of_epochs(clip):
    source = loader(clip, views=2)
    first, second, third, fourth = (pixels(source, epoch) for epoch in range(4))
    assert all(torch.equal(first[i], third[i]) and torch.equal(second[i], fourth[i]) for i in first)
    assert sum(torch.equal(first[i], second[i]) for i in first) < N / 4
    fresh = pixels(loader(clip), 2)
    assert sum(torch.equal(first[i], fresh[i]) for i in first) < N / 4
    assert all(torch.equal(first[i], image) for i, image in pixels(loader(clip), 0).items())


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_share_all_views_in_order(clip, workers):
    whole = torch.cat(list(view_batches(loader(clip, views=2), 2)))
    assert len(whole) == 2 * N
    options = {"views": 2, "world_size": 3, "workers": workers}
    sources = [loader(clip, rank=rank, **options) for rank in range(3)]
    parts = [torch.cat(list(view_batches(source, 2))) for source in sources]
    assert torch.equal(torch.cat(parts), whole)
    for epoch in (0, 1):
        for index, image in pixels(loader(clip, views=2), epoch).items():
            assert torch.equal(whole[epoch * N + index], image)


@pytest.mark.parametrize(
    "method", [COOP, {**COOP, "name": "kgcoop"}, HEAD], ids=lambda m: m["name"]
)
def test_a_cached_run_is_one_that_embeds_the_same_views_in_every_epoch(
    make, tmp_path, monkeypatch, embedded_images, method
):
    cached = train(make(method), tmp_path / "cached")
    assert sum(embedded_images) == 2 * N
    with monkeypatch.context() as patch:
        patch.setattr(training, "embed_views", lambda *_: None)
        again = train(make(method), tmp_path / "again")
    assert sum(embedded_images) == 2 * N + 2 * N + 64  # 8 steps: 80 + 80 + 32 + 32
    np.testing.assert_allclose(losses(cached), losses(again), rtol=1e-6)
    for name, value in weights(again).items():
        torch.testing.assert_close(weights(cached)[name], value, rtol=1e-6, atol=1e-6)
    fresh = train(make(method, views=None), tmp_path / "fresh")
    assert losses(fresh)[:6] == pytest.approx(losses(again)[:6], rel=1e-6)  # two new epochs
    assert losses(fresh)[6:] != pytest.approx(losses(again)[6:], rel=1e-3)


def test_mergetune_goes_on_over_cached_features(make, tmp_path, monkeypatch):
    host = train(make(), tmp_path / "host")
    for number, table in enumerate(({}, {"space": "parameters", "points": 2})):
        recipe = make({"name": "mergetune", "host": COOP, **table}, init=str(host.path))
        cached = train(recipe, tmp_path / f"cached-{number}")
        with monkeypatch.context() as patch:
            patch.setattr(training, "embed_views", lambda *_: None)
            again = train(recipe, tmp_path / f"again-{number}")
        np.testing.assert_allclose(losses(cached), losses(again), rtol=1e-6)
        for name, value in weights(again).items():
            torch.testing.assert_close(weights(cached)[name], value, rtol=1e-6, atol=1e-6)


def test_a_resumed_run_embeds_again_and_equals_one_that_never_stopped(make, tmp_path):
    whole = train(make(), tmp_path / "whole")

    class Crash(Exception):
        pass

    def crash(tick, total):
        if tick.step == 5:
            raise Crash

    with pytest.raises(Crash):
        train(make(), tmp_path / "parts", progress=crash)
    parts = train(make(), tmp_path / "parts", resume=True)
    assert losses(parts) == losses(whole)
    assert all(torch.equal(value, weights(parts)[name]) for name, value in weights(whole).items())
    rows = [row for row in parts.log_rows() if "views" in row]
    assert [row["step"] for row in rows] == [0, 0]


def test_bf16_towers_embed_as_they_do_in_steps(make, tmp_path, monkeypatch):
    recipe = make(precision="bf16")
    cached = train(recipe, tmp_path / "cached")
    monkeypatch.setattr(training, "embed_views", lambda *_: None)
    np.testing.assert_allclose(losses(cached), losses(train(recipe, tmp_path / "again")), rtol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "ft"},
        {"name": "flyp"},
        {"name": "mma"},
        {"name": "promptkd", "teacher": "perdure-tiny"},
        {"name": "mergetune", "host": {"name": "ft"}},
    ],
    ids=lambda table: table["name"],
)
def test_a_learner_that_changes_its_image_tower_is_refused(make, tmp_path, method, request):
    init = None
    if method["name"] == "mergetune":
        init = str(train(make(method["host"], views=None, steps=1), tmp_path / "host").path)
    with pytest.raises(TaskError, match=r"data\.views is 2: .* Set data\.views to null, or"):
        train(make(method, init=init), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_status_log_scores_and_reports_say_so(make, tmp_path):
    said = []
    run = train(make(), tmp_path / "cached", say=said.append)
    size = 2 * N * 32 * 4
    assert said[0] == (
        f"Embedding 2 cached views of each of 80 images before training: {size / 1e6:.1f} MB of "
        "features."
    )
    assert said[1].endswith("which training time does not include.")
    status = run.status()
    assert (status["views"], status["view_bytes"]) == (2, size)
    assert status["view_seconds"] > 0
    assert {key: value for key, value in run.log_rows()[0].items() if key != "view_seconds"} == {
        "step": 0, "views": 2, "view_bytes": size
    }  # fmt: skip
    plain = train(make(views=None), tmp_path / "plain")
    half = merge("wise-ft", [run.recipe().model.name, run.path], tmp_path / "half", alpha=0.5)
    for one in (run, plain):
        evaluate(one, "emojishift-b2n", limit=2)
    assert run.scores("emojishift-b2n")["cached_views"] == [2]
    assert "cached_views" not in plain.scores("emojishift-b2n")
    assert [read(one.path).views for one in (run, plain)] == [(2,), ()]
    assert find(half).conditions() == {"subject": str(half.path), "seed": 0, "cached_views": [2]}
    found = report([run])
    took = f"{status['view_seconds']:.1f} s"
    assert (
        "coop: 2 cached views of each image, not a new one in every epoch; embedding them took "
        f"{took}, which its seconds do not include."
    ) in found.to_markdown()
    assert json.loads(found.to_json())["rows"][0]["views"] == [2]
    assert found.to_csv().splitlines()[1].endswith(",2")
    both = report([run, plain]).to_markdown()
    assert "coop (data.views=2)" in both
    assert "coop (data.views=None)" in both
    assert "cached views" not in report([plain]).to_markdown()


def test_no_more_views_are_embedded_than_a_run_uses(make, tmp_path, embedded_images):
    said = []
    train(make(views=10, steps=4), tmp_path / "run", say=said.append)
    assert sum(embedded_images) == 2 * N
    assert "80 images (a run of this length uses no more of the 10 declared) before" in said[0]


def test_long_work_says_how_far_it_is(make, tmp_path, monkeypatch):
    monkeypatch.setattr(cached_views, "_QUIET", 0.0)
    said = []
    train(make(views=1, steps=1), tmp_path / "run", say=said.append)
    assert [text.split(",")[0] for text in said[1:3]] == [
        f"Embedded {share} of the views" for share in ("40%", "80%")
    ]


def test_a_damaged_image_stops_it_before_anything_is_written(make, tmp_path, monkeypatch):
    def broken(self, index):
        raise DataError("image 3 is broken")

    monkeypatch.setattr("perdure.data.emojishift.EmojiShift.image", broken)
    with pytest.raises(DataError, match="image 3 is broken"):
        train(make(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_steps_do_not_look_at_images(make, tmp_path, monkeypatch):
    batches = []

    def keep(self, batch):
        batches.append(batch)
        return plain(self, batch)

    plain = ClassifierLearner.embed
    monkeypatch.setattr(ClassifierLearner, "embed", keep)
    train(make(steps=2), tmp_path / "run")
    assert [tuple(batch.images.shape) for batch in batches] == [(32, 3, 0, 0)] * 2
    assert [tuple(batch.features.shape) for batch in batches] == [(32, 32)] * 2


def test_a_dry_run_embeds_what_it_shows_and_estimates_the_rest(make, embedded_images):
    found = preflight(make())
    assert sum(embedded_images) == 2 * BATCH
    assert found.view_seconds > 0
    assert found.seconds == found.seconds_per_step * STEPS + found.view_seconds
    assert preflight(make(views=None)).view_seconds is None


def test_recipes_without_views_stay_what_they_were(make):
    recipe = make(views=None)
    assert "views" not in dump_recipe(recipe)
    assert "views: 2" in dump_recipe(make())
    assert differences(recipe, make()) == ["data.views: None -> 2"]
    data = {"name": "emojishift", "views": 3}
    rest = {
        "model": {"name": "perdure-tiny"},
        "method": COOP,
        "optim": {"lr": 1, "batch_size": 2, "steps": 1},
    }
    with pytest.raises(RecipeError, match="views is 3, but augment is 'none', so that all views"):
        parse_recipe({"data": data, **rest})
    assert parse_recipe({"data": data | {"views": 1}, **rest}).data.views == 1
    with pytest.raises(RecipeError, match=r"data\.views: 0 is not allowed"):
        parse_recipe({"data": data | {"views": 0}, **rest})


@pytest.fixture
def nearness(clip, monkeypatch):
    """Let guards see how near a head is to the zero-shot one: 1 there, and less the farther."""

    def look(self, predictor):
        if predictor.head is None:  # before training
            return Look(1.0, None, 100)
        start = load(str(clip)).requires_grad_(False)
        start.set_head(predictor.classes, predictor.templates)
        moved = predictor.head.weight.detach() - start.head.weight.detach()
        return Look(1 / (1 + float(moved.norm())), None, 100)

    monkeypatch.setattr(Guard, "look", look)


@pytest.mark.slow
def test_a_rollback_replays_the_cached_views_bit_for_bit(
    make, tmp_path, nearness, embedded_images, monkeypatch
):
    def guarded(floor, **more):
        first = {"suite": "emojishift-val", "metric": "ood", "every": 2, "floor": floor}
        return make(HEAD, guard=first | more)

    def rows(run):  # but what every start says of embedding
        return [{**row, "seconds": 0} for row in run.log_rows() if "views" not in row]

    free = train(guarded(0.0), tmp_path / "free")
    seen = [row["guard"]["value"] for row in free.log_rows() if "guard" in row]
    assert len(seen) == 5
    assert sorted(seen, reverse=True) == seen
    rollback = guarded((seen[2] + seen[3]) / 2, action="rollback")
    embedded_images.clear()
    whole = train(rollback, tmp_path / "whole")
    assert sum(embedded_images) == 2 * N  # what goes back looks at no image again
    back = whole.status()["guard"]["rollbacks"]
    # From the last step of view 1 to its first, and on into view 0.
    assert (back[0]["step"], back[0]["to"], whole.status()["step"]) == (6, 4, STEPS)
    assert losses(whole)[:4] == losses(free)[:4]
    assert losses(whole)[-1] != losses(free)[-1]

    class Kill(Exception):
        """Nothing of ours handles it."""

    def at(step):
        def progress(tick, total):
            if tick.step == step:
                raise Kill

        return progress

    def die(*_, **__):
        raise Kill

    update = Run.update_status

    def record_and_die(self, **values):
        update(self, **values)
        if values.get("guard", {}).get("rollbacks"):
            raise Kill

    parts = tmp_path / "parts"
    with pytest.raises(Kill):
        train(rollback, parts, progress=at(3))
    for name, value in (("drop_states", die), ("update_status", record_and_die)):
        with monkeypatch.context() as patch:
            patch.setattr(Run, name, value)
            with pytest.raises(Kill):
                train(rollback, parts, resume=True)
    with pytest.raises(Kill):
        train(rollback, parts, resume=True, progress=at(5))
    again = train(rollback, parts, resume=True)
    assert rows(again) == rows(whole)
    assert again.status()["guard"] == whole.status()["guard"]
    found = weights(again)
    assert all(torch.equal(value, found[name]) for name, value in weights(whole).items())

    monkeypatch.setattr(training, "embed_views", lambda *_: None)
    each = train(rollback, tmp_path / "each")  # embeds the images of every step
    assert [one["to"] for one in each.status()["guard"]["rollbacks"]] == [one["to"] for one in back]
    np.testing.assert_allclose(losses(each), losses(whole), rtol=1e-6)
