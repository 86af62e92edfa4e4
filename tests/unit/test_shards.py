"""Shards of tar files: forms, order, resuming, and every kind of damage."""

from __future__ import annotations

import io
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from perdure import training
from perdure.data.check import check
from perdure.data.datasets import open_dataset, templates_for, texts_of
from perdure.data.paired import picture_numbers
from perdure.data.shard_index import Index
from perdure.data.suites import suite
from perdure.errors import DataError
from perdure.evaluation import evaluate
from perdure.recipe import load_recipe
from perdure.run import Run
from perdure.zoo import random_clip
from tests.layouts import JPEGS, shard


def captioned(root: Path, shards: int = 3, each: int = 4) -> Path:
    for number in range(shards):
        first = number * each
        samples = [
            {"jpg": JPEGS[one % 4], "txt": f"thing {one}".encode(), "json": b"{}"}
            for one in range(first, first + each)
        ]
        shard(root / f"{number:05d}.tar", samples, first)
    return root


def labelled(root: Path, split: str = "train") -> Path:
    for number in range(2):
        samples = [{"cls": str(one % 3).encode(), "png": JPEGS[one % 4]} for one in range(5)]
        shard(root / split / f"{number}.tar", samples)
    (root / split / "nshards.txt").write_text("2\n")
    (root / "classnames.txt").write_text("cat\ndog\nbus\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na {c}.\n")
    return root


def test_captions_of_a_folder_a_range_and_a_union(tmp_path: Path) -> None:
    captioned(tmp_path)
    data = open_dataset("wds", "train", tmp_path)
    assert data.captioned
    assert data.classes == tuple(f"thing {one}" for one in range(12))
    assert data.image(5).shape == (3, 9, 12)
    one = open_dataset("wds", "train", tmp_path / "{00000..00001}.tar")
    assert len(one) == 8
    union = f"{tmp_path}/00002.tar::{tmp_path}/00000.tar"
    assert open_dataset("wds", "train", Path(union)).classes[0] == "thing 8"
    assert templates_for("wds", tmp_path) == ("{}",)


def test_labels_names_and_prompts_lie_beside_them(tmp_path: Path) -> None:
    labelled(labelled(tmp_path), "test")
    data = open_dataset("wds", "test", tmp_path)
    assert data.classes == ("cat", "dog", "bus")
    assert data.labels.tolist() == [0, 1, 2, 0, 1] * 2
    assert templates_for("wds", tmp_path) == ("a photo of a {}.", "a {}.")
    assert len(open_dataset("wds", "train", tmp_path, shots=1)) == 3


def refusal(root: Path, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        open_dataset("wds", split, root)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_damage_is_an_error_or_a_counted_skip(tmp_path: Path) -> None:
    captioned(tmp_path)
    whole = (tmp_path / "00001.tar").read_bytes()
    for content, reason, kept in (
        (whole[: 512 * 7 + 100], "damaged behind|cut off", 10),
        (whole[: 512 * 12 * 2 // 2], "cut off", None),
        (b"not a tar file at all" * 50, "is damaged behind its start", 8),
        (b"", "is damaged behind its start", 8),
    ):
        (tmp_path / "00001.tar").write_bytes(content)
        assert any(one in refusal(tmp_path) for one in reason.split("|"))
        with pytest.warns(UserWarning, match="left out"):
            data = open_dataset("wds", "train", tmp_path, damaged="skip")
        assert data.skipped >= 1
        assert len(data) + 1 >= (kept or 8)
        assert len(data) < 12
    good = {"jpg": JPEGS[0], "txt": b"a"}
    for sample, reason in (
        ({"txt": b"alone"}, "has no picture"),
        ({"jpg": JPEGS[0]}, "neither a label"),
        ({"jpg": JPEGS[0], "txt": b"\xff"}, "is not UTF-8"),
    ):
        shard(tmp_path / "00001.tar", [good, sample])
        assert reason in refusal(tmp_path)
        with pytest.warns(UserWarning, match="1 damaged samples"):
            assert len(open_dataset("wds", "train", tmp_path, damaged="skip")) == 9
    shard(tmp_path / "00001.tar", [{"jpg": JPEGS[0], "cls": b"1"}])
    assert "same kind of text" in refusal(tmp_path)
    shard(tmp_path / "00001.tar", [{"jpg": b"no picture", "txt": b"x"}])
    with pytest.raises(DataError, match=r"000000 in .*00001\.tar"):
        open_dataset("wds", "train", tmp_path).image(4)


def test_shards_that_are_missing(tmp_path: Path) -> None:
    captioned(tmp_path)
    assert "the first is" in refusal(tmp_path / "{00000..00004}.tar")
    assert "no shard of split 'val'" in refusal(tmp_path, "val")
    assert "which are split train" in refusal(tmp_path / "00000.tar", "test")
    labelled(tmp_path / "l")
    (tmp_path / "l/train/1.tar").unlink()
    assert "nshards.txt says 2" in refusal(tmp_path / "l")
    (tmp_path / "l/train/nshards.txt").unlink()
    (tmp_path / "l/classnames.txt").write_text("cat\ndog\n")
    assert "labels are 0 to 1" in refusal(tmp_path / "l")
    with pytest.raises(DataError, match="only shards"):
        open_dataset("own", "train", tmp_path, damaged="skip")


def test_a_shard_that_shrinks_while_training(tmp_path: Path) -> None:
    data = open_dataset("wds", "train", captioned(tmp_path))
    file = tmp_path / "00002.tar"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="shorter than when training began"):
        data.image(11)


def test_training_resumes_and_needs_no_more_shards_than_processes(tmp_path: Path) -> None:
    root = captioned(tmp_path / "data", shards=1, each=8)
    random_clip(0).export_open_clip(tmp_path / "clip")
    changes = (
        f"model.name=local-dir:{tmp_path / 'clip'}",
        "data.name=wds",
        f"data.root={root}",
        "data.shots=null",
        "optim.batch_size=3",
        "optim.epochs=null",
        "optim.steps=4",
        "run.save_every=2",
        "run.keep=true",
    )
    recipe = load_recipe("emojishift/flyp", changes)
    whole = training.train(recipe, tmp_path / "whole").predictor()
    more = load_recipe("emojishift/flyp", (*changes, "run.workers=2"))  # than there are shards
    training.train(more, tmp_path / "again")
    stopped = Run(tmp_path / "again")
    shutil.rmtree(stopped.path / "predictor")
    shutil.rmtree(stopped.states / "step_00000004")
    again = training.train(recipe, stopped.path, resume=True).predictor()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_a_killed_worker_ends_in_one_sentence_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill what the system kills when memory runs out, in the middle of a run."""
    root = captioned(tmp_path / "data", shards=1, each=8)
    random_clip(0).export_open_clip(tmp_path / "clip")
    changes = (
        f"model.name=local-dir:{tmp_path / 'clip'}",
        "data.name=wds",
        f"data.root={root}",
        "data.shots=null",
        "optim.batch_size=4",
        "optim.epochs=null",
        "optim.steps=5",
        "run.save_every=1",
        "run.keep=true",
    )
    whole = load_recipe("emojishift/flyp", changes)
    untouched = training.train(whole, tmp_path / "untouched").predictor()
    read, calls = Index.read, []

    def dies(self: Index, row: int) -> bytes:
        calls.append(row)  # counts in the worker, which is a copy of this process
        if len(calls) > 12:  # the fourth batch, which is asked for behind the first step
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, row)

    monkeypatch.setattr(Index, "read", dies)
    broken = load_recipe("emojishift/flyp", (*changes, "run.workers=1"))
    with pytest.raises(DataError) as caught:
        training.train(broken, tmp_path / "run")
    message = str(caught.value)
    assert "ended from outside" in message
    assert "DataLoader worker (pid" in message
    assert "--resume" in message
    assert "\n" not in message
    assert not calls, "the kill must happen in a process of its own"
    run = Run(tmp_path / "run")
    assert run.status()["state"] == "failed"
    assert "ended from outside" in run.status()["error"]
    assert 1 <= run.status()["step"] <= 3
    monkeypatch.setattr(Index, "read", read)
    resumed = training.train(broken, run.path, resume=True).predictor()
    for name, value in untouched.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_fifty_shards_are_indexed_from_their_headers(tmp_path: Path) -> None:
    captioned(tmp_path, shards=50, each=20)
    data = open_dataset("wds", "train", tmp_path)
    assert len(data) == 1000
    assert data.index.places.nbytes == 24_000
    assert np.unique(data.index.places[:, 0]).tolist() == list(range(50))


def test_lines_are_captions_where_the_shards_say_retrieval(tmp_path: Path) -> None:
    """As clip_benchmark writes them; joined, five captions would be one that no model has seen."""
    texts = [f"a cat {one}\n\na cat\n  thing  {one}" for one in range(4)]
    for split in ("train", "test"):
        rows = [{"jpg": JPEGS[one], "txt": text.encode()} for one, text in enumerate(texts)]
        shard(tmp_path / split / "0.tar", rows[:2])
        shard(tmp_path / split / "1.tar", rows[2:], 2)
    joined = open_dataset("wds", "test", tmp_path)
    assert joined.classes[0] == "a cat 0 a cat thing 0"
    (tmp_path / "dataset_type.txt").write_text("retrieval\n")
    opened = open_dataset("wds", "test", tmp_path)
    assert opened.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [opened.classes[text] for text in texts_of(opened)[:6]] == [
        "a cat 0", "a cat", "thing 0", "a cat 1", "a cat", "thing 1",
    ]  # fmt: skip
    part = check(tmp_path).parts[0]
    assert (part.rows, part.pictures) == (12, 4)
    model = random_clip(0)
    scores = evaluate(model, "retrieval", root=tmp_path)
    assert [entry["n"] for entry in scores.splits.values()] == [4, 12]
    assert scores["wds_image_to_text"]["captions"] == 12
    (tmp_path / "dataset_type.txt").write_text("multilabel")
    assert "several labels, which perdure does not score" in refusal(tmp_path, "test")


def test_pictures_of_one_caption_are_still_two_pictures(tmp_path: Path) -> None:
    rows = [{"jpg": JPEGS[one], "txt": text} for one, text in enumerate((b"cat", b"dog", b"cat"))]
    shard(tmp_path / "test/0.tar", rows)
    opened = open_dataset("wds", "test", tmp_path)
    assert opened.labels.tolist() == [0, 1, 0]  # positives of each other
    assert picture_numbers(opened).tolist() == [0, 1, 2]
    assert check(tmp_path).parts[0].pictures == 3
    assert evaluate(random_clip(0), "retrieval", root=tmp_path)["wds_image_to_text"]["n"] == 3


def test_labels_may_be_arrays_and_names_stand_twice(tmp_path: Path) -> None:
    def array(value: object) -> bytes:
        stream = io.BytesIO()
        np.save(stream, np.array(value), allow_pickle=True)
        return stream.getvalue()

    rows = [{"jpg": JPEGS[one], "npy": array(one)} for one in range(3)]
    shard(tmp_path / "test/0.tar", rows)
    shard(tmp_path / "ood_fog/0.tar", rows)
    (tmp_path / "classnames.txt").write_text("missile\nbus\nmissile\n")
    opened = open_dataset("wds", "test", tmp_path)
    assert opened.labels.tolist() == [0, 1, 2]
    assert opened.classes == ("missile", "bus", "missile")
    scores = evaluate(random_clip(0), "wds", root=tmp_path)
    assert {name: entry["role"] for name, entry in scores.splits.items()} == {
        "id": "id", "fog": "ood",
    }  # fmt: skip
    for wrong in ([1, 2], 0.5, {"code": print}):
        shard(tmp_path / "test/0.tar", [{"jpg": JPEGS[0], "npy": array(wrong)}])
        assert "is no whole number" in refusal(tmp_path, "test")
    with pytest.raises(DataError, match="neither split test nor val"):
        suite("wds", tmp_path / "test")


def test_lists_in_braces(tmp_path: Path) -> None:
    captioned(tmp_path)
    assert len(open_dataset("wds", "train", tmp_path / "0000{0,2}.tar")) == 8
    assert len(open_dataset("wds", "train", tmp_path / "{0000{0..1},00002}.tar")) == 12
