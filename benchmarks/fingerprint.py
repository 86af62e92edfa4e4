"""Write the fingerprint of EmojiShift's pixels that the tests compare with.

    python -m benchmarks.fingerprint

Run only together with a new `VERSION` of the world: every published number hangs on it.
"""

from pathlib import Path

import numpy as np
import torch

from perdure.data.emoji_domains import SPLITS
from perdure.data.emojishift import open_emojishift

OUT = Path("tests/golden/emojishift_world.npz")


def main() -> None:
    """Store each split's mean colour and a dozen of its images."""
    torch.set_num_threads(1)
    rows = np.linspace(0, 1199, 12).astype(np.int64)
    arrays = {"rows": rows}
    for split in SPLITS:
        images = open_emojishift(split).images
        arrays[f"{split}__mean"] = images.float().mean((0, 2, 3)).numpy()
        arrays[f"{split}__sample"] = images[torch.from_numpy(rows)].numpy()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT, **arrays)  # type: ignore[arg-type]
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
