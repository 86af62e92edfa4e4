"""Small pieces of R-Adapter's released code: rates, ranks, heads, masks, harmonic means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from perdure.heads import head_of
from perdure.metrics import harmonic_mean
from perdure.optim import warmup_cosine
from perdure.prediction import select_columns
from perdure.ranking import rank, recalls

PER_IMAGE = 5


@pytest.mark.parametrize("case", ["imagenet", "fewshot", "tiny", "warmup_longer_than_run"])
def test_rates_are_those_of_the_release_without_its_floor(golden, case: str) -> None:
    known = golden("r_adapter_misc")
    base, warmup, total, least = known[f"lr/{case}/base_warmup_total_min"]
    factor = warmup_cosine(int(total), int(warmup))
    for step, rate in zip(known[f"lr/{case}/steps"], known[f"lr/{case}/lr"], strict=True):
        # The release adds its floor of 1e-6 behind the warm-up, where the rate jumps; see `optim`.
        floor = 0.0 if step < warmup else least
        assert base * factor(int(step) + 1) + floor == pytest.approx(rate, abs=1e-15)


@pytest.fixture
def embedded(golden) -> tuple[np.ndarray, ...]:
    """Return images (12, 16), captions (60, 16), and the image that each of them belongs to."""
    known = golden("r_adapter_misc")
    images = known["retrieval/image_embeddings_5N"]
    assert (images[::PER_IMAGE] == images[4::PER_IMAGE]).all()  # each image stands five times
    captions = known["retrieval/caption_embeddings_5N"]
    return images[::PER_IMAGE], captions, np.arange(12), np.repeat(np.arange(12), PER_IMAGE)


def test_ranks_of_captions_are_those_of_the_release(golden, embedded) -> None:
    known = golden("r_adapter_misc")
    images, captions, image_labels, caption_labels = embedded
    found = rank(images, captions, image_labels, caption_labels).rank
    np.testing.assert_array_equal(found, known["retrieval/i2t_best_rank_per_image"])
    *shares, median, mean = known["retrieval/i2t_R1_R5_R10_medr_meanr"]
    np.testing.assert_allclose([100 * one for one in recalls(found).values()], shares)
    assert (np.floor(np.median(found)) + 1, found.mean() + 1) == pytest.approx((median, mean))


def test_ranks_of_images_are_those_of_the_release(golden, embedded) -> None:
    known = golden("r_adapter_misc")
    images, captions, image_labels, caption_labels = embedded
    found = rank(captions, images, caption_labels, image_labels).rank
    np.testing.assert_array_equal(found, known["retrieval/t2i_rank_per_caption"])
    *shares, median, mean = known["retrieval/t2i_R1_R5_R10_medr_meanr"]
    np.testing.assert_allclose([100 * one for one in recalls(found).values()], shares)
    assert (np.floor(np.median(found)) + 1, found.mean() + 1) == pytest.approx((median, mean))


def test_two_equal_images_rank_by_index_and_in_the_release_by_chance(golden, embedded) -> None:
    """Its sort promises no order of equals, so each of its ranks is one of the two there are."""
    known = golden("r_adapter_misc")
    _, captions, labels, caption_labels = embedded
    images = known["retrieval_ties/image_embeddings_5N"][::PER_IMAGE]
    first, second = next(
        (a, b) for a in range(12) for b in range(a + 1, 12) if (images[a] == images[b]).all()
    )
    found = rank(captions, images, caption_labels, labels).rank
    published = known["retrieval_ties/t2i_rank_per_caption"]
    apart = ~np.isin(caption_labels, (first, second))
    np.testing.assert_array_equal(found[apart], published[apart])
    turned = rank(captions, images[::-1], caption_labels, labels[::-1]).rank
    assert ((published == found) | (published == turned)).all()
    assert (turned - found)[~apart].tolist() == [1] * PER_IMAGE + [-1] * PER_IMAGE


def test_a_head_of_class_rows_scores_as_the_release_up_to_its_temperature(golden) -> None:
    known = golden("r_adapter_misc")
    weights = torch.from_numpy(known["head/weights_before_normalisation"])
    features = normalize(torch.from_numpy(known["head/features"]), dim=1)
    scale = weights.norm(dim=1).mean()
    head = head_of(normalize(weights, dim=1), scale)
    cosines = torch.from_numpy(known["head/logits"])
    # The release normalises its rows again, by which the temperature in them is lost.
    torch.testing.assert_close(head(features), scale * cosines, rtol=1e-5, atol=1e-5 * float(scale))
    assert (head(features).argmax(dim=1) == cosines.argmax(dim=1)).all()


def test_columns_of_a_part_of_the_classes(golden) -> None:
    known = golden("r_adapter_misc")
    logits = torch.from_numpy(known["project/logits"])
    columns = [(int(label),) for label in known["project/keep_classes"]]
    assert torch.equal(
        select_columns(logits, columns), torch.from_numpy(known["project/projected"])
    )


def test_the_harmonic_mean_of_base_and_new(golden) -> None:
    base, new, expected = golden("r_adapter_misc")["harmonic/base_new_H"]
    assert harmonic_mean(base, new) == pytest.approx(expected, abs=1e-12)
