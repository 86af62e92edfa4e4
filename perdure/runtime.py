"""Where and how a run is computed: device, threads, precision and processes.

The only user of `torch.distributed`, besides the gathering of rows in `collective`.
"""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from .collective import gather
from .errors import RunError
from .learner import Learner
from .processes import world_size

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Runtime:
    """One process of a run. Started by torchrun it joins the others; alone it is the whole run.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" or "mps".
        precision: Of the forward pass; weights stay fp32.
        threads: Of torch in this process; None for `default_threads()`.

    Raises:
        RunError: If the device does not exist on this machine.
    """

    def __init__(
        self, device: str = "auto", precision: Precision = "fp32", threads: int | None = None
    ) -> None:
        self.world_size = world_size()
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = _find_device(device)
        self.precision = precision
        self.threads = threads or default_threads()
        torch.set_num_threads(self.threads)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self._owns_group = self.world_size > 1 and not distributed.is_initialized()
        if self._owns_group:
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def close(self) -> None:
        """Leave the group of processes, if this object joined it."""
        if self._owns_group:
            distributed.destroy_process_group()
            self._owns_group = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def describe(self) -> str:
        """Return one line for people."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        processes = f" in each of {self.world_size} processes" if self.world_size > 1 else ""
        return f"{self.device}, {self.precision}, {threads}{processes}"

    def prepare(self, learner: Learner) -> nn.Module:
        """Return what to call in the place of a learner that is already on `device`.

        With several processes the whole learner is wrapped, never its model: losses computed
        around a wrapped model get wrong gradients without any error.
        """
        if self.world_size == 1:
            return learner
        devices = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # Newer versions of torch have another name for broadcast_buffers, which older lack.
            warnings.simplefilter("ignore", FutureWarning)
            # Buffers are equal on every process already, because every update of them is.
            return DistributedDataParallel(learner, device_ids=devices, broadcast_buffers=False)

    def unwrap(self, module: nn.Module) -> Learner:
        """Return the learner inside what `prepare` returned."""
        inner = module.module if isinstance(module, DistributedDataParallel) else module
        assert isinstance(inner, Learner)
        return inner

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the forward pass."""
        return torch.autocast(
            self.device.type, _DTYPES[self.precision], enabled=self.precision != "fp32"
        )

    def backward(self, loss: Tensor, optimizer: Optimizer) -> None:
        """Compute the gradients of `loss`, unscaled, as clipping and logging need them."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> bool:
        """Take the optimiser step; false if fp16 gradients overflowed and nothing was changed."""
        if not self._scaler.is_enabled():
            optimizer.step()
            return True
        before = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        return self._scaler.get_scale() >= before

    def scaler_state(self) -> dict[str, Any]:
        """Return what fp16 must remember over an interruption; empty for other precisions."""
        return self._scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Go on from `scaler_state`."""
        if state:
            self._scaler.load_state_dict(state)

    def seed(self, seed: int, step: int) -> None:
        """Make torch's random numbers a function of (seed, step, process).

        Nothing random then needs saving, and a resumed run draws what the first would have drawn.
        """
        key = np.random.SeedSequence((seed, step, self.rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(key[0]))

    def total(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        if self.world_size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared)
        return float(shared)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            distributed.barrier()

    def to_host(self, rows: Tensor) -> NDArray[Any]:
        """Return the rows of all processes, in the order of processes, on the host.

        Args:
            rows: (n, ...), where n may differ between processes.
        """
        host: NDArray[Any] = gather(rows.detach()).cpu().numpy()
        return host


def default_threads() -> int:
    """Return the number of threads of one process where nobody asked for a number.

    What OMP_NUM_THREADS says, which is 1 under torchrun; else the physical cores of this machine
    that the process may use. Hyper-threads and the threads of a second process cost more than
    they bring: two threads on a busy machine were 5 to 10 times slower than one.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    if world_size() > 1:
        return 1
    return physical_cores()


def physical_cores(cpuinfo: Path = Path("/proc/cpuinfo")) -> int:
    """Return the physical cores this process may run on, at least 1.

    Where the system does not tell (it does on Linux), the logical cores.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    logical = len(allowed) if allowed else os.cpu_count() or 1
    try:
        blocks = cpuinfo.read_text(encoding="utf-8").strip().split("\n\n")
    except OSError:
        return logical
    cores = set()
    for block in blocks:
        pairs = (line.partition(":") for line in block.splitlines())
        values = {key.strip(): value.strip() for key, _, value in pairs}
        if "core id" in values and (allowed is None or int(values["processor"]) in allowed):
            cores.add((values.get("physical id"), values["core id"]))
    return len(cores) or logical


def _find_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
    except RuntimeError:  # not even a name; its text lists kinds that nobody has
        device = torch.device("meta")
    missing = device.type not in ("cpu", "cuda", "mps")
    missing |= device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    missing |= device.type == "mps" and not torch.backends.mps.is_available()
    if missing:
        raise RunError(
            f"the device is {name!r}, but this machine has no such device that perdure uses "
            f"({torch.cuda.device_count()} CUDA devices seen); use 'auto' or 'cpu'."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
