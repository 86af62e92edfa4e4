"""perdure drift: what changed for a person's own pictures, and which searches broke."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perdure import ranking
from perdure.cli import main
from perdure.drift import drift, read_captions, read_queries
from perdure.errors import DataError, TaskError
from perdure.predicting import find_pictures
from perdure.surgery.projector import Projector
from perdure.zoo import random_clip

NAMES = ("rat", "ring", "goat", "taco", "tin", "bus", "frog", "cake", "owl", "bat", "hat", "cow")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of noise in two folders, with a table of captions and one of searches."""
    root = tmp_path_factory.mktemp("shop")
    rows = ["filepath,caption"]
    for number, name in enumerate(NAMES):
        file = root / "pictures" / ("a" if number % 2 else "b") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
        rows.append(f"{file.relative_to(root / 'pictures')},a {name}")
    (root / "captions.csv").write_text("\n".join(rows) + "\n")
    (root / "searches.txt").write_text("a rat\n\na  rat\na ring on a table\n")
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    text = capsys.readouterr()
    return int(ended.value.code or 0), text.out, text.err


def test_a_model_does_not_drift_from_itself(shop: Path) -> None:
    pictures = shop / "pictures"
    files = find_pictures([pictures])
    texts = read_captions(shop / "captions.csv", pictures, files)
    found = drift(random_clip(0), random_clip(0), files, pictures, texts)
    assert found.cosine == pytest.approx(1.0, abs=1e-5)
    assert (found.kept, found.neighbours, found.pictures) == (1.0, 10, 12)
    assert found.search is not None
    assert found.search.before == found.search.after
    assert (found.search.better, found.search.worse, found.search.repaired) == (0, 0, 0)
    assert found.search.broken == ()
    assert found.search.change == (0.0, 0.0, 0.0)


def test_what_is_said_is_what_both_models_do(shop: Path) -> None:
    pictures = shop / "pictures"
    files = find_pictures([pictures])
    texts = read_captions(shop / "captions.csv", pictures, files)
    models = random_clip(0), random_clip(1)
    found = drift(*models, files, pictures, texts)
    from perdure.data.loading import eval_batches
    from perdure.data.own import unlabelled

    ranks, rows = [], []
    assert texts.pictures is not None
    for model in models:
        (batch,) = eval_batches(unlabelled(files), model.preprocess, 64)
        with torch.no_grad():
            image = model.encode_image(batch).numpy()
            text = model.encode_text(model.tokenizer(texts.texts)).numpy()
        scores = text @ image.T
        own = scores[np.arange(12), texts.pictures][:, None]
        ranks.append((scores > own).sum(axis=1) + 1)
        rows.append(image)
    assert found.cosine == pytest.approx(float((rows[0] * rows[1]).sum(1).mean()), abs=1e-5)
    assert found.moved[0][1] == pytest.approx(float((rows[0] * rows[1]).sum(1).min()), abs=1e-5)
    search = found.search
    assert search is not None
    assert search.judged_by == "captions"
    assert search.after["recall_at_5"] == pytest.approx(np.mean(ranks[1] <= 5))
    assert search.worse == (ranks[1] > ranks[0]).sum()
    fell = [(b, a) for b, a in zip(*ranks, strict=True) if b <= 10 < a]
    assert sorted((one.before, one.after) for one in search.broken) == sorted(fell)
    drops = [one.after - one.before for one in search.broken]
    assert drops == sorted(drops, reverse=True)
    for one in search.broken:
        assert one.picture in (shop / "captions.csv").read_text()


def test_queries_without_answers_are_judged_by_the_first_result_before(shop: Path) -> None:
    pictures = shop / "pictures"
    texts = read_queries(shop / "searches.txt")
    assert texts.texts == ("a rat", "a ring on a table")
    found = drift(random_clip(0), random_clip(1), find_pictures([pictures]), pictures, texts)
    assert found.search is not None
    assert found.search.judged_by == "first result before"
    assert found.search.before["recall_at_1"] == 1.0
    assert found.search.n == 2


def test_kept_neighbours_are_those_of_sorting() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(40, 6)).astype(np.float32) for _ in range(2)]
    near = []
    for one in rows:
        scores = one @ one.T
        np.fill_diagonal(scores, -np.inf)
        near.append([set(row.tolist()) for row in (-scores).argsort(axis=1)[:, :7]])
    expected = [len(a & b) / 7 for a, b in zip(*near, strict=True)]
    assert ranking.neighbours_kept(*rows, 7) == pytest.approx(expected)
    with pytest.raises(DataError, match="have no 40 nearest others"):
        ranking.neighbours_kept(*rows, 40)


def test_the_command_prints_a_table_and_json(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, captions = str(shop / "pictures"), str(shop / "captions.csv")
    start = ("drift", "perdure-tiny", "perdure-tiny", "--images", pictures)
    code, out, _ = run(capsys, *start)
    assert code == 0
    assert "on 12 pictures" in out
    assert "nearest 10 pictures kept, %" in out
    assert "search" not in out
    code, out, _ = run(capsys, *start, "--captions", captions)
    assert code == 0
    assert "search by 12 queries" in out
    assert "Ranks: 0 better, 0 worse. First 10: 0 broken, 0 repaired." in out
    code, out, _ = run(capsys, *start, "--queries", str(shop / "searches.txt"), "--json")
    assert code == 0
    document: dict[str, Any] = json.loads(out)
    assert document["search"]["judged_by"] == "first result before"
    assert document["cosine"] == pytest.approx(1.0, abs=1e-5)


def test_bad_input_is_named(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = shop / "pictures"
    files = find_pictures([pictures])
    table = tmp_path / "captions.csv"
    for text, message in (
        ("filepath,caption\nnone.png,a cat\n", r"line 2: none\.png is none of the 12 pictures"),
        ("filepath,label\nb/0.png,cat\n", "has a column of labels"),
        ("path\nb/0.png\n", "has no column for a label or caption"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=message):
            read_captions(table, pictures, files)
    with pytest.raises(DataError, match="allowed endings"):
        read_captions(tmp_path / "captions.xlsx", pictures, files)
    (tmp_path / "searches.txt").write_text("\n \n")
    with pytest.raises(DataError, match="has no query; write one per line"):
        read_queries(tmp_path / "searches.txt")
    with pytest.raises(DataError, match="two or more can be compared"):
        drift(random_clip(0), random_clip(0), files[:1], pictures)
    student = random_clip(0)
    student.attach(Projector(student.clip.visual.output_dim, 32))
    with pytest.raises(TaskError, match="cannot be compared"):
        drift(random_clip(0), student, files, pictures, read_queries(shop / "searches.txt"))
    apart = drift(random_clip(0), student, files, pictures)  # features alone may be compared
    assert apart.search is None
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "1.png").write_bytes(b"no picture")
    (damaged / "2.png").write_bytes(b"no picture")
    start = ("drift", "perdure-tiny", "perdure-tiny", "--images")
    for place in (damaged, tmp_path / "nowhere", tmp_path):
        code, _, err = run(capsys, *start, str(place), "--queries", str(shop / "searches.txt"))
        assert code == 2
        assert err.startswith("Error: ")
        assert "Traceback" not in err
    options = ("--queries", "a.txt", "--captions", "b.csv")
    code, _, err = run(capsys, *start, str(pictures), *options)
    assert code == 2
    assert "captions or queries, not both" in err
