"""The published codes' way to compute a training step, rebuilt so that it costs what theirs does.

Written from what the papers and public descriptions say is computed, not from their code: texts of
full length, a softmax per term, one small operation per tensor for optimiser and average, an
average that is taken outside `no_grad` through three temporaries per tensor, and statistics of
teacher and student that are read from the device in every step.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from perdure.batch import Batch
from perdure.predictor import Predictor
from perdure.zoo import random_clip

BATCH, IMAGE, CONTEXT, VOCABULARY = 32, 128, 77, 8192
OFFICIAL = {"flyp": (119.39, 3884), "tracer": (159.54, 5673)}
"""GFLOP and operators of the published codes at this shape, counted with the same counters"""

Action = Callable[[], object]
Embedded = tuple[Tensor, Tensor, Tensor]
"""Rows of images and of texts, and the scale"""


class Operators(TorchDispatchMode):
    """Counts operators, and those among them that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Count one operator and run it."""
        self.total += 1
        self.waits += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def counted(action: Action) -> tuple[float, int, int]:
    """Return GFLOP, operators and waits of one call."""
    action()
    with FlopCounterMode(display=False) as flops:
        action()
    with Operators() as operators:
        action()
    return flops.get_total_flops() / 1e9, operators.total, operators.waits


def shape(vocabulary: int = VOCABULARY) -> Predictor:
    """Return a CLIP of 10.9 M parameters whose towers have the 2:1 proportion of a ViT-B/32."""
    predictor = random_clip(
        embed_dim=256,
        vision_cfg={
            "layers": 8, "width": 256, "head_width": 64, "patch_size": 16, "image_size": IMAGE,
        },
        text_cfg={
            "layers": 6, "width": 192, "heads": 3, "context_length": CONTEXT,
            "vocab_size": vocabulary,
        },
    )  # fmt: skip
    return predictor.train()


def inputs() -> Batch:
    """Return images and captions of 8 to 20 tokens, padded to the context."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(BATCH, CONTEXT, dtype=torch.long)
    for row, length in enumerate(torch.randint(8, 21, (BATCH,), generator=generator).tolist()):
        tokens[row, : length - 1] = torch.randint(1, 8000, (length - 1,), generator=generator)
        tokens[row, length - 1] = VOCABULARY - 1
    images = torch.randn(BATCH, 3, IMAGE, IMAGE, generator=generator)
    return Batch(images, tokens, torch.arange(BATCH))


def published(clip: Any, batch: Batch, tracer: bool) -> Action:
    """Return a training step in the published codes' manner."""
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-5, weight_decay=0.1, foreach=False)
    teacher = copy.deepcopy(clip).eval() if tracer else None

    def step() -> None:
        optimizer.zero_grad()
        student = _embed(clip, batch)
        loss = contrastive(*student)
        if teacher is not None:
            loss = loss + 0.05 * (clip.visual.proj @ clip.text_projection.T).norm()
            with torch.no_grad():
                target = _embed(teacher, batch)
                step_statistics(student, target)
            terms = distillation(student, target)
            distilled = 2000 * terms[0] + terms[1] + terms[2] + terms[3]
            for term in (*terms, distilled, loss):
                term.item()
            loss = loss + 0.9 * distilled
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if teacher is not None:
            _average(teacher, clip)
        loss.item()

    return step


def contrastive(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Two products and two cross-entropies."""
    target = torch.arange(len(image))
    rows, columns = scale * image @ text.T, scale * text @ image.T
    return (functional.cross_entropy(rows, target) + functional.cross_entropy(columns, target)) / 2


def distillation(student: Embedded, teacher: Embedded) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, relations, contrast with the teacher's keys, and crossed relations.

    Each from the features again.
    """
    (v, u, s), (w, t, r) = student, teacher
    v, u, w, t = (functional.normalize(x, dim=-1) for x in (v, u, w, t))
    feature = functional.mse_loss(v, w) + functional.mse_loss(u, t)
    relational = _divergence(s * v @ u.T, r * w @ t.T) + _divergence(s * u @ v.T, r * t @ w.T)
    target = torch.arange(len(v))
    keyed = functional.cross_entropy(s * v @ t.T, target)
    keyed = (keyed + functional.cross_entropy(s * u @ w.T, target)) / 2
    crossed = _divergence(s * v @ t.T, r * w @ t.T) + _divergence(s * u @ w.T, r * t @ w.T)
    return feature, relational / 2, keyed, crossed / 2


def step_statistics(student: Embedded, teacher: Embedded) -> dict[str, float]:
    """Read eleven statistics of both directions, the overlap of the first five row by row."""
    (v, u, s), (w, t, r) = student, teacher
    own = (s * v @ u.T, s * u @ v.T)
    other = (r * w @ t.T, r * t @ w.T)
    found: dict[str, float] = {}
    for way, mine, theirs in zip(("image", "text"), own, other, strict=True):
        p, q = mine.softmax(1), theirs.softmax(1)
        target = torch.arange(len(p))
        entropy = float(-(q * (q + 1e-8).log()).sum(1).mean())
        found[f"entropy {way}"] = entropy
        found[f"temperature {way}"] = math.log(len(p)) / entropy
        found[f"confidence {way}"] = q.max(1).values.mean().item()
        found[f"agreement {way}"] = (p.argmax(1) == q.argmax(1)).float().mean().item()
        found[f"divergence {way}"] = (
            (q * ((q + 1e-8).log() - (p + 1e-8).log())).sum(1).mean().item()
        )
        for name, share in (("student", p), ("teacher", q)):
            found[f"{name} accuracy {way}"] = (share.argmax(1) == target).float().mean().item()
            found[f"{name} probability {way}"] = share.diagonal().mean().item()
        ordered = q.sort(1, descending=True).values
        gini = (ordered * (2 * ordered.cumsum(1) - ordered - 1)).sum(1)
        found[f"diversity {way}"] = (1 - gini).mean().item()
        first, second = mine.topk(5).indices, theirs.topk(5).indices
        same = 0
        for row in range(len(p)):
            same += len({*first[row].cpu().tolist()} & {*second[row].cpu().tolist()})
        found[f"first five {way}"] = same / (5 * len(p))
    return found


def _embed(clip: Any, batch: Batch) -> Embedded:
    """Embed with open_clip's own text path, over the whole context."""
    image = functional.normalize(clip.encode_image(batch.images), dim=-1)
    text = functional.normalize(clip.encode_text(batch.tokens), dim=-1)
    return image, text, clip.logit_scale.exp()


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """A log-softmax and a softmax of its own."""
    return functional.kl_div(
        student.log_softmax(1), teacher.softmax(1), reduction="batchmean", log_target=False
    )


def _average(teacher: nn.Module, student: nn.Module, share: float = 0.01) -> None:
    """Three temporaries per tensor, of live parameters, under autograd."""
    for mean, new in zip(teacher.parameters(), student.parameters(), strict=True):
        mean.data = ((mean + share * new) / (1 + share)).data
