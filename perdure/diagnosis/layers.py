"""The matrices of a model, and what comes into each of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from .. import towers
from ..errors import SurgeryError
from ..predictor import Predictor
from ..surgery.sites import Tower, find_blocks

Take = Callable[[str, Tensor], None]
"""Called with the name of a layer and rows (n, d) that come into it."""

TOWERS: tuple[Tower, ...] = ("image", "text")

_STAGES = tuple(f"visual.layer{number}" for number in (1, 2, 3, 4))
"""What takes the place of blocks in CLIP's ResNets"""

_LAST = ("proj", "post", "final", "pool", "norm.", "head", "pooler")
"""Parts of names of what follows the blocks of a tower"""


class Layer(NamedTuple):
    """A tensor with two or more dimensions, seen as a matrix (out, in)."""

    name: str
    """As in a state dict of open_clip, or "head.weight\""""
    group: str
    """Where in the model: "image block 3", "text input", "head", ..."""
    transposed: bool
    """Whether it is stored as (in, out), as the projections that end open_clip's towers are"""

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return the tensor as a matrix (out, in); a convolution as (out, in * height * width)."""
        flat = tensor.detach().reshape(len(tensor), -1)
        return flat.T if self.transposed else flat


def find_layers(predictor: Predictor) -> tuple[Layer, ...]:
    """Return every matrix of a model: tower by tower, from input to output, and the head."""
    ends, weights = set(_ends(predictor.clip)), weights_of(predictor)
    return tuple(
        Layer(name, group, name in ends)
        for name, group in groups_of(predictor).items()
        if weights[name].ndim >= 2
    )


def weights_of(predictor: Predictor) -> dict[str, Tensor]:
    """Return the live parameters by the names that layers have, also those that are no matrices."""
    found: dict[str, Tensor] = dict(predictor.clip.named_parameters())
    if predictor.head is not None:
        found |= {f"head.{name}": tensor for name, tensor in predictor.head.named_parameters()}
    return found


def blocks_of(predictor: Predictor, tower: Tower) -> tuple[str, ...]:
    """Return the paths of a tower's blocks; the four stages of a ResNet; none of other towers."""
    try:
        return find_blocks(predictor.clip, tower)
    except SurgeryError:
        names = {name for name, _ in predictor.clip.named_modules()}
        return _STAGES if tower == "image" and names.issuperset(_STAGES) else ()


def groups_of(predictor: Predictor) -> dict[str, str]:
    """Return where in the model every parameter is, for tables of a dozen lines, not hundreds.

    From input to output, the image tower first.
    """
    blocks = {
        f"{path}.": f"{tower} block {number}"
        for tower in TOWERS
        for number, path in enumerate(blocks_of(predictor, tower))
    }
    found = {name: _group(name, blocks) for name in weights_of(predictor)}
    order = [
        group
        for tower in TOWERS
        for group in (f"{tower} input", *blocks.values(), f"{tower} output")
        if group.startswith(tower)
    ]
    order += ["head", "scale"]
    return dict(sorted(found.items(), key=lambda item: order.index(item[1])))


def _group(name: str, blocks: Mapping[str, str]) -> str:
    if name.startswith("head."):
        return "head"
    if name in ("logit_scale", "logit_bias"):
        return "scale"
    for path, group in blocks.items():
        if name.startswith(path):
            return group
    tower = "image" if name.startswith("visual.") else "text"
    last = any(part in name for part in _LAST) and "embed" not in name
    return f"{tower} {'output' if last else 'input'}"


@torch.no_grad()
def feed(
    predictor: Predictor,
    layers: Collection[Layer],
    take: Take,
    images: Iterable[Tensor],
    prompts: Tensor | None = None,
) -> None:
    """Send images and texts through a model and hand on what comes into its layers.

    Every row counts once: every token of an image, and those tokens of a text that its embedding
    depends on. Layers that the model does not apply to rows, such as tables of embeddings, are
    never heard of; nor are, in towers that use the weights of a layer without calling it, these.

    Args:
        predictor: In evaluation mode and without added modules.
        layers: Those that are wanted.
        take: Called for every layer and batch.
        images: Normalised batches (B, 3, H, W).
        prompts: Token ids (N, L); None to leave the text tower out.
    """
    wanted = {layer.name for layer in layers}
    with _listening(predictor.clip, wanted, take), _without_ends(predictor.clip) as ends:
        for batch in images:
            _embed(predictor, batch, ends, wanted, take)
        if prompts is not None and any(layer.group.startswith("text") for layer in layers):
            for texts in same_lengths(predictor, prompts):
                rows = towers.encode_text(predictor.clip, texts)
                _hand_on(ends, "text_projection", rows, wanted, take)


def same_lengths(predictor: Predictor, prompts: Tensor, rows: int = 256) -> Iterator[Tensor]:
    """Yield texts (n, l) in groups without padding, in the order of their lengths."""
    lengths = towers.lengths(predictor.clip, prompts)
    for length in sorted(set(lengths.tolist())):
        for part in torch.split(prompts[lengths == length][:, :length], rows):
            yield part.to(predictor.device)


def _embed(
    predictor: Predictor, batch: Tensor, ends: Mapping[str, Tensor], wanted: set[str], take: Take
) -> None:
    features = towers.encode_image(predictor.clip, batch.to(predictor.device))
    _hand_on(ends, "proj", features, wanted, take)
    if "head.weight" in wanted:
        projection = next((end for name, end in ends.items() if name.endswith(".proj")), None)
        take("head.weight", towers.unit(features if projection is None else features @ projection))


def _hand_on(
    ends: Mapping[str, Tensor], leaf: str, rows: Tensor, wanted: set[str], take: Take
) -> None:
    """What a tower returns without its last projection is what comes into that projection."""
    for name in ends:
        if name.rpartition(".")[2] == leaf and name in wanted:
            take(name, rows)


def _ends(clip: nn.Module) -> list[str]:
    """Return the names of the projections that are bare parameters (in, out)."""
    found = ("visual.proj", "text_projection", "text.text_projection")
    parameters = dict(clip.named_parameters())
    return [name for name in found if name in parameters]


@contextmanager
def _without_ends(clip: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Let towers end before their last projections, and yield these by their names."""
    parameters = dict(clip.named_parameters())
    kept = {name: parameters[name].data for name in _ends(clip)}
    for name, tensor in kept.items():
        parameters[name].data = torch.eye(len(tensor), dtype=tensor.dtype, device=tensor.device)
    try:
        yield kept
    finally:
        for name, tensor in kept.items():
            parameters[name].data = tensor


@contextmanager
def _listening(clip: nn.Module, wanted: set[str], take: Take) -> Iterator[None]:
    """Hear what comes into linear layers, convolutions and attention."""
    handles = []
    for path, module in clip.named_modules():
        prefix = f"{path}." if path else ""
        own = wanted & {f"{prefix}{leaf}" for leaf in ("weight", "in_proj_weight")}
        if isinstance(module, nn.MultiheadAttention) and (
            own or f"{prefix}out_proj.weight" in wanted
        ):
            hook = _attention_hook(prefix, wanted, take)
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        elif own and isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(_linear_hook(own.pop(), take)))
        elif own and isinstance(module, nn.Conv2d) and module.groups == 1:
            handles.append(module.register_forward_pre_hook(_patch_hook(own.pop(), take)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _linear_hook(name: str, take: Take) -> Callable[[nn.Module, Any], None]:
    def hear(_: nn.Module, args: Any) -> None:
        take(name, _rows(args[0]))

    return hear


def _patch_hook(name: str, take: Take) -> Callable[[nn.Module, Any], None]:
    def hear(module: nn.Module, args: Any) -> None:
        assert isinstance(module, nn.Conv2d)
        padded = functional.pad(args[0], module._reversed_padding_repeated_twice)
        patches = functional.unfold(
            padded,
            module.kernel_size,
            module.dilation,
            0,
            module.stride,
        )
        take(name, _rows(patches.transpose(1, 2)))

    return hear


def _attention_hook(prefix: str, wanted: set[str], take: Take) -> Callable[..., None]:
    """Hear attention, whose last layer torch applies without calling it."""
    busy = False

    def hear(module: nn.Module, args: Any, kwargs: Any, _output: Any) -> None:
        nonlocal busy
        assert isinstance(module, nn.MultiheadAttention)
        if busy:  # our own second call, below
            return
        if f"{prefix}in_proj_weight" in wanted:
            sources = [
                *args[:3],
                *(kwargs[key] for key in ("query", "key", "value") if key in kwargs),
            ]
            for source in {id(each): each for each in sources}.values():
                take(f"{prefix}in_proj_weight", _rows(source))
        if f"{prefix}out_proj.weight" in wanted:
            last = module.out_proj
            same = {"out_proj.weight": torch.eye(len(last.weight)).to(last.weight)}
            if last.bias is not None:
                same["out_proj.bias"] = torch.zeros_like(last.bias)
            busy = True
            try:
                heads = functional_call(module, same, args, kwargs)[0]
            finally:
                busy = False
            take(f"{prefix}out_proj.weight", _rows(heads))

    return hear


def _rows(x: Tensor) -> Tensor:
    """Return activations (..., d) as rows (n, d)."""
    return x.detach().flatten(0, -2)
