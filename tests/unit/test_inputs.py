"""Pixels and token ids: prompts joined from parts have the ids of whole texts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from perdure.errors import DataError, TaskError, WeightsError
from perdure.inputs import OpenClipTokenizer, fill, places_of, refuse_cut, tokenize_prompts
from perdure.zoo import random_clip

NAMES = [
    "taco", "Fire Engine", "T-shirt", "jack-o'-lantern", "St. Bernard", "co. (ltd)", "café", "",
    "7 up", "a &amp; b", "tench, Tinca tinca", "newt's eye", "'s", "it's", "<end_of_text> x",
    "x" * 60, " spaced  out ", "3D object", "ice-cream/sorbet: cold",
]  # fmt: skip
TEMPLATES = [
    "a photo of a {}", "{}", "a photo of a {}.", "itap of my {}!", "{}, a type of texture.",
    "a {} in the wild.", "a photo of a{}", "the {}'s photo", "{}s", "a {} and a {}", "“{}”",
    "a photo of a {}..", "an  image\tof {}", "a {}-like thing", "&lt;{}", "# {}",
]  # fmt: skip


@pytest.mark.parametrize(("vocabulary", "length"), [("clip", 77), ("emojishift", 150)])
def test_joined_prompts_have_the_ids_of_whole_texts(vocabulary: str, length: int) -> None:
    tokenizer = OpenClipTokenizer(vocabulary, length)
    texts = [fill(template, name) for name, template in itertools.product(NAMES, TEMPLATES)]
    found = tokenize_prompts(tokenizer, NAMES, TEMPLATES)
    assert found.shape == (len(NAMES), len(TEMPLATES), length)
    assert found.dtype == torch.int64
    assert torch.equal(found.flatten(0, 1), tokenizer(texts))


@pytest.mark.parametrize("name", ["taco", "café"])  # joined by words, and tokenised whole
def test_a_text_that_fits_exactly_is_kept_and_a_longer_one_refused(name: str) -> None:
    ids = OpenClipTokenizer("emojishift", 77).ids(f"a photo of a {name}")
    assert ids is not None
    exact = OpenClipTokenizer("emojishift", len(ids) + 2)
    assert int(tokenize_prompts(exact, [name], ["a photo of a {}"])[0, 0, -2]) == ids[-1]
    short = OpenClipTokenizer("emojishift", len(ids) + 1)
    message = f"a photo of a {name}' has {len(ids) + 2} tokens .* reads {len(ids) + 1}"
    with pytest.raises(DataError, match=message):
        tokenize_prompts(short, [name], ["a photo of a {}"])


def test_padding_other_than_zero_is_not_taken_for_text() -> None:
    def tokenize(texts: Sequence[str]) -> Tensor:
        rows = [[*map(ord, text)][:6] for text in texts]
        return torch.tensor([[*row, *[1] * (6 - len(row))] for row in rows])

    refuse_cut(tokenize, ["cat", "horse"], tokenize(["cat", "horse"]))
    with pytest.raises(DataError, match="'elephant' has at least 6 tokens"):
        refuse_cut(tokenize, ["cat", "elephant"], tokenize(["cat", "elephant"]))


@pytest.mark.parametrize("names", [["taco", "tiger"], ["café", "“x”"]])
def test_all_or_none_may_be_joined(names: list[str]) -> None:
    tokenizer = OpenClipTokenizer("emojishift", 20)
    found = tokenize_prompts(tokenizer, names, ["a {}", "{}"])
    texts = [text for name in names for text in (f"a {name}", name)]
    assert torch.equal(found.flatten(0, 1), tokenizer(texts))


def test_imagenet_prompts_are_joined_exactly() -> None:
    import open_clip

    tokenizer = OpenClipTokenizer("clip", 77)
    names = open_clip.IMAGENET_CLASSNAMES[::10]
    templates = [make("{}") for make in open_clip.OPENAI_IMAGENET_TEMPLATES]
    texts = [template.format(name) for name in names for template in templates]
    found = tokenize_prompts(tokenizer, names, templates)
    assert torch.equal(found.flatten(0, 1), tokenizer(texts))


def test_other_tokenizers_get_whole_texts() -> None:
    class Lengths:
        vocabulary = None
        context_length = 2

        def __call__(self, texts: list[str]) -> Tensor:
            return torch.tensor([[len(text), 0] for text in texts])

    found = tokenize_prompts(Lengths(), ["ab", "c"], ["{}", "a {}"])  # type: ignore[arg-type]
    assert found.tolist() == [[[2, 0], [4, 0]], [[1, 0], [3, 0]]]


def test_a_template_needs_a_place_for_the_name() -> None:
    with pytest.raises(TaskError, match=r"'a photo' has no place"):
        tokenize_prompts(OpenClipTokenizer("emojishift", 20), ["taco"], ["{}", "a photo"])


def test_vocabularies_have_sizes_and_unknown_ones_are_refused() -> None:
    assert OpenClipTokenizer("clip", 77).size == 49408
    assert OpenClipTokenizer("emojishift", 20).size == 1715
    with pytest.raises(WeightsError, match="no vocabulary 'klingon'"):
        OpenClipTokenizer("klingon", 77)


def test_the_second_class_of_a_name_keeps_its_own_row_in_any_part_of_the_classes() -> None:
    names = ("tench", "missile", "bus", "missile", "sunglasses")
    assert places_of(names, names) == [0, 1, 2, 3, 4]
    assert places_of(names[1:4], names) == [1, 2, 3]
    assert places_of(("missile", "tench"), names) == [1, 0]
    assert places_of(("missile", "missile"), ("missile", "bus")) == [0, 0]
    model = random_clip(0)
    model.set_head(names, ("a {}",))
    assert model.head is not None
    with torch.no_grad():
        model.head.bias.copy_(torch.arange(5.0))
    images = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    score = [model.logits_fn(each, ("a {}",)) for each in (names, names[1:])]
    whole, part = (fn(model.preprocess.normalize(images)) for fn in score)
    assert torch.allclose(whole[:, 1:], part, atol=1e-5)
    assert (part[0, 2] - part[0, 0]).item() == pytest.approx(2.0, abs=1e-4)  # equal texts
