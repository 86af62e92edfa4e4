"""Published data sets in every layout that people have, and what is said of damaged copies."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perdure.data import imagenet_names, published
from perdure.data.coop import SETS
from perdure.data.datasets import open_dataset, templates_for, texts_of, validation_of
from perdure.data.prompts import SETS as PROMPTS
from perdure.data.sentences import pictures_of
from perdure.data.suites import of_task, suite
from perdure.errors import DataError
from perdure.evaluation import evaluate
from perdure.predictor import Predictor
from perdure.zoo import random_clip
from tests import layouts


def refusal(name: str, split: str, root: Path) -> str:
    """Return the paragraph that looking for a split ends with."""
    with pytest.raises(DataError) as caught:
        published.find(name, split, root)
    message = str(caught.value)
    assert "\n" not in message
    assert message[-1] in ".?"
    return message


def model() -> Predictor:
    return random_clip(0, text_cfg={"context_length": 64})


def test_every_published_set_has_prompts_splits_and_a_finder() -> None:
    assert set(published.SPLITS) == set(published.FINDERS)
    for name in published.FINDERS:
        prompts = templates_for(name)
        assert prompts
        assert all(text.count("{}") == 1 for text in prompts)
    assert templates_for("dtd") == ("a photo of a {}, a type of texture.",)
    assert PROMPTS["coop-dtd"]() == ("{} texture.",)
    assert len(templates_for("imagenet")) == 80
    assert len(PROMPTS["simple-7"]()) == 7


def test_names_come_without_torch_and_two_of_them_stand_twice() -> None:
    names = imagenet_names.names()
    assert len(names) == len(imagenet_names.synsets()) == len(set(imagenet_names.synsets())) == 1000
    assert list(imagenet_names.synsets()) == sorted(imagenet_names.synsets())
    assert sorted({name for name in names if names.count(name) > 1}) == ["missile", "sunglasses"]
    assert len(imagenet_names.real_labels()) == 50_000
    assert [len(imagenet_names.members(one)) for one in "ar"] == [200, 200]
    code = (
        "import sys; from perdure.data import imagenet_names as n, published; n.names();"
        "n.real_labels(); assert not {'torch', 'open_clip', 'timm'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("imagenet/train", "imagenet/val_in_folder"),
        ("ILSVRC2012/train", "ILSVRC2012/val_dirs"),
        ("imagenet/images/train", "imagenet/images/val"),
        ("train", "val"),
    ],
)
def test_imagenet_is_found_where_people_have_it(tmp_path: Path, train: str, val: str) -> None:
    layouts.imagenet(tmp_path, train, val)
    if val.endswith("val_dirs"):  # the flat folder that it was made of stays beside it
        layouts.picture(tmp_path / "ILSVRC2012/val/ILSVRC2012_val_00000001.JPEG")
    found = published.find("imagenet", "train", tmp_path)
    assert found.labels.tolist() == list(range(1000))
    assert found.expected == 1_281_167
    test = open_dataset("imagenet", "test", tmp_path)
    assert len(test) == 1000
    assert test.classes == imagenet_names.names()
    assert test.image(3).shape == (3, 9, 12)
    assert found.accepted is None
    accepted = published.find("imagenet", "val", tmp_path).accepted
    assert accepted is not None
    assert accepted == imagenet_names.real_labels()[:1000]


def test_a_flat_folder_and_half_a_download_are_explained(tmp_path: Path) -> None:
    layouts.imagenet(tmp_path, val="imagenet/other")
    layouts.picture(tmp_path / "imagenet/val/ILSVRC2012_val_00000001.JPEG")
    assert "no folders of classes" in refusal("imagenet", "test", tmp_path)
    shutil.rmtree(tmp_path / "imagenet/train/n02119789")
    message = refusal("imagenet", "train", tmp_path)
    assert "lacks 1 of 1000 class folders: n02119789" in message
    assert "half a download" in message
    empty = tmp_path / "imagenet/train/n02119789"
    empty.mkdir()
    assert "holds no picture" in refusal("imagenet", "train", tmp_path)
    assert "looked for the folders" in refusal("imagenet-a", "test", tmp_path)
    assert "does not exist" in refusal("imagenet-a", "test", tmp_path / "nowhere")
    assert "did you mean 'test'" in refusal("imagenet-a", "tests", tmp_path)
    assert "did you mean 'imagenet-a'" in refusal("imagenet-aa", "test", tmp_path)


@pytest.mark.parametrize(
    "place", ["imagenetv2-matched-frequency-format-val", "imagenetv2/ImageNetV2-matched-frequency"]
)
def test_folders_of_numbers_are_labels_and_not_ranks(tmp_path: Path, place: str) -> None:
    layouts.v2(tmp_path, place)
    found = published.find("imagenet-v2", "test", tmp_path)
    row = found.paths.tolist().index(b"10/10_0.jpeg")
    assert found.labels[row] == 10  # as text, "10" comes third
    by_rank = np.argsort(np.argsort([path.split(b"/")[0] for path in found.paths.tolist()]))
    assert (by_rank != found.labels).sum() == 988
    shutil.rmtree(tmp_path / place)
    layouts.class_folders(tmp_path / place, imagenet_names.synsets())
    assert published.find("imagenet-v2", "test", tmp_path).labels.tolist() == list(range(1000))


@pytest.mark.parametrize(
    ("variant", "place"),
    [
        ("r", "imagenet-r"),
        ("r", "imagenet-rendition/imagenet-r"),
        ("a", "imagenet-a"),
        ("a", "imagenet-adversarial/imagenet-a"),
    ],
)
def test_two_hundred_classes_are_columns_of_a_thousand(
    tmp_path: Path, variant: str, place: str
) -> None:
    layouts.part(tmp_path, variant, place)
    found = published.find(f"imagenet-{variant}", "test", tmp_path)
    assert found.labels.tolist() == list(range(200))
    assert found.columns == tuple((one,) for one in imagenet_names.members(variant))
    names = imagenet_names.names()
    assert found.classes[7] == names[imagenet_names.members(variant)[7]]


def test_objectnet_maps_by_its_own_files_and_loses_its_border(tmp_path: Path) -> None:
    layouts.objectnet(tmp_path)
    data = open_dataset("objectnet", "test", tmp_path)
    assert data.classes == ("backpack", "banana")
    assert published.find("objectnet", "test", tmp_path).columns == ((414, 748), (954,))
    assert data.image(0).shape == (3, 5, 8)
    assert open_dataset("objectnet", "uncropped", tmp_path).image(0).shape == (3, 9, 12)
    broken = tmp_path / "objectnet-1.0/mappings/objectnet_to_imagenet_1k.json"
    broken.write_text('{"Banana": "nobody"}')
    assert "'nobody' has no place" in refusal("objectnet", "test", tmp_path)
    broken.write_text("[")
    assert "is not the JSON" in refusal("objectnet", "test", tmp_path)
    shutil.rmtree(broken.parent)
    assert "mappings" in refusal("objectnet", "test", tmp_path)


@pytest.mark.parametrize("place", ["imagenet-c/fog/3", "imagenet-c/weather/fog/3"])
def test_one_corruption_is_a_split(tmp_path: Path, place: str) -> None:
    layouts.class_folders(tmp_path / place, imagenet_names.synsets())
    assert len(published.find("imagenet-c", "fog-3", tmp_path)) == 1000
    assert "fog-3" in refusal("imagenet-c", "fog", tmp_path)
    assert "severity 4" in refusal("imagenet-c", "fog-4", tmp_path)


def test_the_shift_suite_scores_every_set_over_its_own_columns(tmp_path: Path) -> None:
    root = layouts.objectnet(layouts.v2(layouts.imagenet(tmp_path)))
    layouts.part(layouts.part(root, "r", "imagenet-r"), "a", "imagenet-a")
    with pytest.raises(DataError, match="lacks imagenet-sketch"):
        suite("imagenet-shift", root)
    layouts.class_folders(root / "sketch", imagenet_names.synsets())
    shift = suite("imagenet-shift", root)
    assert [one.name for one in shift.splits] == ["id", "v2", "r", "a", "sketch", "objectnet"]
    assert [len(one.columns or ()) for one in shift.splits] == [0, 0, 200, 200, 0, 2]
    assert of_task("imagenet") == "imagenet-shift"
    some = replace(shift, splits=(*shift.splits[:3], shift.splits[5]))
    scores = evaluate(model(), some, root=root, limit=2)
    assert {name: entry["mask"] for name, entry in scores.splits.items()} == {
        "id": None, "v2": None, "r": "imagenet-r-200", "objectnet": "objectnet-2",
    }  # fmt: skip
    shutil.rmtree(root / "objectnet-1.0")
    with pytest.raises(DataError, match="score suite domain-shift"):
        suite("imagenet-shift", root)
    four = suite("domain-shift", root).splits
    assert [one.name for one in four] == ["id", "v2", "sketch", "a", "r"]
    assert len(suite("imagenet-c", root).splits) == 76
    with pytest.raises(DataError, match="--data"):
        suite("imagenet-shift")
    assert validation_of("imagenet") is None


@pytest.mark.parametrize("name", SETS)
def test_the_small_sets_of_coop(tmp_path: Path, name: str) -> None:
    layouts.coop(tmp_path, name)
    for split in ("train", "val", "test"):
        data = open_dataset(name, split, tmp_path)
        assert data.classes == ("red cat", "dog", "bus", "cup")
        assert data.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert data.image(0).shape == (3, 9, 12)
    base = open_dataset(name, "train", tmp_path, shots=1, sampling="coop", classes="base")
    assert (base.classes, len(base)) == (("red cat", "dog"), 2)
    assert [one.classes for one in suite(f"base-to-novel-{name}", tmp_path).splits] == [
        "base", "novel",
    ]  # fmt: skip


def test_lists_of_coop_that_are_wrong(tmp_path: Path) -> None:
    layouts.coop(layouts.coop(tmp_path, "dtd"), "fgvc_aircraft")
    lists = tmp_path / "dtd/split_zhou_DescribableTextures.json"
    good = lists.read_text()
    for text, reason in (
        ("{", "not a division"),
        ("{}", "not a division"),
        (good.replace('0, "red_cat"', '9, "red_cat"'), "no training picture has label 0"),
        (good.replace('"dog"', '"red_cat"'), "two classes are called"),
        (good.replace('0, "red_cat"', '0, "cat"', 1), "label 0 is 'cat'"),
    ):
        lists.write_text(text)
        assert reason in refusal("dtd", "train", tmp_path)
    lists.unlink()
    assert "cannot read" in refusal("dtd", "train", tmp_path)
    (tmp_path / "fgvc_aircraft/images_variant_test.txt").write_text("test-dog-0 spaceship\n")
    assert "'spaceship' is no line" in refusal("fgvc_aircraft", "test", tmp_path)
    assert "shot_16-seed_1" in refusal("dtd", "id", tmp_path)


def test_old_pickles_are_read_and_run_nothing(tmp_path: Path) -> None:
    layouts.coop(tmp_path, "eurosat")
    folder = tmp_path / "eurosat/split_fewshot"
    folder.mkdir()
    module = types.ModuleType("dassl.data.datasets.base_dataset")
    datum = type("Datum", (), {"__module__": module.__name__})
    module.Datum = datum  # type: ignore[attr-defined]
    rows = []
    for label, text in enumerate(("red_cat", "dog")):
        row = datum()
        path = f"/home/somebody/data/eurosat/2750/train-{text}-1.jpg"
        row.__dict__ |= {"_impath": path, "_label": label, "_classname": text, "_domain": -1}
        rows.append(row)
    parents = ("dassl", "dassl.data", "dassl.data.datasets")
    fakes = {name: types.ModuleType(name) for name in parents} | {module.__name__: module}
    sys.modules.update(fakes)
    try:
        stored = pickle.dumps({"train": rows, "val": rows[:1]})
    finally:
        for name in fakes:
            del sys.modules[name]
    (folder / "shot_1-seed_1.pkl").write_bytes(stored)
    few = open_dataset("eurosat", "shot_1-seed_1", tmp_path)
    assert few.labels.tolist() == [0, 1]
    assert few.image(1).shape == (3, 9, 12)
    assert len(open_dataset("eurosat", "shot_1-seed_1/val", tmp_path)) == 1

    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (tmp_path / "ran",))

    (folder / "shot_2-seed_1.pkl").write_bytes(pickle.dumps({"train": [Evil()]}))
    assert "nothing of it was run" in refusal("eurosat", "shot_2-seed_1", tmp_path)
    assert not (tmp_path / "ran").exists()
    assert "data.sampling=coop" in refusal("eurosat", "shot_4-seed_1", tmp_path)


def test_iwildcam(tmp_path: Path) -> None:
    layouts.iwildcam(tmp_path)
    for split in published.SPLITS["iwildcam"]:
        data = open_dataset("iwildcam", split, tmp_path)
        assert data.classes == ("empty", "tayassu pecari", "puma")
        assert data.labels.tolist() == [0, 1, 2]
        assert data.image(1).shape == (3, 9, 12)
    base = tmp_path / "iwildcam_v2.0"
    (base / "classes.txt").write_text("nothing\npeccary\ncougar\n")
    assert open_dataset("iwildcam", "train", tmp_path).classes[1] == "peccary"
    assert suite("wilds", tmp_path).splits[0].split == "id_test"
    assert validation_of("iwildcam") == "id_val"
    # Published names stand twice: two labels are "unknown bird".
    (base / "classes.txt").write_text("bird\npeccary\nbird\n")
    assert open_dataset("iwildcam", "train", tmp_path).classes == ("bird", "peccary", "bird")
    (base / "classes.txt").unlink()
    lines = ["y,category_id,name,english", "0,0,empty,empty", "2,6,puma,Cougar"]
    lines += ["1,2,tayassu pecari,White-lipped peccary", "99999,9,start,Start"]
    (base / "labels.csv").write_text("\n".join(lines) + "\n")
    names = open_dataset("iwildcam", "train", tmp_path).classes
    assert names == ("empty", "White-lipped peccary", "Cougar")
    scores = evaluate(model(), "wilds", root=tmp_path)
    assert scores["ood"]["published"] == "macro_f1"
    assert scores.summary()["macro_f1_ood"]["value"] == scores["ood"]["macro_f1"]
    low, high = scores["ood"]["macro_f1_interval"]
    assert low <= scores["ood"]["macro_f1"] <= high
    metadata = (base / "metadata.csv").read_text()
    for text, reason in (
        (metadata.replace(",", ";"), "separated by something else"),
        (metadata.replace("train-1.jpg,1", "train-1.jpg,7"), "line 3: y is '7'"),
        (metadata + "15,train\n", "cut off"),
        (metadata.replace(",train,", ",trian,"), "no row of split 'train'"),
    ):
        (base / "metadata.csv").write_text(text)
        assert reason in refusal("iwildcam", "train", tmp_path)


def test_fmow_counts_sequences_and_knows_years_and_regions(tmp_path: Path) -> None:
    layouts.fmow(tmp_path)
    found = {split: published.find("fmow", split, tmp_path) for split in published.SPLITS["fmow"]}
    assert [len(one) for one in found.values()] == [3, 3, 3, 3, 3]
    assert found["id_val"].paths.tolist()[0] == b"rgb_img_6.png"  # after three left-out sequences
    assert found["val"].classes == ("car dealership", "dam", "zoo")
    test = found["test"]
    assert test.groups is not None
    assert [test.group_names[g] if g >= 0 else None for g in test.groups] == [
        "Europe", "Africa", None,
    ]  # fmt: skip
    assert open_dataset("fmow", "test", tmp_path).image(0).shape == (3, 9, 12)
    scores = evaluate(model(), "wilds", root=tmp_path)
    assert scores.summary()["worst_group_ood"]["value"] == scores["ood"]["worst_group_accuracy"]
    low, high = scores["ood"]["worst_group_interval"]
    assert low <= scores["ood"]["worst_group_accuracy"] <= high
    assert "macro_f1_ood" not in scores.summary()
    layouts.iwildcam(tmp_path)
    with pytest.raises(DataError, match="two tasks"):
        suite("wilds", tmp_path)
    file = tmp_path / "fmow_v1.1/rgb_metadata.csv"
    file.write_text(file.read_text().replace("2016-01", "late-01"))
    assert "starts with no year" in refusal("fmow", "test", tmp_path)


@pytest.mark.parametrize("kind", ["karpathy", "splits", "ids"])
def test_captions_of_coco_in_three_formats(tmp_path: Path, kind: str) -> None:
    layouts.coco(tmp_path, kind)
    train, test = (published.find("coco", split, tmp_path) for split in ("train", "test"))
    assert pictures_of(train) == 2  # restval is trained on
    assert len(train) == (10 if kind == "ids" else 12)
    assert test.labels.tolist() == [0] * 5 + [1] * 5
    assert test.classes[0] == "A cat, on a mat. 3"
    assert not any("sixth" in text for text in test.classes)
    data = open_dataset("coco", "test", tmp_path)
    assert data.captioned
    assert data.image(9).shape == (3, 9, 12)
    assert texts_of(data).tolist() == list(range(10))


@pytest.mark.parametrize("kind", ["karpathy", "lines"])
def test_captions_of_flickr_hold_commas(tmp_path: Path, kind: str) -> None:
    layouts.flickr(tmp_path, kind)
    test = published.find("flickr30k", "test", tmp_path)
    assert (pictures_of(test), len(test)) == (2, 10)
    assert test.classes[5] == "A cat, on a mat. 4"
    assert open_dataset("flickr30k", "test", tmp_path).image(0).shape == (3, 9, 12)
    if kind == "lines":
        file = tmp_path / "flickr30k/flickr30k_test_karpathy.txt"
        file.write_text("image,caption\n3.jpg;a cat\n")
        assert "line 2" in refusal("flickr30k", "test", tmp_path)
    else:
        (tmp_path / "flickr30k/dataset_flickr30k.json").write_text("[]")
        assert "no file of captions" in refusal("flickr30k", "test", tmp_path)


def test_captions_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    assert "dataset_coco.json" in refusal("coco", "test", tmp_path)
    layouts.coco(tmp_path / "ids", "ids")
    np.save(tmp_path / "ids/coco/annotations/coco_test_ids.npy", np.array([999]))
    assert "caption 999" in refusal("coco", "test", tmp_path / "ids")


def test_shots_of_a_class_and_not_of_captions(tmp_path: Path) -> None:
    layouts.coop(layouts.coco(tmp_path, "karpathy"), "ucf101")
    few = open_dataset("ucf101", "train", tmp_path, shots=1)
    assert few.labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="captions, no classes"):
        open_dataset("coco", "train", tmp_path, shots=1)
