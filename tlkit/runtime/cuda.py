"""NVIDIA's CUDA bindings, as far as running a network needs them: the GPU, buffers, a stream, and graph capture.

Everything that computes on a GPU here (an engine, ONNX Runtime) does so between the copies of a `Channel`.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tlkit.errors import ResourceError, TlkitError

INSTALL = 'run: pip install "cuda-bindings"'
DRIVER = Path("/proc/driver/nvidia/version")  # of Linux
Plan = Callable[[int], Callable[[], None]]  # number of rows -> the work on the stream that computes them


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU in use: its name, its compute capability, such as 8.9, and the version of its driver if known."""

    name: str
    capability: str
    driver: str = ""


def runtime() -> Any:
    """Return CUDA's runtime library. Raises ResourceError if its bindings are not installed."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise ResourceError("running on a GPU needs NVIDIA's Python bindings of CUDA", do=INSTALL) from error


def checked(cuda: Any, result: tuple[Any, ...]) -> Any:
    """Return the values of a call without its status. Raises ResourceError if it failed."""
    status, *values = result
    if status != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(status)
        raise ResourceError(f"CUDA: {text.decode() if isinstance(text, bytes) else text}", do="see: tlkit doctor")
    return values[0] if len(values) == 1 else values


def gpu() -> Gpu:
    """Return the first GPU. Raises ResourceError if there is none."""
    cuda = runtime()
    try:
        count = checked(cuda, cuda.cudaGetDeviceCount())
    except ResourceError as error:
        raise ResourceError(f"there is no NVIDIA GPU that can be used here ({error.what})", do=error.do) from error
    if not count:
        raise ResourceError("there is no NVIDIA GPU here", do="see: tlkit doctor")
    facts = checked(cuda, cuda.cudaGetDeviceProperties(0))
    name = facts.name.decode() if isinstance(facts.name, bytes) else facts.name
    return Gpu(name, f"{facts.major}.{facts.minor}", _driver())


def _driver() -> str:
    try:
        return DRIVER.read_text("utf-8").partition("\n")[0]
    except OSError:
        return ""


class Buffer:
    """Memory for one tensor on the GPU, and as much pinned memory, which copies at full speed."""

    def __init__(self, cuda: Any, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._cuda = cuda
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.device: int = checked(cuda, cuda.cudaMalloc(size))
        self._pinned: int = checked(cuda, cuda.cudaMallocHost(size))
        content = memoryview((ctypes.c_byte * size).from_address(self._pinned))
        self.host: NDArray[Any] = np.frombuffer(content, dtype).reshape(shape)

    def send(self, array: NDArray[Any], stream: Any) -> None:
        """Start copying an array to the GPU."""
        rows = self.host[: len(array)]
        rows[:] = array
        self._copy(self.device, self._pinned, rows.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def fetch(self, rows: int, stream: Any) -> None:
        """Start copying so many rows back."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(self._pinned, self.device, self.host[:rows].nbytes, kind, stream)

    def _copy(self, to: int, source: int, size: int, kind: Any, stream: Any) -> None:
        checked(self._cuda, self._cuda.cudaMemcpyAsync(to, source, size, kind, stream))

    def free(self) -> None:
        """Release the memory."""
        self._cuda.cudaFree(self.device)
        self._cuda.cudaFreeHost(self._pinned)


class Channel:
    """A stream to the GPU, and a persistent buffer for each tensor. One call at a time uses them."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._lock = threading.Lock()
        # Not ordered with CUDA's default stream: its use by other threads would fail while a graph is captured.
        self._copying = self.stream = checked(cuda, cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self._turn = threading.Lock()  # to use `stream`
        self.buffers: dict[str, Buffer] = {}
        self.seconds = 0.0  # that the last `run` took on the GPU, from its copy on
        self._events = [checked(cuda, cuda.cudaEventCreate()) for _ in range(3)]

    def beside(self) -> Channel:
        """Return another channel, which computes on this one's stream, and copies to the GPU on its own."""
        other = Channel(self._cuda)
        other.stream, other._turn = self.stream, self._turn
        return other

    def allocate(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        """Allocate the buffer of a tensor; the first axis of `shape` is the number of rows that fit."""
        self.buffers[name] = Buffer(self._cuda, shape, dtype)
        return self.buffers[name]

    def run(self, name: str, array: NDArray[Any], outputs: Sequence[str], plan: Plan) -> dict[str, NDArray[np.float32]]:
        """Return the outputs for the input tensor `name`, row by row; what exceeds its buffer runs in parts."""
        size = len(self.buffers[name].host)
        with self._lock:
            self.seconds = 0.0
            parts = [
                self._call(name, array[start : start + size], outputs, plan) for start in range(0, len(array), size)
            ]
        return {output: np.concatenate([part[output] for part in parts]) for output in outputs}

    def _call(
        self, name: str, array: NDArray[Any], outputs: Sequence[str], plan: Plan
    ) -> dict[str, NDArray[np.float32]]:
        """Copy, compute and copy back; wait once, at the end."""
        cuda, (start, sent, end) = self._cuda, self._events
        checked(cuda, cuda.cudaEventRecord(start, self._copying))
        self.buffers[name].send(array, self._copying)
        checked(cuda, cuda.cudaEventRecord(sent, self._copying))
        with self._turn:
            compute = plan(len(array))
            checked(cuda, cuda.cudaStreamWaitEvent(self.stream, sent, 0))
            compute()
            for output in outputs:
                self.buffers[output].fetch(len(array), self.stream)
            checked(cuda, cuda.cudaEventRecord(end, self.stream))
        checked(cuda, cuda.cudaEventSynchronize(end))
        self.seconds += float(checked(cuda, cuda.cudaEventElapsedTime(start, end))) / 1000
        return {output: self.buffers[output].host[: len(array)].astype(np.float32) for output in outputs}

    def close(self) -> None:
        """Release the buffers and the stream."""
        for buffer in self.buffers.values():
            buffer.free()
        self.buffers.clear()
        for event in self._events:
            self._cuda.cudaEventDestroy(event)
        if self._events:
            self._cuda.cudaStreamDestroy(self._copying)
        self._events = []


class CapturedGraph:
    """Repeated work on a stream, captured as a CUDA graph at its second call and launched from then on.

    A network is some hundred kernels, and launching each takes longer than many of them run. The first call is not
    captured because libraries still allocate in it. Work that can't be captured is done as it is.
    """

    def __init__(self, cuda: Any, stream: Any, work: Callable[[], None]) -> None:
        self._cuda, self._stream, self._work = cuda, stream, work
        self._calls = 0
        self._graph: Any = None

    def __call__(self) -> None:
        self._calls += 1
        if self._calls == 2:
            self._graph = self._capture()
        if self._graph is None:
            self._work()
        else:
            checked(self._cuda, self._cuda.cudaGraphLaunch(self._graph, self._stream))

    def _capture(self) -> Any:
        """Return the graph, ready to launch; None if the work can't be captured."""
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked(cuda, cuda.cudaStreamBeginCapture(self._stream, mode))
        try:
            try:
                self._work()
            finally:
                status, graph = cuda.cudaStreamEndCapture(self._stream)
            checked(cuda, (status,))
        except TlkitError:  # work that fails under capture may succeed without
            cuda.cudaGetLastError()  # clears the error, which later calls would report
            return None
        ready = checked(cuda, cuda.cudaGraphInstantiate(graph, 0))
        cuda.cudaGraphDestroy(graph)
        return ready

    def close(self) -> None:
        """Release the graph."""
        if self._graph is not None:
            self._cuda.cudaGraphExecDestroy(self._graph)
            self._graph = None
