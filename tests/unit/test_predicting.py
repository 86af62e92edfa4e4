"""Predicting and calibrating: the right classifier, its own temperature, and clear refusals."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from perdure import metrics
from perdure.calibration import FILE, calibrate, stored
from perdure.data.class_names import read_list
from perdure.data.own import unlabelled
from perdure.data.suites import suite
from perdure.errors import DataError, RunError, TaskError, WeightsError
from perdure.merging import merge
from perdure.opening import find_templates
from perdure.predicting import find_pictures, predict_files
from perdure.prediction import How, gather, open_validation, stay
from perdure.recipe import DataSpec
from perdure.subjects import find
from perdure.zoo import random_clip
from tests import layouts

NAMES = ("taco", "banana", "tiger")
PROMPTS = ("a drawing of a {}.",)


def keep(predictor, path):
    """Make a run of a predictor."""
    predictor.save(path.with_name(f"{path.name}-model"))
    return merge("zero-shot", [str(path.with_name(f"{path.name}-model"))], path).path


@pytest.fixture
def text_run(tmp_path):
    return keep(random_clip(0), tmp_path / "text")


@pytest.fixture
def head_run(tmp_path):
    predictor = random_clip(0)
    predictor.set_head(NAMES, PROMPTS)
    with torch.no_grad():
        predictor.head.weight.mul_(1.5)
        predictor.head.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    return keep(predictor, tmp_path / "head")


@pytest.fixture
def pictures(tmp_path):
    """Five pictures of several kinds and sizes, in two folders."""
    place = tmp_path / "pictures"
    (place / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("b.png", (40, 40)), ("a.jpg", (60, 50)), ("more/c.PNG", (33, 70))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(place / name)
    Image.fromarray(rng.integers(0, 256, (45, 45), dtype=np.uint8)).save(place / "grey.png")
    Image.new("P", (50, 50)).save(place / "palette.gif")
    (place / "notes.txt").write_text("not a picture")
    return place


def test_probabilities_are_those_of_the_text_tower(text_run, pictures):
    found = predict_files(text_run, [pictures], NAMES, PROMPTS)
    names = [str(path.relative_to(pictures)) for path in found.files]
    assert names == ["a.jpg", "b.png", "grey.png", "more/c.PNG", "palette.gif"]
    assert (found.classifier, found.temperature) == ("text", None)
    predictor = find(text_run).predictor()
    image = unlabelled(found.files).image(1)
    assert image.shape == (3, 40, 40)
    logits = predictor.logits_fn(NAMES, PROMPTS)(predictor.preprocess.normalize(image[None]))
    np.testing.assert_allclose(found.probabilities[1], logits.softmax(1)[0].numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)


def test_batches_do_not_change_the_result(text_run, pictures):
    whole = predict_files(text_run, [pictures], NAMES, how=How(batch_size=8))
    told = []
    parts = predict_files(text_run, [pictures], NAMES, how=How(batch_size=2, progress=told.append))
    np.testing.assert_allclose(parts.probabilities, whole.probabilities, atol=1e-6)
    assert told == [2, 2, 1]


def test_the_head_scores_its_own_classes_and_the_text_tower_others(head_run, pictures):
    own = predict_files(head_run, [pictures / "b.png"])
    assert (own.classes, own.classifier, own.templates) == (NAMES, "head", PROMPTS)
    some = predict_files(head_run, [pictures / "b.png"], NAMES[1:])
    assert some.classifier == "head"
    ratio = own.probabilities[0, 1] / own.probabilities[0, 2]
    assert some.probabilities[0, 0] / some.probabilities[0, 1] == pytest.approx(ratio, rel=1e-4)
    assert predict_files(head_run, [pictures / "b.png"], [*NAMES, "car"]).classifier == "text"


def test_a_photo_is_turned_upright(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: rotate by 90 degrees to see it
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = unlabelled((tmp_path / "turned.png",)).image(0)
    assert image.shape == (3, 30, 20)
    assert image[:, 0].float().mean() > 200 > 50 > image[:, -1].float().mean()


def test_both_formats_say_the_same(text_run, pictures):
    names = ("taco, hard", 'a "quoted" one')
    found = predict_files(text_run, [pictures], names)
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    images = json.loads(found.to_json())["images"]
    assert len(rows) == len(images) == 5
    for row, image in zip(rows, images, strict=True):
        assert row["image"] == image["image"]
        assert row["prediction"] == image["prediction"]
        shares = [float(row[f"p:{name}"]) for name in names]
        assert shares == pytest.approx(image["probabilities"], abs=1e-6)
        assert max(shares) == pytest.approx(image["probability"], abs=1e-6)


def test_calibration_is_the_optimum_on_val_and_is_stored(tmp_path):
    text_run = merge("zero-shot", ["perdure-tiny"], tmp_path / "tiny").path
    how = How(limit=160)
    found = calibrate(text_run, "emojishift", how)
    unit = open_validation(suite("emojishift"), how)
    logits, labels = gather(find(text_run).predictor(), {0.0: stay}, unit, how)[0.0]
    assert (found.split, found.n, found.classifier) == ("val", 160, "text")
    assert found.nll_before == pytest.approx(metrics.nll(logits, labels))
    assert found.nll_after == pytest.approx(metrics.nll(logits / found.temperature, labels))
    for factor in (0.97, 1.03):
        assert metrics.nll(logits / (factor * found.temperature), labels) > found.nll_after
    assert found.nll_after < found.nll_before
    assert stored(find(text_run)) == found
    record = json.loads((text_run / FILE).read_text())
    assert (record["format"], record["temperature"]) == (1, found.temperature)


def test_a_validation_split_keeps_its_own_name(tmp_path):
    layouts.iwildcam(tmp_path)
    run = merge("zero-shot", ["perdure-tiny"], tmp_path / "tiny").path
    found = calibrate(run, "wilds-iwildcam", How(root=tmp_path))
    assert (found.dataset, found.split, found.n) == ("iwildcam", "id_val", 3)
    assert stored(find(run)) == found


def test_predictions_use_the_stored_temperature(text_run, pictures):
    plain = predict_files(text_run, [pictures], NAMES, PROMPTS)
    temperature = calibrate(text_run, "emojishift", How(limit=160)).temperature
    found = predict_files(text_run, [pictures], NAMES, PROMPTS)
    assert found.temperature == temperature
    expected = metrics.softmax(np.log(plain.probabilities) / temperature)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4)


def test_a_temperature_of_the_text_tower_is_not_used_for_the_head(head_run, pictures):
    found = calibrate(head_run, "emojishift", How(limit=80))
    assert found.classifier == "text"  # the head knows three other classes
    assert predict_files(head_run, [pictures]).temperature is None
    assert predict_files(head_run, [pictures], ["car"]).temperature == found.temperature


def test_a_stale_or_damaged_calibration_is_refused(text_run, pictures):
    calibrate(text_run, "emojishift", How(limit=80))
    path = text_run / FILE
    record = json.loads(path.read_text())
    for change, word in (
        ({"format": 2}, "another format"),
        ({"temperature": 0.0}, "damaged"),
        ({"temperature": "hot"}, "damaged"),
        ({"temperature": None}, "damaged"),
        ({"unknown": 1}, "damaged"),
        ({"predictor_sha256": "0"}, "other weights"),
    ):
        path.write_text(json.dumps(record | change))
        with pytest.raises(RunError, match=rf"{word}.*perdure calibrate"):
            predict_files(text_run, [pictures], NAMES)
    path.write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        predict_files(text_run, [pictures], NAMES)


def test_only_runs_are_calibrated(tmp_path):
    with pytest.raises(RunError, match=r"not a run.*perdure-tiny"):
        calibrate("perdure-tiny")


def test_unreadable_pictures_are_named_before_anything_is_computed(text_run, pictures):
    for name in ("x.png", "y.jpg"):
        (pictures / name).write_bytes(b"no picture at all")
    with pytest.raises(DataError, match=r"2 pictures cannot be read: .*x\.png, .*y\.jpg"):
        predict_files(text_run, [pictures], NAMES)


def test_a_picture_that_breaks_off_is_named(text_run, pictures):
    whole = (pictures / "a.jpg").read_bytes()
    (pictures / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot read the picture .*a\.jpg"):
        predict_files(text_run, [pictures], NAMES)


def test_places_without_pictures(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        find_pictures([tmp_path / "empty"])
    with pytest.raises(DataError, match="does not exist"):
        find_pictures([tmp_path / "nowhere.png"])
    with pytest.raises(DataError, match="0 pictures"):
        find_pictures([])


def test_classes_and_templates_are_needed_where_nothing_names_them(text_run, pictures):
    with pytest.raises(TaskError, match="--classes"):
        predict_files(text_run, [pictures])
    with pytest.raises(TaskError, match="no place for the class name"):
        predict_files(text_run, [pictures], NAMES, ["a photo"])
    assert predict_files(text_run, [pictures], NAMES).templates == ("a photo of a {}.",)


def test_a_model_that_is_not_finite(tmp_path, pictures):
    broken = random_clip(0)
    with torch.no_grad():
        broken.clip.visual.proj.fill_(float("nan"))
    with pytest.raises(WeightsError, match="not finite"):
        predict_files(keep(broken, tmp_path / "broken"), [pictures], NAMES)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.txt", "taco\n\n  banana \r\nicy\u2028tea\n", None),
        ("a.txt", "\ufefftaco\nbanana\n", ("taco", "banana")),
        ("a.txt", "n01\ttaco\nn02\tbanana\n", ("taco", "banana")),
        ("a.json", '["taco", "banana"]', ("taco", "banana")),
        ("a.json", '{"classes": ["taco", "banana"], "templates": []}', ("taco", "banana")),
    ],
)
def test_names_are_read(tmp_path, name, text, found):
    (tmp_path / name).write_text(text, encoding="utf-8")
    read = read_list(tmp_path / name, "classes")
    assert read == (found or ("taco", "banana", "icy\u2028tea"))


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a.txt", b"\n \n", "is empty"),
        ("a.txt", b"taco\nbanana\ntaco\n", "'taco' more than once"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.json", b"{", "cannot read classes"),
        ("a.json", b'{"names": []}', "holds no list of classes"),
        ("a.json", b'["taco", 1]', "holds no list of classes"),
        ("a.txt", b"n01\ttaco\ntiger\n", "every line is 'folder<TAB>name'"),
        ("b.txt", None, r"cannot read .*b\.txt"),
    ],
)
def test_wrong_files_of_names(tmp_path, name, text, word):
    if text is not None:
        (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError, match=word):
        read_list(tmp_path / name, "classes")


def test_kinds_of_pictures_that_pillow_would_turn_into_other_numbers(tmp_path):
    deep = np.full((40, 40), 40_000, dtype=np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        assert unlabelled((tmp_path / name,)).image(0).unique().tolist() == [40_000 // 256]
    Image.fromarray(np.full((40, 40), 70_000, dtype=np.int32)).save(tmp_path / "wide.tif")
    Image.fromarray(np.full((40, 40), 0.5, dtype=np.float32)).save(tmp_path / "real.tif")
    Image.new("RGB", (40, 40)).save(tmp_path / "printed.eps")  # its decoder runs a program
    (tmp_path / "printed.eps").rename(tmp_path / "printed.png")
    for name in ("wide.tif", "real.tif", "printed.png"):
        with pytest.raises(DataError, match=rf"cannot read the picture .*{name}"):
            unlabelled((tmp_path / name,)).image(0)
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    for name in ("film.gif", "film.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert unlabelled((tmp_path / name,)).image(0)[:, 20, 20].tolist() == [255, 0, 0]


def test_what_systems_keep_beside_pictures_is_passed_over(tmp_path, pictures):
    before = find_pictures([pictures])
    (pictures / "._a.jpg").write_bytes(b"of a Mac")
    (pictures / ".thumbnails").mkdir()
    Image.new("RGB", (8, 8)).save(pictures / ".thumbnails" / "a.png")
    assert find_pictures([pictures]) == before
    hidden = tmp_path / ".hidden"
    pictures.rename(hidden)
    assert len(find_pictures([hidden])) == len(before)


def test_a_very_large_picture_warns_nobody_and_a_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("L", (150, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert unlabelled((tmp_path / "large.png",)).image(0).shape == (
        3,
        100,
        150,
    )  # warnings are errors
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7_000)
    with pytest.raises(DataError, match=r"large\.png .*exceeds limit"):
        unlabelled((tmp_path / "large.png",)).image(0)


def test_prompts_of_a_recipe_may_be_listed_in_a_file(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("a photo of a {}.\n\nart of {}\n")
    spec = DataSpec(name="own", root=tmp_path, templates=str(file))
    assert find_templates(spec) == ("a photo of a {}.", "art of {}")
    file.with_suffix(".json").write_text('["{}!"]')
    assert find_templates(replace(spec, templates=str(file.with_suffix(".json")))) == ("{}!",)
    assert find_templates(replace(spec, templates="simple-7"))[0] == "itap of a {}."
    for text, message in (("art\n", "'art' of .* has no {}"), ("", "is empty")):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            find_templates(spec)
    file.unlink()
    with pytest.raises(DataError, match=r"cannot read .*mine\.txt"):
        find_templates(spec)
