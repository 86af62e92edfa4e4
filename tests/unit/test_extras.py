"""A missing package is named with what needs it and how to get it, and nothing else is said."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from perdure import zoo
from perdure.building import build
from perdure.doctor import OPTIONAL
from perdure.errors import DependencyError, WeightsError
from perdure.extras import EXTRAS, explain, require
from perdure.inputs import OpenClipTokenizer

TEXT = {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base"}
VISION = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}


@pytest.fixture
def without(monkeypatch):
    def block(package):
        monkeypatch.setitem(sys.modules, package, None)

    return block


def test_what_is_there_is_not_complained_about():
    require("numpy", "arithmetic")
    explain(ValueError("the package transformers is fine"), "a model")


def test_every_extra_is_declared_under_the_name_its_command_gives():
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for package, extra in EXTRAS.items():
        name = re.search(r"perdure\[(\w+)\]", extra.command)[1]
        line = re.search(rf"^{name} = \[(.*)\]$", declared, re.MULTILINE)[1]
        assert package.replace("_", "-") in line
        assert extra.command in OPTIONAL[package]


def test_a_name_of_the_hub_needs_the_hub(without):
    without("huggingface_hub")
    with pytest.raises(DependencyError, match=r"hf-hub:a/b needs .*pip install huggingface_hub"):
        zoo.load("hf-hub:a/b")


@pytest.mark.parametrize("weights", ["laion2b_s12b_b32k", "random"])
def test_a_text_tower_of_hugging_face_needs_their_package(without, weights):
    without("transformers")
    with pytest.raises(DependencyError, match=r"roberta-base needs .*pip install 'perdure\[hf\]'"):
        zoo.load("roberta-ViT-B-32", weights)


def test_a_directory_with_such_a_tower_needs_it_too(without):
    without("transformers")
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
    with pytest.raises(DependencyError, match="roberta-base"):
        build(config)
    with pytest.raises(WeightsError, match="model_cfg"):
        build({"embed_dim": 16, "text_cfg": 3})


def test_a_tokeniser_of_hugging_face_needs_their_package(without):
    without("transformers")
    with pytest.raises(DependencyError, match=r"ViT-B-16-SigLIP needs .*perdure\[hf\]"):
        OpenClipTokenizer("open_clip:ViT-B-16-SigLIP", 64)


def test_a_tokeniser_that_cannot_be_fetched_says_so(monkeypatch):
    def offline(name, context_length):
        raise OSError("cannot reach the hub")

    monkeypatch.setattr("open_clip.get_tokenizer", offline)
    with pytest.raises(WeightsError, match=r"ViT-B-16-SigLIP: cannot reach the hub.*network"):
        OpenClipTokenizer("open_clip:ViT-B-16-SigLIP", 64)


@pytest.mark.parametrize(
    ("name", "command"), [("sentencepiece", "pip install sentencepiece"), (None, r"perdure\[hf\]")]
)
def test_a_package_that_another_library_misses_is_named(monkeypatch, name, command):
    def lacking(*_, **__):
        raise ImportError("needs the sentencepiece library", name=name)

    monkeypatch.setattr("open_clip.create_model", lacking)
    with pytest.raises(DependencyError, match=f"hf-hub:a/b needs .*{command}"):
        zoo.load("hf-hub:a/b")


def test_what_open_clip_says_in_words_is_understood(monkeypatch, without):
    def refuse(*_, **__):
        raise RuntimeError("Please `pip install transformers` to use pre-trained models")

    monkeypatch.setattr("open_clip.create_model", refuse)
    with pytest.raises(WeightsError, match="Please"):
        zoo.load("hf-hub:a/b")
    without("transformers")
    with pytest.raises(DependencyError, match="hf-hub:a/b needs the package transformers"):
        zoo.load("hf-hub:a/b")
