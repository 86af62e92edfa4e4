"""Gathering rows: identity in one process, exact gradients in two."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from perdure import collective
from perdure.batch import Pairs

# Each process embeds its own rows, uneven on purpose, and computes the loss of all of them.
WORKER = """
import sys
import torch
import torch.distributed as dist
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel
from perdure import collective, losses
from perdure.batch import Pairs

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)


class Learner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = torch.nn.Linear(6, 4, dtype=torch.float64)
        self.text = torch.nn.Linear(5, 4, dtype=torch.float64)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, images, texts, labels):
        image, text = normalize(self.image(images), dim=1), normalize(self.text(texts), dim=1)
        pairs = collective.gather_pairs(Pairs(image, text, self.logit_scale.exp()))
        assert torch.equal(collective.gather_labels(labels), torch.arange(8))
        return losses.info_nce(pairs) + losses.orthogonality(self.image.weight)


generator = torch.Generator().manual_seed(1)
images = torch.randn(8, 6, dtype=torch.float64, generator=generator)
texts = torch.randn(8, 5, dtype=torch.float64, generator=generator)
labels = torch.arange(8)
mine = slice(0, 3) if rank == 0 else slice(3, 8)
learner = Learner()
wrapper = DistributedDataParallel(learner)
wrapper(images[mine], texts[mine], labels[mine]).backward()
dist.destroy_process_group()
alone = Learner()
alone(images, texts, labels).backward()
for name, parameter in alone.named_parameters():
    found = learner.get_parameter(name).grad
    torch.testing.assert_close(found, parameter.grad, rtol=1e-12, atol=1e-12)
print("equal")
"""


def test_identity_in_one_process():
    pairs = Pairs(torch.randn(3, 2), torch.randn(3, 2), torch.tensor(1.0))
    labels = torch.arange(3)
    assert collective.gather(pairs.image) is pairs.image
    assert collective.gather_pairs(pairs) is pairs
    assert collective.gather_labels(labels) is labels


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_gathering_keeps_rows_and_gradients(monkeypatch):
    monkeypatch.setattr(collective, "_several", lambda: True)
    image = torch.randn(3, 2, requires_grad=True)
    text, scale = torch.randn(3, 2), torch.tensor(1.0, requires_grad=True)
    pairs = collective.gather_pairs(Pairs(image, text, scale))
    assert torch.equal(pairs.image, image)
    assert torch.equal(pairs.text, text)
    assert pairs.scale is scale
    factor = torch.arange(6.0).reshape(3, 2)
    (pairs.image * factor).sum().backward()
    assert torch.equal(image.grad, factor)
    assert torch.equal(collective.gather_labels(torch.arange(4)), torch.arange(4))


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path):
    command = [sys.executable, "-c", WORKER]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
        assert out.strip().endswith("equal")
