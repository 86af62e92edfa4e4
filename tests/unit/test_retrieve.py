"""Retrieval as a task: both directions, several captions, limits, sweeps, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perdure import zoo
from perdure.data.emojishift import open_retrieval
from perdure.data.paired import open_paired
from perdure.data.suites import of_task, suite
from perdure.embedding import embed_texts
from perdure.errors import DataError, TaskError, WeightsError
from perdure.evaluation import evaluate, images_in
from perdure.merging import merge
from perdure.prediction import How, stay
from perdure.records import summary
from perdure.reporting import report
from perdure.subjects import find
from perdure.surgery.projector import Projector
from perdure.surgery.slots import Slots
from perdure.sweeping import sweep
from perdure.tasks.retrieve import in_folds
from perdure.zoo import random_clip
from tests import layouts

NAME = "emojishift-retrieval"


@pytest.fixture(scope="module")
def found() -> Any:
    return evaluate(zoo.load("perdure-tiny"), NAME, limit=40)


def test_one_split_gives_both_directions(found: Any) -> None:
    assert list(found.splits) == [
        f"{domain}_{direction}"
        for domain in ("id", "rendition", "sketch")
        for direction in ("image_to_text", "text_to_image")
    ]
    for name, entry in found.splits.items():
        assert entry["task"] == "retrieve"
        assert entry["metric"] == "recall_at_1"
        assert entry["role"] == ("id" if name.startswith("id") else "ood")
        assert entry["n"] == 40
        low, high = entry["interval"]
        assert low <= entry["recall_at_1"] <= high
        assert entry["recall_at_1"] <= entry["recall_at_5"] <= entry["recall_at_10"]
        assert entry["captions_cut"] == 0
        assert "folds" not in entry
        outcomes = found.outcomes[name]
        assert outcomes.correct.mean() == pytest.approx(entry["recall_at_1"])
        assert (np.abs(outcomes.confidence) <= 1 + 1e-5).all()
    # The bundled model was never shown these captions, but knows their words.
    assert found["id_image_to_text"]["recall_at_10"] > 0.5


def test_numbers_are_those_of_its_embeddings(found: Any) -> None:
    predictor = zoo.load("perdure-tiny")
    paired = open_paired("emojishift", "rendition").limited(40)
    images = torch.stack([paired.pictures.image(index) for index in range(40)])
    with torch.no_grad():
        pairs = predictor(
            predictor.preprocess.normalize(images), predictor.tokenizer(paired.captions)
        )
    scores = (pairs.image @ pairs.text.T).numpy()
    for direction, table in (("image_to_text", scores), ("text_to_image", scores.T)):
        ranks = [int((row > row[own]).sum()) for own, row in enumerate(table)]
        entry = found[f"rendition_{direction}"]
        for k in (1, 5, 10):
            assert entry[f"recall_at_{k}"] == pytest.approx(np.mean(np.array(ranks) < k))
        assert entry["median_rank"] == np.median(ranks) + 1
        rows = found.outcomes[f"rendition_{direction}"]
        assert rows.confidence == pytest.approx(table.max(axis=1), abs=1e-5)
        assert rows.prediction.tolist() == paired.labels[table.argmax(axis=1)].tolist()


def test_rsum_is_the_sum_of_six_averaged_over_data_sets(found: Any) -> None:
    values = found.summary()
    mean = np.mean([entry["recall_at_1"] for entry in found.splits.values()])
    assert values["recall_at_1"]["value"] == pytest.approx(mean)
    sums = [
        sum(
            found[f"{domain}_{direction}"][f"recall_at_{k}"]
            for direction in ("image_to_text", "text_to_image")
            for k in (1, 5, 10)
        )
        for domain in ("id", "rendition", "sketch")
    ]
    assert values["rsum"]["value"] == pytest.approx(np.mean(sums))
    assert set(values) == {"recall_at_1", "rsum"}
    assert "rsum" not in summary({"id": {"task": "classify", "role": "val", "accuracy": 1.0}})


def test_both_ends_of_a_line_are_the_models_themselves() -> None:
    start, tuned, how = random_clip(0), random_clip(1), How(limit=24, batch_size=7)
    line = sweep(start, tuned, NAME, alphas=(0.0, 0.5, 1.0), how=how)
    for alpha, model in ((0.0, start), (1.0, tuned)):
        alone = evaluate(model, NAME, limit=24)
        for name, entry in alone.splits.items():
            assert line[alpha][name]["recall_at_5"] == entry["recall_at_5"]
            ours, theirs = line[alpha].outcomes[name], alone.outcomes[name]
            assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-5)
    assert any(line[0.0][name] != line[1.0][name] for name in line[0.0].splits)


def test_progress_counts_pictures_and_captions() -> None:
    told: list[int] = []
    evaluate(random_clip(0), NAME, limit=9, progress=told.append)
    assert sum(told) == images_in(suite(NAME), How(limit=9)) == 3 * 18


def test_runs_are_reported_with_paired_differences(tmp_path: Path, found: Any) -> None:
    runs = []
    for name in ("one", "two"):
        runs.append(tmp_path / name)
        merge("zero-shot", [find("perdure-tiny")], runs[-1])
        found.write(runs[-1] / "scores")
    file = runs[1] / "merge.yaml"  # as if it were another model
    file.write_text(file.read_text().replace("kind: zero-shot", "kind: checkpoint"))
    worse = json.loads((runs[1] / "scores" / f"{NAME}.json").read_text())
    worse["splits"]["id_text_to_image"]["recall_at_1"] = 0.0
    (runs[1] / "scores" / f"{NAME}.json").write_text(json.dumps(worse))
    text = report(runs).to_markdown()
    assert text.startswith(f"# {NAME}\n\nRecall at 1 in per cent, mean")
    assert "Queries per split: id_image_to_text 40" in text
    assert "bootstrap over paired pictures" in text
    header = "| run | seeds | recall_at_1 | rsum | id_image_to_text | id_text_to_image |"
    assert header in text
    assert "| +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] |" in text
    found_rows = report(runs).rows
    assert found_rows[0].values["rsum"].mean == pytest.approx(found.summary()["rsum"]["value"])


@pytest.mark.parametrize("kind", ["karpathy", "splits", "ids"])
def test_any_of_five_captions_answers_a_picture(tmp_path: Path, kind: str) -> None:
    layouts.coco(tmp_path, kind)
    paired = open_paired("coco", "test", tmp_path)
    assert len(paired.labels) == 2
    assert paired.caption_labels.tolist() == [0] * 5 + [1] * 5
    assert [text[-1] for text in paired.captions] == ["3"] * 5 + ["4"] * 5
    assert paired.pictures.image(1).shape[0] == 3
    one = paired.limited(1)
    assert one.labels.tolist() == [0]
    assert one.caption_labels.tolist() == [0] * 5
    scores = evaluate(random_clip(0), "retrieval", root=tmp_path)
    assert [entry["n"] for entry in scores.splits.values()] == [2, 10]
    assert scores["coco_image_to_text"]["recall_at_10"] == 1.0
    assert scores["coco_text_to_image"]["recall_at_5"] == 1.0
    assert scores["coco_text_to_image"]["role"] == "target"


def test_retrieval_scores_what_is_there(tmp_path: Path) -> None:
    layouts.flickr(tmp_path, "lines")
    assert [split.dataset for split in suite("retrieval", tmp_path).splits] == ["flickr30k"]
    layouts.coco(tmp_path, "karpathy")
    assert [split.dataset for split in suite("retrieval", tmp_path).splits] == ["coco", "flickr30k"]
    assert of_task("coco") == "retrieval"
    (tmp_path / "coco/dataset_coco.json").write_text("{}")
    with pytest.raises(DataError, match="no file of captions"):  # and not Flickr30k alone
        suite("retrieval", tmp_path)
    shutil.rmtree(tmp_path / "coco")
    shutil.rmtree(tmp_path / "flickr30k")
    with pytest.raises(DataError, match="finds neither coco nor flickr30k nor captions"):
        suite("retrieval", tmp_path)
    with pytest.raises(DataError, match="add --data ROOT"):
        suite("retrieval")


def test_own_captions_are_searched_by_picture_and_not_by_text(tmp_path: Path) -> None:
    rows = ["filepath,caption,split"]
    for number, text in enumerate(["a cat", "a dog", "a cat"]):
        layouts.picture(tmp_path / f"{number}.png", number)
        rows += [f"{number}.png,{text},test", f"{number}.png,photo {number},test"]
    rows.append("0.png,a cat,train")
    table = tmp_path / "all.csv"
    table.write_text("\n".join(rows) + "\n")
    chosen = suite("retrieval", table)
    assert [(split.dataset, split.split) for split in chosen.splits] == [("own", "test")]
    paired = open_paired("own", "test", table)
    by_label = {label: [] for label in range(3)}  # type: dict[int, list[str]]
    for label, text in zip(paired.caption_labels, paired.captions, strict=True):
        by_label[int(label)].append(text)
    assert sorted(by_label[0]) == ["a cat", "photo 0"]
    assert sorted(by_label[2]) == ["a cat", "photo 2"]
    rows[1] = "0.png,a lion,test"
    table.write_text("\n".join(rows) + "\n")
    assert suite("retrieval", table).definition != chosen.definition
    (tmp_path / "labels.csv").write_text("filepath,label\n0.png,cat\n1.png,dog\n")
    with pytest.raises(DataError, match="has labels, no captions"):
        suite("retrieval", tmp_path / "labels.csv")
    with pytest.raises(DataError, match="has labels, no captions"):
        open_paired("own", "test", layouts_of_classes(tmp_path / "folders"))


def layouts_of_classes(root: Path) -> Path:
    for name in ("cat", "dog"):
        layouts.picture(root / "test" / name / "1.png")
    return root


def test_equal_texts_have_equal_rows_and_long_ones_are_cut_and_counted(tmp_path: Path) -> None:
    predictor = random_clip(0)
    texts = ["a cat", "a much longer text about a dog", "a cat", "dog", "a cat"]
    rows = embed_texts(predictor, {0.0: stay}, texts, How())[0.0]
    assert (rows[0] == rows[2]).all()
    assert (rows[0] == rows[4]).all()
    with torch.no_grad():
        alone = predictor.encode_text(predictor.tokenizer(texts)).numpy()
    assert rows == pytest.approx(alone, abs=1e-5)
    layouts.flickr(tmp_path, "lines")
    file = tmp_path / "flickr30k/flickr30k_test_karpathy.txt"
    file.write_text(file.read_text().replace("that cat 4", "that cat " + "very " * 90))
    scores = evaluate(predictor, "retrieval", root=tmp_path)
    assert scores["flickr30k_text_to_image"]["captions_cut"] == 1


def test_learned_contexts_leave_free_captions_as_they_were() -> None:
    plain, prompted = random_clip(0), random_clip(0)
    prompted.attach(Slots(count=2, classes=()))
    one, two = (evaluate(model, NAME, limit=10) for model in (plain, prompted))
    assert one.splits == two.splits


def test_models_without_comparable_texts_and_broken_ones_are_refused() -> None:
    student = random_clip(0)
    student.attach(Projector(student.clip.visual.output_dim, 32))
    with pytest.raises(TaskError, match="free texts such as captions cannot be compared"):
        evaluate(student, NAME, limit=4)
    broken = random_clip(0)
    with torch.no_grad():
        broken.clip.visual.proj.fill_(float("nan"))
    with pytest.raises(WeightsError, match="embeddings are not finite"):
        evaluate(broken, NAME, limit=4)
    with pytest.raises(DataError, match="must be at least 1"):
        evaluate(random_clip(0), NAME, limit=0)
    with pytest.raises(DataError, match="leave --data away"):
        open_paired("emojishift", "id", Path("here"))


def test_only_several_whole_thousands_are_also_scored_in_folds() -> None:
    assert in_folds(5_000)
    assert not any(in_folds(count) for count in (250, 1_000, 5_001, 1_014))


def test_every_embedded_caption_belongs_to_one_picture() -> None:
    for domain in ("id", "rendition", "sketch"):
        paired = open_paired("emojishift", domain)
        assert len(set(paired.captions)) == len(paired.labels) == len(open_retrieval(domain).images)
