"""What perdure must know about the inside of open_clip's towers, and what follows on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import TaskError


def text_tower(clip: nn.Module) -> nn.Module:
    """Return the module that holds the text tower: open_clip's CLIP keeps its parts itself."""
    text = getattr(clip, "text", None)
    return text if isinstance(text, nn.Module) else clip


def lengths(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Return how many ids of each text (N, L) its embedding depends on, int64 (N,).

    Where attention is causal and the embedding is read at the end-of-text token, what follows it is
    never seen. Other towers see all L.
    """
    text = text_tower(clip)
    pool = _pool(text)
    if pool is None or tokens.numel() == 0:
        return torch.full(tokens.shape[:1], tokens.shape[1], device=tokens.device)
    ids = tokens if pool == "argmax" else (tokens == _end_id(text)).int()
    return ids.argmax(dim=-1) + 1


def trim(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Cut tokens (N, L) behind the longest text, where that changes no embedding.

    Waits for the device that holds `tokens`.
    """
    return tokens[:, : int(lengths(clip, tokens).max())] if tokens.numel() else tokens


def encode_image(clip: Any, images: Tensor) -> Tensor:
    """Embed images (B, 3, H, W), (B, D), also where B is 0; embeddings are not normalised."""
    if len(images) == 0:
        # A process without examples still takes part in the gradients, which are zero. Towers
        # cannot reshape nothing, so they get one black image whose embedding is dropped.
        return encode_image(clip, images.new_zeros(1, *images.shape[1:]))[:0]
    with _tokens_first(clip, images):
        features: Tensor = clip.encode_image(images)
    return features


def encode_text(clip: Any, tokens: Tensor) -> Tensor:
    """Embed tokens (N, L'), where L' may be shorter than the context length, (N, D).

    Embeddings are not normalised. N may be 0, as in `encode_image`.
    """
    if len(tokens) == 0:
        return encode_text(clip, tokens.new_zeros(1, clip.context_length))[:0]
    with _tokens_first(clip, tokens):
        return _encode_text(clip, tokens)


def checkpoint(clip: Any) -> None:
    """Make both towers compute activations again in the backward pass instead of keeping them.

    Gradients stay the same: random numbers are drawn again as they were. About a third more
    computing for much less memory. A tower in which nothing trains is not asked for anything.

    Raises:
        TaskError: If a tower that trains cannot, or has batch normalisation, whose running
            statistics would count every batch twice.
    """
    with suppress(Exception):  # a tower may fail in any way, or do nothing; so look afterwards
        clip.set_grad_checkpointing(True)
    image, everything = set(clip.visual.modules()), set(text_tower(clip).modules())
    for name, tower, parts in (
        ("image", clip.visual, image),
        ("text", text_tower(clip), everything - image),
    ):
        numbers = [each for part in parts for each in part.parameters(recurse=False)]
        if not any(each.requires_grad for each in numbers):
            continue
        able = [part for part in parts if getattr(part, "grad_checkpointing", False)]
        # What stands outside of the parts that compute again, as a projector, sees a batch once.
        again = [inner for part in able or parts for inner in part.modules()]
        normalises = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in again)
        if not able or normalises:
            why = "has batch normalisation" if normalises else "cannot compute its blocks again"
            raise TaskError(
                f"run.checkpointing is true, but the {name} tower ({type(tower).__name__}) {why}; "
                "it works with the transformers of open_clip and timm. Set it to false, and lower "
                "optim.batch_size if memory is short."
            )


def _encode_text(clip: Any, tokens: Tensor) -> Tensor:
    text: Any = text_tower(clip)
    length = tokens.shape[1]
    if _pool(text) is None or length == text.positional_embedding.shape[0]:
        features: Tensor = clip.encode_text(tokens)
        return features
    # open_clip adds the whole positional embedding and mask; these are its steps on their start.
    dtype = text.transformer.get_cast_dtype()
    x = text.token_embedding(tokens).to(dtype) + text.positional_embedding[:length].to(dtype)
    x = text.transformer(x, attn_mask=text.attn_mask[:length, :length])
    x = text.ln_final(x)
    ids = tokens if _pool(text) == "argmax" else (tokens == _end_id(text)).int()
    x = x[torch.arange(x.shape[0], device=x.device), ids.argmax(dim=-1)]
    projection = text.text_projection
    if projection is not None:
        x = projection(x) if isinstance(projection, nn.Module) else x @ projection
    embedded: Tensor = x
    return embedded


def unit(x: Tensor) -> Tensor:
    """Scale embeddings (N, D) to unit rows, in float32 or wider."""
    # Half precision has too few digits for unit length; autocast towers return it.
    return functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def score(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Score unit rows (B, D) by a linear map (C, D), (B, C), in the rows' own precision.

    Also under autocast: near 30, bfloat16 logits lie 0.125 apart.
    """
    with torch.autocast(features.device.type, enabled=False):
        return functional.linear(features, weight.to(features.dtype), bias)


def visual_projection(clip: nn.Module) -> Tensor:
    """Return the live matrix that ends the image tower, (width, D).

    Raises:
        TaskError: If the tower does not end in one linear map.
    """
    visual = clip.visual
    projection = getattr(visual, "proj", None)
    if isinstance(projection, Tensor):
        return projection
    # ResNets of CLIP end in an attention pool; its output layer is stored as (D, width).
    for path in ("attnpool.c_proj", "head.proj"):
        layer: Any = visual
        for part in path.split("."):
            layer = getattr(layer, part, None)
        if isinstance(layer, nn.Linear):
            return layer.weight.T
    raise TaskError(
        f"the image tower ({type(visual).__name__}) does not end in one linear map, so its "
        "projection cannot be regularised; set cross_norm_weight and orthogonality_weight to 0."
    )


def text_projection(clip: nn.Module) -> Tensor:
    """Return the live matrix that ends the text tower, (width, D).

    Raises:
        TaskError: If the tower does not end in one linear map.
    """
    projection = getattr(text_tower(clip), "text_projection", None)
    if isinstance(projection, Tensor):
        return projection
    if isinstance(projection, nn.Linear):
        return projection.weight.T
    raise TaskError(
        "the text tower does not end in one linear map, so its projection cannot be regularised; "
        "set cross_norm_weight to 0."
    )


@contextmanager
def _tokens_first(clip: nn.Module, like: Tensor) -> Iterator[None]:
    """Run transformers with tokens before examples where that is faster; the result is the same.

    Without gradient, torch projects batch-first input of attention as one product per example. In
    float32 that costs nothing, but half precision on a CPU copies the weights for every example:
    a third of the whole tower's time.
    """
    kind = like.device.type
    if kind != "cpu" or torch.is_grad_enabled() or not torch.is_autocast_enabled(kind):
        yield
        return
    turned = [part for part in map(_batch_first_parts, clip.modules()) if part]
    for part in chain.from_iterable(turned):
        part.batch_first = False
    try:
        yield
    finally:
        for part in chain.from_iterable(turned):
            part.batch_first = True


def _batch_first_parts(module: Any) -> list[Any]:
    """Return a transformer and its attentions if all of it is open_clip's own and batch-first."""
    from open_clip.transformer import ResidualAttentionBlock, Transformer

    if type(module) is not Transformer or not module.batch_first:
        return []
    for block in module.resblocks:
        own = type(block) is ResidualAttentionBlock and type(block.mlp) is nn.Sequential
        if not own or type(block.attn) is not nn.MultiheadAttention or not block.attn.batch_first:
            return []
    return [module, *(block.attn for block in module.resblocks)]


def _pool(text: nn.Module) -> str | None:
    """Return how a causal tower reads its end-of-text token; None for every other tower."""
    parts = ("token_embedding", "positional_embedding", "transformer", "ln_final", "attn_mask")
    if any(getattr(text, part, None) is None for part in parts):
        return None
    if getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False):
        return None
    if getattr(text, "output_tokens", False) or not hasattr(text, "text_projection"):
        return None
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
    return pool if pool in ("argmax", "eos") else None


def _end_id(text: nn.Module) -> int:
    return int(getattr(text, "text_eos_id", getattr(text, "eos_id", 0)))
