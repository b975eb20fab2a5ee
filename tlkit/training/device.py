"""Device, mixed precision, compilation, and the processes that share a training.

Under `torchrun` each process trains on its share of every batch, and PyTorch's DistributedDataParallel sums the
gradients; batch norm uses the statistics of the whole batch.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tlkit.errors import ResourceError, UsageError
from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import Phase
from tlkit.training.freezing import Network, Prepare
from tlkit.training.gradients import fast_gradients
from tlkit.util.resources import keep_freed_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
UNREAD_STEPS = 16  # of a GPU, which works on while the results of so many steps are not read
KEPT = 2**28  # bytes of inputs that stay in memory
PROBE_BATCH_SIZE, PROBE_STEPS = 4, 2  # of the training whose time is said in advance


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """Device and mixed-precision dtype; `auto` is a GPU if there is one, with bf16 if it supports that, else fp32."""

    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    tf32: bool = False  # whether a GPU may round the factors of fp32 products to 10 bits


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank, from 0, among those that torchrun started, and their number."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Device:
    """A device with its mixed-precision dtype, and this process's rank among those that share the training."""

    def __init__(self, options: DeviceOptions | None = None) -> None:
        options = options or DeviceOptions("cpu", "fp32")
        self.rank, self.world_size = rank_and_world_size()
        self.torch_device = _torch_device(options.device)
        self.type = self.torch_device.type
        self.dtype = _dtype(options.precision, self.torch_device)
        self.compile, self.tf32 = options.compile, options.tf32 and self.type == "cuda"
        self.fixed_shapes = self.type == "cuda" or self.compile  # each new one takes seconds there
        self.crops = self.type == "cuda"  # whether images are cropped there
        self.unread_steps = UNREAD_STEPS if self.type == "cuda" else 1
        self.micro_batches = 1  # per batch, one after the other; doubled when memory runs out
        self.scaler = torch.amp.GradScaler(self.type, enabled=self.dtype == torch.float16)
        if self.type == "cuda":
            torch.cuda.set_device(self.torch_device)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
            torch.backends.cudnn.deterministic = True

    @property
    def is_main_process(self) -> bool:
        """True for the process that writes files and reports progress."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which a network runs."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.type, self.dtype)

    def room(self) -> int:
        """Return the bytes of inputs that may stay on the device."""
        return torch.cuda.mem_get_info(self.torch_device)[0] // 4 if self.type == "cuda" else KEPT

    def put(self, tensor: Tensor) -> Tensor:
        if self.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()  # or the copy would wait for the GPU
        return tensor.to(self.torch_device, non_blocking=True)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return a model for training: compiled, and with gradients summed over all processes."""
        if self.world_size > 1:
            ids = [self.torch_device] if self.type == "cuda" else None
            # Buffers are equal anyway: each process sees the statistics of the whole batch.
            model = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
        if self.compile:
            torch.compiler.reset()  # else what earlier phases compiled counts, and after eight this one would be eager
            # Not as CUDA graphs (mode="reduce-overhead"): gradients would lie in their memory, where those of a batch
            # that memory splits are overwritten by its next part, or refused (pytorch issue 169545).
            model.compile()
        return model

    def shard(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], float]:
        """Return this process's part of a batch, and the factor of its mean loss that makes the sum the batch's mean.

        A process without a part computes one image with factor 0.
        """
        own = rows[self.rank :: self.world_size]
        return (own, self.world_size * len(own) / len(rows)) if len(own) else (rows[:1], 0.0)

    def all_sum(self, values: Tensor) -> Tensor:
        """Return each value summed over all processes."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            distributed.barrier()

    def within_memory(self, step: Callable[[int], Any], batch_size: int) -> Any:
        """Return `step(micro_batches)`, with twice as many whenever memory runs out.

        Raises a ResourceError if a single image does not fit.
        """
        while True:
            try:
                return step(self.micro_batches)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if self.micro_batches >= batch_size or self.world_size > 1:
                    size = max(1, batch_size // self.micro_batches)
                    what = f"not enough memory to train on {size} image(s) at once"
                    do = "use a smaller batch size, a smaller network or fewer trainable stages"
                    raise ResourceError(what, do=do) from error
                self.micro_batches *= 2
            if self.type == "cuda":  # the error, which held the memory of the step, is gone
                torch.cuda.empty_cache()

    @contextmanager
    def process_group(self) -> Iterator[None]:
        """Connect the processes that torchrun started for as long as the context lasts."""
        if self.world_size == 1:
            yield
            return
        # Others wait while the main process fills a cache, NCCL for ten minutes by default.
        distributed.init_process_group("nccl" if self.type == "cuda" else "gloo", timeout=timedelta(days=7))
        try:
            yield
        finally:
            distributed.destroy_process_group()


def _is_out_of_memory(error: RuntimeError) -> bool:
    """PyTorch has an exception class for a GPU's memory only."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _torch_device(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError("PyTorch sees no NVIDIA GPU here", do="use --device cpu, or install PyTorch for CUDA")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bf16 else torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("training with fp16 needs a GPU", do="use --precision bf16 or fp32")
    return DTYPES[precision]


def seconds_per_image(trunk: Trunk, phase: Phase, prepare: Prepare) -> tuple[float, float, float, bool]:
    """Return the seconds per image that a CPU takes to train a phase of a strategy, without decoding.

    Minimum and maximum of a few steps, after one that reserves memory, of as many black images as in training;
    those of the frozen stages before them; and True if there are such stages, whose output may be cached. A copy of the
    trunk is trained.
    """
    size, width, count = trunk.preprocessing.size, trunk.width, min(phase.batch_size, PROBE_BATCH_SIZE)
    network = Network(nn.Linear(width, 2), copy.deepcopy(trunk))
    assert network.trunk is not None  # noqa: S101 - it was given
    prepare(dict(network.trunk.stages.items()))
    frozen, model, in_eval, first = network.split([phase])
    model.train()
    for module in in_eval:
        module.eval()
    images = torch.zeros(count, size, size, 3, dtype=torch.uint8)
    labels = torch.zeros(count, dtype=torch.int64)

    def before() -> Tensor:
        with torch.no_grad():
            output: Tensor = frozen(images)
        return output

    def step() -> None:
        loss: Tensor = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    with keep_freed_memory(), fast_gradients(torch.device("cpu"), network.trunk.pool):
        inputs = before()
        below = min(_seconds(before) for _ in range(2)) if first else 0.0
        step()
        steps = [_seconds(step) for _ in range(PROBE_STEPS)]
    return min(steps) / count, max(steps) / count, below / count, first > 0


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
