"""What some merges must know from images: Fisher information, inputs of layers, statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import WeightsError
from ..inputs import places_of
from ..predictor import Predictor
from ..towers import score

Count = Callable[[int], None]
"""Told about finished images"""


def fisher(
    predictor: Predictor,
    batches: Iterable[Tensor],
    names: Sequence[str],
    templates: Sequence[str],
    *,
    exact: bool = False,
    seed: int = 0,
    count: Count | None = None,
) -> dict[str, Tensor]:
    """Return the diagonal Fisher information of every parameter, by name.

    The mean over images of E_{y ~ p} (d log p(y) / d theta)^2, squared image by image: a gradient
    of a whole batch would make the result depend on the size of the batch.

    Args:
        predictor: Scores with its head if that was trained on all `names`, else with its text
            tower, through which one pass of gradients goes per image then.
        batches: Images (B, 3, H, W), normalised.
        names: Classes.
        templates: Prompts of the classes.
        exact: Take the expectation over all classes, one pass each; else one label is drawn from
            the model's own p.
        seed: Of the drawn labels.
        count: Told about finished images.

    Returns:
        Tensors of the parameters' shapes; parameters that no gradient reaches have zeros.

    Raises:
        WeightsError: If there is no image.

    Source: Matena and Raffel 2022, arXiv 2111.09832, section 3.2.
    """
    generator = torch.Generator().manual_seed(seed)
    live = {
        name: value for name, value in predictor.named_parameters() if name not in predictor.fixed
    }
    before = {name: value.requires_grad for name, value in live.items()}
    total = {name: torch.zeros_like(value) for name, value in live.items()}
    seen = 0
    try:
        for value in live.values():
            value.requires_grad_(True)
        with torch.enable_grad():
            weight, bias = _rows(predictor, names, templates)
            for image in (image for batch in batches for image in batch):
                features = predictor.encode_image(image[None])
                log_p = score(features, weight, bias).log_softmax(dim=-1)[0]
                chances = log_p.detach().exp()
                drawn = torch.multinomial(chances.cpu(), 1, generator=generator).tolist()
                for label in range(len(chances)) if exact else drawn:
                    share = float(chances[label]) if exact else 1.0
                    _add_squares(total, live, log_p[label], share)
                seen += 1
                if count is not None:
                    count(1)
    finally:
        for name, value in live.items():
            value.requires_grad_(before[name])
    if not seen:
        raise WeightsError("there is no image to measure Fisher information on; give one or more.")
    return {name: value / seen for name, value in total.items()}


@torch.no_grad()
def grams(
    predictor: Predictor,
    batches: Iterable[Tensor],
    tokens: Tensor,
    *,
    count: Count | None = None,
) -> dict[str, Tensor]:
    """Return the mean of x x^T over the inputs x of every linear layer, (in, in), by weight name.

    Covers linear layers of both towers, the joint maps of attention and the head. Matrices that are
    bare parameters, such as projections at the end of a tower, are left out.

    Args:
        predictor: Its text tower sees `tokens`, its image tower the images.
        batches: Images (B, 3, H, W), normalised.
        tokens: Prompts of the classes, (N, L).
        count: Told about finished images.

    Source: Jin et al. 2023, arXiv 2212.09849, section 3.
    """
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def add(name: str, inputs: Tensor) -> None:
        flat = inputs.detach().flatten(0, -2).float()
        product = flat.T @ flat
        sums[name] = sums[name] + product if name in sums else product
        rows[name] = rows.get(name, 0) + len(flat)

    with _watched(predictor, add):
        for batch in batches:
            features = predictor.encode_image(batch)
            if predictor.head is not None:
                add("head.weight", features)
            if count is not None:
                count(len(batch))
        predictor.encode_text(predictor.trim(tokens).to(predictor.device))
    return {name: value / rows[name] for name, value in sums.items()}


@torch.no_grad()
def renew_statistics(
    predictor: Predictor, batches: Iterable[Tensor], *, count: Count | None = None
) -> int:
    """Measure the running statistics of batch normalisation anew, in place; return how many layers.

    Merged statistics are those of no model: the plain mean over batches replaces them.

    Source: Izmailov et al. 2018, "Averaging weights leads to wider optima", arXiv 1803.05407,
        section 3.2.
    """
    layers = [module for module in predictor.modules() if isinstance(module, _BatchNorm)]
    layers = [layer for layer in layers if layer.track_running_stats]
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for the plain mean
        layer.train()
    try:
        for batch in batches:
            predictor.encode_image(batch)
            if count is not None:
                count(len(batch))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
    return len(layers)


def _rows(
    predictor: Predictor, names: Sequence[str], templates: Sequence[str]
) -> tuple[Tensor, Tensor | None]:
    """Return the scaled classifier with its graph: rows of the head, or the text tower's."""
    head = predictor.head
    if head is not None and set(names) <= set(predictor.classes):
        columns = places_of(names, predictor.classes)
        return head.weight[columns], head.bias[columns]
    return predictor.scale * predictor.class_features(predictor.prompts(names, templates)), None


def _add_squares(
    total: dict[str, Tensor], live: dict[str, nn.Parameter], value: Tensor, share: float
) -> None:
    found = torch.autograd.grad(value, list(live.values()), retain_graph=True, allow_unused=True)
    for name, gradient in zip(live, found, strict=True):
        if gradient is not None:
            total[name] += share * gradient.square()


@contextmanager
def _watched(predictor: Predictor, add: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `add` with the inputs of every linear layer by the name of its weight."""
    hooks = []
    for path, module in predictor.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            hooks.append(module.register_forward_pre_hook(_attention(path, add), with_kwargs=True))
        elif isinstance(module, nn.Linear) and module is not predictor.head:

            def hook(_: nn.Module, inputs: tuple[Any, ...], name: str = f"{path}.weight") -> None:
                add(name, inputs[0])

            hooks.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _attention(path: str, add: Callable[[str, Tensor], None]) -> Callable[..., None]:
    """Return a hook for torch's attention, which does not call the layer it ends with."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        attention: Any = module
        given = dict(zip(("query", "key", "value", "key_padding_mask"), inputs, strict=False))
        given |= options
        query = given["query"]
        same = query is given["key"] and query is given["value"]
        if not same or attention.in_proj_weight is None:
            return  # three maps of different inputs are not one matrix
        add(f"{path}.in_proj_weight", query)
        x = query.transpose(0, 1) if attention.batch_first else query
        width = attention.embed_dim
        heads, _ = functional.multi_head_attention_forward(
            x, x, x, width, attention.num_heads, attention.in_proj_weight, attention.in_proj_bias,
            attention.bias_k, attention.bias_v, attention.add_zero_attn, 0.0,
            torch.eye(width, dtype=x.dtype, device=x.device), None, training=False,
            need_weights=False, attn_mask=given.get("attn_mask"),
        )  # fmt: skip
        add(f"{path}.out_proj.weight", heads)

    return hook
