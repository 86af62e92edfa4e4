"""What a model is fed: pixels on its scale, and token ids of a vocabulary that has a name."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import DataError, TaskError, WeightsError
from .extras import explain

if TYPE_CHECKING:
    from torch import Tensor

EMOJISHIFT_VOCABULARY = Path(__file__).parent / "assets" / "emojishift-bpe.txt.gz"


@dataclass(frozen=True)
class Preprocess:
    """How pixels become input of the image tower."""

    size: int
    """Side of the square image, in pixels"""
    mean: tuple[float, float, float]
    """Per channel, on the scale of 0 to 1"""
    std: tuple[float, float, float]
    """Per channel, on the scale of 0 to 1"""
    interpolation: str = "bicubic"

    def normalize(self, images: Tensor, *, fused: bool = False) -> Tensor:
        """Turn images of `size`, uint8 (B, 3, H, W), into floats of about unit variance.

        A fourth channel, a mask, only changes its range: 0 to 255 becomes 0 to 1.

        Args:
            images: On any device, where the result is too.
            fused: Multiply and add in place instead of three copies; rounds differently in the
                last digit.
        """
        pixels = images.float()
        masks = pixels.shape[-3] - 3
        mean = pixels.new_tensor((*self.mean, *(0.0,) * masks)).view(-1, 1, 1)
        std = pixels.new_tensor((*self.std, *(1.0,) * masks)).view(-1, 1, 1)
        if fused:
            return pixels.mul_(1 / (255 * std)).sub_(mean / std)
        return (pixels / 255 - mean) / std


class Tokenizer(Protocol):
    """Texts to token ids (N, L), int64, padded with zeros."""

    @property
    def context_length(self) -> int:
        """Tokens per text, L."""

    @property
    def vocabulary(self) -> str | None:
        """What `OpenClipTokenizer` needs to build an equal one; None if it cannot."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokenise texts, cutting those that are too long, (N, L)."""


class OpenClipTokenizer:
    """A tokeniser of open_clip, by the name of its vocabulary.

    Args:
        vocabulary: "clip" (CLIP's byte pairs), "emojishift" (bundled, 1,200 merges),
            "open_clip:NAME" (whatever open_clip uses for that architecture, which may need the
            network), or a gzipped file of merges.
        context_length: Tokens per text, with start and end.

    Raises:
        WeightsError: If there is no such vocabulary.
        DependencyError: If it needs a package that is missing.
    """

    def __init__(self, vocabulary: str, context_length: int) -> None:
        self.vocabulary = vocabulary
        self.context_length = context_length
        self._encode = _encoder(vocabulary, context_length)

    @property
    def size(self) -> int | None:
        """Number of tokens; None if the tokeniser does not say."""
        size = getattr(self._encode, "vocab_size", None)
        return int(size) if size is not None else None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokenise texts, (N, L)."""
        tokens: Tensor = self._encode(list(texts))
        return tokens

    def ids(self, text: str) -> list[int] | None:
        """Return a text's ids without start, end and padding; None if words are not independent."""
        by_word = getattr(self._encode, "bpe_ranks", None) and not self._encode.reduction_fn
        return self._encode.encode(text) if by_word else None

    def frame(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Add start, end and padding to ids, cutting those that are too long, (N, L)."""
        import torch

        first, last = self._encode.sot_token_id, self._encode.eot_token_id
        room = self.context_length - 2
        padded = [[first, *row[:room], last, *[0] * (room - len(row))] for row in rows]
        return torch.tensor(padded, dtype=torch.int64).view(len(rows), self.context_length)

    def __deepcopy__(self, memo: dict[int, Any]) -> OpenClipTokenizer:
        """Return itself: nothing in it changes, and copying a vocabulary costs megabytes."""
        return self


def merges_file(vocabulary: str | None) -> Path | None:
    """Return the file of merges a vocabulary was read from, if it is not one that has a name."""
    named = vocabulary is None or vocabulary in ("clip", "emojishift")
    if named or str(vocabulary).startswith("open_clip:"):
        return None
    return Path(str(vocabulary))


def locate_vocabulary(recorded: str, directory: Path) -> str:
    """Return a recorded vocabulary as `OpenClipTokenizer` takes it: files lie in `directory`."""
    return recorded if merges_file(recorded) is None else str(directory / recorded)


def fill(template: str, name: str) -> str:
    """Return the template with the class name in the place of `{}`.

    Raises:
        TaskError: If the template has no such place.
    """
    if "{}" not in template:
        raise TaskError(
            f"the template {template!r} has no place for the class name; write it as '{{}}', "
            "as in 'a photo of a {}'."
        )
    return template.replace("{}", name)


def places_of(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the place of each name among classes, (C,).

    Two classes may have one name, as two pairs of ImageNet's have: the first of equal names is the
    first class of that name, the second the second.

    Args:
        names: All of them among `classes`.
        classes: What rows or vectors stand for, in their order.
    """
    found: dict[str, list[int]] = {}
    for place, name in enumerate(classes):
        found.setdefault(name, []).append(place)
    asked: Counter[str] = Counter()
    places = []
    for name in names:
        own = found[name]
        places.append(own[min(asked[name], len(own) - 1)])
        asked[name] += 1
    return places


def tokenize_prompts(
    tokenizer: Tokenizer, names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Tokenise every name in every template, (C, T, L).

    Byte pairs never cross a word, so names and the two sides of a template are tokenised once each
    and joined; texts where a word may cross the seam are tokenised whole. The ids are the same.

    Raises:
        TaskError: If there is no name or template, or a template has no place for the name.
        DataError: If a text is longer than the model's context.
    """
    if not names or not templates:
        raise TaskError(
            f"{len(names)} class names and {len(templates)} templates make no prompt; "
            "at least one of each is needed."
        )
    texts = [fill(template, name) for name in names for template in templates]
    rows: list[list[int] | None] = [None] * len(texts)
    if isinstance(tokenizer, OpenClipTokenizer) and tokenizer.ids("") is not None:
        middles = [tokenizer.ids(name) if _whole_words(name) else None for name in names]
        sides = [_sides(tokenizer, template) for template in templates]
        rows = [
            None if middle is None or side is None else [*side[0], *middle, *side[1]]
            for middle in middles
            for side in sides
        ]
    left = [place for place, row in enumerate(rows) if row is None]
    if not left:
        assert isinstance(tokenizer, OpenClipTokenizer)
        tokens = tokenizer.frame([row for row in rows if row is not None])
    elif len(left) == len(texts):
        tokens = tokenizer(texts)
    else:
        assert isinstance(tokenizer, OpenClipTokenizer)
        tokens = tokenizer.frame([row or [] for row in rows])
        tokens[left] = tokenizer([texts[place] for place in left])
    refuse_cut(tokenizer, texts, tokens)
    return tokens.view(len(names), len(templates), -1)


def refuse_cut(tokenizer: Tokenizer, texts: Sequence[str], tokens: Tensor) -> None:
    """Make sure that the tokeniser has cut the end of no text.

    Args:
        tokenizer: Of the model.
        texts: N texts.
        tokens: What it made of them, (N, L).

    Raises:
        DataError: If a text has more tokens than the model reads; where the tokeniser does not
            count them, also if it has exactly as many.
    """
    for place, found in cut_texts(tokenizer, texts, tokens):
        raise DataError(
            f"the text {texts[place][:200]!r} has {found} with its start and end, but the model "
            f"reads {tokens.shape[1]}, so its end would be cut off. Shorten the caption, class "
            "name or template."
        )


def cut_texts(
    tokenizer: Tokenizer, texts: Sequence[str], tokens: Tensor
) -> Iterator[tuple[int, str]]:
    """Yield the places of texts whose end the tokeniser has cut, and how many tokens they have.

    Args:
        tokenizer: Of the model.
        texts: N texts.
        tokens: What it made of them, (N, L).
    """
    full = tokens[:, -1] != 0
    if full.any() and not (
        isinstance(tokenizer, OpenClipTokenizer) and tokenizer.ids("") is not None
    ):
        full &= tokens[:, -1] != tokenizer([""])[0, -1]  # others pad with other ids
    for place in full.nonzero().flatten().tolist():
        room = tokens.shape[1]
        found = f"at least {room} tokens"
        if isinstance(tokenizer, OpenClipTokenizer):
            ids = tokenizer.ids(texts[place])
            if ids is not None and len(ids) + 2 <= room:
                continue
            found = f"{len(ids) + 2} tokens" if ids is not None else found
        yield place, found


_PLAIN = frozenset(string.ascii_letters + string.digits + " ,.-()/:")
"""Characters that the tokeniser's cleaning of texts leaves alone, apart from case and spaces"""


def _whole_words(name: str) -> bool:
    """Return whether a name starts and ends in a word, so that its neighbours cannot change it."""
    return name[:1].isalnum() and name[-1:].isalnum() and set(name) <= _PLAIN


def _sides(tokenizer: OpenClipTokenizer, template: str) -> tuple[list[int], list[int]] | None:
    """Return the ids before and after the name; None if a word may cross either seam."""
    before, after, *more = template.split("{}")
    seams = (before == "" or before.endswith(" ")) and after[:1] in {"", " ", ".", ","}
    if more or not seams or not set(template) - {"{", "}"} <= _PLAIN:
        return None
    return tokenizer.ids(before) or [], tokenizer.ids(after) or []


def _encoder(vocabulary: str, context_length: int) -> Any:
    if vocabulary.startswith("open_clip:"):
        from open_clip import get_tokenizer

        name = vocabulary.removeprefix("open_clip:")
        try:
            return get_tokenizer(name, context_length=context_length)
        except Exception as error:  # the hub, requests and tokenisers each raise their own
            explain(error, f"the tokeniser of {name}")
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise WeightsError(
                f"cannot get the tokeniser of {name}: {reason}. It is downloaded on first use; "
                "check the network and the name."
            ) from error
    from open_clip.tokenizer import SimpleTokenizer

    if vocabulary == "clip":
        return SimpleTokenizer(context_length=context_length)
    path = EMOJISHIFT_VOCABULARY if vocabulary == "emojishift" else Path(vocabulary)
    if not path.is_file():
        raise WeightsError(
            f"no vocabulary {vocabulary!r}; allowed are 'clip', 'emojishift', 'open_clip:NAME' and "
            "the path of a gzipped file of merges."
        )
    return SimpleTokenizer(bpe_path=str(path), context_length=context_length)
