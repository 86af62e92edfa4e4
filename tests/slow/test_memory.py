"""Data of any size are read in memory that does not grow, measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.layouts import shard

pytestmark = pytest.mark.slow

ROWS = 200_000
PICTURES = 200
SIDE = 96
BATCH, BATCHES = 50, 140
"""Pictures of an epoch's part: decoded they would take 194 MB"""

CODE = """
import json, sys
from pathlib import Path
from perdure.data.datasets import open_dataset
from perdure.data.loading import Loader
from perdure.zoo import random_clip

name, root, keeps, batch, batches = sys.argv[1:]


def memory(kind):  # of this process, in bytes: VmHWM is the peak, VmRSS what it has now
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


clip = random_clip(0)
open_dataset("emojishift", "val", shots=1).image(0)  # whatever is imported on first use
before = memory("VmHWM")
data = open_dataset(name, "train", Path(root))
if keeps == "yes":
    kept, read = [], type(data).image
    type(data).image = lambda self, index: kept.append(read(self, index)) or kept[-1]
loader = Loader(
    data, clip.preprocess, clip.tokenizer, ("{}",), batch_size=int(batch), seed=0, trim=clip.trim
)
opened = memory("VmHWM")
steps = loader.batches(0, int(batches))
for _ in range(20):
    next(steps)
warm = most = memory("VmRSS")  # below the peak of opening, which would hide what grows
seen = 0
for one in steps:
    seen += len(one.labels)
    most = max(most, memory("VmRSS"))
found = {"rows": len(data), "index": opened - before, "grown": most - warm, "seen": seen}
print(json.dumps(found))
"""


def measure(name: str, root: Path, *, keeps: bool = False) -> dict[str, int]:
    """Open data in a new process, read batches, and return bytes: of the index, and of reading."""
    arguments = [name, str(root), "yes" if keeps else "no", str(BATCH), str(BATCHES)]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    assert found["seen"] == BATCH * (BATCHES - 20)
    print(name, keeps, found, f"{found['index'] / found['rows']:.0f} bytes a row")
    return found


def pictures(root: Path) -> list[bytes]:
    """Write pictures that differ, and return their contents."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    contents = []
    for number in range(PICTURES):
        coarse = rng.integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
        file = root / f"images/{number:06d}.jpg"
        Image.fromarray(coarse).resize((SIDE, SIDE)).save(file)
        contents.append(file.read_bytes())
    return contents


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table of 200,000 rows with a caption each, as long as those of the web."""
    root = tmp_path_factory.mktemp("table")
    pictures(root)
    with (root / "train.csv").open("w") as stream:
        stream.write("filepath,caption\n")
        for row in range(ROWS):
            picture = f"images/{row % PICTURES:06d}.jpg"
            stream.write(f"{picture},a cat {row}\n")
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return fifty shards of 400 pictures."""
    root = tmp_path_factory.mktemp("shards")
    contents = pictures(root / "made")
    for number in range(50):
        samples = [
            {"jpg": contents[row % PICTURES], "txt": f"thing {number} {row} on grass".encode()}
            for row in range(400)
        ]
        shard(root / f"{number:05d}.tar", samples, 400 * number)
    return root


def test_a_table_of_two_hundred_thousand_rows(table: Path) -> None:
    found = measure("own", table)
    assert found["rows"] == ROWS
    assert found["index"] < 800 * ROWS  # rows, texts and token ids; a picture is 27,648 bytes
    assert found["grown"] < 8_000_000


def test_fifty_shards(shards: Path) -> None:
    found = measure("wds", shards)
    assert found["rows"] == 20_000
    assert found["index"] < 800 * 20_000
    assert found["grown"] < 8_000_000


def test_the_measure_notices_pictures_that_are_kept(shards: Path) -> None:
    found = measure("wds", shards, keeps=True)
    assert found["grown"] > BATCH * (BATCHES - 20) * 3 * SIDE**2 // 2
