"""Tuned models of other programs, in the layouts in which these write them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from perdure import zoo
from perdure.errors import RunError, TaskError, WeightsError
from perdure.evaluation import evaluate
from perdure.foreign import read_tuned
from perdure.opening import load_student
from perdure.predictor import Predictor
from perdure.recipe import ModelSpec
from perdure.subjects import find
from perdure.surgery.slots import contexts, text_tokens

WIDTH = 32
NAMES = ("taco", "sushi roll", "cup")


@pytest.fixture(scope="module")
def base() -> Predictor:
    return zoo.random_clip()


def start_of(base: Predictor) -> torch.Tensor:
    return base.clip.token_embedding.weight.detach()[base.tokenizer([""])[0, 0]]


def prompt_state(base: Predictor, *shape: int) -> dict[str, torch.Tensor]:
    """Return the state dict of a prompt learner, with the buffers of 3 training classes."""
    return OrderedDict(
        ctx=torch.randn(*(shape or (4,)), WIDTH).half(),
        token_prefix=start_of(base).half().expand(3, 1, WIDTH).clone(),
        token_suffix=torch.randn(3, 15, WIDTH).half(),
    )


def save(path: Path, state: dict[str, Any], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    scheduler = {"successor": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)}
    rest = {"epoch": 50, "optimizer": optimizer.state_dict(), "scheduler": scheduler, **more}
    torch.save({"state_dict": state, **rest}, path)
    return path


def embedded(model: Predictor, names: tuple[str, ...], learned: torch.Tensor) -> torch.Tensor:
    """Return class rows computed by hand: start, contexts, name, full stop, end, padding."""
    tokens = model.tokenizer([f"x x x x {name}." for name in names])
    clip = model.clip
    table = clip.token_embedding
    words = torch.nn.functional.embedding(tokens, table.weight)
    words[:, 1:5] = learned
    x = words + clip.positional_embedding
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
    rows = x[torch.arange(len(names)), tokens.argmax(dim=-1)] @ clip.text_projection
    return torch.nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize("prefix", ["", "module.", "prompt_learner."])
def test_contexts_are_read_and_stand_before_any_name(
    tmp_path: Path, base: Predictor, prefix: str
) -> None:
    state = prompt_state(base)
    named = {prefix + name: value for name, value in state.items()}
    if prefix == "prompt_learner.":  # a whole few-shot model
        named |= {"image_encoder.conv1.weight": torch.zeros(1)}
        with pytest.warns(UserWarning, match="1 tensors beside"):
            found = read_tuned(save(tmp_path / "model-best.pth.tar", named), base)
    else:
        found = read_tuned(save(tmp_path / "model-best.pth.tar", named), base)
    assert not base.surgeries
    with torch.no_grad():
        rows = found.class_features(found.prompts(NAMES, ()))
        expected = embedded(found, NAMES, state["ctx"].float())
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)


def test_contexts_of_the_length_of_a_phrase_start_as_it(tmp_path: Path, base: Predictor) -> None:
    length = len(text_tokens(base.tokenizer, "a photo of a"))
    path = save(tmp_path / "model.pth.tar-1", prompt_state(base, length))
    weak = read_tuned(path, base).fold(0.0)
    with torch.no_grad():
        rows = weak.class_features(weak.prompts(NAMES, ()))
        plain = base.class_features(base.prompts(NAMES, ("a photo of a {}.",)))
    torch.testing.assert_close(rows, plain, rtol=1e-5, atol=1e-6)


def test_directories_give_their_last_epoch(tmp_path: Path, base: Predictor) -> None:
    states = [prompt_state(base) for _ in range(3)]
    place = tmp_path / "seed1" / "prompt_learner"
    save(place / "model.pth.tar-10", states[0])
    (place / "checkpoint").write_text("model.pth.tar-10\n")
    found = read_tuned(place.parent, base)
    torch.testing.assert_close(contexts(found.clip).contexts, states[0]["ctx"].float())
    save(place / "model.pth.tar-5", states[1])
    save(place / "model-best.pth.tar", states[2])
    with pytest.warns(UserWarning, match=r"took the last epoch, model\.pth\.tar-10"):
        found = read_tuned(place, base)
    torch.testing.assert_close(contexts(found.clip).contexts, states[0]["ctx"].float())
    (place / "model.pth.tar-10").unlink()
    (place / "model.pth.tar-5").unlink()
    found = read_tuned(place, base)
    torch.testing.assert_close(contexts(found.clip).contexts, states[2]["ctx"].float())
    with pytest.raises(WeightsError, match="holds no tuned model"):
        read_tuned(tmp_path, base)


def test_what_kgcoop_saves_and_never_uses_is_named(tmp_path: Path, base: Predictor) -> None:
    state = prompt_state(base)
    extra = {"bias_vectors": torch.zeros(1, 512), "meta_net.linear1.weight": torch.zeros(2, 2)}
    path = save(tmp_path / "model.pth.tar-100", {**state, **extra})
    with pytest.warns(UserWarning, match=r"bias_vectors, meta_net\.linear1\.weight left out"):
        found = read_tuned(path, base)
    torch.testing.assert_close(contexts(found.clip).contexts, state["ctx"].float())


def test_contexts_of_each_class_need_the_classes(tmp_path: Path, base: Predictor) -> None:
    state = prompt_state(base, 3, 2)
    path = save(tmp_path / "model.pth.tar-50", state)
    found = read_tuned(path, base, NAMES)
    torch.testing.assert_close(
        contexts(found.clip).contexts, state["ctx"].float().reshape(6, WIDTH)
    )
    with torch.no_grad():
        assert found.class_features(found.prompts(NAMES[::-1], ())).shape == (3, 32)
    with pytest.raises(TaskError, match="learned for each of 3 classes"):
        found.prompts(("fork",), ())
    with pytest.raises(WeightsError, match="no class is known here"):
        read_tuned(path, base)
    with pytest.raises(WeightsError, match="2 classes are known here"):
        read_tuned(path, base, NAMES[:2])


def test_contexts_of_another_model_are_refused(tmp_path: Path, base: Predictor) -> None:
    path = tmp_path / "model.pth.tar-50"
    save(path, {"ctx": torch.zeros(4, 512)})
    with pytest.raises(WeightsError, match="are 512 wide, but the text tower of random-clip reads"):
        read_tuned(path, base)
    state = prompt_state(base)
    save(path, {**state, "token_prefix": torch.randn(3, 1, WIDTH)})
    with pytest.raises(WeightsError, match="learned on another model"):
        read_tuned(path, base)
    save(path, {"ctx": torch.full((4, WIDTH), torch.nan)})
    with pytest.raises(WeightsError, match="finite numbers"):
        read_tuned(path, base)
    save(path, {**state, "compound_prompts_text.0": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"compound_prompts_text\.0, which CoOp"):
        read_tuned(path, base)


def test_other_methods_are_named(tmp_path: Path, base: Predictor) -> None:
    path = save(tmp_path / "VLPromptLearner" / "model-best.pth.tar", {"VPT": torch.zeros(1)})
    with pytest.raises(WeightsError, match="perdure reads CoOp, KgCoOp, MMA and PromptKD"):
        read_tuned(path.parent.parent, base)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_a_whole_model_is_read(tmp_path: Path, base: Predictor, prefix: str) -> None:
    other = zoo.random_clip(seed=5)
    state = {prefix + name: value for name, value in other.clip.state_dict().items()}
    found = read_tuned(save(tmp_path / "epoch_10.pt", state), base)
    for name, value in other.clip.state_dict().items():
        torch.testing.assert_close(found.clip.state_dict()[name], value)
    with pytest.raises(WeightsError, match="do not fit the architecture"):
        read_tuned(
            save(tmp_path / "large.pt", zoo.random_clip(embed_dim=16).clip.state_dict()), base
        )


def test_a_fine_tuned_classifier_is_read_with_its_head(tmp_path: Path, base: Predictor) -> None:
    tuned = zoo.random_clip(seed=5)
    tuned.set_head(NAMES, ("a {}",))
    assert tuned.head is not None
    image = {
        f"image_encoder.model.{name}": value
        for name, value in tuned.clip.state_dict().items()
        if name.startswith("visual.") or name == "logit_scale"
    }
    head = {
        "classification_head.weight": tuned.head.weight.detach(),
        "classification_head.bias": tuned.head.bias.detach(),
    }
    path = save(tmp_path / "finetuned.pt", {**image, **head})
    with pytest.warns(UserWarning, match="has no text tower"):
        found = read_tuned(path, base, NAMES)
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(
            found.logits_fn(NAMES, ("a {}",))(images), tuned.logits_fn(NAMES, ("a {}",))(images)
        )
        tokens = base.tokenizer(["taco"])
        torch.testing.assert_close(found.encode_text(tokens), base.encode_text(tokens))
    with pytest.raises(WeightsError, match="head of 3 classes, but no class is known here"):
        read_tuned(path, base)
    save(path, {**image, "classification_head.weight": torch.zeros(3, 8)})
    with pytest.raises(WeightsError, match=r"a weight of \(3, 8\)"):
        read_tuned(path, base, NAMES)
    for wrong in (1, 2):  # of which the first would be copied to all classes
        save(path, {**image, "classification_head.weight": tuned.head.weight.detach(),
                    "classification_head.bias": torch.ones(wrong)})  # fmt: skip
        with pytest.raises(WeightsError, match=rf"a bias of \({wrong},\); expected \(3,\)"):
            read_tuned(path, base, NAMES)
    # Without the head, its towers.
    save(path, image)
    with pytest.warns(UserWarning, match="has no text tower"):
        assert read_tuned(path, base).head is None


def test_directories_of_open_clip_are_read(tmp_path: Path, base: Predictor) -> None:
    zoo.random_clip(seed=5).export_open_clip(tmp_path / "model")
    found = read_tuned(tmp_path / "model", base)
    torch.testing.assert_close(found.clip.visual.proj, zoo.random_clip(seed=5).clip.visual.proj)
    zoo.random_clip(embed_dim=16).export_open_clip(tmp_path / "other")
    with pytest.raises(WeightsError, match="another architecture"):
        read_tuned(tmp_path / "other", base)


def tiny_prompts(path: Path) -> tuple[Path, torch.Tensor]:
    """Write contexts of the bundled model."""
    model = zoo.load("perdure-tiny")
    learned = 0.02 * torch.randn(4, model.clip.token_embedding.embedding_dim)
    start = start_of(model).expand(3, 1, -1).clone()
    return save(path, {"ctx": learned, "token_prefix": start}), learned


def test_a_checkpoint_is_a_start_of_training_and_a_subject(tmp_path: Path) -> None:
    path, learned = tiny_prompts(tmp_path / "prompt_learner" / "model.pth.tar-3")
    for place in (path, path.parent, tmp_path):
        student = load_student(ModelSpec(name="perdure-tiny", init=place), seed=0)
        torch.testing.assert_close(contexts(student.clip).contexts.detach(), learned)
        subject = find(f"perdure-tiny@{place}")
        torch.testing.assert_close(contexts(subject.predictor().clip).contexts.detach(), learned)
    scores = evaluate(f"perdure-tiny@{path}", "emojishift-b2n-val", limit=20)
    assert scores["base"]["n"] == 20
    with pytest.raises(RunError, match="no such file"):
        find(f"perdure-tiny@{tmp_path / 'nothing.pt'}")


def test_scores_of_a_checkpoint_are_not_those_of_the_untouched_model(tmp_path: Path) -> None:
    from perdure.identities import identity
    from perdure.merging import merge
    from perdure.records import document

    path, _ = tiny_prompts(tmp_path / "model.pth.tar-3")
    methods = []
    for position, name in enumerate((f"perdure-tiny@{path}", "perdure-tiny")):
        run = merge("zero-shot", [name], tmp_path / f"run-{position}")
        methods.append(identity(document(run.path))[0])
    assert methods == ["checkpoint", "zero-shot"]
