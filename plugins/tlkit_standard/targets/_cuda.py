"""The little of CUDA that running an engine takes, through NVIDIA's own bindings: the GPU, memory, a stream."""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.errors import ResourceError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

INSTALL = 'run: pip install "cuda-bindings"'


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU that is used: its name, and its compute capability as in 8.9."""

    name: str
    capability: str


def runtime() -> Any:
    """CUDA's runtime library; a ResourceError where its bindings are not installed."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise ResourceError("to run engines needs NVIDIA's Python bindings of CUDA", do=INSTALL) from error


def checked(cuda: Any, result: tuple[Any, ...]) -> Any:
    """What a call returned beside its status; a ResourceError says what went wrong."""
    status, *values = result
    if status != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(status)
        raise ResourceError(f"CUDA: {text.decode() if isinstance(text, bytes) else text}", do="see: tlkit doctor")
    return values[0] if len(values) == 1 else values


def gpu() -> Gpu:
    """The first GPU; a ResourceError where there is none."""
    cuda = runtime()
    try:
        count = checked(cuda, cuda.cudaGetDeviceCount())
    except ResourceError as error:
        raise ResourceError(f"there is no NVIDIA GPU that can be used here ({error.what})", do=error.do) from error
    if not count:
        raise ResourceError("there is no NVIDIA GPU here", do="see: tlkit doctor")
    facts = checked(cuda, cuda.cudaGetDeviceProperties(0))
    name = facts.name.decode() if isinstance(facts.name, bytes) else facts.name
    return Gpu(name, f"{facts.major}.{facts.minor}")


class Buffer:
    """Room for one tensor on the GPU, and as much in pinned memory, which copies at full speed."""

    def __init__(self, cuda: Any, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._cuda = cuda
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.device: int = checked(cuda, cuda.cudaMalloc(size))
        self._pinned: int = checked(cuda, cuda.cudaMallocHost(size))
        content = memoryview((ctypes.c_byte * size).from_address(self._pinned))
        self.host: NDArray[Any] = np.frombuffer(content, dtype).reshape(shape)

    def send(self, array: NDArray[Any], stream: Any) -> None:
        """Begin to copy an array to the GPU."""
        self.host[: len(array)] = array
        self._copy(self.device, self._pinned, array.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def fetch(self, rows: int, stream: Any) -> None:
        """Begin to copy so many rows back."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(self._pinned, self.device, self.host[:rows].nbytes, kind, stream)

    def _copy(self, to: int, source: int, size: int, kind: Any, stream: Any) -> None:
        checked(self._cuda, self._cuda.cudaMemcpyAsync(to, source, size, kind, stream))

    def free(self) -> None:
        """Give the memory back."""
        self._cuda.cudaFree(self.device)
        self._cuda.cudaFreeHost(self._pinned)
