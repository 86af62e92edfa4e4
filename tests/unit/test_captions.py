"""Captions of the embedded world: what they name, and how often they are wrong."""

import numpy as np

from perdure.data.captions import (
    COLOURS,
    DRAWS,
    HYPERNYMS,
    STYLES,
    TEMPLATES,
    caption,
    corpus,
)
from perdure.data.sprites import CLASSES, CONCEPTS, GROUPS, VENDORS
from perdure.inputs import OpenClipTokenizer


def test_every_vendor_has_styles_and_every_group_a_word():
    assert set(STYLES) == set(VENDORS)
    assert set(GROUPS.values()) == set(HYPERNYMS)


def test_captions_name_the_concept_about_as_often_as_documented():
    draws = np.random.default_rng(0).random((4000, DRAWS))
    texts = [caption(row, 5, 0, None, None) for row in draws]
    named = np.mean([CONCEPTS[5] in text for text in texts])
    assert 0.87 < named < 0.91
    styled = np.mean([any(style in text for style in STYLES[VENDORS[0]]) for text in texts])
    assert 0.32 < styled < 0.38


def test_pairs_name_both_and_backgrounds_their_colour():
    draws = [0.5] * DRAWS
    assert caption(draws, 0, 0, None, 1) == f"a {CONCEPTS[0]} next to a {CONCEPTS[1]}"
    draws[6] = 0.1
    assert caption(draws, 0, 0, "teal", None).endswith(" on a teal background")


def test_no_prompt_is_cut_by_the_context():
    tokenizer = OpenClipTokenizer("emojishift", 20)
    longest = [f"{template.format(name)}" for template in TEMPLATES for name in CLASSES]
    longest += [f"a {a} and a {b}" for a in CLASSES for b in CLASSES[::7]]
    longest += [f"a {name} on a {colour} background" for name in CLASSES for colour in COLOURS]
    tokens = tokenizer(longest)
    end = tokens.max()
    assert (tokens[:, -1] == 0).all() or (tokens[tokens[:, -1] != 0, -1] == end).all()
    assert ((tokens == end).sum(dim=1) == 1).all()
    # A text that was cut would lose its last word: ends must differ where the texts do.
    assert len({tuple(row) for row in tokens.tolist()}) == len(set(longest))


def test_the_vocabulary_corpus_has_no_placeholder():
    assert not any("name" in text.split() or "{style}" in text for text, _ in corpus())
