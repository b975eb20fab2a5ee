"""The little of CUDA that running a network takes, through NVIDIA's own bindings: the GPU, memory, a stream, a graph.

Whatever computes on a GPU here (an engine, ONNX Runtime) does so between the copies of a `Channel`.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.errors import ResourceError, TlkitError

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
        raise ResourceError("to run on a GPU needs NVIDIA's Python bindings of CUDA", do=INSTALL) from error


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


class Channel:
    """The way to the GPU and back: a stream, and a buffer for each tensor that is allocated once and kept.

    One call at a time, which is whoever uses it has to see to.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self.stream = checked(cuda, cuda.cudaStreamCreate())
        self.buffers: dict[str, Buffer] = {}
        self.seconds = 0.0  # that the last call took, by the clock of the GPU
        self._begin, self._end = (checked(cuda, cuda.cudaEventCreate()) for _ in range(2))

    def room(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        """Allocate the buffer of a tensor."""
        self.buffers[name] = Buffer(self._cuda, shape, dtype)
        return self.buffers[name]

    def call(
        self, name: str, array: NDArray[Any], wanted: Sequence[str], compute: Callable[[], None]
    ) -> dict[str, NDArray[np.float32]]:
        """Copy the tensor `name` there, `compute` on the stream, and copy what is wanted back, row for row."""
        cuda = self._cuda
        checked(cuda, cuda.cudaEventRecord(self._begin, self.stream))
        self.buffers[name].send(array, self.stream)
        compute()
        for output in wanted:
            self.buffers[output].fetch(len(array), self.stream)
        checked(cuda, cuda.cudaEventRecord(self._end, self.stream))
        checked(cuda, cuda.cudaStreamSynchronize(self.stream))
        self.seconds = float(checked(cuda, cuda.cudaEventElapsedTime(self._begin, self._end))) / 1000
        return {output: self.buffers[output].host[: len(array)].astype(np.float32) for output in wanted}

    def close(self) -> None:
        """Give everything back."""
        for buffer in self.buffers.values():
            buffer.free()
        self.buffers.clear()
        for event in (self._begin, self._end):
            self._cuda.cudaEventDestroy(event)
        self._cuda.cudaStreamDestroy(self.stream)


class Replayed:
    """Work on a stream that is always the same, as a CUDA graph: recorded once, then begun as a whole.

    A network is some hundred kernels, and to begin each takes longer than many of them run. The first call is not
    recorded, as libraries still allocate in it. What can't be recorded is done as it was.
    """

    def __init__(self, cuda: Any, stream: Any, work: Callable[[], None]) -> None:
        self._cuda, self._stream, self._work = cuda, stream, work
        self._calls = 0
        self._graph: Any = None

    def __call__(self) -> None:
        self._calls += 1
        if self._calls == 2:
            self._graph = self._record()
        if self._graph is None:
            self._work()
        else:
            checked(self._cuda, self._cuda.cudaGraphLaunch(self._graph, self._stream))

    def _record(self) -> Any:
        """The graph, ready to run; None where the work can't be recorded."""
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked(cuda, cuda.cudaStreamBeginCapture(self._stream, mode))
        try:
            self._work()
        except TlkitError:  # that it fails here says nothing of how it fares without being recorded
            cuda.cudaStreamEndCapture(self._stream)
            cuda.cudaGetLastError()  # takes the error away, which later calls would report
            return None
        status, graph = cuda.cudaStreamEndCapture(self._stream)
        if status != cuda.cudaError_t.cudaSuccess:
            cuda.cudaGetLastError()
            return None
        ready = checked(cuda, cuda.cudaGraphInstantiate(graph, 0))
        cuda.cudaGraphDestroy(graph)
        return ready

    def close(self) -> None:
        """Give the graph back."""
        if self._graph is not None:
            self._cuda.cudaGraphExecDestroy(self._graph)
            self._graph = None
