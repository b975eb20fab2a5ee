"""What the loop runs on: device, number format, compilation, and the processes that share the work.

Under `torchrun` each process learns from its share of every batch, and PyTorch's DistributedDataParallel sums the
gradients; the statistics of batch norm are those of the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tlkit.errors import ResourceError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """What a user may choose of it. `auto` is a GPU where there is one, with bf16 where it has that, else fp32."""

    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    tf32: bool = False  # whether a GPU may round the factors of fp32 products to 10 bits


def place() -> tuple[int, int]:
    """This process's number, from 0, among those that torchrun started, and how many there are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Device:
    """A device, the format of products, and this process's place among those that share the work."""

    def __init__(self, choice: DeviceOptions | None = None) -> None:
        choice = choice or DeviceOptions("cpu", "fp32")
        self.rank, self.world_size = place()
        self.device = _device(choice.device)
        self.format = _format(choice.precision, self.device)
        self.compiles = choice.compile
        self.parts = 1  # in which a batch is learnt from, one after the other; more when memory runs out
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.format == torch.float16)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = choice.tf32

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes and is listened to."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which a network runs."""
        if self.format == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.format)

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor on the device."""
        return tensor.to(self.device, non_blocking=True)

    def prepare(self, learning: nn.Module) -> nn.Module:
        """What learns, as it is called in training: compiled, and with gradients summed over all processes."""
        if self.world_size > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            # Buffers are the same anyway: each process sees the statistics of the whole batch.
            learning = DistributedDataParallel(learning, device_ids=ids, broadcast_buffers=False)
        if self.compiles:
            learning.compile()
        return learning

    def share(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], float]:
        """This process's part of a batch, and what to multiply its mean loss with, so that all together give the mean.

        A process for which nothing is left computes along with one image that counts nothing.
        """
        mine = rows[self.rank :: self.world_size]
        return (mine, self.world_size * len(mine) / len(rows)) if len(mine) else (rows[:1], 0.0)

    def summed(self, values: Sequence[float]) -> list[float]:
        """Each value, summed over all processes."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return [float(value) for value in tensor]

    def barrier(self) -> None:
        """Until all processes are here."""
        if self.world_size > 1:
            distributed.barrier()

    def retried(self, step: Callable[[int], Any], batch: int) -> Any:
        """`step(parts)`, again in twice as many parts whenever the memory does not suffice for it."""
        while True:
            try:
                return step(self.parts)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if self.parts >= batch or self.world_size > 1:
                    what = f"not enough memory to learn from {max(1, batch // self.parts)} image(s) at once"
                    raise ResourceError(what, do="take a smaller batch, a smaller network or fewer stages") from error
                self.parts *= 2
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()


def _is_out_of_memory(error: RuntimeError) -> bool:
    """PyTorch has a class of its own for a GPU's memory only."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _device(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError("PyTorch sees no NVIDIA GPU here", do="take --device cpu, or install PyTorch for CUDA")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _format(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bf16 else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise UsageError("training with fp16 needs a GPU", do="take --precision bf16 or fp32")
    return FORMATS[name]


@contextmanager
def processes(machine: Device) -> Iterator[None]:
    """Bring the processes that torchrun has started together, and part them again."""
    if machine.world_size == 1:
        yield
        return
    distributed.init_process_group("nccl" if machine.device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()
