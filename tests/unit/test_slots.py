"""Learned contexts: layouts, three kinds of tokenisers, strength, and what cannot be folded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perdure import zoo
from perdure.adapters import read_adapters, write_adapters
from perdure.errors import DataError, SurgeryError, TaskError, WeightsError
from perdure.exporting import export_open_clip
from perdure.inputs import OpenClipTokenizer, Tokenizer
from perdure.interpolation import soup, wise_ft
from perdure.merging import keep, merge
from perdure.predictor import Predictor
from perdure.subjects import find
from perdure.surgery.low_rank import LowRank
from perdure.surgery.operations import from_record, to_record
from perdure.surgery.slots import Slots, contexts, frame, name_tokens
from perdure.sweeping import Line
from perdure.towers import lengths

NAMES = ("taco", "fire_engine", "giant panda")


class Pieces:
    """A stand-in for SigLIP's tokeniser: no start, lower case, no punctuation, end as padding.

    A piece knows whether a space stands before it, and the first word of a text has none.
    """

    vocabulary = None

    def __init__(self, start: int | None = None, end: int = 1, pad: int = 1) -> None:
        self.context_length = 12
        self.known: dict[str, int] = {}
        self.start, self.end, self.pad = start, end, pad

    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows = []
        for text in texts:
            pieces = re.findall(r" ?[a-z]{1,4}", re.sub(r"[^a-z ]", "", text.lower()))
            ids = [self.known.setdefault(piece, 10 + len(self.known)) for piece in pieces]
            row = [*([] if self.start is None else [self.start]), *ids]
            row = [*row[: self.context_length - 1], self.end]
            rows.append(row + [self.pad] * (self.context_length - len(row)))
        return torch.tensor(rows)

    def text(self, ids: Sequence[int]) -> str:
        pieces = {number: piece for piece, number in self.known.items()}
        return "".join(pieces[number] for number in ids if number in pieces)


def predictor(**fields: Any) -> Predictor:
    made = zoo.random_clip()
    made.attach(Slots(**fields))
    return made


def trained(**fields: Any) -> Predictor:
    made = predictor(**fields)
    table = contexts(made.clip)
    with torch.no_grad():
        random = torch.Generator().manual_seed(1)
        table.contexts += torch.randn(table.contexts.shape, generator=random)
    return made


def words(count: int = 4) -> tuple[int, ...]:
    found = zoo.random_clip().tokenizer.ids("a photo of a")  # type: ignore[attr-defined]
    assert found is not None
    assert len(found) == count
    return tuple(found)


def features(model: Predictor, names: Sequence[str] = NAMES, template: str = "{}") -> Tensor:
    with torch.no_grad():
        return model.class_features(model.prompts(names, [template]))


def test_captions_are_embedded_bit_for_bit_as_before_and_no_weight_is_renamed() -> None:
    plain, model = zoo.random_clip(), trained(count=3)
    tokens = plain.tokenizer(["a photo of a taco", "nothing"])
    with torch.no_grad():
        assert torch.equal(plain.encode_text(tokens), model.encode_text(tokens))
        short = plain.trim(tokens)
        assert torch.equal(plain.encode_text(short), model.encode_text(short))
    base, state = plain.state_dict(), model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in base.items())
    assert set(state) - set(base) == {
        "clip.token_embedding.contexts",
        "clip.token_embedding.start",
    }
    assert set(model.added()) == {"clip.token_embedding.contexts"}


def test_contexts_that_start_as_words_compute_what_those_words_compute() -> None:
    plain = zoo.random_clip()
    names = [name.replace("_", " ") for name in NAMES]
    for stop in (True, False):
        model = predictor(words=words(), stop=stop)
        template = "a photo of a {}" + "." * stop
        assert torch.equal(features(model), features(plain, names, template))


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("stop", [True, False])
def test_the_vectors_stand_where_a_placeholder_would_in_every_layout(
    position: Any, stop: bool
) -> None:
    tokenizer = OpenClipTokenizer("clip", 16)
    slots = Slots(count=3, position=position, stop=stop)
    found = slots.prompts(tokenizer, NAMES)[:, 0]
    mark = tokenizer.ids("q")
    assert mark is not None
    marks = {"end": ("q q q ", ""), "middle": ("q ", " q q"), "front": ("", " q q q")}[position]
    texts = [marks[0] + name.replace("_", " ") + marks[1] + "." * stop for name in NAMES]
    assert torch.equal(found.where(found >= 0, mark[0]), tokenizer(texts))
    for row in found.tolist():
        assert [number for number in row if number < 0] == [-1, -2, -3]


@pytest.mark.parametrize(
    "tokenizer",
    [Pieces(), Pieces(start=2, end=3, pad=0), OpenClipTokenizer("emojishift", 20)],
    ids=["no-start", "start-and-end", "tiny"],
)
def test_no_tokeniser_loses_a_piece_of_a_name(tokenizer: Tokenizer) -> None:
    names = ["axolotl", "x", "x ray", "san francisco"]
    for name, (word, rest) in zip(names, name_tokens(tokenizer, names, True), strict=True):
        if isinstance(tokenizer, Pieces):
            assert tokenizer.text(word) == f" {name}"
            assert rest == []  # it drops the full stop
        else:
            assert isinstance(tokenizer, OpenClipTokenizer)
            assert word == tokenizer.ids(name)
            assert rest == tokenizer.ids(".")
    start, end, pad, room = frame(tokenizer)
    for row in Slots(count=2, position="middle").prompts(tokenizer, names)[:, 0].tolist():
        assert len(row) == room
        assert row[: len(start)] == start
        while row[-1] == pad:
            row.pop()
        assert row[len(row) - len(end) :] == end
        assert row[len(start)] == -1
        assert -2 in row
    if isinstance(tokenizer, Pieces):
        assert frame(tokenizer)[:3] == (([], [], 1) if tokenizer.start is None else ([2], [3], 0))


def test_lengths_and_trimming_understand_negative_ids() -> None:
    model = trained(count=4, position="middle")
    prompts = model.prompts(NAMES, ["{}"])[:, 0]
    found = lengths(model.clip, prompts).tolist()
    end = model.tokenizer.ids("giant panda")  # type: ignore[attr-defined]
    assert end is not None
    assert found[2] == 1 + 4 + len(end) + 1 + 1
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_text(model.trim(prompts)), model.encode_text(prompts)
        )


def test_class_specific_contexts_fit_their_classes_in_any_order_and_no_others() -> None:
    model = trained(count=2, classes=NAMES)
    rows = model.prompts(NAMES, ["{}"])[:, 0]
    assert [sorted(n for n in row if n < 0) for row in rows.tolist()] == [
        [-2, -1],
        [-4, -3],
        [-6, -5],
    ]
    turned = model.prompts(NAMES[::-1], ["{}"])[:, 0]
    assert torch.equal(turned.flip(0), rows)
    with pytest.raises(TaskError, match=r"none for 'tiger'.*class_specific: false"):
        model.prompts(["taco", "tiger"], ["{}"])


def test_random_starts_follow_the_seed_and_the_published_deviation() -> None:
    first, again = Slots(count=16, seed=3), Slots(count=16, seed=3)
    starts = []
    for slots in (first, again, Slots(count=16, seed=4)):
        model = zoo.random_clip()
        before = torch.get_rng_state()
        model.attach(slots)
        assert torch.equal(torch.get_rng_state(), before)
        starts.append(contexts(model.clip).contexts.detach())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert float(starts[0].std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0, 1.5])
def test_strength_moves_the_vectors_in_a_line_and_folding_writes_it_down(alpha: float) -> None:
    model = trained(words=words())
    start, end = (contexts(model.clip).start, contexts(model.clip).contexts.detach())
    folded = model.fold(alpha)
    assert folded.surgeries == (Slots(words=words()),)
    torch.testing.assert_close(
        contexts(folded.clip).contexts.detach(), (1 - alpha) * start + alpha * end
    )
    model.set_alpha(alpha)
    torch.testing.assert_close(features(model), features(folded), rtol=1e-5, atol=1e-6)
    with model.folded():
        torch.testing.assert_close(features(model), features(folded), rtol=1e-5, atol=1e-6)
    assert model.surgeries[0].alpha == alpha
    if alpha == 0.0:
        assert torch.equal(contexts(folded.clip).contexts, start)
        names = [name.replace("_", " ") for name in NAMES]
        plain = features(zoo.random_clip(), names, "a photo of a {}.")
        assert torch.equal(features(folded), plain)
    if alpha == 1.0:
        assert torch.equal(contexts(folded.clip).contexts, end)


def test_what_can_be_folded_is_folded_beside_contexts() -> None:
    model = trained(count=2)
    model.attach(LowRank(rank=2))
    with torch.no_grad():
        for value in model.added().values():
            value += 0.1
    folded = model.fold()
    assert [surgery.name for surgery in folded.surgeries] == ["slots"]
    assert set(folded.added()) == {"clip.token_embedding.contexts"}
    torch.testing.assert_close(features(folded), features(model), rtol=1e-5, atol=1e-5)


def test_saving_and_added_modules_alone_keep_everything(tmp_path: Path) -> None:
    for fields in ({"count": 3, "seed": 5}, {"classes": NAMES, "stop": False, "alpha": 0.5}):
        model = zoo.load("perdure-tiny")
        model.attach(Slots(**fields))  # type: ignore[arg-type]
        with torch.no_grad():
            contexts(model.clip).contexts += 0.5
        place = tmp_path / str(len(fields["classes"]) if "classes" in fields else 0)
        model.save(place / "predictor")
        write_adapters(model, place / "alone")
        for again in (Predictor.load(place / "predictor"), read_adapters(place / "alone")):
            assert again.surgeries == model.surgeries
            assert torch.equal(features(again), features(model.eval()))
            assert torch.equal(contexts(again.clip).start, contexts(model.clip).start)
        assert from_record(to_record(model.surgeries[0])) == model.surgeries[0]


def test_plain_open_clip_is_refused_with_a_way_out(tmp_path: Path) -> None:
    model = trained()
    with pytest.raises(SurgeryError, match=r"'slots'.*cannot be folded.*--to adapters"):
        model.export_open_clip(tmp_path / "model")
    run = keep(model, {"kind": "zero-shot", "inputs": []}, tmp_path / "run")
    assert not (run.path / "model").exists()
    assert "no model/" in str(run.status()["note"])
    assert run.predictor().surgeries == model.surgeries
    assert find(run).predictor(0.0).surgeries == model.surgeries
    with pytest.raises(SurgeryError, match="cannot be folded"):
        export_open_clip(run.path, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_the_line_to_the_zero_shot_model_moves_the_contexts(tmp_path: Path) -> None:
    zero_shot, tuned = zoo.random_clip(), trained(words=words(), alpha=0.3)
    with torch.no_grad():
        for value in tuned.clip.visual.parameters():
            value += 0.1
    at_full = tuned.copy()
    at_full.set_alpha(1.0)
    line = Line(zero_shot, tuned)
    for alpha in (0.0, 0.5, 1.0):
        line.at(alpha)()
        merged = wise_ft(zero_shot, tuned, alpha)
        assert torch.equal(features(merged), features(line.moving))
        table = contexts(at_full.clip)
        torch.testing.assert_close(
            contexts(merged.clip).contexts, torch.lerp(table.start, table.contexts, alpha)
        )
    names = [name.replace("_", " ") for name in NAMES]
    start, end = wise_ft(zero_shot, tuned, 0.0), wise_ft(zero_shot, tuned, 1.0)
    assert torch.equal(features(start), features(zero_shot, names, "a photo of a {}."))
    torch.testing.assert_close(features(end), features(at_full))
    state = start.state_dict()
    assert all(torch.equal(state[name], value) for name, value in zero_shot.state_dict().items())
    zero_shot.save(tmp_path / "zero-shot")
    keep(tuned, {"kind": "zero-shot", "inputs": []}, tmp_path / "run")
    run = merge("wise-ft", [tmp_path / "zero-shot", tmp_path / "run"], tmp_path / "m", alpha=0.5)
    torch.testing.assert_close(features(run.predictor()), features(wise_ft(zero_shot, tuned, 0.5)))


def test_soups_of_contexts_need_the_same_contexts() -> None:
    first, second = trained(words=words()), trained(words=words())
    with torch.no_grad():
        contexts(second.clip).contexts.zero_()
    mean = soup([first, second])
    torch.testing.assert_close(
        contexts(mean.clip).contexts, contexts(first.clip).contexts.detach() / 2
    )
    with pytest.raises(WeightsError, match="different added modules"):
        soup([first, trained(count=3)])


def test_faults_are_explained() -> None:
    for fields, words_of_error in (
        ({"count": 0}, "at least 1"),
        ({"count": 3, "words": (1, 2)}, "2 words cannot start 3"),
        ({"alpha": -1.0}, "alpha"),
    ):
        with pytest.raises(SurgeryError, match=words_of_error):
            Slots(**fields)  # type: ignore[arg-type]
    with pytest.raises(SurgeryError, match="already"):
        trained().attach(Slots())
    with pytest.raises(SurgeryError, match="no tokens of this model"):
        zoo.random_clip().attach(Slots(count=1, words=(10**6,)))
    with pytest.raises(SurgeryError, match="no learned contexts"):
        contexts(zoo.random_clip().clip)
    model = trained(count=16)
    with pytest.raises(DataError, match=r"has \d+ tokens with 16.*reads 20"):
        model.prompts(["the big giant panda"], ["{}"])
    with pytest.raises(TaskError, match="no class names"):
        model.prompts([], ["{}"])
    with pytest.raises(DataError, match="nothing of the class name"):
        Slots().prompts(Pieces(), ["taco", "?!"])
