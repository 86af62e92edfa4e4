"""Pre-train perdure-tiny: a small CLIP on EmojiShift's covered drawings and their captions.

    OMP_NUM_THREADS=1 python -m benchmarks.pretrain_tiny --seed 0 --out DIR

One process, one thread, a fixed number of steps, so that a seed means one set of weights on one
kind of processor. The shipped checkpoint is seed 0; seed 1 is made the same way and checks that a
result does not hang on one pre-training run. `docs/benchmark.md` says what the model has seen.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from perdure.data.captions import DRAWS, caption
from perdure.data.render import CANVAS, CORRUPTIONS, PRESET_NAMES, Scenes, render
from perdure.data.sprites import CONCEPTS, VOCABULARY, covered

STEPS = 3000
LOCAL_BATCH, LOCAL_BATCHES = 96, 2
FRESH = 64
SLOTS = 80
LEARNING_RATE, WARMUP = 3e-3, 50
MIX = {"pre": 0.3, "id": 0.2, "clean": 0.15, "paper": 0.25, "hard": 0.1}
EASY_UNTIL, HALF_EASY_UNTIL = 0.2, 0.35
CORRUPTED, PAIRED = 0.15, 0.1
CONTEXT = 20
MEAN, STD = 0.5, 0.28


def model_config(vocabulary_size: int) -> dict[str, Any]:
    """Return perdure-tiny's open_clip configuration."""
    return {
        "model_cfg": {
            "embed_dim": 96,
            "vision_cfg": {
                "image_size": CANVAS,
                "layers": 5,
                "width": 96,
                "head_width": 32,
                "patch_size": 8,
                "pool_type": "avg",
                "pos_embed_type": "sin_cos_2d",
                "no_ln_pre": True,
            },
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": vocabulary_size,
                "width": 64,
                "heads": 2,
                "layers": 2,
            },
        },
        "preprocess_cfg": {
            "size": CANVAS,
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "interpolation": "bicubic",
        },
        "perdure": {"vocabulary": "emojishift", "context_length": CONTEXT},
    }


class Replay:
    """The last `SLOTS` renders of every concept with their captions."""

    def __init__(self, seed: int, tokenizer: Any) -> None:
        """Start empty; `refresh` fills it."""
        self.rng = np.random.default_rng(seed)
        self.seed, self.tokenizer, self.made = seed, tokenizer, 0
        self.images = torch.zeros(len(CONCEPTS), SLOTS, 3, CANVAS, CANVAS, dtype=torch.uint8)
        self.tokens = torch.zeros(len(CONCEPTS), SLOTS, CONTEXT, dtype=torch.long)
        self.counts = np.zeros(len(CONCEPTS), dtype=np.int64)
        self.vendors = [np.nonzero(column)[0] for column in covered().T]

    def refresh(self, concepts: NDArray[np.int64], progress: float) -> None:
        """Render one new image for each of `concepts`, as hard as `progress` in [0, 1] asks."""
        count, rng = len(concepts), self.rng
        vendors = np.array([rng.choice(self.vendors[concept]) for concept in concepts])
        mix = [PRESET_NAMES.index(name) for name in MIX]
        presets = rng.choice(mix, count, p=list(MIX.values()))
        easy = 1.0 if progress < EASY_UNTIL else 0.5 if progress < HALF_EASY_UNTIL else 0.0
        presets[rng.random(count) < easy] = PRESET_NAMES.index("easy")
        seconds = np.full(count, -1)
        corruptions = np.full(count, -1)
        if progress >= HALF_EASY_UNTIL:
            for row in np.nonzero(rng.random(count) < PAIRED)[0]:
                # A pair shows two covered drawings by one artist.
                seconds[row] = rng.choice(np.nonzero(covered()[vendors[row]])[0])
            damaged = rng.random(count) < CORRUPTED
            corruptions[damaged] = rng.integers(0, len(CORRUPTIONS), int(damaged.sum()))
        keys = [((self.seed + 1) << 96) + self.made + row for row in range(count)]
        self.made += count
        rendered = render(Scenes(keys, vendors, concepts, presets, seconds, corruptions))
        draws = rng.random((count, DRAWS))
        texts = [
            caption(
                draws[row],
                int(concepts[row]),
                int(vendors[row]),
                rendered.colours[row] if corruptions[row] < 0 else None,
                int(seconds[row]) if seconds[row] >= 0 else None,
            )
            for row in range(count)
        ]
        tokens = self.tokenizer(texts)
        for row, concept in enumerate(concepts):
            slot = self.counts[concept] % SLOTS
            self.images[concept, slot] = rendered.images[row]
            self.tokens[concept, slot] = tokens[row]
            self.counts[concept] += 1

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return a batch of distinct concepts, so that no negative is false."""
        concepts = self.rng.permutation(len(CONCEPTS))[:LOCAL_BATCH]
        slots = self.rng.integers(0, np.minimum(self.counts[concepts], SLOTS))
        images = self.images[concepts, slots].float() / 255
        return (images - MEAN) / STD, self.tokens[concepts, slots]


def make_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks and AdamW for everything else."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            block = "resblocks" in name and parameter.ndim == 2
            (matrices if block else rest).append(parameter)
    return [
        torch.optim.Muon(
            matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def loss_of(model: nn.Module, images: Tensor, tokens: Tensor) -> Tensor:
    """Return the symmetric contrastive loss of one local batch."""
    image_features, text_features, scale = model(images, tokens)[:3]
    logits = scale * image_features @ text_features.T
    target = torch.arange(len(logits))
    return (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    ) / 2


def pretrain(seed: int, steps: int, out: Path) -> None:
    """Train from scratch and write an open_clip folder with float16 weights."""
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    torch.manual_seed(seed)
    tokenizer = SimpleTokenizer(str(VOCABULARY), context_length=CONTEXT)
    config = model_config(tokenizer.vocab_size)
    parts = config["model_cfg"]
    model = CLIP(parts["embed_dim"], parts["vision_cfg"], parts["text_cfg"])
    optimizers = make_optimizers(model)
    replay = Replay(seed, tokenizer)
    for _ in range(4):
        replay.refresh(np.arange(len(CONCEPTS)), 0.0)
    start, running = time.time(), 0.0
    for step in range(steps):
        replay.refresh(replay.rng.integers(0, len(CONCEPTS), FRESH), step / steps)
        factor = min((step + 1) / WARMUP, (steps - step) / (steps - WARMUP))
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * factor
        for _ in range(LOCAL_BATCHES):
            loss = loss_of(model, *replay.batch()) / LOCAL_BATCHES
            loss.backward()  # type: ignore[no-untyped-call]
            running += float(loss.detach())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        if (step + 1) % 50 == 0:
            rate = (step + 1) / (time.time() - start)
            left = (steps - step - 1) / rate / 60
            print(
                f"step {step + 1}/{steps} loss {running / 50:.3f} {left:.1f} min left", flush=True
            )
            running = 0.0
    out.mkdir(parents=True, exist_ok=True)
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    print(f"wrote {out}: {sum(p.numel() for p in model.parameters())} parameters, seed {seed}")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pretrain(arguments.seed, arguments.steps, arguments.out)


if __name__ == "__main__":
    main()
